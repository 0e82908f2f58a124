"""Finding the checkpoint directory, making it, and saying what is wrong with it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from spotd.shell.directory.tree import open_without_links, opened_directory
from spotd.shell.directory.watch import filesystem_of

if TYPE_CHECKING:
    from spotd.core.checkpoint import LocalCheckpoint
    from spotd.shell.owner import Owner

_INSTANCE_STORE = "Amazon EC2 NVMe Instance Storage"
_MEMORY = ("tmpfs", "ramfs", "zram")
_MAX_PARENTS = 8
_FULL = 1 << 20  # bytes
FREE_SOME_SPACE = "free some space, or set checkpoints.keep_local"


class PlaceError(Exception):
    """The directory cannot be used; `reason` and `hint` are one line each."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def open_place(path: str, owner: Owner, *, create: bool) -> int:
    """Opens the checkpoint directory; its path holds no links any more.

    Args:
        path: Absolute, resolved.
        owner: The trainer's user, who gets it when it has to be made.
        create: Make it when it is missing and its parent is there.

    Raises:
        PlaceError: It cannot be used.
    """
    try:
        descriptor = open_without_links(path)
    except FileNotFoundError:
        descriptor = _make(path, owner, create=create)
    except OSError as error:
        raise PlaceError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        _check_writable(descriptor, path, owner)
        _claim(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _claim(descriptor: int, path: str) -> None:
    """Two spotd never handle one directory, whatever their configurations say."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        hint = "stop the other one; each run has a checkpoint directory of its own"
        raise PlaceError(f"{path} is in use by another spotd", hint) from error
    except OSError:
        return  # a network filesystem that locks no directories: the lease has to do


def _make(path: str, owner: Owner, *, create: bool) -> int:
    parent, _, last = path.rstrip("/").rpartition("/")
    try:
        above = open_without_links(parent or "/")
    except OSError as error:
        hint = "mount the disk or create the directory"
        raise PlaceError(f"{path} does not exist and neither does {parent}", hint) from error
    try:
        if not create:
            raise PlaceError(f"{path} does not exist")
        os.mkdir(last, 0o755, dir_fd=above)
        with opened_directory(above, last) as made:
            if os.geteuid() == 0:
                os.fchown(made, owner.uid, owner.gid)
            return os.dup(made)
    except OSError as error:
        raise PlaceError(f"{path} cannot be made: {error.strerror}") from error
    finally:
        os.close(above)


def _check_writable(descriptor: int, path: str, owner: Owner) -> None:
    status = os.fstat(descriptor)
    if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        raise PlaceError(f"{path} is on a filesystem that is mounted read-only")
    if owner.may_write(status) or _has_acl(descriptor):
        return
    raise PlaceError(
        f"{path} cannot be written by the trainer's user (uid {owner.uid})",
        f"chown {owner.uid} {path}",
    )


def _has_acl(descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        return "system.posix_acl_access" in os.listxattr(descriptor)
    return False


def volatile(descriptor: int) -> str:
    """Returns why the directory does not survive a stop of the instance, or "".

    Source: EC2 user guide, "Instance store temporary block storage"; the model name is what
    its NVMe devices report.
    """
    device = os.fstat(descriptor).st_dev
    kind = filesystem_of(device)
    if kind in _MEMORY:
        return f"it is in memory ({kind})"
    base = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return "it is on instance store" if _on_instance_store(base, _MAX_PARENTS) else ""


def no_room(descriptor: int, path: str, newest: LocalCheckpoint | None) -> PlaceError | None:
    """Returns what to say when the next save will fail for want of space, or None.

    A checkpoint whose name has no number is written over in place and needs no more room.
    """
    status = os.fstatvfs(descriptor)
    free = status.f_bavail * status.f_frsize
    if free < _FULL:
        return PlaceError(f"{path} is on a full disk", FREE_SOME_SPACE)
    if status.f_files and not status.f_favail:
        return PlaceError(f"{path} is on a disk without free inodes", FREE_SOME_SPACE)
    numbered = newest is not None and any(character.isdigit() for character in newest.name)
    if newest is not None and numbered and free < newest.size:
        reason = f"{path} has no room for another checkpoint of {newest.size} bytes"
        return PlaceError(reason, FREE_SOME_SPACE)
    return None


def _on_instance_store(base: Path, depth: int) -> bool:
    """Looks at a block device, the disk a partition is of, and what lies below dm and md."""
    if depth == 0:
        return False
    with contextlib.suppress(OSError):
        real = base.resolve(strict=True)
        for disk in (real, real.parent):
            model = disk / "device" / "model"
            if model.is_file() and model.read_text(errors="replace").strip() == _INSTANCE_STORE:
                return True
        slaves = real / "slaves"
        if slaves.is_dir():
            return any(_on_instance_store(below, depth - 1) for below in slaves.iterdir())
    return False


def is_same(descriptor: int, path: str) -> bool:
    """Whether a path still leads to the directory a descriptor has open."""
    try:
        seen = Path(path).stat(follow_symlinks=False)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    here = os.fstat(descriptor)
    return stat.S_ISDIR(seen.st_mode) and (seen.st_dev, seen.st_ino) == (here.st_dev, here.st_ino)
