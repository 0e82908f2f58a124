"""What wakes a thread that waits in poll(2): an eventfd that may be used after its end."""

from __future__ import annotations

import contextlib
import os
import threading


class Wake:
    """Set by any thread, also when it is closed already; waited for and closed by one.

    A descriptor's number is used again as soon as it is free, so that a bare write by
    somebody who is late could land in a socket or a file of another part.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._closed = False

    def fileno(self) -> int:
        """Returns the descriptor, for poll(2)."""
        return self._fd

    def set(self) -> None:
        """Wakes who waits; nothing when nobody waits any more."""
        with self._lock, contextlib.suppress(BlockingIOError):  # full: it wakes up anyway
            if not self._closed:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Forgets what has woken it."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._fd)
