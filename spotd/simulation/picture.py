"""Replays as a picture: steps over time, goodput over the interval between saves.

SVG is written by hand: a picture must not need a plotting library. PNG does, and says so.
"""

from __future__ import annotations

from html import escape
from math import log10
from typing import TYPE_CHECKING

from spotd.errors import SpotdError
from spotd.simulation.replay import daly, young
from spotd.simulation.report import duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spotd.simulation.report import Report

WIDTH, HEIGHT, LEFT, GAP = 900, 300, 80, 70  # of one of the two charts
INK, MUTED, SPOTD, NAIVE, DOWN = "#1f2430", "#6b7280", "#1f77b4", "#d9822b", "#e5e7eb"


def write(report: Report, path: Path) -> None:
    """Writes the picture; the name says in which format.

    Raises:
        SpotdError: The format is not known, the file cannot be written, or matplotlib is
            missing for PNG.
    """
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".png"):
        raise SpotdError(f"cannot draw {path.name}", hint="its name must end in .svg or .png")
    try:
        if suffix == ".svg":
            path.write_text(svg(report))
        else:
            _png(report, path)
    except OSError as error:
        raise SpotdError(f"cannot write {path}: {error.strerror}") from None


class Chart:
    """One pair of axes at `top`, with a scale on each."""

    def __init__(self, top: int, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.top = top
        self._x, self._y = x, y
        self.parts: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns where a value stands on the page."""
        (x0, x1), (y0, y1) = self._x, self._y
        across = (x - x0) / ((x1 - x0) or 1.0)
        up = (y - y0) / ((y1 - y0) or 1.0)
        return LEFT + across * WIDTH, self.top + HEIGHT - up * HEIGHT

    def line(
        self, points: Sequence[tuple[float, float]], color: str, *, dots: bool = False
    ) -> None:
        """Draws a line through values."""
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*p) for p in points))
        self.parts.append(
            f'<polyline points="{where}" fill="none" stroke="{color}" stroke-width="1.8"/>'
        )
        for x, y in (self.at(*p) for p in points if dots):
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>')

    def band(self, x0: float, x1: float) -> None:
        """Shades a stretch of time."""
        left, right = self.at(x0, 0)[0], self.at(x1, 0)[0]
        self.parts.append(
            f'<rect x="{left:.1f}" y="{self.top}" width="{max(0.4, right - left):.1f}" '
            f'height="{HEIGHT}" fill="{DOWN}"/>'
        )

    def mark(self, x: float, label: str, row: int) -> None:
        """Draws an upright line with a word at it."""
        at = self.at(x, 0)[0]
        self.parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{self.top}" y2="{self.top + HEIGHT}" '
            f'stroke="{MUTED}" stroke-dasharray="4 4"/>'
        )
        self.parts.append(text(at + 5, self.top + 15 + 15 * row, label, MUTED))

    def frame(
        self, title: str, below: Sequence[tuple[float, str]], beside: Sequence[tuple[float, str]]
    ) -> None:
        """Draws the axes and what stands at them."""
        bottom = self.top + HEIGHT
        self.parts.append(
            f'<path d="M{LEFT} {self.top} V{bottom} H{LEFT + WIDTH}" fill="none" stroke="{INK}"/>'
        )
        self.parts.append(text(LEFT, self.top - 12, title, INK, size=15))
        for x, label in below:
            self.parts.append(text(self.at(x, 0)[0], bottom + 18, label, MUTED, anchor="middle"))
        for y, label in beside:
            at = self.at(self._x[0], y)[1]
            self.parts.append(text(LEFT - 8, at + 4, label, MUTED, anchor="end"))


def text(
    x: float, y: float, words: str, color: str, *, size: int = 12, anchor: str = "start"
) -> str:
    """Returns one piece of text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" font-size="{size}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def svg(report: Report) -> str:
    """Returns the picture as SVG."""
    first = _timeline(report, top=50)
    second = _goodput(report, top=50 + HEIGHT + GAP + 20)
    height = 50 + 2 * HEIGHT + 2 * GAP + 20
    width = LEFT + WIDTH + 40
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="system-ui, sans-serif">'
    )
    page = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, page, *first.parts, *second.parts, "</svg>\n"])


def _timeline(report: Report, top: int) -> Chart:
    trace, chosen, naive = report.trace, report.best, report.naive
    most = max(1, chosen.useful_steps, naive.useful_steps)
    chart = Chart(top, (0.0, trace.seconds), (0.0, float(most)))
    before = 0.0
    for begin, end in trace.up:
        if begin > before:
            chart.band(before, begin)
        before = end
    if before < trace.seconds:
        chart.band(before, trace.seconds)
    chart.line(naive.timeline, NAIVE)
    chart.line(chosen.timeline, SPOTD)
    days = trace.seconds / 86400
    ticks = [(i * trace.seconds / 6, f"{i * days / 6:.1f} d") for i in range(7)]
    chart.frame(
        f"{trace.name}: steps over time (grey: no instance)", ticks,
        [(0.0, "0"), (most / 2, f"{most // 2}"), (float(most), f"{most}")],
    )  # fmt: skip
    chart.parts.append(
        text(LEFT + 15, top + 20, f"spotd, every {duration(chosen.interval)}", SPOTD)
    )
    label = f"no handler, every {duration(naive.interval)}"
    chart.parts.append(text(LEFT + 15, top + 38, label, NAIVE))
    return chart


def _goodput(report: Report, top: int) -> Chart:
    job, between = report.job, report.trace.seconds_between
    marks = [("Young", young(job.save_seconds, between)), ("Daly", daly(job.save_seconds, between))]
    intervals = [o.interval for o in report.sweep] + [x for _, x in marks] + [report.naive.interval]
    low = min(0.98, *(o.goodput for o in (*report.sweep, report.naive)))
    x = (log10(min(intervals) / 1.3), log10(max(intervals) * 1.3))
    chart = Chart(top, x, (low, 1.0))
    chart.line([(log10(o.interval), o.goodput) for o in report.sweep], SPOTD, dots=True)
    chart.line([(log10(report.naive.interval), report.naive.goodput)], NAIVE, dots=True)
    for row, (name, at) in enumerate(marks):
        chart.mark(log10(at), f"{name} {duration(at)}", row)
    below = [(log10(o.interval), duration(o.interval)) for o in report.sweep]
    beside = [(y, f"{100 * y:.0f} %") for y in (low, (low + 1) / 2, 1.0)]
    chart.frame("goodput over the interval between saves", below, beside)
    return chart


def _png(report: Report, path: Path) -> None:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        raise SpotdError(
            "a PNG needs matplotlib", hint="pip install 'spotd[demo]', or name the picture .svg"
        ) from None
    figure = Figure(figsize=(10, 8), layout="constrained")
    above, below = figure.subplots(2, 1)
    for outcome, color in ((report.naive, NAIVE), (report.best, SPOTD)):
        days = [at / 86400 for at, _ in outcome.timeline]
        label = f"{outcome.policy}, every {duration(outcome.interval)}"
        above.plot(days, [step for _, step in outcome.timeline], color=color, label=label)
    above.set(title=f"{report.trace.name}: steps over time", xlabel="days", ylabel="step")
    above.legend()
    below.semilogx(
        [o.interval for o in report.sweep], [o.goodput for o in report.sweep], "o-", color=SPOTD
    )
    below.plot([report.naive.interval], [report.naive.goodput], "o", color=NAIVE)
    for name, at, style in (("Young", young, "--"), ("Daly", daly, ":")):
        where = at(report.job.save_seconds, report.trace.seconds_between)
        below.axvline(where, color=MUTED, linestyle=style, label=f"{name}: {duration(where)}")
    below.set_xticks([o.interval for o in report.sweep])
    below.set_xticklabels([duration(o.interval) for o in report.sweep])
    below.minorticks_off()
    below.legend()
    below.set(
        title="goodput over the interval between saves", xlabel="save every", ylabel="goodput"
    )
    figure.savefig(path)
