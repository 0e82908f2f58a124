"""Puts the bill of a run together."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spotd.bill.prices import configured_prices, look_up
from spotd.bill.reckoning import Bill, Prices, reckon
from spotd.bill.records import gather
from spotd.errors import SpotdError
from spotd.shell.boot import this_boot
from spotd.shell.control import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spotd.config import Settings
    from spotd.core.ledger import BootRecord


@dataclass(frozen=True, slots=True)
class Found:
    """`bill` None: no boot is on record. `trouble`: what kept the store from answering, or ""."""

    records: tuple[BootRecord, ...]
    bill: Bill | None
    prices: Prices = field(default_factory=Prices)
    trouble: str = ""


def bill_of(settings: Settings, *, offline: bool = False) -> Found:
    """Gathers records and prices, and reckons.

    Args:
        settings: The run's.
        offline: Ask no API for prices.
    """
    records, error = gather(settings)
    trouble = "" if error is None else str(error)
    if not records:
        return Found((), None, trouble=trouble)
    look = configured_prices if offline else look_up
    prices = look(records, settings.cost)
    running = _running(settings, records)
    bill = reckon(records, prices, now=time.time(), running=running)
    return Found(tuple(records), bill, prices, trouble)


def _running(settings: Settings, records: Sequence[BootRecord]) -> tuple[str, str] | None:
    """The boot that goes on: this machine's own, or that of the daemon that answers here."""
    boot = this_boot().id
    for record in records:
        if record.boot_id == boot:
            return record.instance_id, boot
    try:
        status = next(ask(settings.paths.runtime / "control.sock", "status"))["data"]
    except SpotdError:
        return None
    own = [r for r in records if r.instance_id == status.get("instance_id")]
    return (own[-1].instance_id, own[-1].boot_id) if own else None
