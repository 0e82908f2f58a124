"""The object store in a directory: `file:///mnt/efs/training`.

Every write goes to a file of its own beside its place, is fsynced and renamed, and the
directory is fsynced after it: a power cut leaves the old object or the new one. Objects
are written under their own names, so `cp` brings them back. Conditional writes hold a
lock (flock, which NFS and EFS carry to other machines); a new object is made with
link(2), which fails when it exists, so that even without locks only one can win.

Parts of a big object are written into their places in one partial file
(`.spotd-partial-<upload>`, beside the object), which is renamed when all are there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from spotd.shell.store.checksum import Algorithm, default
from spotd.shell.store.protocol import (
    Blob,
    Damaged,
    Entry,
    Flow,
    NotFound,
    Part,
    Piece,
    PreconditionFailed,
    StoreProblem,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_PREFIX = ".spotd-partial-"
_LOCK = ".spotd-lock"
_BUFFER = 1024 * 1024
_HINTS = {
    "ENOSPC": "the file system is full: free space, or lower store.keep",
    "EDQUOT": "the quota is used up: raise it, or lower store.keep",
    "EACCES": "let spotd's user write there",
    "EPERM": "let spotd's user write there",
    "EROFS": "it is mounted read-only",
    "ENOENT": "is it mounted?",
    "ESTALE": "the network file system went away: mount it again",
}


class DirectoryStore:
    """An ObjectStore below `root`. Made at the first write, so that a missing mount shows.

    Args:
        root: Directory of the run, absolute.
        base: What must exist already (`store.url` itself): when a mount is missing, nothing
            is written into the empty mount point's parents.
    """

    def __init__(self, root: Path, base: Path | None = None) -> None:
        self._root = root
        self._base = base or root

    @property
    def location(self) -> str:
        """See `ObjectStore.location`."""
        return self._root.as_uri()

    @property
    def algorithm(self) -> Algorithm:
        """See `ObjectStore.algorithm`."""
        return default()

    def warm(self) -> None:
        """Nothing to get ready."""

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str = "") -> str:
        """See `ObjectStore.put`."""
        with self._problems("write", key):
            path = self._place(key)
            with self._locked():
                if if_match and _etag_of(path) != if_match:
                    raise PreconditionFailed(f"{path} was written by somebody else in between")
                partial = path.with_name(_PREFIX + secrets.token_hex(8))
                try:
                    _write_new(partial, data)
                    if if_none_match:
                        os.link(partial, path)
                        partial.unlink()
                    else:
                        partial.replace(path)
                except FileExistsError as error:
                    raise PreconditionFailed(f"{path} exists already") from error
                finally:
                    partial.unlink(missing_ok=True)
                _fsync_directory(path.parent)
            return _etag(data)

    def get(self, key: str, *, limit: int) -> Blob:
        """See `ObjectStore.get`."""
        with self._problems("read", key), self._path(key).open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Damaged(f"{self._path(key)} has more than {limit} bytes")
        return Blob(data, _etag(data))

    def list(self, prefix: str, *, delimiter: bool = False) -> Iterator[Entry]:
        """See `ObjectStore.list`."""
        with self._problems("list", prefix):
            if not self._base.is_dir():
                raise FileNotFoundError(2, "no such directory", str(self._base))
            if not delimiter:
                return iter(sorted(self._walk(prefix), key=lambda entry: entry.key))
            parent, _, start = prefix.rpartition("/")
            folder = self._path(parent) if parent else self._root
            found = []
            if folder.is_dir():
                for path in folder.iterdir():
                    if path.name.startswith(start) and not _ours(path.name):
                        key = f"{parent}/{path.name}" if parent else path.name
                        if path.is_dir() and not path.is_symlink():
                            found.append(Entry(key + "/", 0))
                        elif path.is_file():
                            found.append(Entry(key, path.stat().st_size))
            return iter(sorted(found, key=lambda entry: entry.key))

    def _walk(self, prefix: str) -> Iterator[Entry]:
        parent = prefix.rpartition("/")[0]
        folder = self._path(parent) if parent else self._root
        for where, _, names in os.walk(folder):
            for name in names:
                path = Path(where, name)
                key = path.relative_to(self._root).as_posix()
                if key.startswith(prefix) and not _ours(name) and not path.is_symlink():
                    yield Entry(key, path.stat().st_size)

    def delete(self, keys: Sequence[str]) -> None:
        """See `ObjectStore.delete`."""
        for key in keys:
            with self._problems("delete", key):
                path = self._path(key)
                try:
                    path.unlink()
                except FileNotFoundError:
                    continue
                _fsync_directory(path.parent)
                self._prune(path.parent)

    def _prune(self, folder: Path) -> None:
        """Takes away directories that an object leaves behind empty: S3 has none either."""
        while folder != self._root and folder.is_relative_to(self._root):
            try:
                folder.rmdir()
            except OSError:  # something is in it
                return
            folder = folder.parent

    def send_whole(self, key: str, piece: Piece, flow: Flow) -> Part:
        """See `ObjectStore.send_whole`."""
        upload = self.begin(key)
        try:
            part = self.send_part(key, upload, 1, piece, flow)
            self.complete(key, upload, {1: part}, part.crc or 0)
        except BaseException:
            self.abort(key, upload)
            raise
        return part

    def begin(self, key: str) -> str:
        """See `ObjectStore.begin`."""
        with self._problems("write", key):
            upload = secrets.token_hex(12)
            path = self._partial(self._place(key), upload)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            _fsync_directory(path.parent)
            return upload

    def surviving(self, key: str, upload: str, recorded: Mapping[int, Part]) -> dict[int, Part]:
        """See `ObjectStore.surviving`."""
        # The record may be older or newer than what a power cut left of the bytes: only
        # reading them tells.
        found: dict[int, Part] = {}
        offset = 0
        with self._problems("read", key), self._partial(self._path(key), upload).open("rb") as file:
            for number in sorted(recorded):
                part = recorded[number]
                offset = int(part.etag.partition("@")[2] or -1)
                piece = Piece(file.fileno(), offset, part.size)
                if offset >= 0 and part.crc == read_checksum(piece, self.algorithm):
                    found[number] = part
        return found

    def send_part(self, key: str, upload: str, number: int, piece: Piece, flow: Flow) -> Part:  # noqa: ARG002
        """See `ObjectStore.send_part`."""
        crc = 0
        with self._problems("write", key):
            path = self._partial(self._path(key), upload)
            target = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                for offset, chunk in chunks(piece):
                    flow.passed(len(chunk))
                    crc = self.algorithm.update(chunk, crc)
                    pwrite_all(target, chunk, offset)
            finally:
                os.close(target)
        # The etag remembers the place: part sizes are the caller's business.
        return Part(f"{self.algorithm.encode(crc)}@{piece.offset}", piece.length, crc)

    def complete(self, key: str, upload: str, parts: Mapping[int, Part], crc: int) -> str:
        """See `ObjectStore.complete`."""
        with self._problems("write", key):
            path = self._path(key)
            partial = self._partial(path, upload)
            file = os.open(partial, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                size = sum(part.size for part in parts.values())
                os.ftruncate(file, size)
                os.fsync(file)
            finally:
                os.close(file)
            partial.replace(path)
            _fsync_directory(path.parent)
        return self.algorithm.label(crc)

    def abort(self, key: str, upload: str) -> None:
        """See `ObjectStore.abort`."""
        with self._problems("delete", key):
            path = self._path(key)
            self._partial(path, upload).unlink(missing_ok=True)
            self._prune(path.parent)

    def copy(self, source: str, key: str, part: Part) -> str:
        """See `ObjectStore.copy`."""
        with self._problems("read", source):
            path = self._path(source)
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_size != part.size:
                    raise PreconditionFailed(f"{path} has changed")
                whole = self.send_whole(key, Piece(file.fileno(), 0, found.st_size), Flow())
        if part.crc is not None and whole.crc != part.crc:
            self.delete([key])
            raise PreconditionFailed(f"{path} has changed")
        return whole.etag

    def receive(self, key: str, piece: Piece, flow: Flow, algorithm: Algorithm) -> int:
        """See `ObjectStore.receive`."""
        crc = 0
        with self._problems("read", key), self._path(key).open("rb") as file:
            for offset, chunk in chunks(Piece(file.fileno(), piece.offset, piece.length)):
                flow.passed(len(chunk))
                crc = algorithm.update(chunk, crc)
                pwrite_all(piece.fd, chunk, offset)
        return crc

    def close(self) -> None:
        """Nothing is kept open."""

    def _path(self, key: str) -> Path:
        if key.startswith("/") or any(part in {"", ".", ".."} for part in key.split("/")):
            raise StoreProblem(f"{key!r} cannot be a key")
        return self._root / key

    def _place(self, key: str) -> Path:
        path = self._path(key)
        if not self._base.is_dir():
            raise FileNotFoundError(2, "no such directory", str(self._base))
        missing = path.parent
        made: list[Path] = []
        while not missing.is_dir():
            made.append(missing)
            missing = missing.parent
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in made:
            _fsync_directory(folder.parent)
        return path

    def _partial(self, path: Path, upload: str) -> Path:
        if not upload.isalnum():
            raise NotFound(f"{upload!r} is not an upload")
        return path.with_name(_PREFIX + upload)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        file = os.open(self._root / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _problems(self, what: str, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if what == "read" and self._base.is_dir():
                raise NotFound(f"{self._root / key} is not in the store") from error
            raise self._problem(what, key, error) from error
        except OSError as error:
            raise self._problem(what, key, error) from error

    def _problem(self, what: str, key: str, error: OSError) -> StoreProblem:
        import errno  # noqa: PLC0415 - only when something went wrong

        code = errno.errorcode.get(error.errno or 0, "")
        reason = error.strerror or str(error)
        where = error.filename or self._root / key
        # Nearly everything can come right again: a mount returns, space is freed.
        return StoreProblem(
            f"cannot {what} {where}: {reason}", hint=_HINTS.get(code, ""), retriable=code != "EIO"
        )


def chunks(piece: Piece, size: int = _BUFFER) -> Iterator[tuple[int, memoryview]]:
    """Yields (offset, bytes) of a piece in one buffer that is used again.

    Raises:
        Damaged: The file is shorter than the piece says.
    """
    buffer = memoryview(bytearray(min(size, piece.length) or 1))
    offset, end = piece.offset, piece.offset + piece.length
    while offset < end:
        count = os.preadv(piece.fd, [buffer[: min(len(buffer), end - offset)]], offset)
        if count == 0:
            raise Damaged(f"the file ends at {offset} bytes, {end} were expected")
        yield offset, buffer[:count]
        offset += count


def read_checksum(piece: Piece, algorithm: Algorithm) -> int | None:
    """Returns the checksum of a piece of a file, or None when the file is shorter."""
    crc = 0
    try:
        for _, chunk in chunks(piece):
            crc = algorithm.update(chunk, crc)
    except Damaged:
        return None
    return crc


def pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`."""
    while data:
        count = os.pwrite(fd, data, offset)
        data = data[count:]
        offset += count


def free_space(path: Path) -> int:
    """Returns the bytes an ordinary user may still write below `path`."""
    return shutil.disk_usage(path).free


def _write_new(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        pwrite_all(file, memoryview(data), 0)
        os.fsync(file)
    finally:
        os.close(file)


def _fsync_directory(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _etag(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _etag_of(path: Path) -> str:
    try:
        return _etag(path.read_bytes())
    except FileNotFoundError:
        return ""


def _ours(name: str) -> bool:
    return name.startswith(_PREFIX) or name == _LOCK
