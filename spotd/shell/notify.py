"""What systemd is told: ready, alive, and the one status line."""

from __future__ import annotations

import os
import threading
import time

import sdnotify


class Notifier:
    """sd_notify(3); without NOTIFY_SOCKET every call does nothing.

    Nothing here waits: systemd's queue may be full while it is busy itself, and the loop
    that speaks is the one that decides. What must arrive is sent again with the next word.
    A reload speaks from a thread of its own, hence the lock.
    """

    def __init__(self) -> None:
        # Its `notify` would wait for a full queue, and tell nobody of a failure.
        self._socket = sdnotify.SystemdNotifier().socket
        if self._socket is not None:
            self._socket.setblocking(False)
        self._status = ""
        self._owed: list[str] = []
        self._lock = threading.Lock()  # never held across anything that waits
        usec = os.environ.get("WATCHDOG_USEC", "")
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        seconds = int(usec) / 1e6 if usec.isdigit() and ours else 0.0
        # Half of it, as sd_watchdog_enabled(3) advises.
        self.watchdog_interval: float | None = seconds / 2 if seconds else None
        self._pinged = float("-inf")

    def _send(self, text: str) -> bool:
        """Whether it was taken, now or, without systemd, never to be."""
        if self._socket is None:
            return True
        try:
            self._socket.send(text.encode())
        except OSError:
            return False
        return True

    def _say(self, text: str) -> None:
        """Says what must not be lost, after what was said before it."""
        with self._lock:
            self._owed.append(text)
        self._pay()

    def _pay(self) -> None:
        """Sends what is still owed, in its order, as far as systemd takes it."""
        with self._lock:
            while self._owed and self._send(self._owed[0]):
                del self._owed[0]

    def ready(self) -> None:
        """The unit is up: notices are watched for. A long restore may still be ahead."""
        self._say("READY=1")

    def status(self, line: str) -> None:
        """Shows one line in `systemctl status`; an unchanged one is not sent again."""
        if line != self._status and self._send(f"STATUS={line}"):
            self._status = line

    def alive(self) -> None:
        """Called by the deciding loop and by nothing else, so that it vouches for the loop."""
        self._pay()
        if self.watchdog_interval is None:
            return
        now = time.monotonic()
        # Each ping wakes systemd: a busy loop need not say more often that it lives.
        if now - self._pinged >= self.watchdog_interval / 2 and self._send("WATCHDOG=1"):
            self._pinged = now

    def stopping(self) -> None:
        """The daemon is ending."""
        self._say("STOPPING=1")

    def reloading(self, *, done: bool) -> None:
        """Around a reload of the configuration."""
        self._say("READY=1" if done else "RELOADING=1")
