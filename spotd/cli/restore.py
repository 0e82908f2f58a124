"""`spotd restore`: fetches a checkpoint and verifies it, without the daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, control_socket, print_json, settings_of
from spotd.core.words import megabytes, readable
from spotd.errors import EXIT_DONE, SpotdError, UnavailableError
from spotd.shell.control import ask

if TYPE_CHECKING:
    import argparse

    from spotd.config import Settings
    from spotd.core.checkpoint import StoredCheckpoint


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("restore", help="fetch and verify a checkpoint")
    add_options(p)
    p.add_argument(
        "--checkpoint", metavar="ID", help="which one, as `spotd checkpoints` lists it "
        "(default: the newest that is whole)",
    )  # fmt: skip
    p.add_argument(
        "--to", type=Path, metavar="DIR", help="where to (default: the checkpoint directory)"
    )


def run(options: argparse.Namespace) -> int:
    """Fetches one checkpoint; a damaged newest one is passed over for the one before it."""
    from spotd.shell.store.api import fetch_to, list_checkpoints  # noqa: PLC0415 - boto3

    settings = settings_of(options)
    target = options.to or settings.checkpoints.directory
    if options.to is None:
        _refuse_under_a_trainer(settings)
    try:
        listing = list_checkpoints(settings.store, settings.run)
    except SpotdError as e:
        raise UnavailableError(e.message, hint=e.hint) from e
    wanted = choose(list(listing.stored), options.checkpoint)
    progress = _Progress(quiet=options.json or not sys.stderr.isatty())
    for number, one in enumerate(wanted):
        try:
            found = fetch_to(
                settings.store, settings.run, one.id, target, report=progress, owner=_owner(target)
            )
        except SpotdError as e:
            if number + 1 == len(wanted):
                raise
            said = readable(f"{one.id}: {e.message}; trying the one before it")
            print(f"spotd: {said}", file=sys.stderr)
            continue
        progress.end()
        path = target / found.name
        if options.json:
            print_json({"id": one.id, "path": str(path), "size": found.size, "step": one.step})
        else:
            print(readable(f"{one.id} ({megabytes(found.size)}) is whole in {path}"))
        return EXIT_DONE
    raise SpotdError(
        f"run {settings.run} has no checkpoint in the store", hint="spotd checkpoints lists them"
    )


def choose(stored: list[StoredCheckpoint], wanted: str | None) -> list[StoredCheckpoint]:
    """Returns what to try, best first.

    Raises:
        SpotdError: The one asked for is not there.
    """
    ordered = sorted(stored, key=lambda s: s.sequence, reverse=True)
    if wanted is None:
        return ordered
    named = [s for s in ordered if wanted in (s.id, s.name)]
    if not named:
        raise SpotdError(f"{wanted} is not in the store", hint="spotd checkpoints lists them")
    return named[:1]


def _refuse_under_a_trainer(settings: Settings) -> None:
    try:
        status = next(ask(control_socket(settings), "status"))["data"]
    except UnavailableError:
        return
    raise SpotdError(
        f"spotd runs ({status['state']}): it restores by itself what is needed",
        hint="--to DIR fetches a checkpoint to another place",
    )


def _owner(target: Path) -> tuple[int, int] | None:
    """What root fetches belongs to whom the directory belongs to."""
    if os.geteuid() != 0 or not target.exists():
        return None
    status = target.stat()
    return status.st_uid, status.st_gid


class _Progress:
    """One line that grows, on a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def __call__(self, received: int, size: int) -> None:
        if not self._quiet:
            share = 100 * received // max(1, size)
            print(f"\r{share:3d} % of {megabytes(size)} ", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leaves the line."""
        if not self._quiet:
            print(file=sys.stderr)
