"""Files that did not change since the last stored checkpoint: copied inside the store.

Frozen weights, tokenizers, optimizer shards that did not move. A file counts as unchanged
when it has the same path and size and either the same inode and mtime as the one that was
sent (a hard link, a directory saved into again), or the same checksum. Computing that costs
a read of the file (10 GB/s from the page cache), so the first MiB is compared before: most
files that differ, differ there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.shell.store.directory import read_checksum
from spotd.shell.store.protocol import NotFound, Part, Piece, PreconditionFailed, StoreProblem
from spotd.shell.store.transfer import MIB, SMALLEST_COPIED, Transfer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spotd.shell.store.record import Done
    from spotd.shell.store.source import SourceFile


class Unchanged:
    """The files of the last stored checkpoint, as far as this machine sent them.

    Args:
        transfer: Whose store it is.
        files: By path.
        keys: The object of each.
    """

    def __init__(
        self, transfer: Transfer, files: Mapping[str, Done], keys: Mapping[str, str]
    ) -> None:
        self.copied = 0  # bytes
        self._transfer = transfer
        self._files = files
        self._keys = keys

    def copy(self, file: SourceFile, fd: int, key: str) -> Part | None:
        """Copies the object of an unchanged file to `key`; None when it has to be sent."""
        known = self._files.get(file.path)
        if known is None or not self._same(known, file, fd):
            return None
        store = self._transfer.store
        try:
            etag = self._transfer.again(lambda: store.copy(self._keys[file.path], key, known.part))
        except (NotFound, PreconditionFailed):
            return None  # retention was faster
        except StoreProblem as problem:
            # A server that cannot copy (or a role that may not read) can still be sent to.
            self._transfer.on_trouble(problem)
            return None
        self.copied += known.part.size
        return Part(etag, known.part.size, known.part.crc)

    def _same(self, known: Done, file: SourceFile, fd: int) -> bool:
        size = file.entry.size
        if size < SMALLEST_COPIED or known.part.size != size or known.part.crc is None:
            return False
        if known.stat == file.stat:
            return True
        algorithm = self._transfer.store.algorithm
        if known.head != read_checksum(Piece(fd, 0, min(MIB, size)), algorithm):
            return False
        return known.part.crc == read_checksum(Piece(fd, 0, size), algorithm)
