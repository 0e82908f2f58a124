"""What the page shows, from this machine's disk, the store, and prices."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spotd.bill.bill import bill_of
from spotd.bill.reckoning import Prices
from spotd.errors import SpotdError
from spotd.shell import history
from spotd.shell.observing.books import read_books
from spotd.shell.observing.curve import read
from spotd.shell.store.api import list_checkpoints

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spotd.bill.reckoning import Bill
    from spotd.config import Settings
    from spotd.core.checkpoint import StoredCheckpoint
    from spotd.core.curve import Point
    from spotd.core.ledger import BootRecord

MOST_POINTS = 2000  # of the loss curve
MOST_MARKS = 500  # of checkpoints on the timeline; of more, every second, third, ...


@dataclass(frozen=True, slots=True)
class Story:
    """A run as it is known here.

    Attributes:
        now: Wall clock seconds.
        points: The loss curve, attempt after attempt.
        stored: When which checkpoint was stored, those that are deleted by now too.
        checkpoints: Those in the store.
        troubles: What is missing, and why.
    """

    run: str
    now: float
    records: tuple[BootRecord, ...] = ()
    bill: Bill | None = None
    prices: Prices = field(default_factory=Prices)
    points: tuple[Point, ...] = ()
    stored: tuple[tuple[float, str], ...] = ()
    checkpoints: tuple[StoredCheckpoint, ...] = ()
    complete: bool = False
    troubles: tuple[str, ...] = ()


def gather(settings: Settings, *, offline: bool = False) -> Story:
    """Looks at everything; what does not answer is in `troubles`."""
    own = settings.paths.state / settings.run
    found = bill_of(settings, offline=offline)
    troubles = [found.trouble] if found.trouble else []
    checkpoints: tuple[StoredCheckpoint, ...] = ()
    complete = any(r.completed is not None for r in found.records)
    try:
        listing = list_checkpoints(settings.store, settings.run)
        checkpoints, complete = listing.stored, complete or listing.completed
    except SpotdError as error:
        troubles.append(str(error))
    return Story(
        run=settings.run,
        now=time.time(),
        records=found.records,
        bill=found.bill,
        prices=found.prices,
        points=points_of(
            read(own / "curve.jsonl"), found.records, read_books(own / "ledger", settings.run)
        ),
        stored=stored_of(history.read(own / "history.jsonl"), checkpoints),
        checkpoints=tuple(sorted(checkpoints, key=lambda c: c.sequence)),
        complete=complete,
        troubles=tuple(dict.fromkeys(troubles)),
    )


def points_of(
    local: Iterable[Point], records: Iterable[BootRecord], known: Iterable[BootRecord]
) -> tuple[Point, ...]:
    """The loss curve over all machines, attempt after attempt, thinned evenly.

    Args:
        local: What this machine has kept, denser than what it sent to the store.
        records: Of every boot anywhere.
        known: Those of this machine, whose points are in `local`.
    """
    here = {(r.instance_id, r.boot_id) for r in known}
    curves = [list(local)]
    curves += [r.curve for r in records if (r.instance_id, r.boot_id) not in here]
    attempts = [
        list(points)
        for curve in curves
        for _, points in itertools.groupby(curve, key=lambda p: p.attempt)
    ]
    attempts.sort(key=lambda points: points[0].time)
    every = sum(map(len, attempts)) // MOST_POINTS + 1
    return tuple(point for points in attempts for point in (*points[:-1:every], points[-1]))


def stored_of(
    entries: Iterable[dict[str, Any]], checkpoints: Iterable[StoredCheckpoint]
) -> tuple[tuple[float, str], ...]:
    """When which checkpoint was stored: of this machine by its history, of others by theirs."""
    found = {
        str(e.get("checkpoint")): float(e["time"])
        for e in entries
        if e.get("event") == "checkpoint_stored"
    }
    for c in checkpoints:
        found.setdefault(c.id, c.created)
    moments = sorted((moment, name) for name, moment in found.items())
    return tuple(moments[:: len(moments) // MOST_MARKS + 1])
