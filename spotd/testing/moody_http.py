"""The HTTP half of the simulated metadata services: says an answer as the mood has it."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spotd.testing.metadata import MetadataServer

CONTROL = "/_spotd/"
_GARBAGE = b'\x00\xff{"action": <html>captive portal</html> [[[['


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back. `hang`: nothing ever does."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """What came in. `at` is monotonic seconds; header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    at: float


@dataclass(frozen=True, slots=True)
class Mood:
    """One mood, of the paths that hold `path`, until monotonic `until`."""

    name: str
    path: str
    until: float | None
    seconds: float


class Listener(ThreadingHTTPServer):
    """Listens, and answers each connection in a thread; `owner` knows the answers."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, owner: MetadataServer, address: tuple[str, int]) -> None:
        self.owner = owner
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind, and ask no resolver who we are."""
        # HTTPServer's own looks up the host's name, which can take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Somebody who hung up is no error here."""


class _Handler(BaseHTTPRequestHandler):
    server: Listener
    timeout = 60

    def handle(self) -> None:
        self.server.owner.connections += 1
        mood = self.server.owner._mood_for("")  # noqa: SLF001 - one class in two halves
        if mood is not None and mood.name == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return
        super().handle()

    def _serve(self) -> None:
        owner = self.server.owner
        body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 65536))
        if self.path.startswith(CONTROL):
            self._control(body)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        question = Question(self.command, self.path, headers, time.monotonic())
        owner.questions.append(question)
        mood = owner._mood_for(self.path)  # noqa: SLF001
        if mood is not None and mood.name.isdigit():
            self._send(error_answer(int(mood.name)))
            return
        answer = owner.answer(question)
        if answer.hang:
            owner._wait_while(None, None)  # noqa: SLF001
        elif mood is None:
            self._send(answer)
        else:
            self._send_moodily(mood, answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - the base class's names

    def _head(self, answer: Answer, length: int) -> bytes:
        reason = HTTPStatus(answer.status).phrase if answer.status in _STATUSES else ""
        headers = {
            "Content-Type": "text/plain",
            "Content-Length": str(length),
            "Date": self.date_time_string(),
            "Server": self.server.owner.server_name,
            # EC2's, like most, closes after each answer: clients must cope.
            "Connection": "close",
            **answer.headers,
        }
        lines = [f"HTTP/1.1 {answer.status} {reason}", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _send(self, answer: Answer) -> None:
        self.close_connection = True
        body = b"" if self.command == "HEAD" else answer.body
        self._write(self._head(answer, len(answer.body)) + body)

    def _write(self, content: bytes) -> None:
        with contextlib.suppress(OSError):  # the client has gone, as it may
            self.wfile.write(content)

    def _send_moodily(self, mood: Mood, answer: Answer) -> None:
        self.close_connection = True
        wait = self.server.owner._wait_while  # noqa: SLF001
        if mood.name == "garbage":
            self._send(Answer(200, _GARBAGE))
        elif mood.name == "noise":
            self._write(_GARBAGE * 40)
        elif mood.name == "truncated":
            self._write(self._head(answer, len(answer.body) + 100) + answer.body[:5])
        elif mood.name == "redirect":
            self._send(Answer(302, b"", {"Location": "http://127.0.0.1:1/login"}))
        elif mood.name == "slow":
            wait(mood, mood.seconds)
            self._send(answer)
        elif mood.name == "hang":
            wait(mood, None)
        elif mood.name == "trickle":
            self._trickle(mood, self._head(answer, len(answer.body)) + answer.body)
        elif mood.name == "huge":
            self._flood(mood)

    def _trickle(self, mood: Mood, content: bytes) -> None:
        owner = self.server.owner
        with contextlib.suppress(OSError):
            for byte in content:
                self.wfile.write(bytes([byte]))
                owner._wait_while(mood, mood.seconds)  # noqa: SLF001

    def _flood(self, mood: Mood) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(self._head(Answer(200), 10**10))
            while mood in self.server.owner._moods and not self.server.owner._stopped:  # noqa: SLF001
                self.wfile.write(b" " * 65536)

    def _control(self, body: bytes) -> None:
        owner, verb = self.server.owner, self.path.removeprefix(CONTROL)
        try:
            if self.command == "GET" and verb == "state":
                said: dict[str, Any] = owner.state()
            else:
                said = owner.control(verb, json.loads(body or b"{}"))
        except (KeyError, TypeError, ValueError) as error:
            said = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        status = 200 if said.get("ok", True) else 400
        self._send(Answer(status, json.dumps(said).encode(), {"Content-Type": "application/json"}))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nobody reads it."""


_STATUSES = {status.value for status in HTTPStatus}


def error_answer(status: int) -> Answer:
    """An error page in the form EC2's service gives it."""
    phrase = HTTPStatus(status).phrase if status in _STATUSES else "Error"
    title = f"{status} - {phrase}"
    page = (
        '<?xml version="1.0" encoding="iso-8859-1"?>\n<html>\n <head>\n'
        f"  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n </body>\n</html>\n"
    )
    return Answer(status, page.encode("latin-1"), {"Content-Type": "text/html"})
