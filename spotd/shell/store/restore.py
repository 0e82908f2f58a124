"""A checkpoint from the store into the checkpoint directory: verified, then visible.

Bytes arrive in `.spotd-restore/<id>/` below the checkpoint directory, on its file system,
where no trainer looks and only spotd may write; what has arrived is noted down, and after
a cut verified by reading it again rather than fetched again. When every file matches its
checksum, is fsynced and has its mode, time and owner, one rename puts the checkpoint in
its place. Whatever stood there before is moved to `.spotd-aside/`, never overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spotd.core.checkpoint import LocalCheckpoint
from spotd.core.manifest import Manifest, ManifestDirectory, ManifestFile
from spotd.errors import SpotdError
from spotd.shell.directory.fingerprint import fingerprint
from spotd.shell.directory.tree import (
    DIRECTORY_FLAGS,
    opened_directory,
    opened_file,
    remove_tree,
    snapshot,
)
from spotd.shell.store.checkpoints import object_key
from spotd.shell.store.checksum import algorithm_of
from spotd.shell.store.directory import read_checksum
from spotd.shell.store.protocol import Damaged, Flow, ObjectStore, Piece
from spotd.shell.store.transfer import MIB, Lanes, Transfer, receive_pieces

STAGING = ".spotd-restore"
ASIDE = ".spotd-aside"
PIECE = 16 * MIB
_RESERVE = 64 * MIB  # bytes that stay free: a full disk stops more than a restore


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom the files are given to, where we may."""

    uid: int
    gid: int


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
        with _staging(root) as staging, _made(staging, manifest.id) as place:
            arrived.load()
            arrived.start()
            have = self._check_arrived(place, manifest, arrived)
            _check_space(root, manifest.size - have)
            self._receive(place, manifest, arrived, have)
            self._finish_directories(place, manifest)
            _move_in(root, place, manifest.name)
            remove_tree(staging, manifest.id)
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

    def _check_arrived(self, place: int, manifest: Manifest, arrived: _Arrived) -> int:
        """Reads again what an earlier attempt has noted down; drops what is not so."""
        have = 0
        for file in manifest.files:
            pieces = arrived.pieces.get(file.path)
            if not pieces:
                continue
            algorithm, _ = algorithm_of(file.checksum)
            with _writable(place, manifest, file) as descriptor:
                for (offset, length), crc in list(pieces.items()):
                    self.flow.check()
                    if read_checksum(Piece(descriptor, offset, length), algorithm) == crc:
                        have += length
                    else:
                        del pieces[offset, length]
        return have

    def _receive(self, place: int, manifest: Manifest, arrived: _Arrived, have: int) -> None:
        transfer = Transfer(self.store, self.lanes, self.flow, self.patience)
        got = have

        def note(path: str, offset: int, length: int, crc: int) -> None:
            nonlocal got
            arrived.add(path, offset, length, crc)
            got += length
            self.report(got, manifest.size)

        def small(file: ManifestFile) -> Callable[[], tuple[ManifestFile, int]]:
            def get() -> tuple[ManifestFile, int]:
                return file, self._small(transfer, place, manifest, file)

            return get

        self.report(got, manifest.size)
        for file in manifest.files:
            if file.size > PIECE:
                self._large(transfer, place, manifest, file, arrived, note)
        todo = [
            file
            for file in manifest.files
            if file.size <= PIECE and not self._complete(place, manifest, file, arrived)
        ]
        for file, crc in self.lanes.each(small(file) for file in todo):
            note(file.path, 0, file.size, crc)

    def _complete(
        self, place: int, manifest: Manifest, file: ManifestFile, arrived: _Arrived
    ) -> bool:
        _, crc = algorithm_of(file.checksum)
        if arrived.pieces.get(file.path) != {(0, file.size): crc}:
            return False
        with _writable(place, manifest, file) as descriptor:
            self._finish_file(descriptor, file)
        return True

    def _small(self, transfer: Transfer, place: int, manifest: Manifest, file: ManifestFile) -> int:
        algorithm, wanted = algorithm_of(file.checksum)
        key = object_key(manifest.id, file.path)

        def get(descriptor: int) -> int:
            piece = Piece(descriptor, 0, file.size)
            crc = self.store.receive(key, piece, self.flow, algorithm) if file.size else 0
            if crc != wanted:
                raise Damaged(_mismatch(manifest, file), retriable=True)
            return crc

        with _writable(place, manifest, file) as descriptor:
            crc = transfer.again(lambda: get(descriptor))
            self._finish_file(descriptor, file)
        return crc

    def _large(
        self,
        transfer: Transfer,
        place: int,
        manifest: Manifest,
        file: ManifestFile,
        arrived: _Arrived,
        note: Callable[[str, int, int, int], None],
    ) -> None:
        algorithm, wanted = algorithm_of(file.checksum)
        key = object_key(manifest.id, file.path)
        with _writable(place, manifest, file) as descriptor:
            for attempt in range(2):
                known = arrived.pieces.get(file.path, {})
                ranges = [
                    (offset, min(PIECE, file.size - offset))
                    for offset in range(0, file.size, PIECE)
                ]
                missing = [each for each in ranges if each not in known]
                receive_pieces(
                    transfer, key, descriptor, missing, algorithm,
                    lambda offset, length, crc: note(file.path, offset, length, crc),
                )  # fmt: skip
                known = arrived.pieces[file.path]
                total = algorithm.join((known[each], each[1]) for each in ranges)
                if total == wanted:
                    self._finish_file(descriptor, file)
                    return
                # On the way or in the bucket? Only a second look tells.
                arrived.forget(file.path)
                if attempt:
                    raise Damaged(_mismatch(manifest, file))

    def _finish_file(self, descriptor: int, file: ManifestFile) -> None:
        os.ftruncate(descriptor, file.size)
        self._give(descriptor)
        os.fchmod(descriptor, file.mode)
        os.utime(descriptor, ns=(file.mtime_ns, file.mtime_ns))
        os.fsync(descriptor)

    def _finish_directories(self, place: int, manifest: Manifest) -> None:
        if manifest.kind == "file":
            return
        told = {each.path: each for each in manifest.directories}
        parents = {"."}
        for file in manifest.files:
            parents.update(_parents(file.path))
        parents.update(told)
        for path in sorted(parents, key=lambda each: (each == ".", -each.count("/"), each)):
            known = told.get(path) or ManifestDirectory(path, 0o755, 0)
            inner = manifest.name if path == "." else f"{manifest.name}/{path}"
            with _directory(place, inner) as descriptor:
                self._give(descriptor)
                os.fchmod(descriptor, known.mode | stat.S_IRWXU)
                if known.mtime_ns:
                    os.utime(descriptor, ns=(known.mtime_ns, known.mtime_ns))
                os.fsync(descriptor)

    def _give(self, descriptor: int) -> None:
        if self.owner is not None and os.geteuid() == 0:
            os.fchown(descriptor, self.owner.uid, self.owner.gid)


def _mismatch(manifest: Manifest, file: ManifestFile) -> str:
    return f"{file.path} of {manifest.id} in the store does not match its checksum"


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


@contextlib.contextmanager
def _staging(root: int) -> Iterator[int]:
    """Opens `.spotd-restore`, a directory only we may write to."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(STAGING, 0o700, dir_fd=root)
    status = os.stat(STAGING, dir_fd=root, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        # Planted, or given away by a chown -R: nobody but us may write where we do.
        _put_aside(root, STAGING)
        os.mkdir(STAGING, 0o700, dir_fd=root)
    descriptor = os.open(STAGING, DIRECTORY_FLAGS, dir_fd=root)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"{STAGING} is not ours")
        os.fchmod(descriptor, 0o700)
        yield descriptor
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty: another checkpoint waits in it
            os.rmdir(STAGING, dir_fd=root)


@contextlib.contextmanager
def _made(parent: int, path: str) -> Iterator[int]:
    """Opens a directory below `parent`, making what is missing; follows no link."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700, dir_fd=parent)
    descriptor = os.open(path, DIRECTORY_FLAGS, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _directory(place: int, path: str) -> Iterator[int]:
    descriptor = os.dup(place)
    try:
        for part in path.split("/"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=descriptor)
            child = os.open(part, DIRECTORY_FLAGS, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = child
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writable(place: int, manifest: Manifest, file: ManifestFile) -> Iterator[int]:
    path = file.path if manifest.kind == "file" else f"{manifest.name}/{file.path}"
    parent, _, last = path.rpartition("/")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_directory(place, parent)) if parent else place
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(last, flags, 0o600, dir_fd=folder)
        try:
            if os.fstat(descriptor).st_nlink != 1:
                raise PermissionError(errno.EPERM, f"{path} has a second name")
            yield descriptor
        finally:
            os.close(descriptor)


def _check_space(root: int, wanted: int) -> None:
    found = os.fstatvfs(root)
    free = found.f_bavail * found.f_frsize
    if wanted + _RESERVE > free:
        raise OSError(
            errno.ENOSPC, f"{wanted // MIB} MiB are still to come, {free // MIB} MiB are free"
        )


def _move_in(root: int, place: int, name: str) -> None:
    """Renames the checkpoint into its place; what stands there goes aside, never away."""
    _put_aside(root, name)
    os.fsync(place)
    os.rename(name, name, src_dir_fd=place, dst_dir_fd=root)
    os.fsync(root)


def _put_aside(root: int, name: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(ASIDE, 0o755, dir_fd=root)
    with opened_directory(root, ASIDE) as aside:
        taken = set(os.listdir(aside))
        later = (f"{name}.{number}" for number in itertools.count(int(time.time())))
        target = next(each for each in itertools.chain([name], later) if each not in taken)
        with contextlib.suppress(FileNotFoundError):
            os.rename(name, target, src_dir_fd=root, dst_dir_fd=aside)
            os.fsync(aside)
        if not os.listdir(aside):
            with contextlib.suppress(OSError):
                os.rmdir(ASIDE, dir_fd=root)


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
