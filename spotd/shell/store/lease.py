"""Who trains this run: one small object, written only if nobody else has written it since.

The lease keeps two machines from training one run and mixing up its checkpoints: after an
interruption EC2 can start a replacement while the first is still draining, and people
forget machines. Taking it is a write on condition that the object is still what was read,
so of any number that try at once one wins (`measured.md`: 16-way race, one winner).

A holder counts its time on a clock that nobody sets and that goes on while the machine
sleeps (CLOCK_BOOTTIME), from before the renewal was sent. Others count from when the store
says it was written, by the store's own clock: a machine whose clock is off takes nobody's
lease. Where a store does not tell (a directory), they read `expires` on theirs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from spotd.core.manifest import (
    ManifestError,
    parse_json_object,
    parse_time,
    render_json,
    render_time,
)
from spotd.shell.store.protocol import NotFound, PreconditionFailed, StoreProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.shell.store.protocol import Blob

KEY = "lease.json"
FORMAT = 1
# What a machine that died without a word makes its replacement wait at most, boot included.
# Renewed at a third of it, and tried again and again in the rest. An outage of S3 that is
# longer costs nothing: while it lasts nobody else can take the lease either.
TTL = 120.0  # seconds
# Where the store does not tell its time, the clocks of both machines have to agree so far.
TTL_BY_OUR_CLOCKS = 900.0  # seconds
_MAX_BYTES = 16 * 1024
_ATTEMPTS = 5  # each means that somebody else wrote in the meantime
_MAX_GENERATION = 2**53


class SmallStore(Protocol):
    """What a lease needs of an `ObjectStore`."""

    @property
    def location(self) -> str:
        """See `ObjectStore.location`."""
        ...

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str = "") -> str:
        """See `ObjectStore.put`."""
        ...

    def get(self, key: str, *, limit: int) -> Blob:
        """See `ObjectStore.get`."""
        ...


class LeaseHeld(StoreProblem):
    """Another machine trains this run."""

    def __init__(self, holder: str, expires_in: float) -> None:
        super().__init__(
            f"{holder} trains this run (its lease has {expires_in:.0f} s to go)",
            hint="stop it there first, or give this training another run name",
        )
        self.holder = holder
        self.expires_in = expires_in


@dataclass(frozen=True, slots=True)
class Lease:
    """Our lease. `valid_until` is on CLOCK_BOOTTIME, the same for all processes."""

    etag: str
    generation: int
    acquired: float
    valid_until: float

    def seconds_left(self) -> float:
        """Returns how long it still holds; below zero when it has run out."""
        return self.valid_until - _now()


@dataclass(frozen=True, slots=True)
class _Found:
    etag: str
    holder: str
    generation: int
    acquired: float
    left: float  # seconds until it runs out, by the best clock there is


class LeaseKeeper:
    """Takes, renews and gives back the lease of a run.

    Args:
        store: Where it lies.
        run: The run's name.
        holder: This instance's id.
        node: This machine's number in the run.
        ttl: Seconds it holds without being renewed.
        clock: Wall clock, for tests.
    """

    def __init__(
        self,
        store: SmallStore,
        run: str,
        holder: str,
        node: int = 0,
        *,
        ttl: float = TTL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._run = run
        self._holder = holder
        self._node = node
        self._ttl = ttl
        self._clock = clock

    def acquire(self, current: Lease | None = None) -> Lease:
        """Takes the lease: ours from before, expired, or not there at all.

        Args:
            current: What this daemon holds already; as long as it does, the generation stays
                and what is being stored under it counts. Any other taking is a new one, also
                by the same machine: two daemons may have its name.

        Raises:
            LeaseHeld: Another machine holds it.
            StoreProblem: The store did not answer, or lease.json cannot be read.
        """
        for _ in range(_ATTEMPTS):
            found = self._read()
            self._refuse_others(found)
            generation, acquired = found.generation + 1 if found else 1, self._clock()
            if found and current and self._is_still(found, current):
                generation, acquired = current.generation, current.acquired
            if generation >= _MAX_GENERATION:
                # Written, it would be refused by every machine, this one included.
                raise StoreProblem(
                    f"lease.json in {self._store.location} has the last generation there is",
                    hint="somebody wrote it by hand: delete it if no machine trains this run",
                )
            lease = self._write(found, generation, acquired)
            if lease is not None:
                return lease
        raise StoreProblem("lease.json changes faster than it can be read", retriable=True)

    def renew(self, lease: Lease) -> Lease:
        """Renews our lease, also one that ran out while nobody else took it.

        Raises:
            LeaseHeld: Another machine has taken it.
            StoreProblem: The store did not answer.
        """
        known = _Found(lease.etag, self._holder, lease.generation, lease.acquired, 0.0)
        for _ in range(_ATTEMPTS):
            renewed = self._write(known, lease.generation, lease.acquired)
            if renewed is not None:
                return renewed
            found = self._read()
            if found is None:
                renewed = self._write(None, lease.generation, lease.acquired)
                if renewed is not None:
                    return renewed
                continue
            if found.holder != self._holder or found.generation != lease.generation:
                raise LeaseHeld(found.holder, max(0.0, found.left))
            known = found  # ours: the answer to an earlier renewal got lost
        raise StoreProblem("lease.json changes faster than it can be read", retriable=True)

    def release(self, lease: Lease) -> None:
        """Lets it run out now. The object stays: it remembers the generation."""
        known: _Found | None = _Found(
            lease.etag, self._holder, lease.generation, lease.acquired, 0.0
        )
        for _ in range(_ATTEMPTS):
            if self._write(known, lease.generation, lease.acquired, ttl=0.0) is not None:
                return
            known = self._read()  # renewed by another process of ours, or taken over?
            if known is None or (known.holder, known.generation) != (
                self._holder, lease.generation,
            ):  # fmt: skip
                return

    def _is_still(self, found: _Found, lease: Lease) -> bool:
        mine = (found.holder, found.generation) == (self._holder, lease.generation)
        return mine and lease.seconds_left() > 0

    def _refuse_others(self, found: _Found | None) -> None:
        if found is None or found.holder == self._holder:
            return
        if found.left > 0:
            raise LeaseHeld(found.holder, found.left)

    def _read(self) -> _Found | None:
        try:
            blob = self._store.get(KEY, limit=_MAX_BYTES)
        except NotFound:
            return None
        try:
            document = parse_json_object(blob.data, KEY, _MAX_BYTES)
            return _parse(document, blob, self._run, self._clock())
        except ManifestError as error:
            raise StoreProblem(
                f"lease.json in {self._store.location} is not a lease: {error.message}",
                hint="look at it; delete it if no machine trains this run",
            ) from error

    def _write(
        self, known: _Found | None, generation: int, acquired: float, ttl: float | None = None
    ) -> Lease | None:
        """Writes on condition that the lease still is `known`; None when it is not."""
        ttl = self._ttl if ttl is None else ttl
        now, since = self._clock(), _now()
        document: dict[str, Any] = {
            "format": FORMAT,
            "run": self._run,
            "node": self._node,
            "holder": self._holder,
            "generation": generation,
            "acquired": render_time(acquired),
            "renewed": render_time(now),
            "expires": render_time(now + ttl),
        }
        data = render_json(document)
        try:
            if known is None:
                etag = self._store.put(KEY, data, if_none_match=True)
            else:
                etag = self._store.put(KEY, data, if_match=known.etag)
        except (PreconditionFailed, NotFound):
            return None
        return Lease(etag, generation, acquired, since + ttl)


def _parse(document: dict[str, Any], blob: Blob, run: str, now: float) -> _Found:
    generation = document.get("generation")
    holder = document.get("holder")
    if document.get("format") != FORMAT or document.get("run") != run:
        raise ManifestError("it is of another format or run")
    if isinstance(generation, bool) or not isinstance(generation, int):
        raise ManifestError("its generation is not a number")
    if not 0 <= generation < _MAX_GENERATION:
        raise ManifestError("its generation is out of range")
    if not isinstance(holder, str) or not holder.isprintable() or not 0 < len(holder) <= 256:  # noqa: PLR2004
        raise ManifestError("its holder is not an instance id")
    renewed, expires = parse_time(document.get("renewed")), parse_time(document.get("expires"))
    left = expires - now if blob.age is None else expires - renewed - blob.age
    return _Found(
        etag=blob.etag,
        holder=holder,
        generation=generation,
        acquired=parse_time(document.get("acquired")),
        left=left,
    )


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
