"""Zip archives, which is what torch.save writes, judged without trusting a byte of them.

Source of the layout: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3. torch writes
records one after the other, the central directory and the end record last, so a file cut
short anywhere has no end record.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.shell.directory.bytesource import ShortReadError, read_at

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

MAX_DIRECTORY = 64 << 20  # bytes of central directory: about half a million records
CHUNK = 1 << 20
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")
_MAGIC = b"PK\x03\x04"
_MAX_COMMENT = 0xFFFF
_FULL32 = 0xFFFFFFFF
_FULL16 = 0xFFFF
_STORED, _DEFLATED = 0, 8


class _BadZipError(Exception):
    """Why it is torn, in one line."""


@dataclass(frozen=True, slots=True)
class _Record:
    crc: int
    method: int
    packed: int
    size: int
    offset: int


def is_zip(descriptor: int, size: int) -> bool:
    """Whether the file begins as a zip archive does."""
    return size >= len(_MAGIC) and read_at(descriptor, 0, len(_MAGIC)) == _MAGIC


def check_directory(descriptor: int, size: int) -> str:
    """Returns why the archive is torn, or "": end record and central directory hold.

    Raises:
        ShortReadError: The file was cut while it was read.
        OSError: The disk cannot read it.
    """
    try:
        start, length, count = _find_directory(descriptor, size)
        if length > MAX_DIRECTORY:
            return ""
        found = 0
        for record in _records(read_at(descriptor, start, length)):
            found += 1
            if record.offset + _LOCAL.size + record.packed > start:
                return "a record reaches beyond the data"
        if found != count:
            return f"its directory names {found} records and its end says {count}"
    except _BadZipError as error:
        return str(error)
    return ""


def check_contents(descriptor: int, size: int, stop: threading.Event) -> str:
    """Returns why the archive is damaged, or "": the CRC of every record is right.

    torch can be told to write no CRCs (`torch.serialization.set_crc32_options(False)`), and
    then every one of them is wrong: all bad, of several, means there are none.
    """
    try:
        start, length, _ = _find_directory(descriptor, size)
        if length > MAX_DIRECTORY:
            return ""
        records = [r for r in _records(read_at(descriptor, start, length)) if r.size]
        if sum(record.packed for record in records) > size:
            return "its records overlap"
        bad = 0
        for record in records:
            if stop.is_set():
                return ""
            bad += not _crc_holds(descriptor, record, size)
    except _BadZipError as error:
        return str(error)
    if bad and (bad < len(records) or len(records) == 1):
        return f"{bad} of {len(records)} records do not match their checksums"
    return ""


def _find_directory(descriptor: int, size: int) -> tuple[int, int, int]:
    """Returns (offset, length, number of records) of the central directory."""
    if size < _END.size:
        raise _BadZipError("its end record is missing")
    span = min(size, _END.size + _MAX_COMMENT)
    tail = read_at(descriptor, size - span, span)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        if at + _END.size <= len(tail):
            fields = _END.unpack_from(tail, at)
            if at + _END.size + fields[7] == len(tail):
                return _directory_of_end(descriptor, size - span + at, fields)
        at = tail.rfind(b"PK\x05\x06", 0, at)
    raise _BadZipError("its end record is missing")


def _directory_of_end(
    descriptor: int, end: int, fields: tuple[bytes, int, int, int, int, int, int, int]
) -> tuple[int, int, int]:
    count, length, start = fields[4], fields[5], fields[6]
    limit = end
    needs64 = count == _FULL16 or _FULL32 in (length, start)
    if end >= _END64_LOCATOR.size:
        signature, _, offset64, _ = _END64_LOCATOR.unpack(
            read_at(descriptor, end - _END64_LOCATOR.size, _END64_LOCATOR.size)
        )
        if signature == b"PK\x06\x07":
            if offset64 + _END64.size > end:
                raise _BadZipError("its zip64 end record is missing")
            values = _END64.unpack(read_at(descriptor, offset64, _END64.size))
            if values[0] != b"PK\x06\x06":
                raise _BadZipError("its zip64 end record is missing")
            count, length, start = values[7], values[8], values[9]
            limit, needs64 = offset64, False
    if needs64:
        raise _BadZipError("its zip64 end record is missing")
    if start + length != limit:
        raise _BadZipError("its directory is not where its end record says")
    return start, length, count


def _records(directory: bytes) -> Iterator[_Record]:
    at, end = 0, len(directory)
    while at < end:
        if at + _ENTRY.size > end:
            raise _BadZipError("its directory is cut")
        fields = _ENTRY.unpack_from(directory, at)
        if fields[0] != b"PK\x01\x02":
            raise _BadZipError("its directory is damaged")
        names, extra, comment = fields[12], fields[13], fields[14]
        after = at + _ENTRY.size + names + extra + comment
        if after > end:
            raise _BadZipError("its directory is cut")
        packed, size, offset = fields[10], fields[11], fields[18]
        if _FULL32 in (packed, size, offset):
            first = at + _ENTRY.size + names
            block = _zip64_extra(directory[first : first + extra])
            size, packed, offset = _widen(block, size, packed, offset)
        yield _Record(fields[9], fields[6], packed, size, offset)
        at = after


def _zip64_extra(extra: bytes) -> bytes:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    raise _BadZipError("its directory lacks a zip64 field")


def _widen(block: bytes, *values: int) -> list[int]:
    wide, at = [], 0
    for value in values:
        if value != _FULL32:
            wide.append(value)
            continue
        if at + 8 > len(block):
            raise _BadZipError("its directory lacks a zip64 field")
        wide.append(int.from_bytes(block[at : at + 8], "little"))
        at += 8
    return wide


def _crc_holds(descriptor: int, record: _Record, size: int) -> bool:
    """Reads one record in chunks; a method we cannot undo counts as right."""
    if record.offset + _LOCAL.size > size:
        raise _BadZipError("a record reaches beyond the data")
    local = _LOCAL.unpack(read_at(descriptor, record.offset, _LOCAL.size))
    if local[0] != _MAGIC:
        raise _BadZipError("a record has lost its header")
    at = record.offset + _LOCAL.size + local[10] + local[11]
    if at + record.packed > size:
        raise _BadZipError("a record reaches beyond the data")
    if record.method == _STORED:
        return _crc_stored(descriptor, at, record)
    if record.method == _DEFLATED:
        return _crc_deflated(descriptor, at, record)
    return True


def _crc_stored(descriptor: int, at: int, record: _Record) -> bool:
    crc, end = 0, at + record.packed
    while at < end:
        part = read_at(descriptor, at, min(CHUNK, end - at))
        crc = zlib.crc32(part, crc)
        at += len(part)
    return crc == record.crc


def _crc_deflated(descriptor: int, at: int, record: _Record) -> bool:
    """Never unpacks more than the record says it holds: a bomb is only a bad record."""
    inflate = zlib.decompressobj(-15)
    crc, left, end = 0, record.size, at + record.packed
    try:
        while at < end and not inflate.eof:
            part = read_at(descriptor, at, min(CHUNK, end - at))
            at += len(part)
            while part and not inflate.eof:
                out = inflate.decompress(part, CHUNK)
                left -= len(out)
                if left < 0:
                    return False
                crc = zlib.crc32(out, crc)
                part = inflate.unconsumed_tail
    except zlib.error:
        return False
    return left == 0 and crc == record.crc


__all__ = [
    "CHUNK",
    "MAX_DIRECTORY",
    "ShortReadError",
    "check_contents",
    "check_directory",
    "is_zip",
]
