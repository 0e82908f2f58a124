"""`spotd cost`: what the run has cost, over all its instances."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from spotd.bill.parts import PARTS
from spotd.cli.common import add_options, print_json, settings_of, table
from spotd.core.status import age, rfc3339
from spotd.errors import EXIT_DONE, EXIT_UNAVAILABLE

if TYPE_CHECKING:
    import argparse

    from spotd.bill.parts import Interruption
    from spotd.bill.reckoning import Bill, Prices, Range

UNKNOWN = "unknown"
_HOURS_FROM = 7200  # seconds
_CLOSE = 0.005  # dollars: ends of a range that are printed the same


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("cost", help="paid, on-demand equivalent, saved, lost work")
    add_options(p)
    p.add_argument(
        "--offline", action="store_true", help="ask no API for prices: the configuration's only"
    )


def run(options: argparse.Namespace) -> int:
    """Prints the bill of the run."""
    from spotd.bill.bill import bill_of  # noqa: PLC0415 - boto3, perhaps

    settings = settings_of(options)
    found = bill_of(settings, offline=options.offline)
    if options.json:
        print_json(as_json(settings.run, found.bill, found.prices, found.trouble))
    elif found.bill is None:
        print(f"nothing is known of run {settings.run} yet: no boot of it is on record")
    else:
        print(render(settings.run, found.bill, found.prices))
    if found.trouble and not options.json:
        print(f"the store does not answer, so other machines are missing: {found.trouble}",
              file=sys.stderr)  # fmt: skip
    return EXIT_UNAVAILABLE if found.trouble else EXIT_DONE


def render(run: str, bill: Bill, prices: Prices) -> str:
    """Returns the bill as text."""
    day = "%Y-%m-%d %H:%M"
    first, last = (time.strftime(day, time.localtime(t)) for t in (bill.first, bill.last))
    until = "now" if bill.running else last
    what = f"{_many(bill.boots, 'boot')} on {_many(bill.instances, 'instance')}"
    lines = [f"run {run}: {what}, {first} to {until}", ""]
    rows = [
        ("up", f"{duration(bill.up)}, {hours(bill.trained)} of it training"),
        ("paid", _paid(bill, prices)),
    ]
    if bill.credit.high is not None and bill.credit.high >= _CLOSE:
        rows.append(("", f"less {dollars(bill.credit)} for first hours that EC2 does not bill"))
    rows.append(("on demand", _with_source(bill.on_demand, prices.on_demand_source)))
    rows.append(("saved", _saved(bill)))
    if bill.off.high is None or bill.off.high > 0:
        text = f"{_with_source(bill.disk, prices.disk_source)} while stopped for"
        rows.append(("disk", f"{text} {duration(bill.off)}"))
    seconds = UNKNOWN if bill.lost_seconds is None else age(bill.lost_seconds)
    rows.append(("repeated", f"{steps_lost(bill)} steps, {seconds} of training"))
    lines += [f"{name:>10}  {text}" for name, text in rows]
    if bill.interruptions:
        lines += ["", _interruptions(bill)]
    if prices.why_not:
        lines += ["", *(f"not looked up: {reason}" for reason in prices.why_not)]
    return "\n".join(lines)


def _paid(bill: Bill, prices: Prices) -> str:
    if bill.paid is None:
        return f"{UNKNOWN}: no Spot price is known (cost.spot_price gives one)"
    text = _with_source(bill.paid, prices.spot_source)
    if bill.unpriced:
        text += f", and {UNKNOWN} for {hours(bill.unpriced)} without a known price"
    return text


def _saved(bill: Bill) -> str:
    saved, plain = savings(bill), bill.on_demand
    if saved is None or plain is None:
        return UNKNOWN
    share = ""
    if plain.low > 0 and plain.high is not None and saved.high is not None:
        ends = sorted((100 * saved.low / plain.low, 100 * saved.high / plain.high))
        low, high = (f"{end:.0f}" for end in ends)
        share = f", {low} %" if low == high else f", {low} to {high} %"
    return f"{dollars(saved)}{share} of the same hours on demand"


def savings(bill: Bill) -> Range | None:
    """On demand less paid, as a range; None when either is not known throughout.

    Both are of the same hours, so the low ends go together, and so do the high ones; the
    credit alone may be in one of them and not in the other.
    """
    from spotd.bill.reckoning import Range  # noqa: PLC0415

    if bill.paid is None or bill.on_demand is None or bill.unpriced:
        return None
    perhaps = (bill.credit.high or 0.0) - bill.credit.low
    low = bill.on_demand.low - bill.paid.low - perhaps
    if bill.paid.high is None or bill.on_demand.high is None:
        return Range(low, None)
    high = bill.on_demand.high - bill.paid.high + perhaps
    return Range(min(low, high), max(low, high))


def _interruptions(bill: Bill) -> str:
    rows: list[tuple[str, ...]] = [
        ("INTERRUPTION", "ACTION", "SAVE", "STORE", "OFF", "BOOT", "RESTORE", "FIRST STEP", "LOST")
    ]
    for i in bill.interruptions:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(i.at))
        parts = (_seconds(getattr(i, part)) for part in PARTS)
        rows.append((when, i.action or "no notice", *parts, lost_in(i)))
    return table(rows)


def lost_in(i: Interruption) -> str:
    """What one interruption made to be trained again; steps where they are known."""
    if not i.known_end:
        return "-"
    if i.lost_steps:
        return f"{i.lost_steps} steps"
    if i.lost_seconds is not None and i.lost_seconds >= 1:
        return age(i.lost_seconds)
    return "nothing" if i.action or i.lost_seconds is not None else UNKNOWN


def steps_lost(bill: Bill) -> str:
    """Steps trained again; how far a trainer was when a machine vanished may not be known."""
    least = any(not i.action and not i.lost_steps for i in bill.interruptions)
    return f"{bill.lost_steps} or more" if least else str(bill.lost_steps)


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} s" if value < 10 else age(value)  # noqa: PLR2004 - where tenths matter


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def hours(seconds: float) -> str:
    """A duration for people; hours, which is what is paid for, from two of them on."""
    return age(seconds) if seconds < _HOURS_FROM else f"{seconds / 3600:,.1f} h"


def duration(span: Range) -> str:
    """A range of seconds for people."""
    if span.high is None:
        return f"{hours(span.low)} or more"
    low, high = hours(span.low), hours(span.high)
    return low if low == high else f"{low} to {high}"


def dollars(amount: Range | None) -> str:
    """A range of dollars for people."""
    if amount is None:
        return UNKNOWN
    if amount.high is None:
        return f"${amount.low:.2f} or more"
    if abs(amount.high - amount.low) < _CLOSE:
        return f"${amount.low:.2f}"
    return f"${amount.low:.2f} to ${amount.high:.2f}"


def _with_source(amount: Range | None, source: str) -> str:
    if amount is None or not source:
        return dollars(amount)
    return f"{dollars(amount)} (by {source})"


def as_json(run: str, bill: Bill | None, prices: Prices, trouble: str) -> dict[str, Any]:
    """Returns the bill as plain values; null where something is not known."""
    if bill is None:
        return {"run": run, "boots": 0, "store": trouble}
    saved = savings(bill)
    return {
        "run": run,
        **asdict(bill),
        "first": rfc3339(bill.first),
        "last": rfc3339(bill.last),
        "saved": None if saved is None else asdict(saved),
        "interruptions": [{**asdict(i), "at": rfc3339(i.at)} for i in bill.interruptions],
        "currency": "USD",
        "sources": {
            "spot": prices.spot_source, "on_demand": prices.on_demand_source,
            "disk": prices.disk_source,
        },
        "not_looked_up": list(prices.why_not),
        "store": trouble,
    }  # fmt: skip
