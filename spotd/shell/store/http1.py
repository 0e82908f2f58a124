"""HTTP/1.1 as far as S3 needs it: few copies, time-outs that mean "nothing moves".

`http.client` parses the answers; requests and bodies are written by hand, because a body
here is a megabyte at a time of a file, and because a time-out has to be counted from the
last byte that moved: neither `sendall`'s (for all of a buffer) nor one for a whole request
can tell a slow line from a dead one.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import http.client
import random
import select
import socket
import ssl
import struct
import termios
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.shell.store.problems import unreachable
from spotd.shell.store.protocol import StoreProblem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spotd.shell.store.protocol import Flow

# Servers close idle connections after 20 s and more; one that has idled for long is not worth
# the request that finds out.
_KEEP_IDLE = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: for a connect, and without one byte moving."""

    connect: float
    progress: float


class Connection:
    """One connection, used by one thread at a time."""

    def __init__(self, sock: socket.socket, timeouts: Timeouts) -> None:
        self.sock = sock
        self.idle_since = 0.0
        self._progress = timeouts.progress
        sock.settimeout(timeouts.progress)

    def send(self, data: memoryview | bytes) -> None:
        """Sends all of it; raises TimeoutError when nothing moves."""
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.sendall(data)  # its time-out is for each record of 16 KiB
            return
        view = memoryview(data)
        while view:
            view = view[self.sock.send(view) :]

    def answer(self, method: str) -> http.client.HTTPResponse:
        """Waits for status line and headers of the answer."""
        self._wait()
        response = http.client.HTTPResponse(self.sock, method=method)
        response.begin()
        return response

    def _wait(self) -> None:
        """Waits for the first byte while what was sent is still on its way."""
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            return
        unsent = self._unsent()
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        while not poll.poll(self._progress * 1000):
            left = self._unsent()
            if left == 0 or left >= unsent:
                raise TimeoutError(f"no answer within {self._progress:.0f} s")
            unsent = left

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
    """

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext | None, timeouts: Timeouts
    ) -> None:
        self.name = f"{host}:{port}"
        self._host = host
        self._port = port
        self._context = context
        self._timeouts = timeouts
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
            raise StoreProblem(
                f"{self.name} has a certificate that is not trusted: {error.verify_message}",
                hint="set AWS_CA_BUNDLE to the authority's certificate, or correct endpoint_url",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(self.name, _line(error)) from error
        finally:
            if connection is not None and connection.idle_since == 0.0:
                connection.close()

    def keep(self, connection: Connection, response: http.client.HTTPResponse) -> None:
        """Puts a connection back, when its answer has been read to the end."""
        if response.isclosed() and not response.will_close:
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
                if self._context is not None:
                    sock = self._context.wrap_socket(sock, server_hostname=self._host)
                return Connection(sock, self._timeouts)
            except OSError as failed:
                sock.close()
                error = failed
        raise error


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


def read_some(response: http.client.HTTPResponse, limit: int = 65536) -> bytes:
    """Reads an answer that should be small, to its end when it is."""
    data = response.read(limit)
    if not response.isclosed():
        response.read(0 if response.length is None else min(response.length, limit))
    return data


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
