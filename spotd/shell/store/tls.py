"""TLS over a socket, for what is mostly received and for what is mostly sent.

Python's SSLSocket makes one system call for each record of 16 KiB. For a download, records
are read in memory here, and the socket is asked for a quarter of a megabyte at a time: a
fifth less CPU. For an upload the two copies that this takes cost more than the system calls
it saves, a tenth, and the records go straight to the socket (`docs/transfer.md`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import ssl
import sys
import threading
from typing import Any

_STEP = 256 * 1024
_FIRST_STEP = 16 * 1024
_ACKED = (120, 8)  # where tcp_info has tcpi_bytes_acked (linux/tcp.h): offset, length
# Every record lets go of the interpreter's lock and asks for it again: threads that decrypt
# at the same time spend more on taking turns than on their records. So a few do, and the
# others wait in the kernel, on something cheaper. One does 2 GB/s.
_TURNS = [threading.Lock() for _ in range(max(1, (os.cpu_count() or 1) // 2))]
_NUMBERS = itertools.count()


def tls_context(bundle: str | None) -> ssl.SSLContext:
    """Returns whom to trust: the authorities in a file, or the system's."""
    context = ssl.create_default_context(cafile=bundle or None)
    context.sslsocket_class = TlsSender
    return context


class TlsSender(ssl.SSLSocket):
    """For large bodies that are sent; `SSLContext.wrap_socket` makes it (`tls_context`)."""

    def send(self, data: Any, flags: int = 0) -> int:
        """Sends all of it; raises TimeoutError when nothing moves.

        SSLSocket's own time-out is for the whole of a call, and smaller calls cost a tenth of the
        CPU time. So when it is over the other end's word counts: has it got anything meanwhile?
        OpenSSL goes on with the same bytes where it was (SSL_write(3)).
        """
        before = self._acknowledged()
        while True:
            try:
                return super().send(data, flags)
            except TimeoutError:  # noqa: PERF203 - it is what the loop is for
                now = self._acknowledged()
                if now <= before:
                    raise
                before = now

    def _acknowledged(self) -> int:
        offset, length = _ACKED
        info = self.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, offset + length)
        return int.from_bytes(info[offset:], sys.byteorder)

    def shutdown(self, how: int) -> None:
        """Ends the connection below, without a word of TLS; any thread may call.

        SSLSocket's own forgets TLS first: what another thread sends just then would go out
        in the clear.
        """
        socket.socket.shutdown(self, how)


class TlsSocket:
    """For answers and small requests: the part of a socket's face that a `Connection` uses.

    Args:
        raw: A connected socket; its time-out holds for each step.
        context: Trusted authorities and the rest.
        host: The name the certificate must be for.

    Raises:
        OSError: The handshake fails; ssl's errors are OSErrors.
    """

    def __init__(self, raw: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._raw = raw
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._step = memoryview(bytearray(_FIRST_STEP))
        self._turn = _TURNS[next(_NUMBERS) % len(_TURNS)]
        try:
            self._shake_hands()
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                self._flush()  # the alert that says why
            raise

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:  # noqa: PERF203 - it is what the loop is for
                self._flush()
                self._fill()
            else:
                self._flush()
                return

    def send(self, data: memoryview) -> int:
        """Sends all of it; returns its length."""
        for start in range(0, len(data), _STEP):
            view, write = data[start : start + _STEP], self._tls.write
            with self._turn:
                while view:
                    view = view[write(view) :]
            self._flush()
        return len(data)

    def recv_into(self, buffer: memoryview) -> int:
        """Receives at least a byte, and what came with it; 0 at the end."""
        read: Any = self._tls.read
        while True:
            total = 0
            try:
                with self._turn:
                    while total < len(buffer):
                        count = read(len(buffer) - total, buffer[total:])
                        if count == 0:
                            return total
                        total += count
            except ssl.SSLWantReadError:  # no whole record is left
                self._flush()  # what TLS has to say by itself, such as new keys
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return total
            if total or not self._fill():
                return total

    def _fill(self) -> bool:
        count = self._raw.recv_into(self._step)
        if count == 0:
            self._incoming.write_eof()
            return False
        self._incoming.write(self._step[:count])
        if count == len(self._step) < _STEP:
            self._step = memoryview(bytearray(_STEP))  # more than an answer's few lines comes
        return True

    def _flush(self) -> None:
        view = memoryview(self._outgoing.read())
        while view:
            view = view[self._raw.send(view) :]

    def settimeout(self, seconds: float) -> None:
        """Sets how long a step may take in which nothing moves."""
        self._raw.settimeout(seconds)

    def fileno(self) -> int:
        """Returns the socket's descriptor."""
        return self._raw.fileno()

    def shutdown(self, how: int) -> None:
        """Ends the connection below, without a word of TLS."""
        self._raw.shutdown(how)

    def close(self) -> None:
        """Closes the socket."""
        self._raw.close()
