"""A disk with a page cache: what a power cut takes depends on what was fsynced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.core.checkpoint import LocalCheckpoint, step_from_name
from spotd.core.events import HeldCheckpoint, LocalInventory

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

WRITEBACK = 35.0  # seconds after which the kernel has written a page out by itself


class File:
    """One checkpoint's bytes. `torn` is what its structure shows, `garbled` only its content."""

    __slots__ = (
        "content",
        "durable",
        "fingerprint",
        "garbled",
        "mtime",
        "name",
        "poisoned",
        "size",
        "step",
        "torn",
    )  # fmt: skip

    def __init__(self, name: str, step: int, size: int, mtime: float, fingerprint: str) -> None:
        self.name = name
        self.step = step
        self.size = size
        self.mtime = mtime
        self.fingerprint = fingerprint
        self.content = fingerprint  # copies keep it: the same bytes
        self.torn = False
        self.garbled = False
        self.durable = False
        self.poisoned = False

    @property
    def whole(self) -> bool:
        """Whether every byte is as the trainer wrote it."""
        return not (self.torn or self.garbled)

    def copy(self, fingerprint: str) -> File:
        """Returns the same bytes in another file."""
        other = File(self.name, self.step, self.size, self.mtime, fingerprint)
        other.content = self.content
        other.torn, other.garbled, other.poisoned = self.torn, self.garbled, self.poisoned
        return other

    def seen(self) -> LocalCheckpoint:
        """Returns it as the watcher reports it."""
        return LocalCheckpoint(
            self.name, "file", self.size, int(self.mtime * 1e9), self.fingerprint,
            step_from_name(self.name),
        )  # fmt: skip


class Disk:
    """The checkpoint directory, the holds, the record; volatile and durable."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self.files: dict[str, File] = {}
        self.holds: dict[str, File] = {}
        self.aside: dict[str, File] = {}
        self.record: dict[str, object] | None = None
        self.full = False
        self.missing = False
        self._durable: dict[str, File] = {}
        self._written = 0

    def fingerprint(self) -> str:
        """Returns one that no other content has."""
        self._written += 1
        return f"{self._name}f{self._written}"

    def begin(self, name: str, step: int, size: int, wall: float) -> File:
        """A write straight to its final name begins: whatever stood there is gone."""
        file = File(name, step, size, wall, self.fingerprint())
        file.torn = True
        self.files[name] = file
        return file

    def end(self, file: File, wall: float) -> None:
        """The write is over: whole, with a new fingerprint, in the page cache."""
        file.torn = False
        file.mtime = wall
        file.fingerprint = self.fingerprint()
        file.content = file.fingerprint

    def put(self, name: str, step: int, size: int, wall: float) -> File:
        """A whole file gets its name by a rename."""
        file = File(name, step, size, wall, self.fingerprint())
        self.files[name] = file
        return file

    def sync(self, name: str) -> None:
        """Fsyncs a file and its name."""
        file = self.files.get(name)
        if file is not None:
            file.durable = True
            self._durable[name] = file

    def sync_all(self) -> None:
        """What an orderly shutdown does."""
        for name in list(self.files):
            self.sync(name)
        for name in set(self._durable) - set(self.files):
            del self._durable[name]
        for held in self.holds.values():
            held.durable = True

    def write_back(self, wall: float) -> None:
        """What the kernel has long written out counts as durable."""
        for name, file in self.files.items():
            if wall - file.mtime >= WRITEBACK and not file.torn:
                file.durable = True
                self._durable[name] = file

    def inventory(
        self, *, settled: bool, contents: bool, trusted: tuple[str, ...]
    ) -> LocalInventory:
        """Answers `Inspect`."""
        good, torn = [], []
        for file in self.files.values():
            looked_into = contents and file.fingerprint not in trusted
            if not (file.torn or (looked_into and file.garbled)):
                good.append(file.seen())
            elif settled:
                torn.append((file.name, "no end record" if file.torn else "wrong CRC"))
        for checkpoint_id, file in list(self.holds.items()):
            if file.torn or (contents and file.garbled and file.fingerprint not in trusted):
                del self.holds[checkpoint_id]
                if file not in self.files.values():
                    self.aside.setdefault(file.name, file)
        held = [HeldCheckpoint(i, file.seen()) for i, file in self.holds.items()]
        return LocalInventory(tuple(good), tuple(torn), tuple(held))

    def power_cut(
        self, wall: float, random: Random, *, pick: Callable[[File], str] | None = None
    ) -> None:
        """Loses the page cache. `pick` says what became of a file: kept, lost, torn, garbled."""
        self.write_back(wall)
        after: dict[str, File] = {}
        for name in sorted(set(self.files) | set(self._durable)):
            file, old = self.files.get(name), self._durable.get(name)
            if file is None:  # deleted, and the deletion was not yet written out
                if old is not None and random.random() < 0.5:  # noqa: PLR2004 - a coin
                    after[name] = old
                continue
            if file is old and file.durable:
                after[name] = file
                continue
            fate = _fate(file, random) if pick is None else pick(file)
            if fate == "lost":
                if old is not None and old is not file:
                    after[name] = old
                continue
            after[name] = self._torn_by(file, fate)
        self.files = after
        self._durable = dict(after)
        self.holds = {i: f for i, f in self.holds.items() if f.durable or random.random() < 0.5}  # noqa: PLR2004
        for held in self.holds.values():
            if not held.durable and random.random() < 0.5:  # noqa: PLR2004
                held.torn = True
            held.durable = True
        self.full = False

    def _torn_by(self, file: File, fate: str) -> File:
        file.durable = True  # what is on the platter now stays as it is
        if fate == "kept":
            return file
        file.torn = file.torn or fate == "torn"
        file.garbled = fate == "garbled"
        if file.torn:
            file.fingerprint = self.fingerprint()
        return file


def _fate(file: File, random: Random) -> str:
    if file.torn:
        return random.choice(("lost", "torn"))
    return random.choice(("lost", "torn", "garbled", "kept"))
