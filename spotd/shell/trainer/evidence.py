"""Was it the kernel that killed a process for want of memory?

Asked in this order: the control group's own count (cgroup v2: memory.events), and the
kernel's log, from /dev/kmsg or, where the unit is kept from that, from the journal.
Without evidence nothing is claimed.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from spotd.shell.trainer import proc

REASON = "out of memory"
_KILLED = re.compile(r"[Oo]ut of memory: Kill(?:ed)? process (?P<pid>\d+) \((?P<comm>[^)]*)\)")
_RECORDS = 20000  # of the kernel's log; a full one of 2 MiB has about as many
_JOURNAL_SECONDS = 2.0


class Memory:
    """Remembers how things stood at the start, to tell afterwards what has happened since."""

    def __init__(self, pid: int) -> None:
        self._began = time.clock_gettime(time.CLOCK_MONOTONIC)
        self._began_wall = time.time()
        self._events = _events_file(pid)
        self._before = _killed_in(self._events)

    def evidence(self, pids: set[int]) -> str:
        """One line when the kernel killed one of these for want of memory, else ""."""
        for log in (_kernel_log(self._began), _kernel_journal(self._began_wall)):
            for match in _KILLED.finditer(log):
                if int(match["pid"]) in pids:
                    return f"{REASON}: the kernel killed {match['comm']} ({match['pid']})"
        if _killed_in(self._events) > self._before:
            return f"{REASON}: the kernel killed a process of its control group"
        return ""


def _events_file(pid: int) -> Path | None:
    content = proc.read(f"/proc/{pid}/cgroup") or b""
    for line in content.decode(errors="replace").splitlines():
        if line.startswith("0::"):
            path = Path("/sys/fs/cgroup") / line[3:].lstrip("/") / "memory.events"
            return path if path.exists() else None
    return None


def _killed_in(path: Path | None) -> int:
    content = (proc.read(str(path)) if path is not None else None) or b""
    match = re.search(rb"^oom_kill (\d+)$", content, re.MULTILINE)
    return int(match[1]) if match else 0


def _kernel_log(since: float) -> str:
    """The kernel's messages since then (seconds since boot), or "" where we may not look."""
    try:
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    found = []
    try:
        for _ in range(_RECORDS):
            try:
                record = os.read(descriptor, 8192)
            except BrokenPipeError:
                continue  # overwritten while we read; the next one is there
            except OSError:
                break
            header, _, message = record.decode(errors="replace").partition(";")
            stamp = header.split(",")[2:3]
            if stamp and stamp[0].isdecimal() and int(stamp[0]) / 1e6 >= since:
                found.append(message)
    finally:
        os.close(descriptor)
    return "\n".join(found)


def _kernel_journal(since: float) -> str:
    if not Path("/run/systemd/journal/stdout").exists():
        return ""
    command = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--dmesg",
               f"--since=@{since:.6f}", "--lines=2000"]  # fmt: skip
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False,
            timeout=_JOURNAL_SECONDS,
        ).stdout.decode(errors="replace")  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
