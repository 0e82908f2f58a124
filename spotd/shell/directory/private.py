"""spotd's own directories inside the trainer's: `.spotd-hold` and `.spotd-aside`.

The trainer's user can rename or replace them, having the directory; what is inside they
cannot touch. So they are opened anew each time, followed nowhere, and taken back when
their owner is wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import stat
from typing import TYPE_CHECKING

from spotd.shell.directory.tree import DIRECTORY_FLAGS, READ_FLAGS

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLD, ASIDE = ".spotd-hold", ".spotd-aside"
MAX_NOTE = 64 << 10
_NOREPLACE = 1  # RENAME_NOREPLACE, renameat2(2)
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def opened_private(root: int, name: str, mode: int, *, create: bool = True) -> Iterator[int]:
    """Opens one of spotd's own directories, made when it is missing.

    Raises:
        FileNotFoundError: It is missing and `create` is False.
        OSError: It cannot be made, or something else stands under its name.
    """
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=root)
    descriptor = os.open(name, DIRECTORY_FLAGS, dir_fd=root)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():  # chown -R by a well-meaning person
            os.fchown(descriptor, os.geteuid(), os.getegid())
        if stat.S_IMODE(status.st_mode) != mode:
            os.fchmod(descriptor, mode)
        yield descriptor
    finally:
        os.close(descriptor)


def write_note(directory: int, name: str, content: dict[str, object]) -> None:
    """Writes a small JSON file in one of spotd's own directories, whole or not at all.

    Raises:
        OSError: There is no room for it, or the disk refused.
    """
    data = json.dumps(content, sort_keys=True).encode()
    temporary = f"{name}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o644, dir_fd=directory)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def read_note(directory: int, name: str) -> dict[str, object] | None:
    """Returns what `write_note` wrote, or None when it is missing or damaged."""
    try:
        descriptor = os.open(name, READ_FLAGS, dir_fd=directory)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        content = json.loads(os.read(descriptor, MAX_NOTE))
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(descriptor)
    return content if isinstance(content, dict) else None


def rename_to_free_name(source: int, name: str, target: int, to: str) -> None:
    """Renames an entry, never over another one.

    Raises:
        FileExistsError: Something stands under the new name.
        FileNotFoundError: Nothing stands under the old one.
        OSError: Another reason.
    """
    old, new = os.fsencode(name), os.fsencode(to)
    if _libc.renameat2(source, old, target, new, _NOREPLACE) == 0:
        return
    error = ctypes.get_errno()
    if error not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(error, os.strerror(error), to)
    # The filesystem (NFS, some FUSE) cannot promise it: look, then rename.
    try:
        os.stat(to, dir_fd=target, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(name, to, src_dir_fd=source, dst_dir_fd=target)
        return
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), to)
