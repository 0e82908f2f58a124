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
from typing import TYPE_CHECKING, Any

from spotd.core import events
from spotd.errors import SpotdError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from spotd.core.actions import Reply

LONGEST = 4096  # bytes of a request
MOST = 32  # connections at once; the oldest idle one goes
_UCRED = struct.Struct("3i")


class ControlServer:
    """Serves the control socket in a thread of its own.

    Args:
        path: Of the socket; a stale one is replaced (the daemon's lock is held by now).
        status: Returns the status object; called in the server's thread.
        post: Hands an event to the deciding loop.
        users: User ids that may do more than look, beside root and the daemon's own.
    """

    def __init__(
        self,
        path: Path,
        *,
        status: Callable[[], dict[str, object]],
        post: Callable[[events.Event], None],
        users: frozenset[int] = frozenset(),
    ) -> None:
        self._path = path
        self._status = status
        self._post = post
        self._users = users | {0, os.geteuid()}
        self._waiting: dict[int, socket.socket] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.bind(str(path))
        path.chmod(0o666)
        self._listener.listen(16)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def close(self) -> None:
        """Takes the socket away. Who waits sees the connection end."""
        self._path.unlink(missing_ok=True)
        with self._lock:
            for connection in self._waiting.values():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def reply(self, reply: Reply) -> None:
        """Answers a waiting client; one that has gone is no matter."""
        with self._lock:
            connection = self._waiting.get(reply.request)
            if reply.final:
                self._waiting.pop(reply.request, None)
        if connection is None:
            return
        answer = {
            "ok": reply.ok,
            "message": reply.message,
            "data": reply.data,
            "final": reply.final,
        }
        self._send(connection, answer)
        if reply.final:
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
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept(buffers)
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in buffers:
                    self._read(key.fileobj, buffers)

    def _accept(self, buffers: dict[socket.socket, bytes]) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        while len(buffers) >= MOST:
            self._drop(next(iter(buffers)), buffers)
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
        buffers[connection] = buffers.get(connection, b"") + data
        line, newline, rest = buffers[connection].partition(b"\n")
        if not data or (not newline and len(line) > LONGEST):
            self._drop(connection, buffers)
            return
        if newline:
            buffers[connection] = rest
            self._handle(connection, line)

    def _handle(self, connection: socket.socket, line: bytes) -> None:
        try:
            request = json.loads(line)
            verb = request["verb"]
        except (ValueError, KeyError, TypeError, RecursionError):
            self._send(connection, {"ok": False, "message": "not a request", "final": True})
            return
        if verb == "status":
            answer = {"ok": True, "message": "", "data": self._status(), "final": True}
            self._send(connection, answer)
            return
        kinds: dict[str, Callable[[int], events.Event]] = {
            "drill": events.DrillRequested,
            "checkpoint": events.CheckpointRequested,
        }
        kind = kinds.get(verb) if isinstance(verb, str) else None
        refusal = "" if kind is not None else "no such verb"
        if kind is not None and self._peer(connection) not in self._users:
            refusal = f"`spotd {verb}` is for root and for the trainer's user: use sudo"
        if kind is None or refusal:
            self._send(connection, {"ok": False, "message": refusal, "data": {}, "final": True})
            return
        number = next(self._numbers)
        with self._lock:
            self._waiting[number] = connection
        self._post(kind(number))

    @staticmethod
    def _peer(connection: socket.socket) -> int:
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        uid: int = _UCRED.unpack(data)[1]
        return uid


def ask(path: Path, verb: str, timeout: float | None = 10.0) -> Iterator[dict[str, Any]]:
    """Asks the daemon; yields its answers, the last with `final` true.

    Args:
        path: Of the control socket.
        verb: "status", "drill" or "checkpoint".
        timeout: Seconds to wait for each answer, None for ever.

    Raises:
        UnavailableError: No daemon answers there.
        SpotdError: It went away before its last answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
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
