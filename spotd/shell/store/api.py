"""The store for verbs that do without the daemon: list, restore to a directory, check.

Everything here runs in the calling process and waits; what goes wrong is a SpotdError.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spotd.errors import SpotdError
from spotd.shell.owner import Owner
from spotd.shell.store.checkpoints import CheckpointStore, Listing
from spotd.shell.store.protocol import Flow, NotFound, ObjectStore, PreconditionFailed
from spotd.shell.store.restore import Restore
from spotd.shell.store.settings import StoreConfig, StoreSettings, open_store
from spotd.shell.store.transfer import PATIENCE, TINY_LANES, Lanes, lane_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.core.checkpoint import LocalCheckpoint


@dataclass(frozen=True, slots=True)
class Probe:
    """What `check` found out about a store that works.

    Attributes:
        location: The store, for people.
        seconds: For one small object, written, read and deleted.
        conditional: Conditional writes are honoured; without them a lease protects nothing.
    """

    location: str
    seconds: float
    conditional: bool


def list_checkpoints(settings: StoreConfig, run: str) -> Listing:
    """Returns what is in the store, whole, and what there is not believed.

    Raises:
        SpotdError: The store does not answer.
    """
    store = open_store(StoreSettings.of(settings), run)
    lanes = Lanes(8)
    try:
        return _checkpoints(store, run, Path()).listing(lanes)
    finally:
        lanes.close()
        store.close()


def fetch_to(
    settings: StoreConfig,
    run: str,
    checkpoint: str,
    directory: str | os.PathLike[str],
    *,
    owner: tuple[int, int] | None = None,
    report: Callable[[int, int], None] = lambda _received, _size: None,
    state: str | os.PathLike[str] | None = None,
) -> LocalCheckpoint:
    """Fetches a checkpoint into `directory`, verified; what stood there goes aside.

    Args:
        settings: `[store]`.
        run: The run's name.
        checkpoint: Its id in the store.
        directory: Made when missing.
        owner: (uid, gid) the files are given to, for root.
        report: Told (bytes arrived, size) as it goes.
        state: Directory for what a later call needs to continue; None: begun again.

    Raises:
        SpotdError: There is none, it is damaged, or it cannot be written here.
    """
    store = open_store(StoreSettings.of(settings), run, connections=lane_count())
    lanes = Lanes(lane_count(), tiny=TINY_LANES)
    with tempfile.TemporaryDirectory(prefix="spotd-fetch-") as scratch:
        home = Path(state) if state is not None else Path(scratch)
        root = -1
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
            root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            manifest = _checkpoints(store, run, home).manifest(checkpoint)
            to = Owner(*owner) if owner else None
            restore = Restore(store, lanes, Flow(), home, to, report, PATIENCE)
            return restore.into(root, manifest)
        except NotFound as error:
            raise SpotdError(
                f"{checkpoint} is not in {store.location}",
                hint="spotd checkpoints lists what is there",
            ) from error
        except OSError as error:
            raise SpotdError(f"cannot write to {directory}: {error.strerror}") from error
        finally:
            lanes.close()
            store.close()
            if root >= 0:
                os.close(root)


def probe(settings: StoreConfig, run: str) -> Probe:
    """Writes, reads, lists and deletes a small object below the run.

    Raises:
        SpotdError: One of these is not possible; it says which, and what to allow.
    """
    store = open_store(StoreSettings.of(settings), run)
    key = f"check-{secrets.token_hex(8)}"
    data = secrets.token_bytes(1024)
    started = time.monotonic()
    try:
        store.put(key, data, if_none_match=True)
        try:
            if store.get(key, limit=4096).data != data:
                raise SpotdError(f"{store.location} gives back other bytes than were written")
            if [entry.key for entry in store.list(key)] != [key]:
                raise SpotdError(f"{store.location} does not list what was written")
            conditional = _refuses(store, key, data)
        finally:
            store.delete([key])
        return Probe(store.location, time.monotonic() - started, conditional)
    finally:
        store.close()


def _refuses(store: ObjectStore, key: str, data: bytes) -> bool:
    try:
        store.put(key, data, if_none_match=True)
    except PreconditionFailed:
        return True
    return False


def _checkpoints(store: ObjectStore, run: str, state: Path) -> CheckpointStore:
    return CheckpointStore(store, run, "", 0, state)
