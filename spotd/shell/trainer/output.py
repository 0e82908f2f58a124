"""Where a trainer's output goes, and its last lines.

It never passes through the daemon, so that it outlives it: straight to the journal where
journald runs (a stream of its own, as systemd opens one for a service; the header is
that of sd-journal's sd_journal_stream_fd), else to a file. That file is bounded: what is in
it moves to `trainer.log.1`, which is replaced, and the trainer goes on in the same file,
which it has open for appending.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

LINES = 20
_JOURNAL_SOCKET = "/run/systemd/journal/stdout"
_JOURNAL_SECONDS = 3.0
LARGEST_LOG = 64 * 1024 * 1024
_CHUNK = 16 * 1024 * 1024
_TAIL = 16 * 1024
_LONGEST_LINE = 500
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Output:
    """A descriptor to give to the trainer, and how to find again what it wrote there.

    Attributes:
        descriptor: To be closed by whoever asked for it.
        name: "journal:<identifier>" or "file:<path>".
        begins: Where this attempt begins: seconds since the epoch, or bytes.
    """

    descriptor: int
    name: str
    begins: float


def open_output(identifier: str, directory: Path, group: int | None) -> Output:
    """The journal when it answers, else `trainer.log` in the directory.

    Args:
        identifier: What `journalctl -t` is asked for.
        directory: For the log file; `bound` keeps it from growing past 64 MiB.
        group: May read the log file.

    Raises:
        OSError: Neither can be written to.
    """
    stream = _journal_stream(identifier)
    if stream is not None:
        return Output(stream, f"journal:{identifier}", time.time())
    path = directory / "trainer.log"
    with contextlib.suppress(OSError):  # a full disk: the trainer itself will meet it
        bound(f"file:{path}")
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o640)
    if group is not None:
        os.fchown(descriptor, -1, group)
    return Output(descriptor, f"file:{path}", os.fstat(descriptor).st_size)


def bound(name: str) -> None:
    """Moves the content of a log that has grown past 64 MiB aside; a journal bounds itself.

    What the trainer writes in the microseconds between the last read and the cut is lost, and
    what is past twice that size: it writes faster than a disk.

    Raises:
        OSError: It cannot be moved; the log is as it was.
    """
    kind, _, where = name.partition(":")
    if kind != "file":
        return
    try:
        log = os.open(where, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(log)
        if status.st_size <= LARGEST_LOG:
            return
        older = Path(where).with_name(Path(where).name + ".1")
        older.unlink(missing_ok=True)  # first: two of them are room enough
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        copy = os.open(older, flags, status.st_mode & 0o777)
        try:
            os.fchown(copy, -1, status.st_gid)
            offset = 0
            while offset < 2 * LARGEST_LOG and (sent := os.sendfile(copy, log, offset, _CHUNK)):
                offset += sent
            os.ftruncate(log, 0)
        except OSError:
            older.unlink(missing_ok=True)
            raise
        finally:
            os.close(copy)
    finally:
        os.close(log)


def last_lines(name: str, begins: float) -> tuple[str, ...]:
    """The last lines of an attempt's output, made safe for a terminal; none when unknown."""
    kind, _, where = name.partition(":")
    if kind == "journal":
        content = _journal_tail(where, begins)
    elif kind == "file":
        content = _file_tail(Path(where), int(begins))
    else:
        return ()
    # A progress bar rewrites its line; what a person saw is its last state.
    lines = (_clean(line) for line in content.decode(errors="replace").split("\n"))
    return tuple(line for line in lines if line)[-LINES:]


def _clean(line: str) -> str:
    shown = line.rstrip("\r").rpartition("\r")[2]
    return _CONTROL.sub("", shown).rstrip()[:_LONGEST_LINE]


def _journal_stream(identifier: str) -> int | None:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.connect(_JOURNAL_SOCKET)
        stream.shutdown(socket.SHUT_RD)
        # Identifier, unit (journald knows better), priority info, levels in the text are
        # honoured, and nothing is forwarded to syslog, kernel or console.
        stream.sendall(f"{identifier}\n\n6\n1\n0\n0\n0\n".encode())
    except OSError:
        stream.close()
        return None
    return stream.detach()


def _journal_tail(identifier: str, begins: float) -> bytes:
    command = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--all", f"--lines={LINES}",
               f"--identifier={identifier}", f"--since=@{begins:.6f}"]  # fmt: skip
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False,
            timeout=_JOURNAL_SECONDS,
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return b""


def _file_tail(path: Path, begins: int) -> bytes:
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            begins = begins if begins <= end else 0
            file.seek(max(begins, end - _TAIL))
            return file.read(_TAIL)
    except OSError:
        return b""
