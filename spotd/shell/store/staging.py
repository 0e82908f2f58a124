"""A place below the checkpoint directory that only spotd may write to, and the way out of it.

The checkpoint directory belongs to the trainer's user, who may put anything there at any
time: nothing here follows a link or believes a path, everything goes through descriptors.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from spotd.shell.directory.aside import set_aside
from spotd.shell.directory.tree import DIRECTORY_FLAGS
from spotd.shell.store.transfer import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

STAGING = ".spotd-restore"
_RESERVE = 64 * MIB  # bytes that stay free: a full disk stops more than a restore


@contextlib.contextmanager
def staging(root: int) -> Iterator[int]:
    """Opens `.spotd-restore`, a directory only we may write to."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(STAGING, 0o700, dir_fd=root)
    status = os.stat(STAGING, dir_fd=root, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        # Planted, or given away by a chown -R: nobody but us may write where we do.
        _put_aside(root, STAGING, "not a directory of spotd's own")
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
def made(parent: int, path: str) -> Iterator[int]:
    """Opens a directory below `parent`, making what is missing; follows no link."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700, dir_fd=parent)
    descriptor = os.open(path, DIRECTORY_FLAGS, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def directory_in(place: int, path: str) -> Iterator[int]:
    """Opens a directory below `place`, making all that leads to it; follows no link."""
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
def writable(place: int, path: str) -> Iterator[int]:
    """Opens a file below `place` for reading and writing; makes it, and what leads to it.

    Raises:
        OSError: Something else stands there, or the file has a second name.
    """
    parent, _, last = path.rpartition("/")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(directory_in(place, parent)) if parent else place
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(last, flags, 0o600, dir_fd=folder)
        try:
            if os.fstat(descriptor).st_nlink != 1:
                raise PermissionError(errno.EPERM, f"{path} has a second name")
            yield descriptor
        finally:
            os.close(descriptor)


def check_space(root: int, wanted: int) -> None:
    """Raises OSError (ENOSPC) when `wanted` bytes would fill the disk."""
    found = os.fstatvfs(root)
    free = found.f_bavail * found.f_frsize
    if wanted + _RESERVE > free:
        raise OSError(
            errno.ENOSPC,
            f"{-(-wanted // MIB)} MiB are still to come and {_RESERVE // MIB} MiB are to stay "
            f"free, but only {free // MIB} MiB are",
        )


def move_in(root: int, place: int, name: str) -> None:
    """Renames the checkpoint into its place; what stands there goes aside, never away."""
    _put_aside(root, name, "in the way of what was restored from the store")
    os.fsync(place)
    os.rename(name, name, src_dir_fd=place, dst_dir_fd=root)
    os.fsync(root)


def _put_aside(root: int, name: str, reason: str) -> None:
    """Moves an entry to `.spotd-aside`; nothing there is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=root, follow_symlinks=False)
        set_aside(root, name, reason)
