"""What the worker says while it works: progress to the daemon, trouble to the journal."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.shell.store.protocol import StoreProblem

_PROGRESS_EVERY = 0.5  # seconds
_TROUBLE_EVERY = 10.0  # seconds between two lines about the same trouble


class Pace:
    """Passes progress on, twice a second at most, the end always."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell
        self._next = 0.0
        self._lock = threading.Lock()

    def __call__(self, done: int, size: int) -> None:
        """So much of it is done."""
        with self._lock:
            now = time.monotonic()
            if now < self._next and done < size:
                return
            self._next = now + _PROGRESS_EVERY
        self._tell(done, size)


class Troubles:
    """Says what is being tried again: not at every try, but never in silence."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._next: dict[str, float] = {}  # one outage has several faces, which take turns
        self._lock = threading.Lock()

    def __call__(self, problem: StoreProblem) -> None:
        """This went wrong, and is tried again."""
        with self._lock:
            now = time.monotonic()
            if now < self._next.get(problem.message, 0.0):
                return
            self._next[problem.message] = now + _TROUBLE_EVERY
        complain(f"{self._what}: {problem} - trying again")


def complain(text: str) -> None:
    """Says one line to the journal."""
    print(f"spotd store: {text}", file=sys.stderr, flush=True)  # noqa: T201 - it is the journal
