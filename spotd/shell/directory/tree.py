"""Walking the user's files without ever being led out of the directory."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from spotd.core.words import readable

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILES = 20_000  # in one checkpoint
MAX_DEPTH = 24
_MAX_REMOVED_DEPTH = 200
# O_NONBLOCK: neither a FIFO without a writer nor a lease held by a hostile process may block us.
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
DIRECTORY_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


class SwappedError(OSError):
    """What stands under a name is not what was seen there, or nothing that may be read."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A regular file; `path` is relative to the candidate, "" for the candidate itself."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    ctime: float
    links: int = 1

    @property
    def identity(self) -> tuple[int, int, int]:
        """Changes when the content does, as far as stat can tell."""
        return (self.inode, self.size, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One entry of the checkpoint directory at one moment.

    Attributes:
        kind: "file", "directory", or "other" for links, FIFOs, sockets and devices.
        inode: Of the entry itself.
        files: Regular files, sorted by path.
        directories: Relative paths of directories inside, parents first.
        unusable: Why it cannot be stored, in one line, or "".
    """

    kind: str
    inode: int = 0
    files: tuple[FileEntry, ...] = ()
    directories: tuple[str, ...] = ()
    unusable: str = ""

    @property
    def size(self) -> int:
        """Bytes in all files together."""
        return sum(file.size for file in self.files)

    @property
    def mtime_ns(self) -> int:
        """Of the newest file; 0 when there is none."""
        return max((file.mtime_ns for file in self.files), default=0)


@dataclass(slots=True)
class _Walk:
    owner: int | None
    device: int
    files: list[FileEntry] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    unusable: str = ""

    def refuse(self, reason: str) -> None:
        self.unusable = self.unusable or reason


def is_text(name: str) -> bool:
    """Whether a name is valid UTF-8: other names can be neither recorded nor stored."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def snapshot(root: int, name: str, *, owner: int | None = None) -> Snapshot:
    """Looks at one entry below the directory `root` (a descriptor).

    Args:
        root: Descriptor of the directory that holds it.
        name: One path component.
        owner: The trainer's uid: a file with more than one name that belongs to another
            user is not taken, since only its name need be the trainer's (link(2) on a
            system without protected_hardlinks).

    Raises:
        FileNotFoundError: Nothing stands under the name.
        OSError: It cannot be looked at.
    """
    status = os.stat(name, dir_fd=root, follow_symlinks=False)
    device = os.fstat(root).st_dev
    walk = _Walk(owner, device)
    if stat.S_ISREG(status.st_mode):
        _take_file(walk, "", status)
        return Snapshot("file", status.st_ino, tuple(walk.files), (), walk.unusable)
    if not stat.S_ISDIR(status.st_mode):
        return Snapshot("other", status.st_ino, unusable=f"it is {_describe(status.st_mode)}")
    with opened_directory(root, name) as descriptor:
        _descend(walk, descriptor, "", 0)
    walk.files.sort(key=lambda entry: entry.path)
    return Snapshot(
        "directory", status.st_ino, tuple(walk.files), tuple(walk.directories), walk.unusable
    )


def _descend(walk: _Walk, descriptor: int, prefix: str, depth: int) -> None:
    if os.fstat(descriptor).st_dev != walk.device:
        walk.refuse(f"{readable(prefix)} is on another filesystem")
        return
    if depth >= MAX_DEPTH:
        walk.refuse(f"directories more than {MAX_DEPTH} deep")
        return
    with os.scandir(descriptor) as entries:
        for count, entry in enumerate(entries):
            if count > MAX_FILES or len(walk.files) > MAX_FILES:
                walk.refuse(f"more than {MAX_FILES} files")
                return
            _take_entry(walk, descriptor, prefix, entry, depth)


def _take_entry(
    walk: _Walk, descriptor: int, prefix: str, entry: os.DirEntry[str], depth: int
) -> None:
    path = prefix + entry.name
    if not is_text(entry.name):
        walk.refuse(f"{readable(path)} is not UTF-8")
        return
    try:
        status = os.stat(entry.name, dir_fd=descriptor, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            _take_file(walk, path, status)
        elif stat.S_ISDIR(status.st_mode):
            walk.directories.append(path)
            with opened_directory(descriptor, entry.name) as child:
                _descend(walk, child, path + "/", depth + 1)
        else:
            walk.refuse(f"{readable(path)} is {_describe(status.st_mode)}, which cannot be stored")
    except FileNotFoundError:
        return  # deleted while we looked: the next look sees it so


def _take_file(walk: _Walk, path: str, status: os.stat_result) -> None:
    if _foreign(status, walk.owner):
        walk.refuse(f"{readable(path) or 'it'} is a second name of another user's file")
        return
    walk.files.append(
        FileEntry(
            path,
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
            status.st_ctime,
            status.st_nlink,
        )
    )


def _foreign(status: os.stat_result, owner: int | None) -> bool:
    return (
        owner is not None
        and status.st_nlink > 1
        and status.st_uid != owner
        and status.st_uid != os.geteuid()
    )


def _describe(mode: int) -> str:
    for test, word in (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return word
    return "a device"


@contextmanager
def opened_directory(root: int, path: str) -> Iterator[int]:
    """Opens a directory below `root`, component by component, following no link."""
    descriptor = os.dup(root)
    try:
        for part in PurePosixPath(path).parts:
            if part in ("/", ".", ".."):
                message = f"{readable(path)} climbs"
                raise SwappedError(message)
            child = os.open(part, DIRECTORY_FLAGS, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = child
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_file(root: int, name: str, path: str = "") -> Iterator[int]:
    """Opens a regular file for reading: `name` itself, or `path` inside the directory `name`.

    Raises:
        SwappedError: It is no regular file any more.
        OSError: It cannot be opened.
    """
    whole = f"{name}/{path}" if path else name
    parent, _, last = whole.rpartition("/")
    with opened_directory(root, parent) as directory:
        descriptor = os.open(last, READ_FLAGS, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                message = f"{readable(whole)} is not a regular file"
                raise SwappedError(message)
            yield descriptor
        finally:
            os.close(descriptor)


def open_without_links(path: str) -> int:
    """Opens an absolute directory, following no link in any component.

    Raises:
        OSError: It is missing, or a component is a link or not a directory.
    """
    descriptor = os.open("/", DIRECTORY_FLAGS)
    try:
        with opened_directory(descriptor, path.lstrip("/")) as found:
            return os.dup(found)
    finally:
        os.close(descriptor)


def remove_tree(root: int, name: str, *, depth: int = 0) -> None:
    """Removes an entry below `root` and all in it; nothing there is no error.

    Raises:
        OSError: It cannot be removed, or is absurdly deep.
    """
    if depth > _MAX_REMOVED_DEPTH:
        raise OSError(errno.ELOOP, "directories too deep to remove", readable(name))
    try:
        status = os.stat(name, dir_fd=root, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=root)
            return
        with opened_directory(root, name) as descriptor:
            for child in os.listdir(descriptor):  # noqa: PTH208 - a descriptor
                remove_tree(descriptor, child, depth=depth + 1)
        os.rmdir(name, dir_fd=root)
    except FileNotFoundError:
        return
