"""The object store as spotd sees it: small objects, parts of big ones, and what can go wrong.

Two implementations exist, S3 (`spotd.shell.store.s3`) and a directory
(`spotd.shell.store.directory`); one contract suite runs against both. Keys are text,
relative to the root the store was opened at (`<store.url>/<run>/`), "/" between parts.

Small objects (lease, manifest) are bytes with conditions. Big ones are sent in numbered
parts, because parts can be sent side by side, tried again one by one and continued by
another process; a file of one part skips the ceremony (`send_whole`). What is built on
top (retries, lanes, records on the disk) is the same for both: `spotd.shell.store.transfer`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from spotd.errors import SpotdError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from spotd.shell.store.checksum import Algorithm


_ENOUGH = 64 * 1024 * 1024  # bytes, more than sockets and lanes swallow: their pace is the link's


class StoreProblem(SpotdError):  # noqa: N818 - NotFound, Damaged: what they say
    """The store did not do it. `retriable`: the same call may work in a moment."""

    def __init__(self, message: str, *, hint: str = "", retriable: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.retriable = retriable


class PreconditionFailed(StoreProblem):
    """if_none_match or if_match did not hold: somebody else wrote in between."""


class NotFound(StoreProblem):
    """No such object, or no such upload."""


class Damaged(StoreProblem):
    """What was sent or stored is not what the checksum says."""


class Cancelled(Exception):  # noqa: N818 - nothing went wrong, somebody said stop
    """The transfer was stopped on purpose; what is needed to continue has been kept."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A small object.

    Attributes:
        data: All of it.
        etag: Opaque, for `if_match`.
        age: Seconds since it was written, by the store's clock; None where that is not told.
    """

    data: bytes
    etag: str
    age: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing. With a delimiter, a key ending in "/" stands for all below it."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Part:
    """A part the store has acknowledged. `crc` is None when only the store knows of it."""

    etag: str
    size: int
    crc: int | None


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `offset` to `offset + length` of an open file: to be read, or to be written."""

    fd: int
    offset: int
    length: int


class Flow:
    """What all threads of one transfer share: the way to stop it, and its pace.

    Args:
        cancel: Set by whoever wants the transfer to end now.
        bytes_per_second: Upper limit over all threads together; None for none.
        hold_back: Returns seconds to wait before another part may begin, 0 for none (see
            `spotd.shell.store.peace`); None: nothing has to wait.
    """

    def __init__(
        self,
        cancel: threading.Event | None = None,
        bytes_per_second: float | None = None,
        hold_back: Callable[[], float] | None = None,
    ) -> None:
        self.cancel = cancel or threading.Event()
        self.broken = False  # one thread of the transfer failed: the others need not go on
        self.wire = 0  # bytes that went over the wire, repeats included
        self.last_progress = time.monotonic()
        self._began = time.monotonic()
        self._free: tuple[int, float] | None = None  # bytes and seconds until it was held back
        self._rate = bytes_per_second
        self._hold_back = hold_back
        self._next = 0.0
        self._lock = threading.Lock()
        self._interrupts: list[Callable[[], None]] = []

    def stop(self) -> None:
        """Ends the transfer now, also where it waits for a server that does not answer."""
        self.cancel.set()
        with self._lock:
            waiting = list(self._interrupts)
        for interrupt in waiting:
            interrupt()

    @contextlib.contextmanager
    def watching(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Has `interrupt` called by `stop` while the block runs."""
        with self._lock:
            self._interrupts.append(interrupt)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._interrupts.remove(interrupt)

    def check(self) -> None:
        """Raises Cancelled once somebody has said stop, or it cannot succeed any more."""
        if self.cancel.is_set() or self.broken:
            raise Cancelled

    def passed(self, count: int) -> None:
        """Counts bytes that are about to pass; waits where a limit says so."""
        self.check()
        with self._lock:
            self.wire += count
            if self._rate is None:
                return
            now = time.monotonic()
            self._next = max(self._next, now) + count / self._rate
            wait = self._next - now
        if wait > 0:
            self._rest(wait)

    @property
    def limited(self) -> bool:
        """Whether it keeps to so many bytes a second."""
        return self._rate is not None

    def turn(self) -> None:
        """Waits until another part may begin; raises Cancelled like `check`.

        Between parts and not within them: no server waits for the rest of a request.
        """
        self.check()
        while self._hold_back is not None:
            wait = self._hold_back()
            if wait <= 0:
                return
            self._rest(wait)
            self.progressed()  # it was us who was silent

    def _rest(self, seconds: float) -> None:
        if self._free is None:
            self._free = (self.wire, time.monotonic() - self._began)
        if self.cancel.wait(seconds):
            raise Cancelled
        self.check()

    def rate(self) -> float | None:
        """Returns bytes per second while nothing held it back; None when that was too short."""
        free = self._free
        if free is None:
            seconds = time.monotonic() - self._began
            return self.wire / max(1e-3, seconds) if self.wire else None
        return free[0] / max(1e-3, free[1]) if free[0] >= _ENOUGH else None

    def unpassed(self, count: int) -> None:
        """Takes back what was counted in a pass that only looked at the bytes."""
        with self._lock:
            self.wire -= count

    def progressed(self) -> None:
        """Notes that a part has been acknowledged: the store is alive."""
        self.last_progress = time.monotonic()

    def quiet(self) -> float:
        """Returns seconds since the last acknowledged part."""
        return time.monotonic() - self.last_progress


class ObjectStore(Protocol):
    """All calls are synchronous, may come from any thread, and raise StoreProblem."""

    @property
    def location(self) -> str:
        """Where the root is, for people and for telling two stores apart; no secrets."""
        ...

    @property
    def algorithm(self) -> Algorithm:
        """The checksum it is given for what it stores."""
        ...

    def warm(self) -> None:
        """Gets ready to send: imports, credentials; raises StoreProblem without them."""
        ...

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str = "") -> str:
        """Writes a small object; returns its etag.

        Raises:
            PreconditionFailed: `if_none_match` and it exists, or its etag is not `if_match`.
        """
        ...

    def get(self, key: str, *, limit: int) -> Blob:
        """Reads a small object of at most `limit` bytes; raises NotFound, Damaged if longer."""
        ...

    def list(self, prefix: str, *, delimiter: bool = False) -> Iterator[Entry]:
        """Lists keys that begin with `prefix`, in order; all pages of them."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects; one that is not there is fine."""
        ...

    def send_whole(self, key: str, piece: Piece, flow: Flow) -> Part:
        """Writes an object from a file in one request, its checksum sent along."""
        ...

    def begin(self, key: str) -> str:
        """Begins an object of many parts; returns the upload's id."""
        ...

    def surviving(self, key: str, upload: str, recorded: Mapping[int, Part]) -> dict[int, Part]:
        """Returns the parts of an upload the store still has; raises NotFound when it is gone.

        Those in `recorded` come back with their checksum, others with the store's or None.
        """
        ...

    def send_part(self, key: str, upload: str, number: int, piece: Piece, flow: Flow) -> Part:
        """Sends one part; numbers begin at 1. Sending a number again replaces it."""
        ...

    def complete(self, key: str, upload: str, parts: Mapping[int, Part], crc: int) -> str:
        """Makes the object visible, if its checksum is `crc`; returns its etag.

        Raises:
            Damaged: The store has other bytes; the upload is of no use any more.
            NotFound: The upload is gone.
        """
        ...

    def abort(self, key: str, upload: str) -> None:
        """Drops an upload and its parts; one that is gone is fine."""
        ...

    def copy(self, source: str, key: str, part: Part) -> str:
        """Copies an object inside the store if it still is `part`; returns the new etag.

        Raises:
            NotFound, PreconditionFailed: The source is gone, or another by now.
        """
        ...

    def receive(self, key: str, piece: Piece, flow: Flow, algorithm: Algorithm) -> int:
        """Reads a range of an object into the same place of a file; returns its checksum.

        Raises:
            Damaged: The object is shorter than that.
        """
        ...

    def close(self) -> None:
        """Lets go of connections."""
        ...
