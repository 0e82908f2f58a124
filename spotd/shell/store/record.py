"""What is known of an upload that may have to be continued by another process.

One file per checkpoint id in the state directory, lines of JSON, only appended to:

    {"format": 1, "id": ..., "location": ...}                      once, at the top
    {"begin": path, "upload": ..., "part_size": ..., "stat": [...]}  a file of many parts
    {"part": path, "number": ..., "etag": ..., "size": ..., "crc": ...}
    {"done": path, "etag": ..., "size": ..., "crc": ..., "stat": [...], "parts": [...]}

The beginning of a multipart upload is fsynced before its first part is sent: what costs
storage can always be found and cleaned up again. Parts are not: those that a power cut
takes from the record are found by asking the store. `stat` is (size, mtime_ns, inode) of
the source: a file that was rewritten in between starts over. It is `GROWING` for one that
was still being written.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spotd.shell.statefile import sync_directory
from spotd.shell.store.protocol import Part

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
_BATCH = 64  # lines about whole files that may be lost in a crash
_BATCH_SECONDS = 0.2
Stat = tuple[int, int, int]  # size, mtime_ns, inode
# Of a file that was being written when its upload began (`spotd.shell.store.ahead`): what
# was sent of it is worth what its checksums are, and nothing else vouches for it.
GROWING: Stat = (-1, -1, -1)


@dataclass(slots=True)
class Begun:
    """A file of many parts that is under way."""

    upload: str
    part_size: int
    stat: Stat
    parts: dict[int, Part] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    """A file that is in the store. `heads` are checksums of its first bytes, see `checkpoints`."""

    part: Part
    stat: Stat
    head: int | None


class UploadRecord:
    """The record of one checkpoint's upload.

    Args:
        folder: Where records are kept.
        checkpoint: The checkpoint's id.
        location: Of the store: a record of another store is of no use.
    """

    def __init__(self, folder: Path, checkpoint: str, location: str) -> None:
        self.path = folder / (hashlib.sha256(checkpoint.encode()).hexdigest()[:32] + ".upload")
        self.id = checkpoint
        self.begun: dict[str, Begun] = {}
        self.done: dict[str, Done] = {}
        self._location = location
        self._lock = threading.Lock()
        self._file: int | None = None
        self._waiting: list[bytes] = []
        self._flushed = time.monotonic()
        self._unwritable = False
        header = _read(self.path, self)
        if header is None or (header.get("id"), header.get("location")) != (checkpoint, location):
            self.begun.clear()
            self.done.clear()
            self.path.unlink(missing_ok=True)

    def begin(self, path: str, begun: Begun) -> None:
        """Notes a multipart upload, durably, before its first part is sent."""
        with self._lock:
            self.begun[path] = begun
            self._write(
                {"begin": path, "upload": begun.upload, "part_size": begun.part_size,
                 "stat": begun.stat}, sync=True,
            )  # fmt: skip

    def part(self, path: str, number: int, part: Part) -> None:
        """Notes an acknowledged part."""
        with self._lock:
            self.begun[path].parts[number] = part
            self._write(
                {"part": path, "number": number, "etag": part.etag, "size": part.size,
                 "crc": part.crc}
            )  # fmt: skip

    def finish(self, path: str, done: Done) -> None:
        """Notes a file that is in the store."""
        with self._lock:
            self.begun.pop(path, None)
            self.done[path] = done
            self._later(
                {"done": path, "etag": done.part.etag, "size": done.part.size,
                 "crc": done.part.crc, "stat": done.stat, "head": done.head}
            )  # fmt: skip

    def forget(self, path: str) -> None:
        """Drops what is known of a file: it starts over."""
        with self._lock:
            self.begun.pop(path, None)
            self.done.pop(path, None)
            self._write({"forget": path})

    @property
    def growing(self) -> bool:
        """Whether a file in it was begun before it was whole."""
        return any(begun.stat == GROWING for begun in self.begun.values())

    def close(self) -> None:
        """Closes the file; the record stays."""
        with self._lock:
            self._flush()
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def remove(self) -> None:
        """The checkpoint is stored, or never will be: nothing is left to continue."""
        self._waiting = []
        self.close()
        self.path.unlink(missing_ok=True)

    def keep_as(self, path: Path) -> None:
        """Keeps the record under another name: what is stored, to compare the next with."""
        self.close()
        if self._unwritable:
            self.path.unlink(missing_ok=True)  # it does not know all that is stored
        else:
            self.path.replace(path)

    def _later(self, line: dict[str, Any]) -> None:
        """Writes a line soon: what is lost of them is only sent again."""
        self._waiting.append(_line(line))
        if len(self._waiting) >= _BATCH or time.monotonic() > self._flushed + _BATCH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        lines, self._waiting = self._waiting, []
        self._flushed = time.monotonic()
        if lines:
            self._append(b"".join(lines))

    def _write(self, line: dict[str, Any], *, sync: bool = False) -> None:
        self._flush()
        self._append(_line(line), sync=sync)

    def _append(self, data: bytes, *, sync: bool = False) -> None:
        """Writes, unless the disk is full: a checkpoint goes up without a record as well.

        Nothing is written after what could not be: a record with a gap would be believed.
        That the disk is full is said where the daemon's own state cannot be written.
        """
        if self._unwritable:
            return
        try:
            self._unwritable = os.write(self._opened(), data) < len(data)
            if sync:
                os.fsync(self._opened())
                sync_directory(self.path.parent)
        except OSError:
            self._unwritable = True

    def _opened(self) -> int:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o600)
            if os.fstat(self._file).st_size == 0:
                header = {"format": FORMAT, "id": self.id, "location": self._location}
                os.write(self._file, _line(header))
            else:
                os.write(self._file, b"\n")  # behind a line that a power cut tore
        return self._file


def open_records(folder: Path, location: str) -> list[UploadRecord]:
    """Returns the records of uploads to this store that are not finished."""
    records = []
    for path in sorted(folder.glob("*.upload")):
        try:
            with path.open("rb") as file:
                header = json.loads(file.readline(65536))
        except (OSError, ValueError):
            continue
        if isinstance(header, dict) and header.get("location") == location:
            records.append(UploadRecord(folder, str(header.get("id", "")), location))
    return records


def read_done(path: Path, location: str) -> tuple[str, dict[str, Done]]:
    """Returns (id, files) of a record kept with `keep_as`; ("", {}) when there is none."""
    record = UploadRecord.__new__(UploadRecord)
    record.begun, record.done = {}, {}
    header = _read(path, record)
    if header is None or header.get("location") != location:
        return "", {}
    return str(header.get("id", "")), record.done


def _read(path: Path, record: UploadRecord) -> dict[str, Any] | None:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    header: dict[str, Any] | None = None
    for text in lines:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # torn: the store is asked for what it said
            continue
        if not isinstance(line, dict):
            continue
        if header is None:
            if line.get("format") != FORMAT:
                return None
            header = line
        elif _is_sound(line):
            _take(line, record)
    return header


def _take(line: dict[str, Any], record: UploadRecord) -> None:
    if "begin" in line:
        size, mtime, inode = line["stat"]
        record.begun[line["begin"]] = Begun(line["upload"], line["part_size"], (size, mtime, inode))
    elif "part" in line:
        if line["part"] in record.begun:
            part = Part(line["etag"], line["size"], line["crc"])
            record.begun[line["part"]].parts[line["number"]] = part
    elif "done" in line:
        size, mtime, inode = line["stat"]
        part = Part(line["etag"], line["size"], line["crc"])
        record.begun.pop(line["done"], None)
        record.done[line["done"]] = Done(part, (size, mtime, inode), line.get("head"))
    elif "forget" in line:
        record.begun.pop(line["forget"], None)
        record.done.pop(line["forget"], None)


_TEXT, _NUMBER, _PERHAPS = (str,), (int,), (int, type(None))
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "begin": {"begin": _TEXT, "upload": _TEXT, "part_size": _NUMBER, "stat": (list,)},
    "part": {"part": _TEXT, "number": _NUMBER, "etag": _TEXT, "size": _NUMBER, "crc": _PERHAPS},
    "done": {"done": _TEXT, "etag": _TEXT, "size": _NUMBER, "crc": _PERHAPS, "stat": (list,)},
    "forget": {"forget": _TEXT},
}


def _is_sound(line: dict[str, Any]) -> bool:
    """Whether a line says what it should; a disk that lost a sector may hold anything."""
    kind = next((kind for kind in _FIELDS if kind in line), None)
    if kind is None:
        return False
    if any(type(line.get(name)) not in kinds for name, kinds in _FIELDS[kind].items()):
        return False
    numbers = line["stat"] if "stat" in _FIELDS[kind] else [0, 0, 0]
    whole = len(numbers) == 3 and all(type(n) is int for n in numbers)  # noqa: PLR2004 - a Stat
    counted = kind != "part" or line["number"] > 0
    return whole and counted and type(line.get("head")) in _PERHAPS


def _line(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"
