"""One checkpoint in one file: written durably, verified and read without running a pickle."""

from __future__ import annotations

import errno
import os
import pickle
import re
import struct
import threading
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import torch

from spotd_trainer.errors import CheckpointError, TornCheckpointError
from spotd_trainer.files import publish, temporary_name

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

FORMAT = 1
"""Version of what is inside; see docs/trainer.md."""

LIBRARY = "spotd_trainer"

# Of a record's attributes, APPNOTE 4.4.15. torch writes no directories, but its reader takes a
# record so marked for an empty one.
_DIRECTORY = 0x10
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError),
    # A changed bit may say that a record is encrypted, or begins before the file does.
    *(RuntimeError, OSError, MemoryError),
)
_FLUSH_EVERY = 64 << 20
_READ_CHUNK = 4 << 20


class Cancelled(Exception):  # noqa: N818 - no error: the save was asked to give way
    """A background save gave way to a more urgent one; nothing is left of it."""


@dataclass(slots=True)
class Pace:
    """Between the thread that writes and the loop: how far it is, and whether to give up."""

    cancelled: bool = False
    written: int = 0
    expected: int = 0

    @property
    def nearly_done(self) -> bool:
        """Whether three quarters of the bytes are written."""
        return self.expected > 0 and self.written >= 0.75 * self.expected


class DurableFile:
    """A write-only binary file that sends its bytes to the disk while they are being written.

    `torch.save` only appends, so each 64 MiB can be flushed by a second thread while the next are
    checksummed and copied: at the end little is left for fsync to wait for, and the page cache
    never holds gigabytes that would make another program's fsync wait.
    """

    def __init__(self, path: Path, pace: Pace | None = None) -> None:
        # 0600 until it has its name would hide it from an uploader under another user: 0644.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)
        self._pace = pace or Pace()
        self._unflushed = 0
        self._flusher: threading.Thread | None = None
        self._error: OSError | None = None
        self.written = 0

    def write(self, data: Any) -> int:
        """Write all of `data` (bytes-like), or raise OSError or `Cancelled`."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            if self._pace.cancelled:
                raise Cancelled
            count = os.write(self._descriptor, view[done : done + _READ_CHUNK])
            done += count
            self._pace.written += count
        self.written += done
        self._unflushed += done
        if self._unflushed >= _FLUSH_EVERY and not (self._flusher and self._flusher.is_alive()):
            self._unflushed = 0
            self._flusher = threading.Thread(target=self._flush, name="spotd-flush", daemon=True)
            self._flusher.start()
        return done

    def _flush(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            # The kernel reports a failed write-back once: the last fsync would say all is well.
            self._error = error

    def tell(self) -> int:
        """Bytes written so far; DCP asks."""
        return self.written

    def fileno(self) -> int:
        """The descriptor; DCP fsyncs it."""
        return self._descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def flush(self) -> None:
        """For `torch.save`; durability is `sync`'s business."""

    def sync(self) -> None:
        """Wait until every byte is on the disk."""
        if self._flusher:
            self._flusher.join()
        os.fsync(self._descriptor)
        if self._error:
            raise self._error

    def close(self) -> None:
        """Close; safe to call twice."""
        if self._flusher:
            self._flusher.join()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def write_archive(path: Path, state: dict[str, Any], pace: Pace | None = None) -> int:
    """Write `state` to `path` by way of a temporary file; return its size in bytes.

    Whatever happens, `path` is either untouched or whole and durable.

    Raises:
        OSError: the disk is full or broken. The temporary file is gone.
        Cancelled: `pace.cancelled` became true.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        written = write_file(temporary, state, pace)
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return written


def write_file(path: Path, state: dict[str, Any], pace: Pace | None = None) -> int:
    """Write `state` straight to `path` and wait for the disk; return its size in bytes.

    Raises:
        OSError: the disk is full or broken.
        Cancelled: `pace.cancelled` became true.
    """
    with DurableFile(path, pace) as file:
        try:
            torch.save(state, file)  # type: ignore[arg-type]  # it needs write and flush only
        except RuntimeError as error:
            # torch's zip writer reports a failed write as its own error, on top of ours.
            cause = _cause_of(error)
            if cause is error:
                raise
            raise cause from None
        file.sync()
        return file.written


def _cause_of(error: BaseException) -> BaseException:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (OSError, Cancelled)):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error


def verify_archive(path: Path) -> None:
    """Read the whole file once and compare every record with its checksum (about 2 GB/s).

    `torch.load` does not: it finds a file cut short, but not changed bytes.

    Raises:
        TornCheckpointError: naming the first bad record.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        verify_stream(path, file)


def verify_stream(path: Path, stream: IO[bytes], part: str = "") -> None:
    """The same for an archive inside a file; `part` names it in the error."""
    try:
        with zipfile.ZipFile(stream) as archive:
            for record in archive.infolist():
                if record.external_attr & _DIRECTORY:
                    raise zipfile.BadZipFile(f"{record.filename} is called a directory")
                with archive.open(record) as content:
                    while content.read(_READ_CHUNK):
                        pass
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        size = stream.seek(0, os.SEEK_END)
        raise TornCheckpointError(
            path, f"expected a whole archive, found {size} damaged bytes: {error}", key=part or None
        ) from error


def read_archive(path: Path) -> dict[str, Any]:
    """Verify and load a checkpoint of ours, tensors on the CPU and mapped from the file.

    Raises:
        TornCheckpointError: cut short or changed.
        CheckpointError: not ours, or of a format this library does not read.
        OSError: the file cannot be read.
    """
    if path.is_dir():
        raise CheckpointError(path, "expected a file, found a directory")
    verify_archive(path)
    return check_header(path, _load(path, path, mapped=True))


def read_header(path: Path) -> dict[str, Any]:
    """The same without verifying the tensors, which are mapped and not read.

    Raises:
        CheckpointError: cut short, or not ours.
        OSError: the file cannot be read.
    """
    return check_header(path, _load(path, path, mapped=True))


def read_received(path: Path, content: IO[bytes]) -> dict[str, Any]:
    """The same for bytes that came from another rank, which read them from `path`."""
    return check_header(path, _load(path, content, mapped=False))


def _load(path: Path, source: Path | IO[bytes], *, mapped: bool) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        lines = str(error).strip().splitlines() or [repr(error)]
        first = named.group(1) if named else lines[0]
        raise CheckpointError(
            path,
            f"expected tensors and plain values only, found what torch refuses to load: {first}",
            hint=f"not written by {LIBRARY}; nothing of it was executed",
        ) from error
    except Exception as error:
        # Its directory is damaged, say, which no checksum covers.
        found = (str(error).strip().splitlines() or [repr(error)])[0]
        raise TornCheckpointError(path, f"expected what torch can load: {found}") from error


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """What to raise when the disk or the system refuses: a bad sector makes a torn checkpoint."""
    kind = TornCheckpointError if error.errno == errno.EIO else CheckpointError
    return kind(path, f"cannot be read: {error.strerror}")


def require_keys(path: Path, state: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Raise CheckpointError for the first of `keys` that is missing."""
    for key in keys:
        if key not in state:
            raise CheckpointError(path, "expected a value, found none", key=key)


def check_header(path: Path, state: Any) -> dict[str, Any]:
    """Return `state` if it says that it is ours and of a format we read; else raise."""
    if not isinstance(state, dict) or state.get("library") != LIBRARY:
        found = (
            f"a dict with the keys {', '.join(sorted(map(str, state))[:8])}"
            if isinstance(state, dict)
            else type(state).__name__
        )
        raise CheckpointError(
            path, f"expected '{LIBRARY}', found {found}", key="library", hint="a foreign checkpoint"
        )
    found_format = state.get("format")
    if found_format != FORMAT:
        age = "an older" if isinstance(found_format, int) and found_format < FORMAT else "a newer"
        raise CheckpointError(
            path,
            f"expected {FORMAT}, found {found_format!r}",
            key="format",
            hint=f"written by {age} version of {LIBRARY}: finish the run with that one",
        )
    return state
