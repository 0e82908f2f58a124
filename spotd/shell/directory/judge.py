"""Gathers the facts about one entry and has the core decide what it is."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from spotd.core.checkpoint import LocalCheckpoint, name_family, step_from_name
from spotd.core.completeness import (
    AUTO,
    CandidateFacts,
    FileFacts,
    State,
    Structure,
    Verdict,
    judge,
)
from spotd.core.layouts import Layout, is_custom_object
from spotd.shell.directory.fingerprint import fingerprint_of
from spotd.shell.directory.reader import UNKNOWN, Reading, read_structure
from spotd.shell.directory.tree import (
    FileEntry,
    Snapshot,
    SwappedError,
    opened_file,
    snapshot,
)
from spotd.shell.directory.writers import Writers

_MAX_REMEMBERED = 50_000  # weight of the readings kept: some five thousand files
_READING = 10  # weight of one, beside what it needs
_MAX_GAP_ON_DISK = 100.0  # seconds; files further apart are not of one save


@dataclass(slots=True)
class History:
    """What was seen of one name over time; all times monotonic seconds.

    `changed` is None until a change has been seen: the age of what stood there before
    spotd looked is only known by the wall clock.
    """

    fingerprint: str = ""
    changed: float | None = None
    longest_gap: float = 0.0

    def note(self, fingerprint: str, now: float, *, new: bool = False) -> bool:
        """Takes one look; returns whether anything is different from the last.

        `new`: its appearance itself was seen.
        """
        if fingerprint == self.fingerprint:
            return False
        if self.fingerprint or new:
            if self.changed is not None:
                self.longest_gap = max(self.longest_gap, now - self.changed)
            self.changed = now
        self.fingerprint = fingerprint
        return True


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with what it was made of."""

    name: str
    snapshot: Snapshot
    fingerprint: str
    verdict: Verdict
    writing: bool

    def checkpoint(self, step: int | None, *, declared: bool) -> LocalCheckpoint:
        """The checkpoint it is; `step` for a name that carries none."""
        named = step_from_name(self.name)
        return LocalCheckpoint(
            name=self.name,
            kind=self.snapshot.kind,
            size=self.snapshot.size,
            mtime_ns=self.snapshot.mtime_ns,
            fingerprint=self.fingerprint,
            step=step if named is None else named,
            declared=declared,
        )


class Judge:
    """Judges entries of one directory; reads no file twice that has not changed.

    Args:
        complete: `checkpoints.complete`.
        default_pattern: `checkpoints.pattern` is `*`.
        owner: The trainer's uid, for `spotd.shell.directory.tree.snapshot`.
        writers: Answers who writes.
    """

    def __init__(
        self,
        *,
        complete: str = AUTO,
        default_pattern: bool = True,
        owner: int | None = None,
        writers: Writers | None = None,
    ) -> None:
        self._complete = complete
        self._default_pattern = default_pattern
        self._owner = owner
        self._writers = writers or Writers()
        self._readings: OrderedDict[tuple[str, int, int, int], Reading] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()  # a worker that puts a checkpoint back judges too
        self._families: dict[str, Layout] = {}
        self._family_files: dict[str, frozenset[str]] = {}

    def look(self, root: int, name: str) -> Snapshot:
        """Looks at one entry; raises FileNotFoundError or another OSError."""
        return snapshot(root, name, owner=self._owner)

    def judge(
        self,
        root: int,
        name: str,
        seen: Snapshot,
        history: History,
        *,
        settled: bool = False,
        declared: bool = False,
        check_writers: bool = True,
    ) -> Judgement:
        """Judges what `look` saw of the entry `name` below `root`."""
        files = tuple(
            self._facts(root, name, file, check_writers=check_writers) for file in seen.files
        )
        family = name_family(name)
        verdict = judge(
            CandidateFacts(
                name=name,
                kind="directory" if seen.kind == "directory" else "file",
                files=files,
                unusable=seen.unusable,
                quiet=_quiet(history, seen),
                longest_gap=max(history.longest_gap, _gap_on_disk(seen)),
                settled=settled,
                declared=declared,
                complete=self._complete,
                default_pattern=self._default_pattern,
                family=self._families.get(family),
                family_files=self._family_files.get(family, frozenset()),
            )
        )
        self._learn(family, verdict, files)
        writing = any(file.writing for file in files)
        return Judgement(name, seen, fingerprint_of(seen), verdict, writing)

    def _learn(self, family: str, verdict: Verdict, files: tuple[FileFacts, ...]) -> None:
        if verdict.state is not State.WHOLE or verdict.layout in (None, Layout.OTHER):
            return
        self._families[family] = verdict.layout
        custom = frozenset(file.path for file in files if is_custom_object(file.path))
        self._family_files[family] = custom

    def _facts(self, root: int, name: str, file: FileEntry, *, check_writers: bool) -> FileFacts:
        key = (file.path or name, *file.identity)
        reading = self._readings.get(key)
        writing = False
        if reading is None or check_writers:
            try:
                with opened_file(root, name, file.path) as descriptor:
                    writing = check_writers and self._writers.writing(descriptor)
                    reading = reading or read_structure(descriptor, file.path or name)
            except SwappedError as error:
                reading = Reading(Structure.TORN, str(error))
            except BlockingIOError:  # a lease of somebody who means to write
                reading, writing = reading or UNKNOWN, True
            except FileNotFoundError:
                reading = Reading(Structure.TORN, "it vanished while it was looked at")
            except OSError as error:
                reading = Reading(Structure.TORN, error.strerror or str(error))
            else:
                if not writing:
                    self._remember(key, reading)
        return FileFacts(
            file.path, file.size, file.mtime_ns, writing,
            reading.structure, reading.reason, reading.needs,
        )  # fmt: skip

    def _remember(self, key: tuple[str, int, int, int], reading: Reading) -> None:
        with self._lock:
            if key in self._readings:
                return
            self._readings[key] = reading
            self._weight += _READING + len(reading.needs)
            while self._weight > _MAX_REMEMBERED and self._readings:
                _, old = self._readings.popitem(last=False)
                self._weight -= _READING + len(old.needs)

    def forget(self) -> None:
        """Drops what was remembered of files: nothing is being written any more."""
        with self._lock:
            self._readings.clear()
            self._weight = 0


def _quiet(history: History, seen: Snapshot) -> float:
    """Seconds since the last change: by our own clock if we saw it, else by the file's ctime.

    ctime, since mtime is set back by cp -p, tar and rsync.
    """
    if history.changed is not None:
        return time.monotonic() - history.changed
    newest = max((file.ctime for file in seen.files), default=time.time())
    return max(0.0, time.time() - newest)


def _gap_on_disk(seen: Snapshot) -> float:
    times = sorted(file.mtime_ns / 1e9 for file in seen.files)
    gaps = (later - earlier for earlier, later in itertools.pairwise(times))
    return max((gap for gap in gaps if gap <= _MAX_GAP_ON_DISK), default=0.0)
