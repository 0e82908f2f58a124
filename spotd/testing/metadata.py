"""An HTTP server that can be in every bad mood a metadata service has been seen in.

What it says when it is well is the subclass's business (`answer`); this class knows how
to say it wrongly: with an error status, as garbage, cut off, slowly, byte by byte, never,
without end, or not at all. It is driven by methods, and by other processes over HTTP:

    POST /_spotd/<verb>   with a JSON object of the verb's arguments; see `verbs`
    GET  /_spotd/state    what it is doing

The control path is for loopback and test networks: it asks nobody who they are.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import struct
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self  # for the type checker only

CONTROL = "/_spotd/"
WELL = "well"
# A status code as text ("404", "503", ...) is a mood too.
MOODS = (
    WELL, "garbage", "noise", "truncated", "slow", "trickle", "hang", "closed", "reset", "huge",
    "redirect",
)  # fmt: skip
_GARBAGE = b'\x00\xff{"action": <html>captive portal</html> [[[['
_KEPT_REQUESTS = 10_000


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
class _Mood:
    name: str
    path: str
    until: float | None
    seconds: float


class MetadataServer(ABC):
    """The server, its moods and its control path; use it as a context manager.

    Args:
        host: Address to listen on, IPv4 or IPv6.
        port: Port; 0 takes a free one.

    Attributes:
        questions: The last questions asked, control ones left out.
        connections: How many connections were accepted.
    """

    server_name = "metadata"

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.questions: deque[Question] = deque(maxlen=_KEPT_REQUESTS)
        self.connections = 0
        self._host, self._port = host, port
        self._lock = threading.RLock()
        self._settling = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._moods: list[_Mood] = []
        self._server: ThreadingHTTPServer | None = None
        self._stopped = False
        self._timers: list[threading.Timer] = []

    @abstractmethod
    def answer(self, question: Question) -> Answer:
        """What a healthy service says. Called under no lock."""

    def verbs(self) -> dict[str, Callable[..., object]]:
        """What other processes may call, by name."""
        return {"mood": self.mood, "well": self.well}

    def state(self) -> dict[str, Any]:
        """What it is doing, as JSON."""
        with self._lock:
            return {
                "moods": [{"mood": m.name, "path": m.path} for m in self._moods],
                "questions": len(self.questions),
            }

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    # --- moods ---

    def mood(
        self,
        mood: str,
        *,
        path: str = "",
        for_seconds: float | None = None,
        seconds: float = 1.0,
    ) -> None:
        """Fall into a mood, on top of those it is in.

        Args:
            mood: One of `MOODS`, or a status code as text. "well" ends those of `path`.
            path: Only for paths that hold this text; "" means all, and is the only choice
                for "closed" (nobody listens) and "reset" (connections are torn down).
            for_seconds: How long; None means until "well".
            seconds: What "slow" waits before its answer, and "trickle" between two bytes.
        """
        if mood not in MOODS and not re.fullmatch("[1-5][0-9][0-9]", mood):
            raise ValueError(f"{mood!r} is no mood; one of {', '.join(MOODS)} or a status code")
        if path and mood in ("closed", "reset"):
            raise ValueError(f"{mood!r} is a mood of the whole server, not of a path")
        until = None if for_seconds is None else time.monotonic() + for_seconds
        with self._changed:
            self._moods = [m for m in self._moods if m.path != path]
            if mood != WELL:
                self._moods.append(_Mood(mood, path, until, seconds))
            self._changed.notify_all()
        self._settle()
        if for_seconds is not None:
            timer = threading.Timer(for_seconds, self._expire)
            timer.daemon = True
            self._timers.append(timer)
            timer.start()

    def well(self) -> None:
        """End every mood."""
        with self._changed:
            self._moods = []
            self._changed.notify_all()
        self._settle()

    def _expire(self) -> None:
        with self._changed:
            now = time.monotonic()
            self._moods = [m for m in self._moods if m.until is None or m.until > now]
            self._changed.notify_all()
        self._settle()

    def _mood_for(self, path: str) -> _Mood | None:
        with self._lock:
            return next((m for m in reversed(self._moods) if m.path in path), None)

    def _wait_while(self, mood: _Mood | None, seconds: float | None) -> None:
        """Wait, at most so long, until the mood has ended or the server has stopped."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or (mood is not None and mood not in self._moods), seconds
            )

    # --- life ---

    def start(self) -> Self:
        """Listen, and answer in threads of its own."""
        self._stopped = False
        self._settle()
        return self

    def stop(self) -> None:
        """Stop listening and let go of everybody who waits."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for timer in self._timers:
            timer.cancel()
        self._settle()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _settle(self) -> None:
        """Listen, or do not, as the moods and `stop` have it now."""
        with self._settling:
            with self._lock:
                closed = self._stopped or any(m.name == "closed" for m in self._moods)
            if closed and self._server is not None:
                # Called in a thread of its own or in a handler's, never in serve_forever's.
                self._server.shutdown()
                self._server.server_close()
                self._server = None
            elif not closed and self._server is None:
                self._server = server = _Server(self, (self._host, self._port))
                self._port = int(server.server_address[1])
                threading.Thread(
                    target=server.serve_forever, args=(0.02,), name=self.server_name, daemon=True
                ).start()

    # --- one exchange ---

    def control(self, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What `POST /_spotd/<verb>` does; raises KeyError, TypeError, ValueError."""
        result = self.verbs()[verb](**arguments)
        return {"ok": True, **({"result": result} if result is not None else {})}


class _Server(ThreadingHTTPServer):
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
        # HTTPServer's own looks up the host's name, which can take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Somebody who hung up is no error here."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
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

    def _send_moodily(self, mood: _Mood, answer: Answer) -> None:
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

    def _trickle(self, mood: _Mood, content: bytes) -> None:
        owner = self.server.owner
        with contextlib.suppress(OSError):
            for byte in content:
                self.wfile.write(bytes([byte]))
                owner._wait_while(mood, mood.seconds)  # noqa: SLF001

    def _flood(self, mood: _Mood) -> None:
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


def serve(simulator: MetadataServer) -> None:
    """Run it in the foreground, its URL printed, until SIGINT or SIGTERM."""
    end = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, end)  # before the threads, which inherit it
    with simulator:
        sys.stdout.write(f"{simulator.url}\n")
        sys.stdout.flush()
        signal.sigwait(end)


def http_date(seconds: float) -> str:
    """Seconds since the epoch as RFC 9110 writes dates."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.strftime("%a, %d %b %Y %H:%M:%S GMT")


def drive(url: str, verb: str, **arguments: object) -> dict[str, Any]:
    """Call a verb of a simulator in another process; `state` reads its state.

    Raises:
        ValueError: It refused.
        OSError: It does not answer.
    """
    data = None if verb == "state" else json.dumps(arguments).encode()
    request = Request(f"{url.rstrip('/')}{CONTROL}{verb}", data=data)  # noqa: S310 - http, our own
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=10) as answer:
            said: dict[str, Any] = json.loads(answer.read())
    except HTTPError as error:
        with error:
            raise ValueError(json.loads(error.read())["error"]) from None
    return said
