"""The manifest of a stored checkpoint: its schema, written by us, read as if by an enemy.

A manifest is the last object of a checkpoint to be written; without it the checkpoint
does not exist. Whoever can write to the bucket can write a manifest, and a restore runs
as root, so nothing in it is believed before `parse_manifest` has looked at it: every
path stays below the checkpoint, names no file twice, and every number is in range.
What is on the disk meanwhile (links) is the business of whoever opens the files.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from spotd.core.checkpoint import StoredCheckpoint, parse_checkpoint_id
from spotd.errors import SpotdError

FORMAT = 1
NAME = "MANIFEST.json"
MAX_FILES = 100_000
MAX_BYTES = 64 * 1024 * 1024  # 100,000 files at 600 bytes each
MAX_SIZE = 50 * 10**12  # S3's largest object is 50 TB; a checkpoint of more is a lie
_MAX_TIME_NS = 2**63 - 1
_MAX_PATH = 900  # S3 keys end at 1,024 bytes; the rest is url, run and id
_MAX_COMPONENT = 255  # NAME_MAX
_MAX_NAME = _MAX_COMPONENT - 9  # `<8 digits>-<name>` has to be a file name too
_CHECKSUM = re.compile(r"(?P<algorithm>[a-z0-9]{1,16}):(?P<value>[A-Za-z0-9+/]{4,96}={0,2})")


class ManifestError(SpotdError):
    """A manifest that cannot be believed: the checkpoint counts as damaged."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file of a checkpoint.

    Attributes:
        path: Relative to the checkpoint, "/" between components.
        size: Bytes.
        mode: Permission bits only, 0 to 0o777.
        mtime_ns: Nanoseconds since the epoch.
        checksum: `<algorithm>:<base64>` over the whole file, as S3 shows it.
    """

    path: str
    size: int
    mode: int
    mtime_ns: int
    checksum: str


@dataclass(frozen=True, slots=True)
class ManifestDirectory:
    """A directory of a checkpoint: what S3 cannot keep by itself. "." is the checkpoint."""

    path: str
    mode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A stored checkpoint, whole. `created` is seconds since the epoch."""

    run: str
    id: str
    sequence: int
    generation: int
    name: str
    kind: str
    step: int | None
    created: float
    instance_id: str
    size: int
    files: tuple[ManifestFile, ...]
    directories: tuple[ManifestDirectory, ...] = ()
    node: int = 0

    def stored(self) -> StoredCheckpoint:
        """Returns what the core needs to know of it."""
        return StoredCheckpoint(
            id=self.id,
            sequence=self.sequence,
            generation=self.generation,
            name=self.name,
            kind=self.kind,
            size=self.size,
            step=self.step,
            created=self.created,
            mtime_ns=max((file.mtime_ns for file in self.files), default=0),
            instance_id=self.instance_id,
        )


def render_time(seconds: float) -> str:
    """Returns RFC 3339 in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: object) -> float:
    """Returns seconds since the epoch; raises ManifestError when it is no RFC 3339 time."""
    if not isinstance(text, str) or len(text) > 64:  # noqa: PLR2004
        raise ManifestError("a time is not RFC 3339 text")
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise ManifestError(f"a time is not RFC 3339: {text!r}") from error
    if moment.tzinfo is None:
        raise ManifestError(f"a time has no zone: {text!r}")
    try:
        return moment.timestamp()
    except (OverflowError, ValueError) as error:
        raise ManifestError(f"a time is out of range: {text!r}") from error


def render_manifest(manifest: Manifest) -> bytes:
    """Returns the JSON of contracts.md section 4, with one file to a line."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "run": manifest.run,
        "id": manifest.id,
        "sequence": manifest.sequence,
        "generation": manifest.generation,
        "name": manifest.name,
        "node": manifest.node,
        "kind": manifest.kind,
        "step": manifest.step,
        "created": render_time(manifest.created),
        "instance_id": manifest.instance_id,
        "size": manifest.size,
        "directories": [
            {"path": each.path, "mode": each.mode, "mtime_ns": each.mtime_ns}
            for each in manifest.directories
        ],
        "files": [
            {
                "path": file.path,
                "size": file.size,
                "mode": file.mode,
                "mtime_ns": file.mtime_ns,
                "checksum": file.checksum,
            }
            for file in manifest.files
        ],
    }
    return render_json(document)


def render_json(document: dict[str, Any]) -> bytes:
    """Returns a small document as it stands in the store: readable, one entry to a line."""
    return json.dumps(document, ensure_ascii=False, indent=1).encode() + b"\n"


def parse_manifest(data: bytes, *, run: str, checkpoint: str) -> Manifest:
    """Reads a manifest found under the id `checkpoint` of `run`.

    Raises:
        ManifestError: It is not one, is of a format we do not know, speaks of another
            run or id, or says anything that must not be done.
    """
    document = parse_json_object(data, "manifest", MAX_BYTES)
    if document.get("format") != FORMAT:
        raise ManifestError(
            f"manifest format {document.get('format')!r} is not {FORMAT}",
            hint="a newer spotd wrote it: install that version here",
        )
    identity = parse_checkpoint_id(checkpoint)
    if document.get("run") != run or document.get("id") != checkpoint or identity is None:
        raise ManifestError("the manifest speaks of another run or checkpoint")
    sequence, name = identity
    if document.get("sequence") != sequence or document.get("name") != name:
        raise ManifestError("sequence or name in the manifest do not match its id")
    check_name(name)
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in {"file", "directory"}:
        raise ManifestError(f"kind is {kind!r}, not file or directory")
    step = document.get("step")
    files = _files(document.get("files"))
    size = _whole(document.get("size"), "size", MAX_SIZE)
    if size != sum(file.size for file in files):
        raise ManifestError("size is not the sum of the files' sizes")
    if kind == "file" and [file.path for file in files] != [name]:
        raise ManifestError("a checkpoint of kind file must hold exactly the file it is named for")
    directories = _directories(document.get("directories", []))
    _check_tree({file.path for file in files}, {each.path for each in directories})
    return Manifest(
        run=run,
        id=checkpoint,
        sequence=sequence,
        generation=_whole(document.get("generation"), "generation", 2**53),
        name=name,
        kind=kind,
        step=None if step is None else _whole(step, "step", 2**53),
        created=parse_time(document.get("created")),
        instance_id=_text(document.get("instance_id"), "instance_id", 256),
        size=size,
        files=files,
        directories=directories,
        node=_whole(document.get("node"), "node", 2**16),
    )


def parse_json_object(data: bytes, what: str, limit: int) -> dict[str, Any]:
    """Returns the JSON object in `data`; raises ManifestError for anything else."""
    if len(data) > limit:
        raise ManifestError(f"the {what} has {len(data)} bytes, more than {limit}")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"the {what} is not JSON") from error
    if not isinstance(document, dict):
        raise ManifestError(f"the {what} is not a JSON object")
    return document


def check_name(name: str) -> None:
    """Raises ManifestError unless `name` may stand in the checkpoint directory."""
    check_path(name)
    if "/" in name:
        raise ManifestError(f"the name {name!r} holds a slash")
    if len(name.encode()) > _MAX_NAME:
        raise ManifestError(f"the name {name[:60]!r}... has more than {_MAX_NAME} bytes")
    if name.startswith(".spotd-"):
        raise ManifestError(f"the name {name!r} is one of spotd's own")


def check_path(path: object) -> str:
    """Returns the path when it is relative, climbs nowhere and can be a file's.

    Raises:
        ManifestError: Absolute, empty, climbing, too long, not UTF-8, or with a NUL in it.
    """
    if not isinstance(path, str) or not path:
        raise ManifestError("a path is empty or not text")
    try:
        encoded = path.encode()
    except UnicodeEncodeError as error:
        raise ManifestError(f"the path {path!r} is not UTF-8") from error
    if b"\0" in encoded:
        raise ManifestError(f"the path {path!r} holds a NUL")
    if len(encoded) > _MAX_PATH:
        raise ManifestError(f"the path {path[:60]!r}... has more than {_MAX_PATH} bytes")
    for component in path.split("/"):
        if component in {"", ".", ".."}:
            raise ManifestError(f"the path {path!r} is absolute or climbs")
        if len(component.encode()) > _MAX_COMPONENT:
            raise ManifestError(f"a name in the path {path[:60]!r}... is too long")
    return path


def _files(entries: object) -> tuple[ManifestFile, ...]:
    files = tuple(_file(entry) for entry in _entries(entries, "files"))
    if len({file.path for file in files}) != len(files):
        raise ManifestError("a path stands twice in the manifest")
    if any(file.path == NAME for file in files):
        raise ManifestError(f"a file is called {NAME}, like the manifest itself")
    return files


def _file(entry: dict[str, Any]) -> ManifestFile:
    checksum = _text(entry.get("checksum"), "checksum", 128)
    if _CHECKSUM.fullmatch(checksum) is None:
        raise ManifestError(f"{checksum!r} is not a checksum")
    return ManifestFile(
        path=check_path(entry.get("path")),
        size=_whole(entry.get("size"), "size", MAX_SIZE),
        # Only permission bits: a manifest must not hand out set-user-id files.
        mode=_whole(entry.get("mode"), "mode", 0o7777) & 0o777,
        mtime_ns=_whole(entry.get("mtime_ns"), "mtime_ns", _MAX_TIME_NS),
        checksum=checksum,
    )


def _directories(entries: object) -> tuple[ManifestDirectory, ...]:
    found = []
    for entry in _entries(entries, "directories"):
        path = entry.get("path")
        found.append(
            ManifestDirectory(
                path="." if path == "." else check_path(path),
                mode=_whole(entry.get("mode"), "mode", 0o7777) & 0o777,
                mtime_ns=_whole(entry.get("mtime_ns"), "mtime_ns", _MAX_TIME_NS),
            )
        )
    if len({each.path for each in found}) != len(found):
        raise ManifestError("a directory stands twice in the manifest")
    return tuple(found)


def _check_tree(files: set[str], directories: set[str]) -> None:
    """No file may be a directory too: neither by name nor as the parent of another."""
    for path in files | directories:
        parent = path
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in files:
                raise ManifestError(f"{parent!r} is a file and a directory at once")
    if files & directories:
        raise ManifestError("a path is a file and a directory at once")


def _entries(entries: object, what: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or len(entries) > MAX_FILES:
        raise ManifestError(f"{what} is not a list, or has more than {MAX_FILES} entries")
    if not all(isinstance(entry, dict) for entry in entries):
        raise ManifestError(f"an entry of {what} is not an object")
    return entries


def _whole(value: object, what: str, limit: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise ManifestError(f"{what} is not a whole number from 0 to {limit}")
    return value


def _text(value: object, what: str, limit: int) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise ManifestError(f"{what} is not text of at most {limit} characters")
    return value
