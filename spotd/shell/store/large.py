"""A file of many parts on its way into the store: side by side, and continued.

Where an earlier process was cut off, what it sent is believed when the file has still the
same size, mtime and inode. Of a file that went up while it was being written
(`spotd.shell.store.ahead`) nothing is believed: each part is read once more, and sent again
unless its checksum is that of what was sent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.shell.store.directory import read_checksum
from spotd.shell.store.protocol import Damaged, NotFound, Part, Piece
from spotd.shell.store.record import GROWING, Begun, Done, Stat, UploadRecord
from spotd.shell.store.transfer import MAX_PARTS, MIB, SMALLEST_COPIED, Transfer, part_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spotd.shell.store.ahead import Ahead
    from spotd.shell.store.checksum import Algorithm


def stat_of(fd: int) -> Stat:
    """Returns what tells one content of a file from the next, as far as a stat can."""
    found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns, found.st_ino


@dataclass(slots=True)
class LargeFile:
    """A file that is sent in parts over all lanes, going on where it was left.

    Attributes:
        transfer: Store, lanes and flow.
        key: Where to.
        path: The file's name in the record.
        fd: The open file.
        record: What is known of earlier attempts; kept up to date.
        arrived: Told the bytes of each part that is in the store.
        ahead: What sent it while it was being written and has parts under way still, or None.
    """

    transfer: Transfer
    key: str
    path: str
    fd: int
    record: UploadRecord
    arrived: Callable[[int], None]
    ahead: Ahead | None = None
    _counted: int = 0

    def send(self) -> Part:
        """Sends it; returns the object: its etag, size and checksum over all of it."""
        attempts = 0
        while True:
            attempts += 1
            begun = self._continue() or self._begin()
            try:
                return self._send_parts(begun)
            except (NotFound, Damaged):
                # Somebody aborted the upload (a lifecycle rule does), or what an earlier
                # process sent is not what the file holds now: once from the beginning.
                self._drop(begun)
                if attempts > 1:
                    raise

    def _count(self, size: int) -> None:
        self._counted += size
        self.arrived(size)

    def _drop(self, begun: Begun) -> None:
        self._count(-self._counted)
        if self.ahead is not None:
            self.ahead.end()  # no part of it arrives behind the abort, or in the next one's record
        self.ahead = None
        self.transfer.again(lambda: self.transfer.store.abort(self.key, begun.upload))
        self.record.forget(self.path)

    def _begin(self) -> Begun:
        stat = stat_of(self.fd)
        upload = self.transfer.again(lambda: self.transfer.store.begin(self.key))
        begun = Begun(upload, part_size(stat[0]), stat)
        self.record.begin(self.path, begun)
        return begun

    def _continue(self) -> Begun | None:
        begun = self.record.begun.get(self.path)
        if begun is None:
            return None
        stat = stat_of(self.fd)
        fits = stat[0] <= MAX_PARTS * begun.part_size
        if begun.stat not in {stat, GROWING} or not fits:
            self._drop(begun)
            return None
        if self.ahead is not None:
            return begun  # of this very process: what it has on record is there
        store, recorded = self.transfer.store, dict(begun.parts)
        try:
            found = self.transfer.again(lambda: store.surviving(self.key, begun.upload, recorded))
        except NotFound:
            self.record.forget(self.path)
            return None
        if begun.stat == GROWING:
            # Without a checksum of what was sent, there is nothing to compare with.
            begun.parts = {n: part for n, part in found.items() if part.crc is not None}
            return begun
        begun.parts = self._usable(found, begun)
        for part in begun.parts.values():
            self._count(part.size)
        return begun

    def _usable(self, found: dict[int, Part], begun: Begun) -> dict[int, Part]:
        """Keeps the parts of the right length whose checksum is known or can be computed."""
        kept, size = {}, begun.stat[0]
        for number, part in found.items():
            offset = (number - 1) * begun.part_size
            if part.size != min(begun.part_size, size - offset):
                continue
            if part is begun.parts.get(number):
                kept[number] = part
                continue
            # Acknowledged, but the process died before it could note it down.
            crc = read_checksum(Piece(self.fd, offset, part.size), self.transfer.store.algorithm)
            if crc is not None and part.crc in {None, crc}:
                kept[number] = Part(part.etag, part.size, crc)
        return kept

    def _send_parts(self, begun: Begun) -> Part:
        store, size = self.transfer.store, stat_of(self.fd)[0]
        pieces = {
            number: Piece(self.fd, offset, min(begun.part_size, size - offset))
            for number, offset in enumerate(range(0, size, begun.part_size), start=1)
        }
        for part in self.transfer.lanes.each(self._jobs(begun, pieces)):
            self._count(part.size)
        parts = {number: begun.parts[number] for number in pieces}
        crc = store.algorithm.join((parts[n].crc or 0, parts[n].size) for n in pieces)
        etag = self.transfer.again(lambda: store.complete(self.key, begun.upload, parts, crc))
        return Part(etag, size, crc)

    def _jobs(self, begun: Begun, pieces: dict[int, Piece]) -> Iterator[Callable[[], Part]]:
        """What is missing first; while it is on its way, what went ahead is read once more."""
        flying = frozenset[int]() if self.ahead is None else self.ahead.flying(self.path)
        doubtful = []
        for number, piece in pieces.items():
            if number in flying or (begun.stat == GROWING and number in begun.parts):
                doubtful.append(number)
            elif number not in begun.parts:
                yield self._sending(begun, number, piece)
        # Those still under way last: meanwhile they arrive.
        for number in sorted(doubtful, key=lambda each: each in flying):
            yield self._checking(begun, number, pieces[number])

    def _sending(self, begun: Begun, number: int, piece: Piece) -> Callable[[], Part]:
        store, flow = self.transfer.store, self.transfer.flow

        def send() -> Part:
            part = self.transfer.again(
                lambda: store.send_part(self.key, begun.upload, number, piece, flow)
            )
            self.record.part(self.path, number, part)
            return part

        return send

    def _checking(self, begun: Begun, number: int, piece: Piece) -> Callable[[], Part]:
        """A part sent while the file was being written: is it what the file holds now?"""
        ahead, algorithm, flow = self.ahead, self.transfer.store.algorithm, self.transfer.flow

        def check() -> Part:
            flow.check()
            if ahead is not None:
                ahead.wait_for(self.path, number, flow)
            part = begun.parts.get(number)
            same = part is not None and part.size == piece.length
            if part is not None and same and part.crc == read_checksum(piece, algorithm):
                return part
            return self._sending(begun, number, piece)()

        return check


def finished(part: Part, stat: Stat, fd: int, algorithm: Algorithm) -> Done:
    """Returns the record of a file that is stored, with what `unchanged` will compare."""
    if stat[0] < SMALLEST_COPIED:
        return Done(part, stat, None)
    return Done(part, stat, read_checksum(Piece(fd, 0, min(MIB, stat[0])), algorithm))
