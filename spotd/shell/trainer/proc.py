"""What /proc says about processes, and signals that cannot hit the wrong one.

Source: proc(5), pidfd_open(2), pidfd_send_signal(2). Whatever is gone by the time it is
looked at is None, never an exception: processes come and go.
"""

from __future__ import annotations

import contextlib
import os
import signal as signals
import time
from dataclasses import dataclass
from pathlib import Path

from spotd.core.targets import RANK_VARIABLES

_LARGEST = 1024 * 1024  # of an environment or a command line; Linux allows 6 MiB of both
_TICKS = os.sysconf("SC_CLK_TCK")
_STAT_STATE, _STAT_PARENT, _STAT_SESSION, _STAT_STARTED = 0, 1, 3, 19
_ENDED = ("Z", "X")


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for ever: its number and when it began, in clock ticks since boot."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class Stat:
    """The part of /proc/PID/stat that says who it is and whose."""

    pid: int
    comm: str
    state: str
    parent: int
    session: int
    started: int

    @property
    def identity(self) -> Identity:
        """Tells it from a later process of the same number."""
        return Identity(self.pid, self.started)

    @property
    def alive(self) -> bool:
        """A zombie has ended; only its parent has not looked yet."""
        return self.state not in _ENDED


def read(path: str, largest: int = _LARGEST) -> bytes | None:
    """The content of a file in /proc, or None when it or its process is gone or private."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        size = 0
        while size < largest and (part := os.read(descriptor, 65536)):
            parts.append(part)
            size += len(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def pids() -> list[int]:
    """Every process there is."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208


def stat(pid: int) -> Stat | None:
    """Who a process is, or None when it is gone."""
    content = read(f"/proc/{pid}/stat")
    if not content:
        return None
    name, _, rest = content.partition(b"(")[2].rpartition(b")")  # the name may hold both
    fields = rest.split()
    return Stat(
        pid=pid,
        comm=name.decode(errors="replace"),
        state=fields[_STAT_STATE].decode(),
        parent=int(fields[_STAT_PARENT]),
        session=int(fields[_STAT_SESSION]),
        started=int(fields[_STAT_STARTED]),
    )


def is_alive(process: Identity) -> bool:
    """Says whether exactly this process still runs."""
    found = stat(process.pid)
    return found is not None and found.started == process.started and found.alive


def environment(pid: int) -> dict[bytes, bytes]:
    """The environment it was executed with; empty when it is private or overwritten."""
    content = read(f"/proc/{pid}/environ") or b""
    pairs = (entry.partition(b"=") for entry in content.split(b"\0") if entry)
    return {name: value for name, _, value in pairs}


def rank(variables: dict[bytes, bytes]) -> str | None:
    """Its number among the ranks of a distributed training, as its launcher gave it."""
    for name in RANK_VARIABLES:
        value = variables.get(name.encode())
        if value is not None:
            return value.decode(errors="replace")
    return None


def command(pid: int) -> tuple[str, ...]:
    """Its command line."""
    content = read(f"/proc/{pid}/cmdline") or b""
    return tuple(part.decode(errors="replace") for part in content.rstrip(b"\0").split(b"\0"))


@dataclass(frozen=True, slots=True)
class Status:
    """The part of /proc/PID/status that says what signals would do to it."""

    comm: str
    state: str
    parent: int
    caught: int  # a mask: bit n-1 is signal n
    ignored: int

    @property
    def alive(self) -> bool:
        """As of `Stat`."""
        return self.state not in _ENDED


def status(pid: int) -> Status | None:
    """What signals would do to a process, or None when it is gone."""
    content = read(f"/proc/{pid}/status")
    if not content:
        return None
    fields = dict(line.partition(b":\t")[::2] for line in content.split(b"\n"))
    try:
        return Status(
            comm=fields[b"Name"].decode(errors="replace"),
            state=fields[b"State"][:1].decode(),
            parent=int(fields[b"PPid"]),
            caught=int(fields[b"SigCgt"], 16),
            ignored=int(fields[b"SigIgn"], 16),
        )
    except (KeyError, ValueError):
        return None


def written(pid: int) -> int | None:
    """Bytes it has handed to write(2) and its like, to whatever file, pipe or socket."""
    content = read(f"/proc/{pid}/io")
    if not content:
        return None
    value = content.partition(b"wchar:")[2].split(None, 1)
    return int(value[0]) if value else None


def open_pidfd(process: Identity) -> int | None:
    """A descriptor for exactly this process, or None when it is gone.

    The number is compared with the time it began only after the descriptor is held: from
    then on the number cannot come to mean another process.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return None
    found = stat(process.pid)
    if found is None or found.started != process.started:
        os.close(descriptor)
        return None
    return descriptor


def send(process: Identity, number: int) -> bool:
    """Sends one signal to exactly this process; False when it is gone or not ours."""
    descriptor = open_pidfd(process)
    if descriptor is None:
        return False
    try:
        signals.pidfd_send_signal(descriptor, number)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def boot_id() -> str:
    """Differs after each boot; process numbers and start times mean nothing across it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def wall_clock(started: int) -> float:
    """When a process of that start time began, in seconds since the epoch."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + started / _TICKS


def holders(path: Path) -> list[int]:
    """Which processes have this file open, by inode, whatever they call it."""
    try:
        wanted = path.stat()
    except OSError:
        return []
    found = []
    for pid in pids():
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            if any(_is_same(entry, wanted) for entry in entries):
                found.append(pid)
    return found


def _is_same(entry: os.DirEntry[str], wanted: os.stat_result) -> bool:
    try:
        found = entry.stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
