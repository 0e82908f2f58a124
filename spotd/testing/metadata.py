"""An HTTP server that can be in every bad mood a metadata service has been seen in.

What it says when it is well is the subclass's business (`answer`); this class knows how
to say it wrongly: with an error status, as garbage, cut off, slowly, byte by byte, never,
without end, or not at all. It is driven by methods, and by other processes over HTTP:

    POST /_spotd/<verb>   with a JSON object of the verb's arguments; see `verbs`
    GET  /_spotd/state    what it is doing

The control path is for loopback and test networks: it asks nobody who they are.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from spotd.testing.moody_http import CONTROL, Answer, Listener, Mood, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self  # for the type checker only

WELL = "well"
# A status code as text ("404", "503", ...) is a mood too.
MOODS = (
    WELL, "garbage", "noise", "truncated", "slow", "trickle", "hang", "closed", "reset", "huge",
    "redirect",
)  # fmt: skip
_KEPT_REQUESTS = 10_000


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
        self._moods: list[Mood] = []
        self._server: Listener | None = None
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
                self._moods.append(Mood(mood, path, until, seconds))
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

    def _mood_for(self, path: str) -> Mood | None:
        with self._lock:
            return next((m for m in reversed(self._moods) if m.path in path), None)

    def _wait_while(self, mood: Mood | None, seconds: float | None) -> None:
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
                self._server = server = Listener(self, (self._host, self._port))
                self._port = int(server.server_address[1])
                threading.Thread(
                    target=server.serve_forever, args=(0.02,), name=self.server_name, daemon=True
                ).start()

    # --- one exchange ---

    def control(self, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What `POST /_spotd/<verb>` does; raises KeyError, TypeError, ValueError."""
        result = self.verbs()[verb](**arguments)
        return {"ok": True, **({"result": result} if result is not None else {})}


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
