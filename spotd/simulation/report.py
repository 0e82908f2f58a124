"""What replays came to, as a table and as JSON: time, steps, money."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from spotd.simulation.replay import best, daly, young

if TYPE_CHECKING:
    from spotd.simulation.replay import Job, Outcome
    from spotd.simulation.trace import Trace


@dataclass(frozen=True, slots=True)
class Prices:
    """Dollars per hour; None where not known."""

    spot: float | None = None
    on_demand: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One trace, one job, several policies; `sweep` are spotd's outcomes, by interval."""

    trace: Trace
    job: Job
    prices: Prices
    sweep: tuple[Outcome, ...]
    naive: Outcome

    @property
    def best(self) -> Outcome:
        """The interval with the most steps that count."""
        return best(self.sweep)


def cost_of(outcome: Outcome, prices: Prices) -> dict[str, float | None]:
    """Returns dollars: paid on Spot, the same work on demand, saved."""
    paid = None if prices.spot is None else outcome.up_seconds / 3600 * prices.spot
    same = None if prices.on_demand is None else outcome.useful_seconds / 3600 * prices.on_demand
    saved = None if paid is None or same is None else same - paid
    return {"spot": paid, "on_demand": same, "saved": saved}


def as_json(report: Report) -> dict[str, Any]:
    """Returns everything as plain values; times in seconds."""
    trace, job = report.trace, report.job
    return {
        "trace": {
            "name": trace.name,
            "seconds": trace.seconds,
            "up_seconds": trace.up_seconds,
            "interruptions": trace.interruptions,
            "seconds_between": trace.seconds_between,
        },
        "outcomes": [_outcome(o, report) for o in (*report.sweep, report.naive)],
        "best_interval": report.best.interval,
        "young_interval": young(job.save_seconds, trace.seconds_between),
        "daly_interval": daly(job.save_seconds, trace.seconds_between),
    }


def _outcome(outcome: Outcome, report: Report) -> dict[str, Any]:
    return {
        "policy": outcome.policy,
        "interval": outcome.interval,
        "seconds": outcome.seconds,
        "up_seconds": outcome.up_seconds,
        "useful_steps": outcome.useful_steps,
        "lost_steps": outcome.lost_steps,
        "goodput": outcome.goodput,
        "interruptions": outcome.interruptions,
        "met": outcome.met,
        "missed": outcome.missed,
        "starts": outcome.starts,
        "window_seconds": {
            "median": median(outcome.window) if outcome.window else None,
            "longest": max(outcome.window, default=None),
        },
        "cost": cost_of(outcome, report.prices),
        "decisions": outcome.decisions,
    }


def as_text(report: Report) -> str:
    """Returns the table and what it says, for people."""
    trace, job, chosen = report.trace, report.job, report.best
    head = (
        f"{trace.name}: {duration(trace.seconds)}, {duration(trace.up_seconds)} of them with an "
        f"instance, {trace.interruptions} interruptions (one in {duration(trace.seconds_between)})"
    )
    titles = ("policy", "save every", "goodput", "useful steps", "lost steps", "met", "missed",
              "window", "cost", "saved")  # fmt: skip
    rows = [titles, *(_row(o, report) for o in (*report.sweep, report.naive))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    table = ["  ".join(map(_aligned, row, widths, range(len(row)))).rstrip() for row in rows]
    gained = chosen.useful_seconds - report.naive.useful_seconds
    more = "more" if gained >= 0 else "less"
    theory = [duration(f(job.save_seconds, trace.seconds_between)) for f in (young, daly)]
    first = (
        f"best: save every {duration(chosen.interval)} (Young says {theory[0]}, Daly {theory[1]}: "
        "they reckon without a notice)"
    )
    second = (
        f"spotd trains {duration(abs(gained))} {more} than saving every "
        f"{duration(report.naive.interval)} without a handler, in the same time on the instance"
    )
    return "\n".join([head, "", *table, "", first, second])


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def _row(outcome: Outcome, report: Report) -> tuple[str, ...]:
    cost = cost_of(outcome, report.prices)
    return (
        outcome.policy + (" *" if outcome is report.best else ""),
        duration(outcome.interval),
        f"{100 * outcome.goodput:.1f} %",
        str(outcome.useful_steps),
        str(outcome.lost_steps),
        str(outcome.met),
        str(outcome.missed),
        f"{median(outcome.window):.0f} s" if outcome.window else "-",
        _dollars(cost["spot"]),
        _dollars(cost["saved"]),
    )


def _dollars(amount: float | None) -> str:
    return "-" if amount is None else f"${amount:,.2f}"


def duration(seconds: float) -> str:
    """Returns a duration people read: 45 s, 12 min, 2 h 10 min, 3 d 4 h."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    left = round(seconds)
    words = []
    for unit, size in units:
        count, left = divmod(left, size)
        if count:
            words.append(f"{count} {unit}")
    return " ".join(words[:2]) or "0 s"
