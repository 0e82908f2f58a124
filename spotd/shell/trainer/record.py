"""Who is training, written down durably, and the lock that its whole tree inherits.

The lock answers "is the old trainer still there?" without trusting any number: it is
held as long as any process of the tree has its descriptor open. The record says which
process that is, and cannot be fooled by a process number used again: it holds the boot
and the time at which the process began (Linux: proc(5), flock(2)).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from spotd.shell.trainer import proc

if TYPE_CHECKING:
    from pathlib import Path

_RECORD = "trainer.json"
_LOCK = "trainer.lock"


@dataclass(frozen=True, slots=True)
class Record:
    """The trainer that was started last.

    Attributes:
        pid: Of the command's own process.
        started: When that began, in clock ticks since boot.
        boot_id: Of the boot in which these two mean anything.
        attempt: Which start of the run it is.
        marker: What its processes carry in their environment.
        unit: Its systemd scope, or "".
        cgroup: The directory of the scope's control group, or "".
        output: "journal:<identifier>" or "file:<path>".
        output_from: Where in it this attempt begins: seconds since the epoch, or bytes.
    """

    pid: int
    started: int
    boot_id: str
    attempt: int
    marker: str
    unit: str = ""
    cgroup: str = ""
    output: str = ""
    output_from: float = 0

    @property
    def main(self) -> proc.Identity:
        """The command's own process."""
        return proc.Identity(self.pid, self.started)


@dataclass(frozen=True, slots=True)
class RecordStore:
    """The record and the lock of one run.

    Args:
        directory: Survives a boot; only root writes to it.
        spare: The file for the record when that disk is full or read-only.
    """

    directory: Path
    spare: Path

    @property
    def lock_path(self) -> Path:
        """The file whose lock the trainer's tree holds."""
        return self.directory / _LOCK

    @property
    def marker_prefix(self) -> str:
        """What the markers of all trainers of this directory begin with. Raises OSError."""
        found = self.directory.stat()
        return f"{found.st_dev:x}-{found.st_ino:x}."

    def write(self, record: Record) -> None:
        """Writes it durably. Raises OSError when neither place takes it."""
        content = json.dumps({"format": 1, **asdict(record)}).encode()
        try:
            _write_durably(self.directory / _RECORD, content)
        except OSError:
            _write_durably(self.spare, content)
        else:
            with contextlib.suppress(OSError):
                self.spare.unlink()

    def read(self) -> Record | None:
        """The record of this boot, or None: none, torn, or of a boot that is over."""
        for path in (self.spare, self.directory / _RECORD):
            record = _read(path)
            if record is not None and record.boot_id == proc.boot_id():
                return record
        return None

    def forget(self) -> None:
        """The trainer is gone, whole."""
        for path in (self.spare, self.directory / _RECORD):
            with contextlib.suppress(OSError):
                path.unlink()

    def try_lock(self) -> int | None:
        """An inheritable descriptor that holds the lock, or None while a trainer has it.

        Raises:
            OSError: The lock file cannot be made.
        """
        descriptor = os.open(
            self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def is_locked(self) -> bool:
        """Whether any process of a trainer's tree still has the lock."""
        try:
            descriptor = self.try_lock()
        except OSError:
            return False
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None


def _read(path: Path) -> Record | None:
    try:
        found = json.loads(path.read_bytes())
        if found.pop("format") != 1:
            return None
        record = Record(**found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return record if _is_sound(record) else None


def _is_sound(record: Record) -> bool:
    """Whether every field is what it says: a process is signalled by what stands here."""
    numbers = (record.pid, record.started, record.attempt)
    texts = (record.boot_id, record.marker, record.unit, record.cgroup, record.output)
    return (
        all(type(n) is int for n in numbers)
        and record.pid > 0
        and all(isinstance(text, str) for text in texts)
        and isinstance(record.output_from, (int, float))
    )


def _write_durably(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
