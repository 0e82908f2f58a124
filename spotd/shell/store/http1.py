"""HTTP/1.1 as far as S3 needs it: few copies, time-outs that mean "nothing moves".

Not `http.client`: a body here is a megabyte at a time of a file, a small file goes out with
its headers in one system call, and a time-out has to be counted from the last byte that
moved: neither `sendall`'s (for all of a buffer) nor one for a whole request can tell a slow
line from a dead one. Its parser of headers alone would cost a fifth of a small file.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import random
import socket
import ssl
import struct
import termios
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.shell.store.problems import unreachable, untrusted
from spotd.shell.store.tls import TlsSocket

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spotd.shell.store.protocol import Flow

# Servers close idle connections after 20 s and more; one that has idled for long is not worth
# the request that finds out.
_KEEP_IDLE = 5.0  # seconds
_HEAD_LIMIT = 32 * 1024  # bytes of status line and headers; S3's have one or two KiB
_OK, _NO_CONTENT = 200, 204


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: for a connect, and without one byte moving."""

    connect: float
    progress: float


class Answer:
    """Status and headers of an answer, and the way to its body.

    Attributes:
        status: The number.
        headers: By name in small letters.
        length: Bytes of the body still to come; None when only its end tells.
    """

    def __init__(self, connection: Connection, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        version, _, rest = lines[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ConnectionError("the answer is not HTTP")
        self.status = int(rest[:3])
        self.headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, text = line.partition(":")
            self.headers[name.strip().lower()] = text.strip()
        self._connection = connection
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        self._closes = self.headers.get("connection", "").lower() == "close"
        told = self.headers.get("content-length", "")
        self.length = int(told) if told.isdigit() and not self._chunked else None
        if self.status == _NO_CONTENT:
            self.length = 0

    @property
    def reusable(self) -> bool:
        """Whether the body has been read to its end and the connection stays."""
        return self.length == 0 and not self._closes

    def readinto(self, buffer: memoryview) -> int:
        """Fills a buffer from the body; less only at its end, which must not come early."""
        wanted = len(buffer) if self.length is None else min(len(buffer), self.length)
        got = 0
        while got < wanted:
            count = self._connection.receive(buffer[got:wanted])
            if count == 0:
                raise ConnectionError("the answer ended before its time")
            got += count
        if self.length is not None:
            self.length -= got
        return got

    def small(self, limit: int = 65536) -> bytes:
        """Reads a body that should be small: an error document, the end of an upload."""
        if self.length is not None:
            data = bytearray(min(self.length, limit))
            with memoryview(data) as view:
                self.readinto(view)
            return bytes(data)
        data = bytearray()
        buffer = bytearray(8192)
        while len(data) < limit:
            with memoryview(buffer) as view:
                count = self._connection.receive(view)
            data += buffer[:count]
            if self._chunked and data.endswith(b"0\r\n\r\n"):
                self.length = 0
            if count == 0 or self.length == 0:
                break
        return bytes(data)  # the frames of chunks stay in it; nobody who looks for a code minds


class Connection:
    """One connection, used by one thread at a time."""

    def __init__(self, sock: socket.socket | TlsSocket, timeouts: Timeouts) -> None:
        self.sock = sock
        self.idle_since = 0.0
        self._timeouts = timeouts
        self._unsent_before = 0
        self._buffer = memoryview(bytearray(_HEAD_LIMIT))
        self._start = self._end = 0  # of what has been received and not been read
        sock.settimeout(timeouts.progress)

    def send(self, data: memoryview | bytes) -> None:
        """Sends all of it; raises TimeoutError when nothing moves."""
        view = memoryview(data)
        while view:
            view = view[self.sock.send(view) :]

    def answer(self) -> Answer:
        """Waits for status line and headers of the answer."""
        self._unsent_before = self._unsent()
        while True:
            answer = Answer(self, self._head())
            if answer.status >= _OK:
                return answer  # what stands before it only says that it will come

    def _head(self) -> bytes:
        while True:
            received = bytes(self._buffer[self._start : self._end])
            stop = received.find(b"\r\n\r\n")
            if stop >= 0:
                self._start += stop + 4
                return received[:stop]
            if self._start:
                self._buffer[: len(received)] = received
                self._start, self._end = 0, len(received)
            if self._end == len(self._buffer):
                raise ConnectionError("the answer's headers do not end")
            count = self._wait(self._buffer[self._end :])
            if count == 0:
                raise ConnectionError("the connection was closed without an answer")
            self._end += count

    def receive(self, buffer: memoryview) -> int:
        """Receives what there is, at most a buffer; 0 at the end."""
        count = min(len(buffer), self._end - self._start)
        if count:
            buffer[:count] = self._buffer[self._start : self._start + count]
            self._start += count
            return count
        return self.sock.recv_into(buffer)

    def _wait(self, buffer: memoryview) -> int:
        """Receives, with patience while what was sent is still on its way."""
        while True:
            try:
                return self.sock.recv_into(buffer)
            except TimeoutError:  # noqa: PERF203 - it is what the loop is for
                unsent = self._unsent()
                if unsent == 0 or unsent >= self._unsent_before:
                    raise TimeoutError(
                        f"no answer within {self._timeouts.progress:.0f} s"
                    ) from None
                self._unsent_before = unsent

    def _unsent(self) -> int:
        """Returns the bytes in the kernel's send buffer that the other end has not got yet."""
        packed = fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        return int(struct.unpack("i", packed)[0])

    def interrupt(self) -> None:
        """Wakes whoever waits on it; called from another thread."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes it."""
        self.sock.close()


class Pool:
    """Connections to one endpoint, kept for the next request.

    Args:
        host: Name or address.
        port: TCP port.
        context: For TLS; None for plain HTTP.
        timeouts: See `Timeouts`.
        sends: Whether what is sent over it is large, rather than what is received.
    """

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext | None,
        timeouts: Timeouts,
        *,
        sends: bool = False,
    ) -> None:
        self.name = f"{host}:{port}"
        self._host = host
        self._port = port
        self._context = context
        self._timeouts = timeouts
        self._sends = sends
        self._idle: collections.deque[Connection] = collections.deque()

    @contextlib.contextmanager
    def connection(self, flow: Flow) -> Iterator[Connection]:
        """Lends a connection; it is closed unless `keep` was called on it.

        Raises:
            StoreProblem: No connection, or it broke: what the block raised, in words.
        """
        connection: Connection | None = None
        try:
            connection = self._take() or self._connect()
            with flow.watching(connection.interrupt):
                yield connection
        except ssl.SSLCertVerificationError as error:
            raise untrusted(self.name, error.verify_message) from error
        except OSError as error:
            raise unreachable(self.name, _line(error)) from error
        finally:
            if connection is not None and connection.idle_since == 0.0:
                connection.close()

    def keep(self, connection: Connection, answer: Answer) -> None:
        """Puts a connection back, when its answer has been read to the end."""
        if answer.reusable:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)

    def close(self) -> None:
        """Closes what is idle."""
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Connection | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if time.monotonic() - connection.idle_since < _KEEP_IDLE:
                connection.idle_since = 0.0
                return connection
            connection.close()

    def _connect(self) -> Connection:
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        # S3 answers with several hosts: not all lanes to one, and the next try to another.
        random.shuffle(found)
        deadline = time.monotonic() + self._timeouts.connect
        error: OSError = OSError("no address")
        for family, kind, protocol, _, address in found:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(left)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(self._timeouts.progress)
                return Connection(self._secured(sock), self._timeouts)
            except OSError as failed:
                sock.close()
                error = failed
        raise error

    def _secured(self, sock: socket.socket) -> socket.socket | TlsSocket:
        if self._context is None:
            return sock
        if not self._sends:
            return TlsSocket(sock, self._context, self._host)
        return self._context.wrap_socket(sock, server_hostname=self._host)


def head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """Returns the first lines of a request."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Buffers:
    """Buffers of one size that are used again: memory does not grow with the file."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[bytearray] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def one(self) -> Iterator[memoryview]:
        """Lends a buffer."""
        with self._lock:
            buffer = self._free.pop() if self._free else bytearray(self._size)
        try:
            with memoryview(buffer) as view:
                yield view
        finally:
            with self._lock:
                self._free.append(buffer)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
