"""What an upload reads: a checkpoint on the disk, opened so that no link leads out of it."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.core import manifest as schema
from spotd.core.manifest import ManifestDirectory, ManifestError, check_name, check_path
from spotd.errors import SpotdError
from spotd.shell.directory.fingerprint import fingerprint_of
from spotd.shell.directory.tree import (
    READ_FLAGS,
    FileEntry,
    Snapshot,
    open_without_links,
    opened_directory,
    snapshot,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self  # for the type checker only


@dataclass(frozen=True, slots=True)
class UploadSource:
    """Where the content of a checkpoint stands.

    Attributes:
        root: Absolute path of the directory that holds it: the checkpoint directory, or
            what holds the held copy. No component may be a link.
        name: Its name there; for a directory held in pieces, still one entry.
        kind: "file" or "directory".
        fingerprint: What it must be at the start, or "" when a copy cannot have the
            original's (its inodes differ).
    """

    root: str
    name: str
    kind: str
    fingerprint: str = ""


class SourceGone(SpotdError):  # noqa: N818 - it says what happened
    """The content that was meant is not there any more: this id can never be stored."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to send. `path` is its name in the manifest and in the store."""

    path: str
    entry: FileEntry

    @property
    def stat(self) -> tuple[int, int, int]:
        """Returns what `large.stat_of` must say of the open file."""
        return self.entry.size, self.entry.mtime_ns, self.entry.inode


class SourceTree:
    """A checkpoint as it stood when it was opened. Use as a context manager.

    Args:
        source: Where it stands.
        stored_name: What the trainer calls it, for a checkpoint of kind file.
    """

    def __init__(self, source: UploadSource, stored_name: str) -> None:
        self._source = source
        self._name = stored_name
        self._root = -1
        self._seen = Snapshot("other")
        self._modes: dict[str, int] = {}
        self._folders: dict[str, int] = {}
        self._lock = threading.Lock()
        self.size = 0  # bytes in all files together
        self.files: tuple[SourceFile, ...] = ()
        self.directories: tuple[ManifestDirectory, ...] = ()

    def __enter__(self) -> Self:
        try:
            self._root = open_without_links(self._source.root)
            self._look()
        except OSError as error:
            self.__exit__()
            raise SourceGone(f"{self._source.name} cannot be read: {error.strerror}") from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._folders:
            os.close(self._folders.popitem()[1])
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def _look(self) -> None:
        source = self._source
        self._seen = seen = snapshot(self._root, source.name)
        if seen.kind != source.kind:
            raise SourceGone(f"{source.name} is no longer a {source.kind}")
        if seen.unusable:
            raise SourceGone(f"{source.name} cannot be stored: {seen.unusable}")
        if source.fingerprint and fingerprint_of(seen) != source.fingerprint:
            raise SourceGone(f"{source.name} is not what it was: it has been written since")
        try:
            check_name(self._name)
            files = [SourceFile(entry.path or self._name, entry) for entry in seen.files]
            for file in files:
                check_path(file.path)
        except ManifestError as error:
            raise SourceGone(f"{source.name} cannot be stored: {error.message}") from error
        if any(file.path.partition("/")[0] == schema.NAME for file in files):
            raise SourceGone(
                f"{source.name} cannot be stored: it holds a {schema.NAME}",
                hint=f"have the trainer give it another name: {schema.NAME} is what spotd itself "
                "writes beside a checkpoint's files in the store",
            )
        self.files, self.size = tuple(files), seen.size
        if source.kind == "directory":
            self.directories = tuple(self._directories())

    def _directories(self) -> Iterator[ManifestDirectory]:
        for path in (".", *self._seen.directories):
            inner = self._source.name if path == "." else f"{self._source.name}/{path}"
            with opened_directory(self._root, inner) as descriptor:
                status = os.fstat(descriptor)
            yield ManifestDirectory(path, status.st_mode & 0o777, status.st_mtime_ns)

    @contextmanager
    def opened(self, file: SourceFile) -> Iterator[int]:
        """Opens one file; it must still be what was seen.

        Raises:
            SourceGone: It is not.
        """
        folder, name = self._folder(file)
        try:
            descriptor = os.open(name, READ_FLAGS, dir_fd=folder)
        except OSError as error:
            raise SourceGone(f"{file.path} cannot be read: {error.strerror}") from error
        try:
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns, status.st_ino) != file.stat:
                raise SourceGone(f"{file.path} was written while it was being stored")
            self._modes[file.path] = status.st_mode & 0o777
            yield descriptor
        finally:
            os.close(descriptor)

    def _folder(self, file: SourceFile) -> tuple[int, str]:
        """Returns the directory a file is in, kept open, and its name there."""
        inner = file.entry.path
        path = f"{self._source.name}/{inner}" if inner else self._source.name
        parent, _, name = path.rpartition("/")
        with self._lock:
            found = self._folders.get(parent)
            if found is None:
                try:
                    with opened_directory(self._root, parent) as descriptor:
                        found = self._folders[parent] = os.dup(descriptor)
                except OSError as error:
                    raise SourceGone(f"{parent} cannot be read: {error.strerror}") from error
        return found, name

    def mode(self, file: SourceFile) -> int:
        """Returns the permission bits of a file."""
        if file.path not in self._modes:
            with self.opened(file):
                pass
        return self._modes[file.path]

    def check_unchanged(self) -> None:
        """Raises SourceGone when anything in it was written, added or removed meanwhile."""
        try:
            now = snapshot(self._root, self._source.name)
        except OSError as error:
            raise SourceGone(f"{self._source.name} is gone: {error.strerror}") from error
        if fingerprint_of(now) != fingerprint_of(self._seen):
            raise SourceGone(f"{self._source.name} was written while it was being stored")
