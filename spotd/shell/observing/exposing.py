"""How figures get out: a file for node_exporter, and an endpoint that is scraped."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from spotd.core.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE = 2.0  # seconds a client has for its question, and to take the answer
LONGEST = 8192  # bytes of a question
_GET = (b"GET /metrics ", b"GET /metrics?", b"HEAD /metrics ")


def write_textfile(path: Path, text: str) -> None:
    """Replaces the file at once, readable by all; node_exporter never sees half of it.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o644)
    with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor
        os.fchmod(fd, 0o644)  # the unit's umask is for the daemon's own files
        file.write(text.encode())
    temporary.replace(path)


class Endpoint:
    """Answers `GET /metrics`, one client after the other, each for a bounded time.

    Not `http.server`: it costs 3 MiB, and gives a client that says nothing for ever.

    Args:
        listen: ADDRESS:PORT; the address may be an IPv6 one in brackets.
        render: Returns the text of a scrape; called in this class's thread.

    Raises:
        OSError: It cannot listen there.
    """

    def __init__(self, listen: str, render: Callable[[], str]) -> None:
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        found = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        self._render = render
        self._listener = socket.socket(family, kind, protocol)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(address)
            self._listener.listen(16)
        except OSError:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answers no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0:
                    return  # closed
                time.sleep(0.1)  # out of descriptors, say: others may give some back
                continue
            with connection, contextlib.suppress(OSError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        deadline = time.monotonic() + PATIENCE
        question = b""
        while b"\r\n\r\n" not in question and len(question) < LONGEST:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            chunk = connection.recv(LONGEST)
            if not chunk:
                return
            question += chunk
        known = question.startswith(_GET)
        body = self._render().encode() if known else b"figures are at /metrics\n"
        head = (
            f"HTTP/1.1 {'200 OK' if known else '404 Not Found'}\r\n"
            f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        ).encode()
        connection.settimeout(PATIENCE)
        connection.sendall(head if question.startswith(b"HEAD") else head + body)
