"""What systemd is told: ready, alive, and the one status line."""

from __future__ import annotations

import os

import sdnotify


class Notifier:
    """sd_notify(3); without NOTIFY_SOCKET every call does nothing."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()
        self._status = ""
        self.active = bool(os.environ.get("NOTIFY_SOCKET"))
        usec = os.environ.get("WATCHDOG_USEC", "")
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        seconds = int(usec) / 1e6 if usec.isdigit() and ours else 0.0
        # Half of it, as sd_watchdog_enabled(3) advises.
        self.watchdog_interval: float | None = seconds / 2 if seconds else None

    def _send(self, text: str) -> None:
        if self.active:
            self._notifier.notify(text)

    def ready(self) -> None:
        """The unit is up: notices are watched for. A long restore may still be ahead."""
        self._send("READY=1")

    def status(self, line: str) -> None:
        """Shows one line in `systemctl status`; an unchanged one is not sent again."""
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def alive(self) -> None:
        """Sent by the deciding loop and by nothing else, so that it vouches for the loop."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon is ending."""
        self._send("STOPPING=1")

    def reloading(self, *, done: bool) -> None:
        """Around a reload of the configuration."""
        self._send("READY=1" if done else "RELOADING=1")
