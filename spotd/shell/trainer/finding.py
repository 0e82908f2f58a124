"""Finds the trainer of an earlier daemon, or what is left of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from spotd.shell.trainer import proc
from spotd.shell.trainer.record import Record, RecordStore
from spotd.shell.trainer.tree import MARKER, Tree


@dataclass(frozen=True, slots=True)
class Remains:
    """What an earlier daemon left running."""

    record: Record
    tree: Tree


def find_remains(store: RecordStore) -> Remains | None:
    """Looks by the record, then by the lock that its tree inherited, then by its marker.

    The record was written before the trainer executed anything, so as a rule it is there.
    When it has been lost, the topmost process that holds the lock or carries a marker of
    this run is taken for the main one.
    """
    record = store.read()
    if record is not None:
        tree = Tree(record.main, record.marker, Path(record.cgroup) if record.cgroup else None)
        tree.sweep(full=True)
        if tree.living():
            return Remains(record, tree)
    return _without_record(store)


def _without_record(store: RecordStore) -> Remains | None:
    if not store.directory.is_dir():
        return None
    found: dict[int, proc.Stat] = {}
    marker = ""
    for pid in proc.pids():
        variables = proc.environment(pid)
        value = variables.get(MARKER.encode(), b"").decode(errors="replace")
        if value.startswith(store.marker_prefix) and _add(found, pid):
            marker = value
    if store.is_locked():
        for pid in proc.holders(store.lock_path):
            _add(found, pid)
    if not found:
        return None
    main = min(found.values(), key=lambda s: (s.parent in found, s.session != s.pid, s.started))
    attempt = proc.environment(main.pid).get(b"SPOTD_ATTEMPT", b"1")
    record = Record(
        pid=main.pid, started=main.started, boot_id=proc.boot_id(),
        attempt=int(attempt) if attempt.isdigit() else 1,
        marker=marker or store.marker_prefix,
    )  # fmt: skip
    tree = Tree(main.identity, record.marker)
    for pid in found:
        tree.add(pid)
    tree.sweep(full=True)
    return Remains(record, tree)


def _add(found: dict[int, proc.Stat], pid: int) -> bool:
    stat = proc.stat(pid) if pid != os.getpid() else None
    if stat is None or not stat.alive:
        return False
    found[pid] = stat
    return True
