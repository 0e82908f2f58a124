"""One file into the store, or out of it: side by side, tried again, continued.

Retries are bounded by what somebody waits for, never by a count: ten seconds of SlowDown
use up any count (`measured.md` section 7). A part that fails is tried again after half a
second, jittered so that lanes do not march in step, until the transfer is cancelled or, when
nobody is in a hurry, until the store has acknowledged nothing for `patience`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from spotd.shell.store.checksum import Algorithm
from spotd.shell.store.directory import read_checksum
from spotd.shell.store.protocol import (
    Cancelled,
    Damaged,
    Flow,
    NotFound,
    ObjectStore,
    Part,
    Piece,
    StoreProblem,
)
from spotd.shell.store.record import Begun, Done, Stat, UploadRecord

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


def lane_count(cpus: int | None = None) -> int:
    """Returns how many requests to keep going at once.

    S3 gives one connection about 85 MB/s; instances with more cores have the wider network.
    """
    return min(32, max(8, 4 * (cpus or os.cpu_count() or 1)))


class Lanes:
    """Threads that carry requests. All files of a transfer share them.

    Args:
        count: How many.
        prepare: Runs first in each thread: its priority.
    """

    def __init__(self, count: int, prepare: Callable[[], None] | None = None) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "lane", initializer=prepare)

    def each(self, jobs: Iterable[Callable[[], _T]]) -> Iterable[_T]:
        """Runs jobs, a few ahead of the lanes; yields results as they come.

        The first that raises ends it: no further one is begun, those under way are waited
        for, and its exception is raised.
        """
        running: set[Future[_T]] = set()
        source = iter(jobs)
        try:
            exhausted = False
            while running or not exhausted:
                while not exhausted and len(running) < 2 * self.count:
                    job = next(source, None)
                    if job is None:
                        exhausted = True
                    else:
                        running.add(self._pool.submit(job))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()
            wait(running)

    def close(self) -> None:
        """Ends the threads when they have nothing left to do."""
        self._pool.shutdown(wait=False, cancel_futures=True)


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
            self.flow.check()
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


def stat_of(fd: int) -> Stat:
    """Returns what tells one content of a file from the next, as far as a stat can."""
    found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns, found.st_ino


def send_small(transfer: Transfer, key: str, fd: int, size: int) -> Part:
    """Sends a file of one part, in the calling thread."""
    piece = Piece(fd, 0, size)
    return transfer.again(lambda: transfer.store.send_whole(key, piece, transfer.flow))


def send_large(
    transfer: Transfer,
    key: str,
    path: str,
    fd: int,
    record: UploadRecord,
    arrived: Callable[[int], None],
) -> Part:
    """Sends a file in parts over all lanes, going on where an earlier process was cut off.

    Args:
        transfer: Store, lanes and flow.
        key: Where to.
        path: The file's name in the record.
        fd: The open file.
        record: What is known of earlier attempts; kept up to date.
        arrived: Told the bytes of each part that is in the store.

    Returns:
        The object: its etag, size and checksum over all of it.
    """
    stat = stat_of(fd)
    counted = 0

    def count(size: int) -> None:
        nonlocal counted
        counted += size
        arrived(size)

    for attempt in range(2):
        begun = _continue_or_begin(transfer, key, path, fd, stat, record, count)
        try:
            return _send_parts(transfer, key, path, fd, begun, record, count)
        except (NotFound, Damaged) as problem:
            # Somebody aborted the upload (a lifecycle rule does), or what an earlier process
            # sent is not what the file holds now: once from the beginning, then it is said.
            record.forget(path)
            arrived(-counted)
            counted = 0
            if isinstance(problem, Damaged):
                transfer.again(lambda: transfer.store.abort(key, begun.upload))  # noqa: B023
            if attempt:
                raise
    raise AssertionError("unreachable")


def _continue_or_begin(
    transfer: Transfer,
    key: str,
    path: str,
    fd: int,
    stat: Stat,
    record: UploadRecord,
    count: Callable[[int], None],
) -> Begun:
    store = transfer.store
    begun = record.begun.get(path)
    if begun is not None and begun.stat != stat:
        transfer.again(lambda: store.abort(key, begun.upload))
        record.forget(path)
        begun = None
    if begun is not None:
        try:
            found = transfer.again(lambda: store.surviving(key, begun.upload, begun.parts))
        except NotFound:
            record.forget(path)
        else:
            begun.parts = _checked(found, fd, begun, stat[0], store.algorithm)
            for part in begun.parts.values():
                count(part.size)
            return begun
    upload = transfer.again(lambda: store.begin(key))
    fresh = Begun(upload, part_size(stat[0]), stat)
    record.begin(path, fresh)
    return fresh


def _checked(
    found: dict[int, Part], fd: int, begun: Begun, size: int, algorithm: Algorithm
) -> dict[int, Part]:
    """Keeps the parts that can be used: of the right length, checksum known or computed."""
    kept = {}
    for number, part in found.items():
        offset = (number - 1) * begun.part_size
        if part.size != min(begun.part_size, size - offset):
            continue
        if number in begun.parts and begun.parts[number].etag.strip('"') == part.etag.strip('"'):
            kept[number] = part
            continue
        # Acknowledged, but the process died before it could note it down.
        crc = read_checksum(Piece(fd, offset, part.size), algorithm)
        if crc is not None and part.crc in {None, crc}:
            kept[number] = Part(part.etag, part.size, crc)
    return kept


def _send_parts(
    transfer: Transfer,
    key: str,
    path: str,
    fd: int,
    begun: Begun,
    record: UploadRecord,
    count: Callable[[int], None],
) -> Part:
    store, size = transfer.store, begun.stat[0]
    total = -(-size // begun.part_size)

    def job(number: int) -> Callable[[], tuple[int, Part]]:
        offset = (number - 1) * begun.part_size
        piece = Piece(fd, offset, min(begun.part_size, size - offset))

        def send() -> tuple[int, Part]:
            part = transfer.again(
                lambda: store.send_part(key, begun.upload, number, piece, transfer.flow)
            )
            record.part(path, number, part)
            return number, part

        return send

    missing = [number for number in range(1, total + 1) if number not in begun.parts]
    for _number, part in transfer.lanes.each(job(number) for number in missing):
        count(part.size)
    parts = {number: begun.parts[number] for number in range(1, total + 1)}
    crc = store.algorithm.join((parts[n].crc or 0, parts[n].size) for n in sorted(parts))
    etag = transfer.again(lambda: store.complete(key, begun.upload, parts, crc))
    return Part(etag, size, crc)


def finished(part: Part, stat: Stat, fd: int, algorithm: Algorithm) -> Done:
    """Returns the record of a file that is stored, with what `unchanged` will compare."""
    if stat[0] < SMALLEST_COPIED:
        return Done(part, stat, None)
    return Done(part, stat, read_checksum(Piece(fd, 0, min(MIB, stat[0])), algorithm))


def receive_pieces(
    transfer: Transfer,
    key: str,
    fd: int,
    pieces: Iterable[tuple[int, int]],
    algorithm: Algorithm,
    arrived: Callable[[int, int, int], None],
) -> None:
    """Fetches ranges (offset, length) of an object into their places in a file.

    `arrived(offset, length, checksum)` is called for each, in the thread of the caller.
    """

    def job(offset: int, length: int) -> Callable[[], tuple[int, int, int]]:
        piece = Piece(fd, offset, length)

        def get() -> tuple[int, int, int]:
            receive = transfer.store.receive
            crc = transfer.again(lambda: receive(key, piece, transfer.flow, algorithm))
            return offset, length, crc

        return get

    for offset, length, crc in transfer.lanes.each(job(*piece) for piece in pieces):
        arrived(offset, length, crc)
