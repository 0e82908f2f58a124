"""A TCP proxy on loopback that spoils what passes through it, on demand.

Between a client and a real server it plays the network and the server's bad days: lost
connections, silence, a slow line, 503 SlowDown, a body cut in the middle, a flipped bit.
The fault can be switched at any time and also strikes connections that are open. Demo,
drill and tests share it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 65536
_TICK = 0.05  # seconds between two looks at the fault while nothing may pass


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong.

    Attributes:
        kind: "none"; "drop": connections are refused with a reset, open ones too; "stall":
            connections are accepted and nothing passes, either way; "swallow": what the
            client sends vanishes and no answer comes (a black hole); "throttle": `rate`
            bytes a second and direction; "answer": every request is answered with `status`
            and S3's `code`; "cut": a reset after `after` bytes from the client; "truncate":
            the server's answer ends, in order, after `after` bytes; "flip": one bit of byte
            `after` is turned over, on the way to the client ("down") or server ("up").
        rate: Bytes a second.
        status: HTTP status.
        code: S3's error code.
        after: Bytes of one connection, counted from when the fault began for it.
        times: How often it strikes (cut, truncate, flip, answer); then all is well. 0: always.
        direction: "up" or "down", for flip.
    """

    kind: str = "none"
    rate: float = 0.0
    status: int = 503
    code: str = "SlowDown"
    after: int = 0
    times: int = 0
    direction: str = "down"


NONE = Fault()


class FaultProxy:
    """Listens on a free port of 127.0.0.1 and passes everything on to `port`.

    Use as a context manager, or `close` it.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.passed_up = 0  # bytes from clients that reached the server
        self.passed_down = 0
        self.connections = 0
        self._lock = threading.Lock()
        self._fault = NONE
        self._since = 0  # counts the changes of fault
        self._struck = 0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()

    def __enter__(self) -> FaultProxy:  # noqa: PYI034 - typing.Self is of 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def endpoint_url(self) -> str:
        """What `store.endpoint_url` should say."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def fault(self) -> Fault:
        """The fault of this moment."""
        return self._fault

    @property
    def struck(self) -> int:
        """How often the fault has struck."""
        return self._struck

    def set(self, fault: Fault) -> None:
        """Changes the fault, for open connections too."""
        with self._lock:
            self._fault = fault
            self._since += 1
            self._struck = 0
            connections = list(self._open) if fault.kind == "drop" else []
        for connection in connections:
            _reset(connection)

    @contextlib.contextmanager
    def during(self, fault: Fault) -> Iterator[None]:
        """Has a fault while the block runs."""
        self.set(fault)
        try:
            yield
        finally:
            self.set(NONE)

    def close(self) -> None:
        """Ends everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            _reset(connection)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._fault.kind == "drop":
                _reset(client)
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self.upstream), timeout=10)
            except OSError:
                _reset(client)  # the server is down: so are we
                return
            with server:
                server.settimeout(None)
                both = {client, server}
                with self._lock:
                    self._open |= both
                down = threading.Thread(
                    target=self._pump, args=(server, client, "down"), daemon=True
                )
                down.start()
                self._pump(client, server, "up")
                down.join()
                with self._lock:
                    self._open -= both

    def _pump(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        """Passes bytes on in one direction until the connection ends or a fault ends it."""
        seen, since = 0, self._since
        try:
            while data := source.recv(_CHUNK):
                if since != self._since:
                    seen, since = 0, self._since
                seen += len(data)
                if not self._pass(data, seen, source, target, direction):
                    return
        except OSError:
            _reset(target)
            return
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _pass(
        self, data: bytes, seen: int, source: socket.socket, target: socket.socket, direction: str
    ) -> bool:  # fmt: skip
        """Does what the fault says to these bytes; False when the connection is over."""
        while self._fault.kind == "stall":
            time.sleep(_TICK)  # what is asked of a stall is to wait
        fault = self._fault
        before = seen - len(data)
        if fault.kind == "drop":
            _reset(source)
            _reset(target)
            return False
        if fault.kind == "swallow":
            return True
        if fault.kind == "throttle":
            time.sleep(len(data) / fault.rate)
        if fault.kind == "answer" and direction == "up" and self._strikes(fault):
            _answer(source, fault)
            _reset(target)
            return False
        here = before <= fault.after < seen
        if fault.kind == "cut" and direction == "up" and here and self._strikes(fault):
            target.sendall(data[: fault.after - before])
            _reset(source)
            _reset(target)
            return False
        if fault.kind == "truncate" and direction == "down" and here and self._strikes(fault):
            target.sendall(data[: fault.after - before])
            target.shutdown(socket.SHUT_RDWR)
            _reset(source)
            return False
        if fault.kind == "flip" and direction == fault.direction and here and self._strikes(fault):
            spoiled = bytearray(data)
            spoiled[fault.after - before] ^= 1
            data = bytes(spoiled)
        target.sendall(data)
        self._count(direction, len(data))
        return True

    def _strikes(self, fault: Fault) -> bool:
        with self._lock:
            if fault.times and self._struck >= fault.times:
                return False
            self._struck += 1
            return True

    def _count(self, direction: str, count: int) -> None:
        with self._lock:
            if direction == "up":
                self.passed_up += count
            else:
                self.passed_down += count


def _answer(client: socket.socket, fault: Fault) -> None:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Error><Code>{fault.code}</Code><Message>a fault on demand</Message></Error>"
    ).encode()
    head = (
        f"HTTP/1.1 {fault.status} Fault\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    with contextlib.suppress(OSError):
        client.sendall(head + body)
        client.shutdown(socket.SHUT_WR)
        # Reading on lets the answer arrive: closing with unread bytes would reset it away.
        client.settimeout(1.0)
        while client.recv(_CHUNK):
            pass


def _reset(connection: socket.socket) -> None:
    """Ends a connection as a lost network does: with a reset rather than in order."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
