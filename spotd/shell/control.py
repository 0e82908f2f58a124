"""The control socket: how `spotd status` and its kin talk to the daemon.

A unix stream socket; one JSON object a line. The client sends `{"verb": ...}`, the daemon
answers with `{"ok", "message", "data", "final"}` until one is final. Anybody on the machine
may ask for the status; what makes the trainer do something takes root, the daemon's own
user or the trainer's (told by SO_PEERCRED, unix(7)).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import socket
import struct
import threading
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from spotd.core import events
from spotd.errors import SpotdError, UnavailableError
from spotd.shell.statefile import make_public

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from spotd.core.actions import Reply

LONGEST = 4096  # bytes of a request
MOST = 32  # connections at once; the oldest one that waits for no answer goes
TURN = 0.02  # seconds between two tries to be heard in a crowd
LOOK = 10.0  # seconds between two looks whether the socket is still there
_UCRED = struct.Struct("3i")


class ControlServer:
    """Serves the control socket in a thread of its own.

    Args:
        path: Of the socket; a stale one is replaced (the daemon's lock is held by now).
        status: Returns the status object; called in the server's thread.
        post: Hands an event to the deciding loop.
        users: User ids that may do more than look, beside root and the daemon's own.
        tasks: What root alone may ask for and the deciding loop has no part in, by verb; each
            is called with the number to reply to, and returns at once.
        lost: Called, in the server's thread, when somebody took the socket away and it was
            made anew; "" or why it cannot be.
    """

    def __init__(
        self,
        path: Path,
        *,
        status: Callable[[], dict[str, object]],
        post: Callable[[events.Event], None],
        users: frozenset[int] = frozenset(),
        tasks: Mapping[str, Callable[[int], None]] = MappingProxyType({}),
        lost: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._status = status
        self._post = post
        self._owners = frozenset({0, os.geteuid()})
        self._users = users | self._owners
        self._tasks = tasks
        self._waiting: dict[int, socket.socket] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._lost = lost
        self._said = ""
        self._closed = False
        self._listener = self._listen()
        self._inode = path.stat().st_ino
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._path.unlink(missing_ok=True)
            listener.bind(str(self._path))
            self._path.chmod(0o666)
            listener.listen(16)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def close(self) -> None:
        """Takes the socket away. Who waits sees the connection end."""
        with self._lock:
            self._closed = True
            self._path.unlink(missing_ok=True)
            for connection in self._waiting.values():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def reply(self, reply: Reply) -> None:
        """Answers a waiting client; one that has gone is no matter."""
        answer = {
            "ok": reply.ok,
            "message": reply.message,
            "data": reply.data,
            "final": reply.final,
        }
        with self._lock:  # to the end: the server's thread must not close it meanwhile
            connection = self._waiting.get(reply.request)
            if connection is None:
                return
            self._send(connection, answer)
            if reply.final:
                del self._waiting[reply.request]
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _send(connection: socket.socket, answer: dict[str, object]) -> None:
        """At once or not at all: who asks and does not read must hold up nobody, or a decision."""
        data = json.dumps(answer, default=str).encode() + b"\n"
        try:
            complete = connection.send(data, socket.MSG_DONTWAIT) == len(data)
        except OSError:
            complete = False
        if not complete:  # half an answer is none: what follows would not be understood
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        buffers: dict[socket.socket, bytes] = {}
        look = time.monotonic() + LOOK
        while True:
            for key, _ in self._selector.select(max(0.0, look - time.monotonic())):
                if key.fileobj is self._listener:
                    self._accept(buffers)
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in buffers:
                    self._read(key.fileobj, buffers)
            if time.monotonic() >= look:
                look = time.monotonic() + LOOK
                self._look()

    def _look(self) -> None:
        """Makes the socket anew when somebody has emptied the runtime directory."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                return
        with self._lock:
            if self._closed:
                return
            try:
                make_public(self._path.parent)
                listener = self._listen()
                self._inode = self._path.stat().st_ino
            except OSError as error:
                reason = f"{self._path} was taken away, and cannot be made: {error.strerror}"
            else:
                self._selector.unregister(self._listener)
                self._listener.close()
                self._listener = listener
                self._selector.register(listener, selectors.EVENT_READ)
                reason = ""
        if not reason or reason != self._said:
            self._said = reason
            self._lost(reason)

    def _accept(self, buffers: dict[socket.socket, bytes]) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with self._lock:
            waiting = set(self._waiting.values())
        while len(buffers) >= MOST:
            idle = (each for each in buffers if each not in waiting)
            self._drop(next(idle, next(iter(buffers))), buffers)
        connection.setblocking(False)
        buffers[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ)

    def _drop(self, connection: socket.socket, buffers: dict[socket.socket, bytes]) -> None:
        buffers.pop(connection, None)
        with contextlib.suppress(KeyError, ValueError):  # dropped before, in the same round
            self._selector.unregister(connection)
        with self._lock:
            for number, waiting in list(self._waiting.items()):
                if waiting is connection:
                    del self._waiting[number]
            connection.close()

    def _read(self, connection: socket.socket, buffers: dict[socket.socket, bytes]) -> None:
        try:
            data = connection.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, rest = (buffers[connection] + data).split(b"\n")
        buffers[connection] = rest
        for line in lines:
            self._handle(connection, line)
        if not data or len(rest) > LONGEST:
            self._drop(connection, buffers)

    def _handle(self, connection: socket.socket, line: bytes) -> None:
        try:
            request = json.loads(line)
            verb = request["verb"]
        except (ValueError, KeyError, TypeError, RecursionError):
            self._send(connection, {"ok": False, "message": "not a request", "final": True})
            return
        if verb == "status":
            self._send(connection, self._status_answer())
            return
        carry_out, who, users = self._allowed(verb)
        refusal = "" if carry_out is not None else "no such verb"
        if carry_out is not None and self._peer(connection) not in users:
            refusal = f"`spotd {verb}` is for {who}: use sudo"
        if carry_out is None or refusal:
            self._send(connection, {"ok": False, "message": refusal, "data": {}, "final": True})
            return
        number = next(self._numbers)
        with self._lock:
            self._waiting[number] = connection
        carry_out(number)

    def _allowed(self, verb: object) -> tuple[Callable[[int], None] | None, str, frozenset[int]]:
        """Returns what a verb does, and for whom."""
        kinds: dict[object, Callable[[int], events.Event]] = {
            "drill": events.DrillRequested,
            "checkpoint": events.CheckpointRequested,
        }
        if isinstance(verb, str) and verb in self._tasks:
            return self._tasks[verb], "root", self._owners
        if not isinstance(verb, str) or verb not in kinds:
            return None, "", frozenset()
        kind = kinds[verb]
        return (
            lambda number: self._post(kind(number)),
            "root and for the trainer's user",
            self._users,
        )

    def _status_answer(self) -> dict[str, object]:
        try:
            return {"ok": True, "message": "", "data": self._status(), "final": True}
        except Exception as error:  # noqa: BLE001 - a defect must not end the answering
            return {"ok": False, "message": f"a defect in spotd: {error!r}", "final": True}

    @staticmethod
    def _peer(connection: socket.socket) -> int:
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        uid: int = _UCRED.unpack(data)[1]
        return uid


def _connect(connection: socket.socket, path: Path, timeout: float | None) -> None:
    """Waits its turn where many ask at once: unix(7) refuses at once instead of waiting."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            connection.connect(str(path))
        except BlockingIOError:  # noqa: PERF203 - it waits
            if deadline is not None and time.monotonic() >= deadline:
                raise
            time.sleep(TURN)
        else:
            return


def ask(path: Path, verb: str, timeout: float | None = 10.0) -> Iterator[dict[str, Any]]:
    """Asks the daemon; yields its answers, the last with `final` true.

    Args:
        path: Of the control socket.
        verb: "status", "drill", "checkpoint" or "reload".
        timeout: Seconds to wait for each answer, None for ever.

    Raises:
        UnavailableError: No daemon answers there.
        SpotdError: It went away before its last answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            _connect(connection, path, timeout)
            connection.sendall(json.dumps({"verb": verb}).encode() + b"\n")
        except OSError as e:
            raise UnavailableError(
                f"no spotd answers at {path}: {e.strerror or e}",
                hint="systemctl start spotd; or is another --config in use?",
            ) from e
        with connection.makefile("rb") as lines:
            try:
                for line in lines:
                    answer = json.loads(line)
                    yield answer
                    if answer.get("final", True):
                        return
            except TimeoutError as e:
                raise UnavailableError(
                    f"spotd at {path} does not answer", hint="systemctl status spotd"
                ) from e
            except (OSError, ValueError) as e:
                raise SpotdError(f"the answer of spotd broke off: {e}") from e
    raise SpotdError("spotd ended before it had answered", hint="systemctl status spotd")
