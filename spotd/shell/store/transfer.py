"""Requests side by side, tried again: what all files of a transfer share.

Retries are bounded by what somebody waits for, never by a count: ten seconds of SlowDown
use up any count (`measured.md` section 7). A part that fails is tried again after half a
second, jittered so that lanes do not march in step, until the transfer is cancelled or, when
nobody is in a hurry, until the store has acknowledged nothing for `patience`.
"""

from __future__ import annotations

import os
import queue
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from spotd.shell.store.priority import one_core
from spotd.shell.store.protocol import (
    Cancelled,
    Damaged,
    Flow,
    ObjectStore,
    Part,
    Piece,
    StoreProblem,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from spotd.shell.store.checksum import Algorithm

MIB = 1024 * 1024
# Below this, copying inside the store saves nothing: the request costs as much as the bytes.
SMALLEST_COPIED = 256 * 1024
WHOLE_LIMIT = 16 * MIB  # up to here one request does it
PART_SIZE = 16 * MIB  # small enough to keep all lanes busy and to lose little in a cut
LARGE_PART_SIZE = 64 * MIB  # from 8 GiB on: fewer requests
_LARGE = 8 * 1024 * MIB
MAX_PARTS = 10_000  # S3's limit
BACKOFF = 0.5  # seconds, jittered from half to one and a half of it
PATIENCE = 60.0  # seconds without an acknowledged part before an upload in peace says so
_DAMAGE_LIMIT = 3  # the same bytes refused this often are not the network's fault

_T = TypeVar("_T")


def part_size(size: int) -> int:
    """Returns the part size for a file of `size` bytes: a whole number of MiB."""
    wanted = LARGE_PART_SIZE if size > _LARGE else PART_SIZE
    least = -(-size // MAX_PARTS)
    return max(wanted, -(-least // MIB) * MIB)


# A request takes S3 some 30 ms whatever it carries: tiny files need many at once, and for
# them that costs little memory.
TINY_LIMIT = 256 * 1024
TINY_LANES = 64


def lane_count(cpus: int | None = None) -> int:
    """Returns how many requests to keep going at once.

    S3 gives one connection about 85 MB/s; instances with more cores have the wider network.
    """
    return min(32, max(8, 4 * (cpus or os.cpu_count() or 1)))


class Lanes:
    """Threads that carry requests. All files of a transfer share them.

    Args:
        count: How many.
        prepare: What runs first in each thread: its priority.
        tiny: How many more there are for tiny files, all on one core; 0: none, they share the
            others.
    """

    def __init__(self, count: int, *prepare: Callable[[], None], tiny: int = 0) -> None:
        self.count = count
        self.tiny = Lanes(tiny, one_core, *prepare) if tiny else self
        self._pool = ThreadPoolExecutor(count, "lane", initializer=lambda: _run_all(prepare))

    def each(  # noqa: C901 - one loop, read from top to bottom
        self, jobs: Iterable[Callable[[], _T]]
    ) -> Iterator[_T]:
        """Runs jobs, a few ahead of the lanes; yields results as they come.

        The first that raises ends it: no further one is begun, those under way are waited
        for, and its exception is raised.
        """
        results: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        source, running, error = iter(jobs), 0, None
        over = threading.Event()

        def run(job: Callable[[], _T]) -> None:
            try:
                results.put((True, None if over.is_set() else job()))
            except BaseException as problem:  # noqa: BLE001 - raised again below
                results.put((False, problem))

        try:
            while True:
                while not over.is_set() and running < 2 * self.count:
                    job = next(source, None)
                    if job is None:
                        break
                    self._pool.submit(run, job)
                    running += 1
                if not running:
                    break
                worked, result = results.get()
                running -= 1
                if not worked:
                    over.set()
                    error = error or result
                elif not over.is_set():
                    yield result
        finally:
            over.set()
            for _ in range(running):
                results.get()
        if error is not None:
            raise error

    def close(self) -> None:
        """Ends the threads when they have nothing left to do."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self.tiny is not self:
            self.tiny.close()


def _run_all(steps: Iterable[Callable[[], None]]) -> None:
    for step in steps:
        step()


@dataclass(frozen=True, slots=True)
class Transfer:
    """What the files of one transfer share. `patience` None: until cancelled."""

    store: ObjectStore
    lanes: Lanes
    flow: Flow
    patience: float | None = PATIENCE
    on_trouble: Callable[[StoreProblem], None] = lambda _problem: None

    def again(self, function: Callable[[], _T]) -> _T:
        """Runs a call until it works, it can never work, or nobody waits for it any more."""
        damages = 0
        while True:
            self.flow.turn()
            try:
                result = function()
            except StoreProblem as problem:
                if self.flow.cancel.is_set():
                    raise Cancelled from problem
                damages += isinstance(problem, Damaged)
                if not problem.retriable or damages >= _DAMAGE_LIMIT:
                    raise
                if self.patience is not None and self.flow.quiet() > self.patience:
                    raise
                self.on_trouble(problem)
                if self.flow.cancel.wait(BACKOFF * random.uniform(0.5, 1.5)):  # noqa: S311
                    raise Cancelled from problem
            else:
                self.flow.progressed()
                return result


def send_small(transfer: Transfer, key: str, fd: int, size: int) -> Part:
    """Sends a file of one part, in the calling thread."""
    piece = Piece(fd, 0, size)
    return transfer.again(lambda: transfer.store.send_whole(key, piece, transfer.flow))


def receive_job(
    transfer: Transfer, key: str, piece: Piece, algorithm: Algorithm
) -> Callable[[], tuple[Piece, int]]:
    """Returns the job that fetches a range into its place, and returns its checksum."""

    def get() -> tuple[Piece, int]:
        receive = transfer.store.receive
        return piece, transfer.again(lambda: receive(key, piece, transfer.flow, algorithm))

    return get
