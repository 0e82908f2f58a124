"""One HTTP exchange with a metadata service, bounded in time and in size.

A client of its own, and not `requests`: EC2's service closes the connection after each
answer, so there is no session to keep; neither `requests` nor `http.client` can bound a
whole exchange when a server trickles (their time-outs are per read); and nothing here may
ever go through a proxy. By benchmarks/imds_client.py, `requests` adds 12 MiB of private
memory to an idle daemon that may have 30, this client 1; a poll costs a quarter of the
CPU, 0.007 % of a core at 5 s.

HTTP/1.1 as in RFC 9112, as much of it as such a service speaks: one answer, whose length
is known, chunked, or ended by the end of the connection. Redirects are not followed.
"""

from __future__ import annotations

import queue
import re
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spotd.shell.clouds import MetadataTrouble, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_BODY = 64 * 1024
_MOST_HEAD = 16 * 1024
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?: |$)")
_URL = re.compile(r"http://(\[[^\]]+\]|[^:/\[\]]+)(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Endpoint:
    """Where a metadata service answers.

    Args:
        url: `http://HOST[:PORT]`, no path; HOST a name, an IPv4 address or an IPv6 one in
            brackets.

    Raises:
        ValueError: It is not.
    """

    def __init__(self, url: str) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise ValueError(f"{url!r} is not http://HOST[:PORT]")
        self.url = url
        self._host = match[1].strip("[]")
        self._port = int(match[2] or 80)
        self._host_header = match[1] if match[2] is None else f"{match[1]}:{match[2]}"
        self._address: tuple[socket.AddressFamily, Any] | None = None

    def ask(
        self, method: str, path: str, headers: dict[str, str], deadline: float, *, body: bytes = b""
    ) -> Reply:
        """One question, one answer.

        Args:
            method: "GET", "PUT" or "POST".
            path: With its query, percent-encoded.
            headers: Of the request; Host and Connection are added.
            deadline: Monotonic seconds by which all of it is over.
            body: What is sent.

        Raises:
            MetadataTimeout: It took too long.
            MetadataTrouble: Nobody answered, or not in HTTP, or too much.
        """
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {self._host_header}",
            "Connection: close",
            "User-Agent: spotd",
            *(f"{name}: {value}" for name, value in headers.items()),
            *([f"Content-Length: {len(body)}"] if body or method in ("PUT", "POST") else []),
        ]
        request = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        try:
            return self._exchange(request, deadline)
        except TimeoutError:
            raise MetadataTimeout(f"{self.url} does not answer in time") from None
        except OSError as error:
            raise MetadataTrouble(
                f"{self.url} cannot be reached: {error.strerror or error}",
                "is this a cloud instance, and is 169.254.169.254 neither routed elsewhere nor "
                "firewalled?",
            ) from None

    def _exchange(self, request: bytes, deadline: float) -> Reply:
        family, address = self._resolve(deadline)
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(_left(deadline))
            connection.connect(address)
            connection.sendall(request)
            reader = _Reader()
            while not reader.complete:
                connection.settimeout(_left(deadline))
                chunk = connection.recv(65536)
                if not chunk:
                    break
                reader.feed(chunk)
        return reader.finish()

    def _resolve(self, deadline: float) -> tuple[socket.AddressFamily, Any]:
        if self._address is None:
            self._address = _look_up(self._host, self._port, deadline)
        return self._address


class MetadataTimeout(MetadataTrouble):
    """No answer in time."""


class _Reader:
    """Collects an answer until it is whole."""

    def __init__(self) -> None:
        self.complete = False
        self._data = bytearray()
        self._body_at = 0
        self._length: int | None = None
        self._status = 0
        self._headers: dict[str, str] = {}

    def feed(self, chunk: bytes) -> None:
        """Take what arrived."""
        before = len(self._data)
        self._data += chunk
        if not self._body_at:
            self._find_head(max(0, before - 3))
        if self._body_at:
            have = len(self._data) - self._body_at
            if have > MOST_BODY or (self._length or 0) > MOST_BODY:
                raise MetadataTrouble(f"the answer is larger than {MOST_BODY // 1024} KiB")
            self.complete = self._length is not None and have >= self._length
        elif len(self._data) > _MOST_HEAD:
            raise MetadataTrouble("the answer is not HTTP")

    def finish(self) -> Reply:
        """The answer, when the connection has ended or nothing more is expected."""
        if not self._body_at:
            what = "the answer is not HTTP" if self._data else "the connection ended unanswered"
            raise MetadataTrouble(what)
        body = bytes(self._data[self._body_at :])
        if self._length is not None:
            if len(body) < self._length:
                raise MetadataTrouble("the answer was cut off")
            body = body[: self._length]
        elif "chunked" in self._headers.get("transfer-encoding", "").lower():
            body = _unchunk(body)
        return Reply(self._status, self._headers, body)

    def _find_head(self, since: int) -> None:
        end = self._data.find(b"\r\n\r\n", since)
        if end < 0:
            return
        first, *lines = bytes(self._data[:end]).split(b"\r\n")
        match = _STATUS_LINE.match(first)
        if match is None:
            raise MetadataTrouble("the answer is not HTTP")
        if match[1].startswith(b"1"):  # "100 Continue": the answer comes after it
            del self._data[: end + 4]
            self._find_head(0)
            return
        self._status, self._body_at = int(match[1]), end + 4
        for line in lines:
            name, _, value = line.partition(b":")
            self._headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        length = self._headers.get("content-length")
        if length is not None and "transfer-encoding" not in self._headers:
            if not re.fullmatch("[0-9]{1,15}", length):
                raise MetadataTrouble(f'the answer\'s length is "{printable(length, 20)}"')
            self._length = int(length)


def _unchunk(data: bytes) -> bytes:
    body, at = bytearray(), 0
    while True:
        end = data.find(b"\r\n", at)
        match = re.match(rb"[0-9A-Fa-f]{1,8}", data[at:end]) if end >= 0 else None
        if match is None:
            raise MetadataTrouble("the answer was cut off")
        size = int(match[0], 16)
        if size == 0:
            return bytes(body)
        if end + 2 + size > len(data):
            raise MetadataTrouble("the answer was cut off")
        body += data[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


def refusal(path: str, status: int, hints: Mapping[int, str]) -> MetadataTrouble:
    """What a status other than 200 and 404 means; `hints` are the cloud's own words for some."""
    said = f"{path}: the metadata service answers {status}"
    if status in (429, 503):
        return MetadataTrouble(said, "too many questions are asked of it", throttled=True)
    hint = hints.get(status, "")
    if not hint and 300 <= status < 400:  # noqa: PLR2004 - HTTP
        hint = "something else stands at its address: a proxy, a portal?"
    return MetadataTrouble(said, hint)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _look_up(host: str, port: int, deadline: float) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = _resolve_name(host, port, deadline)
    family, _, _, _, address = found[0]
    return family, address


def _resolve_name(host: str, port: int, deadline: float) -> list[Any]:
    """A name's addresses; in a thread of its own, for a resolver knows no deadline."""
    answer: queue.SimpleQueue[list[Any] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            answer.put(error)

    threading.Thread(target=ask, name="imds-resolver", daemon=True).start()
    try:
        found = answer.get(timeout=_left(deadline))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, OSError):
        raise found
    return found
