"""`.spotd-aside`: where torn checkpoints go, so that the trainer's own search finds none.

Nothing in it is ever deleted. Beside each entry a small JSON file says which name it had,
why it was moved and when; on a full disk that file may be missing.
"""

from __future__ import annotations

import contextlib
import os
import time

from spotd.shell.directory.private import (
    ASIDE,
    opened_private,
    read_note,
    rename_to_free_name,
    write_note,
)

_MODE = 0o755  # a person may want to look
_NOTE = ".why.json"
_MAX_TRIES = 10_000
_MAX_NAME = 200  # bytes of the original name kept; the note has it whole


def set_aside(root: int, name: str, reason: str, *, source: int | None = None) -> str:
    """Moves an entry to `.spotd-aside/` under a name that is free there.

    Args:
        root: Descriptor of the checkpoint directory.
        name: The entry.
        reason: One line, kept beside it.
        source: Descriptor of the directory that holds the entry, if that is not `root`.

    Returns:
        Its path relative to the checkpoint directory.

    Raises:
        FileNotFoundError: Nothing stands under the name.
        OSError: It cannot be moved.
    """
    with opened_private(root, ASIDE, _MODE) as aside:
        to = _move(root if source is None else source, name, aside)
        note: dict[str, object] = {
            "format": 1, "name": name, "reason": reason, "time": time.time(),
        }  # fmt: skip
        with contextlib.suppress(OSError):  # no room: moving it away needs none, and counts
            write_note(aside, to + _NOTE, note)
    return f"{ASIDE}/{to}"


def _move(source: int, name: str, aside: int) -> str:
    stem = name.encode()[:_MAX_NAME].decode("utf-8", "ignore")
    for count in range(1, _MAX_TRIES):
        to = stem if count == 1 else f"{stem}~{count}"
        try:
            rename_to_free_name(source, name, aside, to)
        except FileExistsError:
            continue
        return to
    message = f"{ASIDE} holds too many of {stem}"
    raise FileExistsError(message)


def bring_back(root: int, name: str) -> bool:
    """Moves the entry last set aside under this name back, unless one stands there.

    Returns:
        Whether it stands under its name again.

    Raises:
        OSError: It cannot be moved.
    """
    try:
        with opened_private(root, ASIDE, _MODE, create=False) as aside:
            found = _newest(aside, name)
            if found is None:
                return False
            rename_to_free_name(aside, found, root, name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(found + _NOTE, dir_fd=aside)
    except (FileNotFoundError, FileExistsError):
        return False
    return True


def _newest(aside: int, name: str) -> str | None:
    newest, at = None, float("-inf")
    entries = os.listdir(aside)
    if name in entries and name + _NOTE not in entries:
        newest = name  # there was no room for its note
    for entry in entries:
        note = read_note(aside, entry) if entry.endswith(_NOTE) else None
        if note is None or note.get("name") != name:
            continue
        when = note.get("time")
        if isinstance(when, (int, float)) and when >= at:
            newest, at = entry.removesuffix(_NOTE), float(when)
    return newest
