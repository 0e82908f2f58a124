"""Names and durability of checkpoints on the local disk."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = re.compile(r"step-(\d{8,})(?P<kind>\.pt|\.ckpt|)")
TEMPORARY = re.compile(r"\.tmp-step-\d{8,}(\.pt|\.ckpt|)-\d+")

ASIDE = ".aside"
"""Directory, in that of the checkpoints, of those a run did not go on from."""

OURS = ("", ".pt")
"""A session's checkpoints: shards in a directory, or one file."""


def checkpoint_name(step: int, *, sharded: bool = False) -> str:
    """`step-00000120.pt`, or `step-00000120` for a directory of shards."""
    return f"step-{step:08d}" + ("" if sharded else ".pt")


def temporary_name(name: str) -> str:
    """Where a checkpoint grows: a name that no reader takes for a whole one."""
    return f".tmp-{name}-{os.getpid()}"


def step_of(name: str) -> int | None:
    """The step a checkpoint's name tells, None when it is not one of ours."""
    match = WHOLE.fullmatch(name)
    return int(match.group(1)) if match else None


def find_checkpoints(directory: Path, kinds: tuple[str, ...] = OURS) -> list[Path]:
    """Our checkpoints in `directory`, newest step first. Names only: nothing is opened."""
    try:
        names = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []
    matches = [match for match in map(WHOLE.fullmatch, names) if match]
    found = [(int(m.group(1)), m.string) for m in matches if m.group("kind") in kinds]
    return [directory / name for _, name in sorted(found, reverse=True)]


def sync_tree(directory: Path) -> None:
    """Make every file below `directory` durable, written by whomever."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_file() and not path.is_symlink():
            sync_file(path)
        elif path.is_dir():
            sync_directory(path)
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Make a rename durable: without it a power cut can undo it (design/measured.md, 6)."""
    sync_file(directory)


def sync_file(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Give a complete, fsynced file or directory its name, durably.

    Raises:
        OSError: the rename failed; `temporary` is still there.
    """
    if final.is_dir() and not final.is_symlink():
        # Only a repeated save of the same step gets here, and a rename replaces no full directory.
        replaced = final.with_name(temporary_name(final.name) + "0")
        final.rename(replaced)
        temporary.rename(final)
        shutil.rmtree(replaced)
    else:
        temporary.rename(final)
    sync_directory(final.parent)


def remove(path: Path) -> None:
    """Delete a file or a directory; one that is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        # A directory loses its name first, so that no reader meets a half-deleted checkpoint.
        doomed = path
        if not TEMPORARY.fullmatch(path.name):
            doomed = path.with_name(temporary_name(path.name))
            path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def prune(directory: Path, keep: int, kinds: tuple[str, ...] = OURS) -> list[Path]:
    """Delete all but the `keep` newest of our checkpoints, and return what was deleted."""
    doomed = find_checkpoints(directory, kinds)[max(keep, 1) :]
    for path in doomed:
        with contextlib.suppress(FileNotFoundError):
            remove(path)
    return doomed


def set_aside(directory: Path, step: int, kinds: tuple[str, ...] = OURS) -> list[Path]:
    """Move our checkpoints of later steps than `step` to `.aside/`; return where they are.

    A run that goes on from `step` has passed them over as torn, or goes another way: the newest by
    name would be theirs, and what this run saves would be deleted as older.
    """
    moved: list[Path] = []
    for path in find_checkpoints(directory, kinds):
        if (step_of(path.name) or 0) <= step:
            continue
        aside = directory / ASIDE
        aside.mkdir(exist_ok=True)
        names = itertools.chain([path.name], (f"{path.name}~{n}" for n in itertools.count(2)))
        to = next(aside / name for name in names if not (aside / name).exists())
        # Another rank beside this one does the same.
        with contextlib.suppress(FileNotFoundError):
            path.rename(to)
            moved.append(to)
    return moved


def remove_leftovers(directory: Path) -> list[Path]:
    """Delete what a killed process left half-written. Call it only while nobody saves there."""
    with contextlib.suppress(FileNotFoundError):
        doomed = [path for path in directory.iterdir() if TEMPORARY.fullmatch(path.name)]
        for path in doomed:
            remove(path)
        return doomed
    return []
