"""Which content was meant: a name for what stat says of all files of a checkpoint."""

from __future__ import annotations

import hashlib

from spotd.shell.directory.tree import Snapshot, snapshot


def fingerprint(dirfd: int, name: str) -> str:
    """Returns 32 hexadecimal digits that change when any file of an entry does.

    Made of relative path, size, mtime and inode of every file. Not of ctime: a hard
    link, which holding makes, changes that.

    Args:
        dirfd: Descriptor of the directory that holds the entry.
        name: Its name, one path component.

    Raises:
        FileNotFoundError: Nothing stands under the name.
        OSError: It cannot be looked at.
    """
    return fingerprint_of(snapshot(dirfd, name))


def fingerprint_of(seen: Snapshot) -> str:
    """Returns the fingerprint of an entry already looked at."""
    digest = hashlib.blake2b(seen.kind.encode(), digest_size=16)
    for file in seen.files:
        digest.update(f"\0{file.path}\0{file.size}\0{file.mtime_ns}\0{file.inode}".encode())
    return digest.hexdigest()
