"""Hours times prices, as ranges with honest ends.

Facts: EC2 user guide, "Billing for interrupted Spot Instances": interrupted by EC2 within
its first hour, an instance costs nothing for it (Linux). Whether a first hour begins anew
after a stop and a start is not documented: so it is in one end of the range, not the other.
The end of a boot is known only to lie between the last sign of life and what came after.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spotd.bill.parts import Interruption, carried_out, interruptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spotd.core.ledger import BootRecord

HOUR = 3600.0
MONTH = 730 * HOUR  # AWS's month, of its storage prices
SHUTDOWN = 180.0  # seconds after a notice's time within which EC2 has taken the instance


@dataclass(frozen=True, slots=True)
class Range:
    """From `low` to `high`; `high` None: it may be any more."""

    low: float
    high: float | None

    def __add__(self, other: Range) -> Range:
        high = None if self.high is None or other.high is None else self.high + other.high
        return Range(self.low + other.low, high)


NOTHING = Range(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Prices:
    """What is known of prices; dollars.

    Attributes:
        spot: (instance type, zone) to changes (since when, dollars an hour), oldest first.
        on_demand: Instance type to dollars an hour.
        disk: Dollars for a GiB and month, None: not known.
        disk_size: GiB of an instance's volumes, by its id.
        spot_source, on_demand_source, disk_source: Where from; "" where there are none.
        why_not: What could not be looked up, and what to allow.
    """

    spot: Mapping[tuple[str, str], Sequence[tuple[float, float]]] = field(default_factory=dict)
    on_demand: Mapping[str, float] = field(default_factory=dict)
    disk: float | None = None
    disk_size: Mapping[str, float] = field(default_factory=dict)
    spot_source: str = ""
    on_demand_source: str = ""
    disk_source: str = ""
    why_not: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bill:
    """Money in dollars, time in seconds; None: not known.

    `unpriced`: seconds of the low end of `up` for which no Spot price is known; `paid` is
    what is known, without them.
    """

    boots: int
    instances: int
    first: float
    last: float
    running: bool
    up: Range
    off: Range
    trained: float
    paid: Range | None
    unpriced: float
    credit: Range
    on_demand: Range | None
    disk: Range | None
    lost_steps: int
    lost_seconds: float | None
    interruptions: tuple[Interruption, ...]


def reckon(
    records: Sequence[BootRecord], prices: Prices, *, now: float, running: tuple[str, str] | None
) -> Bill:
    """Returns the bill.

    Args:
        records: At least one; of one run.
        prices: What is known.
        now: Wall clock seconds.
        running: (instance id, boot id) of the boot that goes on now, if one does.
    """
    boots = sorted(records, key=lambda b: (b.booted, b.seen))
    spans = [_span(boots, n, now, running) for n in range(len(boots))]
    paid, credit, unpriced = _paid(boots, spans, prices, now)
    found = interruptions(boots, now)
    known = [b.lost_seconds for b in boots if b.lost_seconds is not None]
    return Bill(
        boots=len(boots),
        instances=len({b.instance_id for b in boots}),
        first=boots[0].booted,
        last=max(b.seen for b in boots),
        running=running is not None and any(_is(b, running) for b in boots),
        up=_sum(spans),
        off=_sum(off for _, off in _offs(boots, spans)),
        trained=sum(b.training_seconds() for b in boots),
        paid=paid,
        unpriced=unpriced,
        credit=credit,
        on_demand=_on_demand(boots, spans, prices),
        disk=_disk(boots, spans, prices),
        lost_steps=sum(b.lost_steps for b in boots),
        lost_seconds=sum(known) if known else None,
        interruptions=tuple(found),
    )


def _is(boot: BootRecord, running: tuple[str, str] | None) -> bool:
    return running == (boot.instance_id, boot.boot_id)


def _next_of_instance(boots: Sequence[BootRecord], n: int) -> BootRecord | None:
    same = (b for b in boots[n + 1 :] if b.instance_id == boots[n].instance_id)
    return next(same, None)


def _span(
    boots: Sequence[BootRecord], n: int, now: float, running: tuple[str, str] | None
) -> Range:
    """How long the machine was up: from its boot to somewhere between two moments."""
    boot = boots[n]
    if _is(boot, running):
        return Range(now - boot.booted, now - boot.booted)
    ends = []
    following = _next_of_instance(boots, n)
    if following is not None:
        ends.append(following.booted)
    notice = carried_out(boot, boots[n + 1] if n + 1 < len(boots) else None, now)
    if notice is not None and notice.deadline is not None:
        ends.append(notice.deadline + SHUTDOWN)
    low = boot.seen - boot.booted
    high = max(low, min(ends) - boot.booted) if ends else None
    return Range(low, high)


def _offs(boots: Sequence[BootRecord], spans: Sequence[Range]) -> list[tuple[BootRecord, Range]]:
    """How long each instance was stopped before each later boot of its own."""
    found = []
    for n, boot in enumerate(boots):
        following = _next_of_instance(boots, n)
        if following is not None:
            most = max(0.0, following.booted - boot.booted - spans[n].low)
            high = spans[n].high
            least = 0.0 if high is None else max(0.0, following.booted - boot.booted - high)
            found.append((boot, Range(least, most)))
    return found


def _sum(ranges: object) -> Range:
    total = NOTHING
    for each in ranges:  # type: ignore[attr-defined]
        total += each
    return total


# --- money ---------------------------------------------------------------------------


def cost_between(changes: Sequence[tuple[float, float]], start: float, end: float) -> float | None:
    """Dollars for the time from start to end; None when its price is not known throughout."""
    if not changes or changes[0][0] > start:
        return None
    total = 0.0
    for n, (since, price) in enumerate(changes):
        until = changes[n + 1][0] if n + 1 < len(changes) else end
        held = min(until, end) - max(since, start)
        total += price * max(0.0, held) / HOUR
    return total


def _hours(span: Range, rate: float) -> Range:
    """Seconds at dollars an hour."""
    high = None if span.high is None else span.high * rate / HOUR
    return Range(span.low * rate / HOUR, high)


def _boot_cost(boot: BootRecord, span: Range, prices: Prices) -> Range | None:
    """What one boot cost, before credits."""
    if boot.life_cycle == "on-demand":
        rate = prices.on_demand.get(boot.instance_type or "", boot.on_demand_price)
        return None if rate is None else _hours(span, rate)
    changes = prices.spot.get((boot.instance_type or "", boot.zone or ""), ())
    low = cost_between(changes, boot.booted, boot.booted + span.low)
    if low is None:
        return None if boot.spot_price is None else _hours(span, boot.spot_price)
    if span.high is None:
        return Range(low, None)
    return Range(low, cost_between(changes, boot.booted, boot.booted + span.high))


def _paid(
    boots: Sequence[BootRecord], spans: Sequence[Range], prices: Prices, now: float
) -> tuple[Range | None, Range, float]:
    """Returns (paid, credit within it, seconds without a price)."""
    paid, credit, unpriced, any_known = NOTHING, NOTHING, 0.0, False
    for n, boot in enumerate(boots):
        cost = _boot_cost(boot, spans[n], prices)
        if cost is None:
            unpriced += spans[n].low
            continue
        any_known = True
        free = _credit(boots, n, spans[n], cost, now)
        credit += free
        low = max(0.0, cost.low - min(free.high or 0.0, cost.low))
        high = None if cost.high is None else cost.high - free.low
        paid += Range(low, high)
    return (paid if any_known else None), credit, unpriced


def _credit(boots: Sequence[BootRecord], n: int, span: Range, cost: Range, now: float) -> Range:
    """What EC2 does not bill for a boot: nothing, surely all of it, or perhaps."""
    boot = boots[n]
    following = boots[n + 1] if n + 1 < len(boots) else None
    taken = carried_out(boot, following, now) is not None
    if not taken or span.low >= HOUR or boot.life_cycle == "on-demand":
        return NOTHING
    own = [b for b in boots if b.instance_id == boot.instance_id]
    fresh = own[0] is boot and boot.kind in ("first", "new-instance")
    surely = fresh and span.high is not None and span.high < HOUR and cost.high is not None
    most = cost.high if cost.high is not None else cost.low
    return Range(most if surely else 0.0, most)


def _on_demand(boots: Sequence[BootRecord], spans: Sequence[Range], prices: Prices) -> Range | None:
    """The same hours on demand."""
    total = NOTHING
    for boot, span in zip(boots, spans, strict=True):
        rate = prices.on_demand.get(boot.instance_type or "", boot.on_demand_price)
        if rate is None:
            return None
        total += _hours(span, rate)
    return total


def _disk(boots: Sequence[BootRecord], spans: Sequence[Range], prices: Prices) -> Range | None:
    """Volumes cost also while the instance is stopped."""
    total = NOTHING
    for boot, off in _offs(boots, spans):
        size = prices.disk_size.get(boot.instance_id)
        if prices.disk is None or size is None:
            return None
        rate = prices.disk * size / MONTH
        total += Range(off.low * rate, None if off.high is None else off.high * rate)
    return total
