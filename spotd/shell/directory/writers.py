"""Is any process writing this file?

A read lease (fcntl(2), F_SETLEASE) is refused while any descriptor or shared writable
mapping of the file exists, in any process, container or namespace: one call, and it sees
mmap writers, which /proc/PID/fd does not. Taken and given back at once. A process that
opens the file for writing in that instant waits for microseconds, and the kernel then
signals this process. By default with SIGIO, which ends a process: SIGURG, which does
nothing unless handled, is asked for instead (F_SETSIG).

Leases work on local filesystems for the file's owner and for root. Elsewhere
(`EINVAL`, `EACCES`) all descriptors in /proc are looked through instead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time
from pathlib import Path

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR
_SCAN_LIFE = 0.2  # seconds one look through /proc serves for: it costs milliseconds


class Writers:
    """Answers whether files are open for writing; remembers one look through /proc."""

    def __init__(self) -> None:
        self._scanned_at = float("-inf")
        self._scanned: frozenset[tuple[int, int]] = frozenset()

    def writing(self, descriptor: int) -> bool:
        """Whether any process can write the file that `descriptor` has open for reading."""
        answer = try_lease(descriptor)
        if answer is not None:
            return answer
        now = time.monotonic()
        if now - self._scanned_at > _SCAN_LIFE:
            self._scanned = open_for_writing()
            self._scanned_at = time.monotonic()
        status = os.fstat(descriptor)
        return (status.st_dev, status.st_ino) in self._scanned


def try_lease(descriptor: int) -> bool | None:
    """Asks the kernel; None where leases do not work (other owner, network filesystem)."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno in (errno.EAGAIN, errno.EBUSY) else None
    with contextlib.suppress(OSError):  # already broken by a writer: nothing is left to give back
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def open_for_writing() -> frozenset[tuple[int, int]]:
    """Returns (device, inode) of every file that a process we may look into has open for writing.

    Blind to other machines of a network filesystem and to mappings whose descriptor is
    closed.
    """
    found: set[tuple[int, int]] = set()
    own = str(os.getpid())
    for process in os.listdir("/proc"):  # noqa: PTH208 - names are all we need
        if not process.isdigit() or process == own:
            continue
        # A process may end, or be another user's, at any point of this.
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{process}/fd"):  # noqa: PTH208 - names are all we need
                _note_descriptor(found, process, number)
    return frozenset(found)


def _note_descriptor(found: set[tuple[int, int]], process: str, number: str) -> None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        link = Path(f"/proc/{process}/fd/{number}")
        if not str(link.readlink()).startswith("/"):
            return
        info = Path(f"/proc/{process}/fdinfo/{number}").read_text()
        flags = int(info.split("flags:", 1)[1].split(None, 1)[0], 8)
        if flags & _WRITE_FLAGS:
            status = link.stat()
            found.add((status.st_dev, status.st_ino))
