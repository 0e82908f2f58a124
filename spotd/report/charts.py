"""The pictures, as SVG: the timeline of the run, and loss (or steps) as it went.

Each is drawn twice, wide and narrow, and the page shows the one that fits: letters keep their
size on a telephone. Nothing is told by colour alone.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.bill.parts import carried_out
from spotd.core.status import age
from spotd.report.axes import Axis, round_powers, round_steps, round_times, short
from spotd.report.escaping import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from spotd.core.curve import Point
    from spotd.core.ledger import BootRecord
    from spotd.report.gather import Story

WIDE, NARROW = 960, 320  # pixels
_NARROW_TICKS = 600  # pixels below which an axis gets few ticks
ROW = 48  # pixels of an instance's row: its name, its notices, its bar
MOST_ROWS = 12  # instances with a row of their own in the timeline
_LOG_FROM = 30.0  # times the smallest loss that make an axis of exponents worth it


@dataclass(frozen=True, slots=True)
class Box:
    """Where a chart's own area is, in pixels."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def ticks(self) -> int:
        """How many labels an axis has room for."""
        return 8 if self.width > _NARROW_TICKS else 4


def figure(draw: Callable[[int], str], label: str) -> str:
    """Both widths of a picture."""
    name = escape(label)
    return "".join(
        f'<div class="{kind}" role="img" aria-label="{name}">{draw(width)}</div>'
        for kind, width in (("wide", WIDE), ("narrow", NARROW))
    )


def svg(box: Box, parts: Iterable[str]) -> str:
    """Wraps a drawing."""
    return (
        f'<svg viewBox="0 0 {box.width} {box.height}" width="{box.width}" '
        f'height="{box.height}">{"".join(parts)}</svg>'
    )


def told(shape: str, attributes: str, said: str) -> str:
    """A shape that says what it is when it is pointed at."""
    return f"<{shape} {attributes}><title>{escape(said)}</title></{shape}>"


def stamp(moment: float) -> str:
    """A moment for people, local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


# --- the timeline --------------------------------------------------------------------


def timeline(story: Story) -> str:
    """One row for each instance: when it was up, trained, was told to go; checkpoints below."""
    return figure(lambda width: _timeline(story, width), "When which instance trained")


def _timeline(story: Story, width: int) -> str:
    boots = story.records
    names = list(dict.fromkeys(b.instance_id for b in boots))[-MOST_ROWS:]
    rows = {name: n for n, name in enumerate(names)}
    box = Box(width, 60 + ROW * len(names), 12, 12, 8, 30)
    low = min(b.booted for b in boots)
    high = max([b.seen for b in boots] + [moment for moment, _ in story.stored])
    if story.bill is not None and story.bill.running:
        high = max(high, story.now)
    axis = Axis(low, max(high, low + 1), box.left, box.width - box.right)
    floor = box.height - box.bottom
    parts = [_time_grid(axis, box, floor)]
    for n, boot in enumerate(boots):
        if boot.instance_id in rows:
            following = boots[n + 1] if n + 1 < len(boots) else None
            parts.append(
                _boot(boot, following, axis, box.top + ROW * rows[boot.instance_id], story)
            )
    for name, row in rows.items():
        y = box.top + ROW * row
        parts.append(f'<text class="name" x="{box.left}" y="{y + 10}">{escape(name)}</text>')
    for moment, name in story.stored:
        if low <= moment <= high:
            place = f'class="kept" d="M{axis.at(moment)} {floor - 12}v9"'
            parts.append(told("path", place, f"{name} stored {stamp(moment)}"))
    return svg(box, parts)


def _boot(
    boot: BootRecord, following: BootRecord | None, axis: Axis, y: float, story: Story
) -> str:
    running = story.bill is not None and story.bill.running and following is None
    end = story.now if running else boot.seen
    start = axis.at(boot.booted)
    length = max(1.5, axis.at(end) - start)
    said = f"{boot.instance_id}: up {stamp(boot.booted)} to {stamp(end)}, {age(end - boot.booted)}"
    bar = f'y="{y + 27}" height="12"'
    parts = [told("rect", f'class="up" x="{start}" {bar} width="{length:.1f}"', said)]
    if boot.started is not None:
        first = axis.at(boot.started)
        length = max(1.0, axis.at(end) - first)
        place = f'class="trained" x="{first}" {bar} width="{length:.1f}"'
        parts.append(told("rect", place, f"trained {age(boot.training_seconds())}"))
    taken = carried_out(boot, following, story.now)
    for notice in boot.notices:
        how = "" if notice is taken else " (not carried out)" if notice.outcome else ""
        said = f"{notice.action} notice {stamp(notice.seen)}{how}"
        kind = "notice" if notice is taken else "false"
        place = f'class="{kind}" d="M{axis.at(notice.seen)} {y + 26}l-4.5 -8h9z"'
        parts.append(told("path", place, said))
    if following is not None and taken is None and following.kind == "power-loss":
        place = f'class="cut" d="M{axis.at(boot.seen) - 4} {y + 17}l8 8m0 -8l-8 8"'
        parts.append(told("path", place, f"down without warning after {stamp(boot.seen)}"))
    return "".join(parts)


def _time_grid(axis: Axis, box: Box, floor: float) -> str:
    parts = []
    for moment, label in round_times(axis.low, axis.high, box.ticks - 1):
        x = axis.at(moment)
        parts.append(f'<path class="grid" d="M{x} {box.top}V{floor}"/>')
        anchor = "start" if x < box.left + 24 else "end" if x > box.width - 36 else "middle"
        parts.append(
            f'<text x="{x}" y="{floor + 18}" text-anchor="{anchor}">{escape(label)}</text>'
        )
    return "".join(parts)


# --- loss ----------------------------------------------------------------------------


def loss(story: Story) -> str:
    """Loss over steps; what was trained twice is drawn apart."""
    points = [p for p in story.points if p.loss is not None]
    if len(points) < 2:  # noqa: PLR2004 - a line has two ends
        return ""
    values = [p.loss for p in points if p.loss is not None]
    return figure(lambda width: _plot(points, values, width), "Loss over steps")


def steps(story: Story) -> str:
    """Steps over time, for a trainer that reports no loss."""
    if len(story.points) < 2:  # noqa: PLR2004
        return ""
    return figure(lambda width: _steps(story.points, width), "Steps over time")


def _axes(box: Box, y: Axis) -> list[str]:
    parts = []
    for value in round_powers(y.low, y.high, 6) if y.log else round_steps(y.low, y.high, 5):
        at = y.at(value)
        parts.append(f'<path class="grid" d="M{box.left} {at}H{box.width - box.right}"/>')
        label = short(value)
        parts.append(f'<text x="{box.left - 6}" y="{at + 4}" text-anchor="end">{label}</text>')
    return parts


def _plot(points: Sequence[Point], values: Sequence[float], width: int) -> str:
    box = Box(width, 300 if width > _NARROW_TICKS else 240, 46, 14, 10, 40)
    low, high = min(values), max(values)
    log = low > 0 and high / low >= _LOG_FROM
    pad = 0.0 if log else 0.04 * (high - low or abs(high) or 1.0)
    y = Axis(low - pad, high + pad, box.height - box.bottom, box.top, log=log)
    first, last = min(p.step for p in points), max(p.step for p in points)
    x = Axis(first, max(last, first + 1), box.left, box.width - box.right)
    parts = _axes(box, y)
    for value in round_steps(x.low, x.high, box.ticks):
        at = x.at(value)
        parts.append(f'<text x="{at}" y="{box.height - 22}" text-anchor="middle">'
                     f"{short(value)}</text>")  # fmt: skip
    middle = (box.left + box.width - box.right) / 2
    parts.append(f'<text x="{middle}" y="{box.height - 6}" text-anchor="middle">step</text>')
    for kind, line in lines_of(points):
        path = " ".join(f"{x.at(p.step)},{y.at(p.loss or 0.0)}" for p in line)
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
    floor = box.height - box.bottom
    for p in resumes(points):
        said = f"attempt {p.attempt} went on at step {p.step}, {stamp(p.time)}"
        parts.append(told("path", f'class="resume" d="M{x.at(p.step)} {floor}v-9"', said))
    return svg(box, parts)


def _steps(points: Sequence[Point], width: int) -> str:
    box = Box(width, 260 if width > _NARROW_TICKS else 220, 46, 14, 10, 30)
    x = Axis(points[0].time, max(points[-1].time, points[0].time + 1), box.left,
             box.width - box.right)  # fmt: skip
    top = max(p.step for p in points)
    y = Axis(0, top or 1, box.height - box.bottom, box.top)
    parts = [_time_grid(x, box, box.height - box.bottom), *_axes(box, y)]
    for _, group in itertools.groupby(points, key=_attempt):
        path = " ".join(f"{x.at(p.time)},{y.at(p.step)}" for p in group)
        parts.append(f'<polyline class="line" points="{path}"/>')
    return svg(box, parts)


def _attempt(point: Point) -> tuple[str, int]:
    return point.boot, point.attempt


def lines_of(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """Splits the points into lines: "line" what is in the weights, "again" what was repeated."""
    attempts = [list(g) for _, g in itertools.groupby(points, key=_attempt)]
    found = []
    for n, line in enumerate(attempts):
        later = [p.step for each in attempts[n + 1 :] for p in each[:1]]
        end = min(later, default=None)
        kept = [p for p in line if end is None or p.step < end]
        again = line[max(0, len(kept) - 1) :] if end is not None and len(kept) < len(line) else []
        found += [("line", kept)] if kept else []
        found += [("again", again)] if len(again) > 1 else []
    return found


def resumes(points: Sequence[Point]) -> list[Point]:
    """The first point of each attempt but the first."""
    groups = itertools.groupby(points, key=_attempt)
    return [next(group) for _, group in groups][1:]
