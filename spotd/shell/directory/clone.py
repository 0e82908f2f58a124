"""Making a second tree of a checkpoint: by reflinks, by copies, or by hard links."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from spotd.shell.directory.held import LINK, REFLINK
from spotd.shell.directory.tree import (
    Snapshot,
    opened_directory,
    opened_file,
)

if TYPE_CHECKING:
    import threading

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_CHUNK = 16 << 20
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_COPY_RANGE = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


class StoppedError(OSError):
    """spotd is ending; the copy was given up."""


def clone(
    source: int,
    name: str,
    seen: Snapshot,
    target: int,
    *,
    mode: str,
    stop: threading.Event,
) -> None:
    """Makes `target/name` out of `source/name`, of which `seen` is a snapshot.

    Owner, permissions and times of files and directories are kept. Nothing may stand
    under `target/name`.

    Args:
        source: Descriptor of the directory that holds the original.
        name: One path component.
        seen: What to clone.
        target: Descriptor of a directory nobody else writes.
        mode: "link", "copy" or "reflink".
        stop: Ends a copy early.

    Raises:
        OSError: It cannot be done (in this mode); what was made so far is left there.
    """
    if seen.kind == "directory":
        os.mkdir(name, 0o700, dir_fd=target)
        for path in sorted(seen.directories):
            _make_directory(target, f"{name}/{path}")
    for file in seen.files:
        whole = f"{name}/{file.path}" if file.path else name
        if mode == LINK:
            _link(source, target, whole)
        else:
            _copy(source, target, name, file.path, mode=mode, stop=stop)
    if seen.kind == "directory":
        for path in sorted(seen.directories, reverse=True):
            _dress_directory(source, target, f"{name}/{path}")
        _dress_directory(source, target, name)


def split(path: str) -> tuple[str, str]:
    """Returns (parent, last component) of a relative path."""
    pure = PurePosixPath(path)
    parent = str(pure.parent)
    return ("" if parent == "." else parent), pure.name


def _make_directory(target: int, path: str) -> None:
    parent, last = split(path)
    with opened_directory(target, parent) as directory:
        os.mkdir(last, 0o700, dir_fd=directory)


def _link(source: int, target: int, whole: str) -> None:
    parent, last = split(whole)
    with opened_directory(source, parent) as there, opened_directory(target, parent) as here:
        os.link(last, last, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)


def _copy(
    source: int, target: int, name: str, path: str, *, mode: str, stop: threading.Event
) -> None:
    parent, last = split(f"{name}/{path}" if path else name)
    with opened_file(source, name, path) as there, opened_directory(target, parent) as directory:
        here = os.open(last, _NEW_FILE, 0o600, dir_fd=directory)
        try:
            if mode == REFLINK:
                fcntl.ioctl(here, _FICLONE, there)
            else:
                _copy_bytes(there, here, stop)
            _dress(there, here)
        finally:
            os.close(here)


def _copy_bytes(there: int, here: int, stop: threading.Event) -> None:
    in_kernel = True
    while not stop.is_set():
        if in_kernel:
            try:
                if os.copy_file_range(there, here, _CHUNK) == 0:
                    return
            except OSError as error:
                if error.errno not in _NO_COPY_RANGE:
                    raise
                in_kernel = False
            continue
        data = os.read(there, 1 << 20)
        if not data:
            return
        while data:
            data = data[os.write(here, data) :]
    raise StoppedError(errno.EINTR, "spotd is ending")


def _dress(there: int, here: int) -> None:
    """Gives owner, permissions and times of one open file to another."""
    status = os.fstat(there)
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
        os.fchown(here, status.st_uid, status.st_gid)
    os.fchmod(here, status.st_mode & 0o7777)
    os.utime(here, ns=(status.st_atime_ns, status.st_mtime_ns))


def _dress_directory(source: int, target: int, path: str) -> None:
    with opened_directory(source, path) as there, opened_directory(target, path) as here:
        _dress(there, here)


def can_reflink(source: int, name: str, seen: Snapshot, scratch: int) -> bool:
    """Whether the filesystem shares blocks between files: tried on the smallest file."""
    if not seen.files:
        return False
    smallest = min(seen.files, key=lambda file: file.size)
    probe = ".reflink-probe"
    try:
        with opened_file(source, name, smallest.path) as there:
            here = os.open(probe, _NEW_FILE, 0o600, dir_fd=scratch)
            try:
                fcntl.ioctl(here, _FICLONE, there)
            finally:
                os.close(here)
                os.unlink(probe, dir_fd=scratch)
    except OSError:
        return False
    return True


def sync_tree(root: int, name: str, seen: Snapshot, stop: threading.Event) -> None:
    """Fsyncs every file of an entry, then its directories from the inside out.

    The directory that names the entry is the caller's.

    Raises:
        OSError: The disk refused, or something is no longer there.
    """
    for file in seen.files:
        if stop.is_set():
            raise StoppedError(errno.EINTR, "spotd is ending")
        with opened_file(root, name, file.path) as descriptor:
            os.fsync(descriptor)
    if seen.kind == "directory":
        for path in sorted(seen.directories, reverse=True):
            with opened_directory(root, f"{name}/{path}") as descriptor:
                os.fsync(descriptor)
        with opened_directory(root, name) as descriptor:
            os.fsync(descriptor)
