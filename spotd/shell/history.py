"""What happened to a run, one JSON object a line: the journal's lines, kept with the run."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

from spotd.errors import SpotdError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spotd.core.actions import Announce

LARGEST = 16 << 20  # bytes; then the older half goes to a file of its own, replaced each time
# What a person asks for after the fact must survive the power cut it may be about.
_URGENT = frozenset(
    {"interruption_notice", "drained", "completed", "gave_up", "trainer_started", "trainer_exited"}
)


class History:
    """Appends to `history.jsonl`. Failing to is not worth more than the line.

    Lines come from the deciding loop, the observer and a reload, hence the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._lock = threading.Lock()  # a descriptor closed by another may be a socket by now

    def append(self, line: Announce, wall: float) -> None:
        """Adds one line, `time` in seconds since the epoch."""
        entry = {"time": round(wall, 3), "event": line.name, "message": line.message, **line.fields}
        data = (json.dumps(entry, default=str, separators=(",", ":")) + "\n").encode()
        with self._lock:
            self._append(line.name, data)

    def _append(self, name: str, data: bytes) -> None:
        try:
            if self._fd is None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._fd = os.open(self.path, flags, 0o640)
            os.write(self._fd, data)
            if name in _URGENT:
                # On a disk busy with a checkpoint this takes seconds, which nobody has now.
                copy = os.dup(self._fd)
                threading.Thread(target=_sync, args=(copy,), name="history", daemon=True).start()
            if os.fstat(self._fd).st_size > LARGEST:
                self.path.replace(self.path.with_suffix(".1.jsonl"))
                self._close()
        except OSError:
            self._close()  # a full disk is reported by the state; the next line tries again

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _sync(fd: int) -> None:
    try:
        os.fdatasync(fd)
    except OSError:
        return  # a disk in trouble is reported by the state
    finally:
        os.close(fd)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the entries of a history, oldest first; a torn last line is passed over.

    Raises:
        SpotdError: It is there and cannot be read.
    """
    for part in (path.with_suffix(".1.jsonl"), path):
        try:
            with part.open(encoding="utf-8", errors="replace") as f:
                for line in f:
                    try:
                        entry = json.loads(line)
                    except (ValueError, RecursionError):
                        continue
                    if isinstance(entry, dict) and isinstance(entry.get("time"), (int, float)):
                        yield entry
        except FileNotFoundError:
            continue
        except OSError as e:
            raise SpotdError(
                f"cannot read {part}: {e.strerror}",
                hint="it is for root and its group: use sudo"
                if isinstance(e, PermissionError)
                else "",
            ) from e
