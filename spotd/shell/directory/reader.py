"""What the content of a file says about itself, from its head and its tail.

Milliseconds per file whatever its size. Every file is hostile: sizes and counts are
bounded, nothing is mapped (a truncated mapping kills the process), nothing is
unpickled, and a format that breaks the bounds is "unknown", which never is an error.
"""

from __future__ import annotations

import json
import os
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.core.completeness import Structure
from spotd.core.layouts import base_name
from spotd.core.names import has_checkpoint_extension
from spotd.shell.directory import dcpmeta, zipfiles
from spotd.shell.directory.bytesource import ShortReadError, read_at

if TYPE_CHECKING:
    import threading

MAX_SAFETENSORS_HEADER = 32 << 20  # the format allows 100 MB; 32 MiB is 300,000 tensors
MAX_METADATA = 64 << 20
MAX_JSON_PARSED = 1 << 20  # parsing may take 20 times as much memory
MAX_INDEX = 32 << 20
_MAX_SHARDS = 20_000
_DATA_OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d{1,19}\s*,\s*(\d{1,19})\s*\]')
_SHARD = re.compile(rb'"([^"\\/]{1,200}\.(?:safetensors|bin|pt))"')
_ZEROS = bytes(64)
_SHORTEST = 4  # bytes; no format of a checkpoint fits into less


@dataclass(frozen=True, slots=True)
class Reading:
    """What one file says; `needs` as in `spotd.core.completeness.FileFacts`."""

    structure: Structure
    reason: str = ""
    needs: tuple[tuple[str, int], ...] = ()


UNKNOWN = Reading(Structure.UNKNOWN)
WHOLE = Reading(Structure.WHOLE)


def torn(reason: str) -> Reading:
    """A reading of a file that cannot be whole."""
    return Reading(Structure.TORN, reason)


def read_structure(descriptor: int, name: str) -> Reading:
    """Judges one open file by its head and tail.

    Args:
        descriptor: Open for reading.
        name: Its path or name; the last component tells formats without a magic number.

    Raises:
        OSError: The file cannot be read (an I/O error of the disk).
    """
    last = base_name(name)
    size = os.fstat(descriptor).st_size
    try:
        if last == ".metadata":
            return _read_metadata(descriptor, size)
        if last.endswith(".safetensors"):
            return _read_safetensors(descriptor, size)
        if last.endswith(".json"):
            return _read_json(descriptor, size, index=last.endswith(".index.json"))
        if has_checkpoint_extension(last):
            return _read_by_magic(descriptor, size)
    except ShortReadError:
        return torn("it became shorter while it was read")
    return UNKNOWN


def read_contents(descriptor: int, name: str, stop: threading.Event) -> Reading:
    """Judges one open file by all of its content, where the format has checksums.

    For the one time after a power loss. Zip: the CRC of every record. Safetensors and
    DCP shards, which have none: no hole where data must be, which is what blocks that
    never reached the disk read as.

    Args:
        descriptor: Open for reading.
        name: Its path or name.
        stop: Set when there is no time left: the answer is then "unknown".

    Raises:
        OSError: The file cannot be read.
    """
    reading = read_structure(descriptor, name)
    if reading.structure is Structure.TORN:
        return reading
    size = os.fstat(descriptor).st_size
    try:
        if zipfiles.is_zip(descriptor, size):
            reason = zipfiles.check_contents(descriptor, size, stop)
            return torn(reason) if reason else reading
    except ShortReadError:
        return torn("it became shorter while it was read")
    if name.endswith((".safetensors", ".distcp")) and _has_hole(descriptor, size):
        return torn("a part of it never reached the disk")
    return reading


def _read_by_magic(descriptor: int, size: int) -> Reading:
    if size < _SHORTEST:
        return torn("it is empty" if size == 0 else f"it has {size} bytes")
    head = read_at(descriptor, 0, min(size, len(_ZEROS)))
    if zipfiles.is_zip(descriptor, size):
        reason = zipfiles.check_directory(descriptor, size)
        return torn(reason) if reason else WHOLE
    if head == _ZEROS:
        return torn("it begins with zeros")
    return UNKNOWN


def _read_safetensors(descriptor: int, size: int) -> Reading:
    """Source of the layout: the format's description in huggingface/safetensors' README."""
    if size < len(_ZEROS) // 8:
        return torn("shorter than a safetensors header")
    (length,) = struct.unpack("<Q", read_at(descriptor, 0, 8))
    if length == 0 or 8 + length > size:
        return torn(f"its header should have {length} bytes and the file has {size}")
    if length > MAX_SAFETENSORS_HEADER:
        return UNKNOWN
    header = read_at(descriptor, 8, length)
    if not header.startswith(b"{") or not header.rstrip().endswith(b"}"):
        return torn("its header is not JSON")
    # Quotes inside JSON strings are escaped, so this cannot match inside a name.
    end = max((int(match[1]) for match in _DATA_OFFSETS.finditer(header)), default=0)
    if 8 + length + end != size:
        return torn(f"{size} bytes where the header says {8 + length + end}")
    return WHOLE


def _read_json(descriptor: int, size: int, *, index: bool) -> Reading:
    if size == 0:
        return torn("it is empty")
    needs: tuple[tuple[str, int], ...] = ()
    if index:
        if size > MAX_INDEX:
            return UNKNOWN
        shards = {match[1] for match in _SHARD.finditer(read_at(descriptor, 0, size))}
        if len(shards) <= _MAX_SHARDS:
            needs = tuple((shard.decode("utf-8", "replace"), 1) for shard in sorted(shards))
    if size <= MAX_JSON_PARSED:
        if not _is_json(read_at(descriptor, 0, size)):
            return torn("it is not valid JSON")
    else:
        last = read_at(descriptor, size - 256, 256).rstrip()
        if not last.endswith((b"}", b"]")):
            return torn("it is not valid JSON: its end is missing")
    return Reading(Structure.WHOLE, needs=needs)


def _is_json(data: bytes) -> bool:
    """One JSON value, or one a line, as some loggers write under the name of the other."""
    lines = data.strip().split(b"\n")
    return _parses(data) or (len(lines) > 1 and _parses(lines[0]) and _parses(lines[-1]))


def _parses(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _read_metadata(descriptor: int, size: int) -> Reading:
    if size == 0:
        return torn("it is empty")
    if size > MAX_METADATA:
        return UNKNOWN
    try:
        lengths = dcpmeta.shard_lengths(read_at(descriptor, 0, size))
    except dcpmeta.NotMetadataError as error:
        return torn(str(error))
    except dcpmeta.TooLargeError:
        return UNKNOWN
    return Reading(
        Structure.WHOLE if lengths else Structure.UNKNOWN, needs=tuple(sorted(lengths.items()))
    )


def _has_hole(descriptor: int, size: int) -> bool:
    """A hole before the end of the file; False where the filesystem cannot tell."""
    try:
        return os.lseek(descriptor, 0, os.SEEK_HOLE) < size
    except OSError:
        return False
