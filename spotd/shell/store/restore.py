"""A checkpoint from the store into the checkpoint directory: verified, then visible.

Bytes arrive in `.spotd-restore/<id>/` below the checkpoint directory, on its file system,
where no trainer looks and only spotd may write; what has arrived is noted down, and after
a cut verified by reading it again rather than fetched again. When every file matches its
checksum, is fsynced and has its mode, time and owner, one rename puts the checkpoint in
its place. Whatever stood there before is moved to `.spotd-aside/`, never overwritten.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spotd.core.checkpoint import LocalCheckpoint
from spotd.core.manifest import Manifest, ManifestDirectory, ManifestFile
from spotd.errors import SpotdError
from spotd.shell.directory.fingerprint import fingerprint
from spotd.shell.directory.tree import (
    opened_file,
    remove_tree,
    snapshot,
)
from spotd.shell.store.checkpoints import object_key
from spotd.shell.store.checksum import algorithm_of
from spotd.shell.store.directory import read_checksum
from spotd.shell.store.protocol import Damaged, Flow, NotFound, ObjectStore, Piece
from spotd.shell.store.staging import (
    check_space,
    directory_in,
    made,
    move_in,
    staging,
    writable,
)
from spotd.shell.store.transfer import MIB, TINY_LIMIT, Lanes, Transfer, receive_job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from spotd.shell.owner import Owner
    from spotd.shell.store.checksum import Algorithm

PIECE = 16 * MIB


@dataclass(slots=True)
class _Arrived:
    """The record of a fetch: which ranges are on the disk, with their checksums."""

    path: Path
    manifest: str
    pieces: dict[str, dict[tuple[int, int], int]] = field(default_factory=dict)

    def load(self) -> None:
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for number, text in enumerate(lines):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if number == 0 and line != {"manifest": self.manifest}:
                return
            if number > 0:
                path, offset, length, crc = line
                self.pieces.setdefault(path, {})[offset, length] = crc

    def start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.pieces:
            self.path.write_text(json.dumps({"manifest": self.manifest}) + "\n")

    def add(self, path: str, offset: int, length: int, crc: int) -> None:
        self.pieces.setdefault(path, {})[offset, length] = crc
        with self.path.open("a") as file:
            file.write(json.dumps([path, offset, length, crc]) + "\n")

    def forget(self, path: str) -> None:
        self.pieces.pop(path, None)


@dataclass(frozen=True, slots=True)
class Restore:
    """Fetches one checkpoint into a directory.

    Attributes:
        store: Opened at the run.
        lanes: Threads to fetch with.
        flow: How to stop it.
        state: Directory for what must survive this process.
        owner: Whom the files are given to; None: nobody else.
        report: Told (bytes arrived, size) after each piece.
        patience: Seconds without progress before it gives up; None: never.
    """

    store: ObjectStore
    lanes: Lanes
    flow: Flow
    state: Path
    owner: Owner | None
    report: Callable[[int, int], None]
    patience: float | None

    def into(self, root: int, manifest: Manifest) -> LocalCheckpoint:
        """Fetches, verifies and puts the checkpoint into the directory `root` (a descriptor).

        Raises:
            Damaged, NotFound: The store has not what the manifest says.
            Cancelled: Stopped; what has arrived is kept.
            StoreProblem: The store does not answer.
            SpotdError: The disk does not take it.
        """
        try:
            if not self._stands(root, manifest):
                self._fetch(root, manifest)
            return _local(root, manifest)
        except OSError as error:
            hint = ""
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                hint = "free space on the file system of the checkpoint directory"
            raise SpotdError(
                f"cannot restore {manifest.id}: {error.strerror or error}", hint=hint
            ) from error

    def _fetch(self, root: int, manifest: Manifest) -> None:
        digest = hashlib.sha256(f"{self.store.location}\0{manifest}".encode()).hexdigest()
        arrived = _Arrived(self.state / "fetches" / f"{digest[:32]}.fetch", digest)
        with staging(root) as own, made(own, manifest.id) as place:
            arrived.load()
            arrived.start()
            fetch = _Fetch(self, place, manifest, arrived)
            have = fetch.check_arrived()
            check_space(root, manifest.size - have)
            try:
                fetch.receive()
            except (Damaged, NotFound):
                # Another try would find the same: what has arrived is only in the way.
                remove_tree(own, manifest.id)
                arrived.path.unlink(missing_ok=True)
                raise
            fetch.finish_directories()
            move_in(root, place, manifest.name)
            remove_tree(own, manifest.id)
        arrived.path.unlink(missing_ok=True)

    def _stands(self, root: int, manifest: Manifest) -> bool:
        """Whether exactly this content stands under the name already."""
        try:
            seen = snapshot(root, manifest.name)
        except OSError:
            return False
        sizes = {entry.path or manifest.name: entry.size for entry in seen.files}
        wanted = {file.path: file.size for file in manifest.files}
        if seen.kind != manifest.kind or seen.unusable or sizes != wanted:
            return False
        done = 0
        for file in manifest.files:
            algorithm, crc = algorithm_of(file.checksum)
            inner = file.path if manifest.kind == "directory" else ""
            with opened_file(root, manifest.name, inner) as descriptor:
                if read_checksum(Piece(descriptor, 0, file.size), algorithm) != crc:
                    return False
            done += file.size
            self.flow.check()
        self.report(done, manifest.size)
        return True

    def give(self, descriptor: int) -> None:
        """Gives a file to the trainer's user, where we may."""
        if self.owner is not None and os.geteuid() == 0:
            os.fchown(descriptor, self.owner.uid, self.owner.gid)


@dataclass(slots=True)
class _Fetch:
    """One fetch, in its place below `.spotd-restore`."""

    restore: Restore
    place: int
    manifest: Manifest
    arrived: _Arrived
    got: int = 0

    @property
    def _transfer(self) -> Transfer:
        restore = self.restore
        return Transfer(restore.store, restore.lanes, restore.flow, restore.patience)

    def _opened(self, file: ManifestFile) -> AbstractContextManager[int]:
        name = self.manifest.name
        path = file.path if self.manifest.kind == "file" else f"{name}/{file.path}"
        return writable(self.place, path)

    def check_arrived(self) -> int:
        """Reads again what an earlier attempt has noted down; returns the bytes that are so."""
        for file in self.manifest.files:
            pieces = self.arrived.pieces.get(file.path)
            if not pieces:
                continue
            algorithm, _ = algorithm_of(file.checksum)
            with self._opened(file) as fd:
                for (offset, length), crc in list(pieces.items()):
                    self.restore.flow.check()
                    if read_checksum(Piece(fd, offset, length), algorithm) == crc:
                        self.got += length
                    else:
                        del pieces[offset, length]
        return self.got

    def receive(self) -> None:
        """Fetches what is missing: big files over all lanes, small ones one to a lane."""
        self.restore.report(self.got, self.manifest.size)
        small: list[ManifestFile] = []
        tiny: list[ManifestFile] = []
        for file in self.manifest.files:
            if file.size > PIECE:
                self._large(file)
            elif not self._complete(file):
                (tiny if file.size <= TINY_LIMIT else small).append(file)
        for files, lanes in ((small, self.restore.lanes), (tiny, self.restore.lanes.tiny)):
            for file, crc in lanes.each(self._small(file) for file in files):
                self._note(file.path, Piece(-1, 0, file.size), crc)

    def _note(self, path: str, piece: Piece, crc: int) -> None:
        self.arrived.add(path, piece.offset, piece.length, crc)
        self.got += piece.length
        self.restore.report(self.got, self.manifest.size)

    def _complete(self, file: ManifestFile) -> bool:
        _, crc = algorithm_of(file.checksum)
        if self.arrived.pieces.get(file.path) != {(0, file.size): crc}:
            return False
        with self._opened(file) as fd:
            self._finish_file(fd, file)
        return True

    def _small(self, file: ManifestFile) -> Callable[[], tuple[ManifestFile, int]]:
        algorithm, wanted = algorithm_of(file.checksum)
        key = object_key(self.manifest.id, file.path)
        restore, transfer = self.restore, self._transfer

        def receive(fd: int) -> int:
            piece = Piece(fd, 0, file.size)
            crc = restore.store.receive(key, piece, restore.flow, algorithm) if file.size else 0
            if crc != wanted:
                raise Damaged(self._mismatch(file), retriable=True)
            return crc

        def get() -> tuple[ManifestFile, int]:
            with self._opened(file) as fd:
                crc = transfer.again(lambda: receive(fd))
                self._finish_file(fd, file)
            return file, crc

        return get

    def _large(self, file: ManifestFile) -> None:
        algorithm, wanted = algorithm_of(file.checksum)
        ranges = [(offset, min(PIECE, file.size - offset)) for offset in range(0, file.size, PIECE)]
        with self._opened(file) as fd:
            for attempt in range(2):
                self._ranges(file, fd, ranges, algorithm)
                known = self.arrived.pieces[file.path]
                if algorithm.join((known[each], each[1]) for each in ranges) == wanted:
                    self._finish_file(fd, file)
                    return
                # On the way or in the bucket? Only a second look tells.
                self.arrived.forget(file.path)
                if attempt:
                    raise Damaged(self._mismatch(file))
                self.got -= file.size

    def _ranges(
        self, file: ManifestFile, fd: int, ranges: list[tuple[int, int]], algorithm: Algorithm
    ) -> None:
        known = self.arrived.pieces.get(file.path, {})
        transfer, key = self._transfer, object_key(self.manifest.id, file.path)
        jobs = [
            receive_job(transfer, key, Piece(fd, *each), algorithm)
            for each in ranges
            if each not in known
        ]
        for piece, crc in self.restore.lanes.each(jobs):
            self._note(file.path, piece, crc)

    def _finish_file(self, fd: int, file: ManifestFile) -> None:
        os.ftruncate(fd, file.size)
        self.restore.give(fd)
        os.fchmod(fd, file.mode)
        os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
        os.fsync(fd)

    def finish_directories(self) -> None:
        """Gives directories their owner, mode and time, children before parents."""
        manifest = self.manifest
        if manifest.kind == "file":
            return
        told = {each.path: each for each in manifest.directories}
        paths = {".", *told}
        for file in manifest.files:
            paths.update(_parents(file.path))
        for path in sorted(paths, key=lambda each: (each == ".", -each.count("/"), each)):
            known = told.get(path) or ManifestDirectory(path, 0o755, 0)
            inner = manifest.name if path == "." else f"{manifest.name}/{path}"
            with directory_in(self.place, inner) as descriptor:
                self.restore.give(descriptor)
                os.fchmod(descriptor, known.mode | stat.S_IRWXU)
                if known.mtime_ns:
                    os.utime(descriptor, ns=(known.mtime_ns, known.mtime_ns))
                os.fsync(descriptor)

    def _mismatch(self, file: ManifestFile) -> str:
        return f"{file.path} of {self.manifest.id} in the store does not match its checksum"


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _local(root: int, manifest: Manifest) -> LocalCheckpoint:
    seen = snapshot(root, manifest.name)
    return LocalCheckpoint(
        name=manifest.name,
        kind=seen.kind,
        size=seen.size,
        mtime_ns=seen.mtime_ns,
        fingerprint=fingerprint(root, manifest.name),
        step=manifest.step,
    )
