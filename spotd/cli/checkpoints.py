"""`spotd checkpoints`: what is on the disk and in the store, daemon or no daemon."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, control_socket, print_json, settings_of, table
from spotd.core.record import known_from
from spotd.core.status import age, rfc3339
from spotd.core.words import megabytes, readable
from spotd.errors import EXIT_DONE, EXIT_UNAVAILABLE, SpotdError, UnavailableError
from spotd.shell.control import ask
from spotd.shell.directory.candidates import Candidates
from spotd.shell.directory.judge import Judge
from spotd.shell.statefile import read_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from spotd.config import Settings
    from spotd.core.checkpoint import LocalCheckpoint, StoredCheckpoint


@dataclass
class Row:
    """One checkpoint, wherever it is. `created` is wall clock seconds."""

    name: str
    id: str | None
    step: int | None
    size: int
    created: float
    on_disk: bool = False
    stored: bool = False
    problem: str = ""


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    add_options(verbs.add_parser("checkpoints", help="what is on the disk and in the store"))


def run(options: argparse.Namespace) -> int:
    """Lists the checkpoints, oldest first."""
    settings = settings_of(options)
    local, torn = on_disk(settings)
    stored: Sequence[StoredCheckpoint] = ()
    damaged: Sequence[tuple[str, str]] = ()
    trouble: SpotdError | None = None
    try:
        from spotd.shell.store.api import list_checkpoints  # noqa: PLC0415 - boto3, only here

        listing = list_checkpoints(settings.store, settings.run)
        stored, damaged = listing.stored, listing.damaged
    except SpotdError as e:
        trouble = e
    rows = merge(settings, local, stored)
    rows += [Row(name, None, None, 0, 0.0, on_disk=True, problem=f"not whole: {why}")
             for name, why in torn]  # fmt: skip
    rows += [Row(i, i, None, 0, 0.0, problem=f"not believed: {why}") for i, why in damaged]
    if options.json:
        print_json(
            {
                "run": settings.run,
                "store": {"ok": trouble is None, "reason": str(trouble) if trouble else ""},
                "checkpoints": [
                    {
                        "id": r.id, "name": r.name, "step": r.step, "size": r.size,
                        "created": rfc3339(r.created) if r.created else None,
                        "on_disk": r.on_disk, "stored": r.stored, "verified": not r.problem,
                        "problem": r.problem,
                    }
                    for r in rows
                ],
            }
        )  # fmt: skip
    else:
        where = "on the disk or in the store" if trouble is None else "on the disk"
        print(render(rows) if rows else f"no checkpoint {where}")
        if trouble is not None:
            print(f"the store does not answer: {readable(str(trouble))}", file=sys.stderr)
    return EXIT_DONE if trouble is None else EXIT_UNAVAILABLE


def on_disk(settings: Settings) -> tuple[Sequence[LocalCheckpoint], Sequence[tuple[str, str]]]:
    """Judges what stands in the checkpoint directory; changes nothing there."""
    checkpoints = settings.checkpoints
    judge = Judge(
        complete=checkpoints.complete,
        default_pattern=checkpoints.pattern == ("*",),
        owner=os.geteuid(),
    )
    candidates = Candidates(judge, checkpoints.pattern, lambda _: None, lambda *_: None)
    try:
        root = os.open(checkpoints.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return (), ()
    try:
        return candidates.inventory(root, settled=not _somebody_trains(settings))
    finally:
        os.close(root)


def _somebody_trains(settings: Settings) -> bool:
    """Whether what is not whole may still become so."""
    try:
        status = next(ask(control_socket(settings), "status"))["data"]
    except UnavailableError:
        return False
    return status["trainer"]["pid"] is not None


def merge(
    settings: Settings, local: Sequence[LocalCheckpoint], stored: Sequence[StoredCheckpoint]
) -> list[Row]:
    """Puts disk, store and what spotd remembers together, one row a checkpoint."""
    record = read_json(settings.paths.state / settings.run / "state.json") or {}
    ids = {(k.name, k.fingerprint): k for k in known_from(record.get("known"))}
    rows = {
        s.id: Row(s.name, s.id, s.step, s.size, s.created, stored=True)
        for s in sorted(stored, key=lambda s: s.sequence)
    }
    for c in local:
        known = ids.get((c.name, c.fingerprint))
        match = next(
            (s for s in stored if (s.name, s.size, s.mtime_ns) == (c.name, c.size, c.mtime_ns)),
            None,
        )
        found = known.id if known is not None else match.id if match is not None else None
        if found is not None and found in rows:
            rows[found].on_disk = True
            continue
        step = known.step if known is not None else c.step
        rows[found or c.name] = Row(c.name, found, step, c.size, c.mtime_ns / 1e9, on_disk=True)
    return sorted(rows.values(), key=lambda r: r.created)


def render(rows: Sequence[Row]) -> str:
    """Returns the list as text."""
    now = time.time()
    lines: list[tuple[str, ...]] = [("CHECKPOINT", "STEP", "SIZE", "AGE", "DISK", "STORE", "")]
    lines += [
        (
            r.id or r.name,
            "-" if r.step is None else str(r.step),
            megabytes(r.size) if r.size else "-",
            age(now - r.created) if r.created else "-",
            "yes" if r.on_disk else "no",
            "yes" if r.stored else "no",
            r.problem or "whole",
        )
        for r in rows
    ]
    return table(lines)
