"""SPOTD_SOCKET: the unix datagram socket on which a trainer says how far it is.

It is drained all the time, whatever comes: a trainer that sends must never wait for the
daemon. What it said reaches the deciding loop at most twice a second, newest value of
each kind; a declared checkpoint is passed on, once for each path in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

from spotd.core.report import LARGEST_DATAGRAM, Said, parse_report
from spotd.shell.statefile import make_public

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spotd.core import events

log = logging.getLogger(__name__)

NAME = "trainer.sock"
_REPORT_EVERY = 0.5  # seconds
_DECLARE_EVERY = 0.1
_MOST_PATHS = 256  # in one `_DECLARE_EVERY`; an honest trainer declares one
_BURST = 512  # datagrams read before anything else is looked at
_BUFFER = 4 * 1024 * 1024
_LOOK = 10.0  # seconds between two looks whether the socket is still there


class TrainerSocket:
    """Listens from `open` until `close`.

    Args:
        path: Where the socket lies; what lay there before is replaced.
        user: Who may write to it beside root; None: the daemon's own user.
        post: Called with `TrainerReported`.
        declare: Called with the absolute path of a checkpoint said to be complete. Not
            yet believed to be anywhere in particular, or to exist.
    """

    def __init__(
        self,
        path: Path,
        *,
        user: str | None,
        post: Callable[[events.Event], None],
        declare: Callable[[str], None],
    ) -> None:
        self.path = path
        self.received = 0
        self.bad = 0  # dropped, or with a number in it that is none
        self.paths_dropped = 0
        self._user = user
        self._post = post
        self._declare = declare
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._wake = -1
        self._inode = -1
        self._mutex = threading.Lock()  # of what has been read and not yet passed on
        self._values: dict[str, int | float | str] = {}
        self._paths: dict[str, None] = {}
        self._reported_at = -_REPORT_EVERY
        self._declared_at = -_DECLARE_EVERY

    def open(self) -> None:
        """Makes the socket and listens in a thread of its own. Raises OSError."""
        self._socket = self._bound()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._listen, name="trainer-socket", daemon=True)
        self._thread.start()

    def _bound(self) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            listening.bind(str(self.path))
            self.path.chmod(0o600)
            self._admit()
            self._inode = self.path.stat().st_ino
        except OSError:
            listening.close()
            raise
        return listening

    def close(self) -> None:
        """Passes on what was said last, and takes the socket away."""
        if self._thread is None or self._socket is None:
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._thread = None
        os.close(self._wake)
        with self._mutex:
            self._socket.close()
            self._socket = None
        with contextlib.suppress(OSError):
            self.path.unlink()

    def flush(self) -> None:
        """Passes on all that was said so far: the trainer has ended, and this was its last."""
        with self._mutex:
            if self._socket is not None:
                self._drain(self._socket)
                self._pass_on(time.monotonic(), everything=True)

    def _admit(self) -> None:
        """A user that does not exist yet is admitted when the trainer is started as that user."""
        if self._user is None or os.geteuid() != 0:
            return
        with contextlib.suppress(KeyError):
            os.chown(self.path, pwd.getpwnam(self._user).pw_uid, -1)

    def _listen(self) -> None:
        look = time.monotonic() + _LOOK
        while True:
            with self._mutex:
                listening = self._socket
                wait = self._milliseconds(look)
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            if listening is not None:
                poll.register(listening, select.POLLIN)
            closing = self._wake in {descriptor for descriptor, _ in poll.poll(wait)}
            with self._mutex:
                if listening is not None:
                    self._drain(listening)
                self._pass_on(time.monotonic(), everything=closing)
            if closing:
                return
            if time.monotonic() >= look:
                look = time.monotonic() + _LOOK
                self._look()

    def _look(self) -> None:
        """Makes the socket anew when somebody has emptied the runtime directory."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                return
        with self._mutex, contextlib.suppress(OSError):  # the control socket's server says why
            make_public(self.path.parent)
            fresh = self._bound()
            if self._socket is not None:
                self._drain(self._socket)
                self._socket.close()
            self._socket = fresh

    def _milliseconds(self, look: float) -> float:
        """Until something that waits may be passed on, or until the next look."""
        due = [look]
        due += [self._reported_at + _REPORT_EVERY] if self._values else []
        due += [self._declared_at + _DECLARE_EVERY] if self._paths else []
        return max(0.0, 1000 * (min(due) - time.monotonic())) + 1

    def _drain(self, listening: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                datagram = listening.recv(LARGEST_DATAGRAM + 1)
            except BlockingIOError:
                return
            self.received += 1
            said = parse_report(datagram)
            if said is None or said.not_a_number:
                self._count_bad(said)
            if said is not None:
                self._take(said)

    def _take(self, said: Said) -> None:
        self._values.update(said.values)
        for path in said.checkpoints:
            if len(self._paths) < _MOST_PATHS or path in self._paths:
                self._paths[path] = None
            else:
                self.paths_dropped += 1

    def _count_bad(self, said: Said | None) -> None:
        self.bad += 1
        if self.bad == 1:  # the count is in `status`; what was in it is nobody's business
            what = "a loss that is no number" if said else "something that is not KEY=VALUE lines"
            log.warning("the trainer said %s on its socket; such are dropped and counted", what)

    def _pass_on(self, now: float, *, everything: bool) -> None:
        if self._paths and (everything or now - self._declared_at >= _DECLARE_EVERY):
            self._declared_at = now
            paths, self._paths = self._paths, {}
            for path in paths:
                self._declare(path)
        if self._values and (everything or now - self._reported_at >= _REPORT_EVERY):
            self._reported_at = now
            values, self._values = self._values, {}
            self._post(Said(values).reported())
