"""The records of a run's boots: of this machine, and of every other from the store."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from spotd.core.ledger import FOLDER, LARGEST, BootRecord, is_record_name, parse
from spotd.errors import SpotdError
from spotd.shell.observing.books import read_books
from spotd.shell.store.protocol import NotFound, ObjectStore, StoreProblem
from spotd.shell.store.settings import StoreSettings, open_store
from spotd.shell.store.transfer import Lanes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spotd.config import Settings

MOST = 3000  # records read from the store; the newest names of an instance come last


def gather(settings: Settings) -> tuple[list[BootRecord], SpotdError | None]:
    """Returns what is known of the run's boots, and what kept the store from saying more.

    A record that both have is taken from whoever saw more of the boot.
    """
    local = read_books(settings.paths.state / settings.run / "ledger", settings.run)
    stored: list[BootRecord] = []
    trouble = None
    try:
        stored = from_store(settings)
    except SpotdError as error:
        trouble = error
    return merge([*local, *stored]), trouble


def merge(records: Iterable[BootRecord]) -> list[BootRecord]:
    """One record a boot, the fullest, ordered by when they began."""
    found: dict[tuple[str, str], BootRecord] = {}
    for record in records:
        key = (record.instance_id, record.boot_id)
        if key not in found or record.seen > found[key].seen:
            found[key] = record
    return sorted(found.values(), key=lambda r: (r.booted, r.seen))


def from_store(settings: Settings) -> list[BootRecord]:
    """Reads the ledger in the store.

    Raises:
        SpotdError: The store does not answer.
    """
    store = open_store(StoreSettings.of(settings.store), settings.run)
    lanes = Lanes(8)
    try:
        names = [e.key.removeprefix(FOLDER) for e in store.list(FOLDER) if e.size <= LARGEST]
        wanted = [n for n in names if is_record_name(n)][-MOST:]
        found = lanes.each(partial(_read, store, settings.run, name) for name in wanted)
        return [record for record in found if record is not None]
    finally:
        lanes.close()
        store.close()


def _read(store: ObjectStore, run: str, name: str) -> BootRecord | None:
    try:
        return parse(store.get(FOLDER + name, limit=LARGEST).data, run)
    except NotFound:
        return None
    except StoreProblem as problem:
        if problem.retriable:
            raise
        return None  # too large, say: not one of ours
