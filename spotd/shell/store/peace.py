"""How much of the machine an upload takes while somebody else trains on it.

Nice values do not settle this: they count within one control group, or one session where the
kernel groups by session (sched(7), "The autogroup feature"), and the trainer is in another.
What holds everywhere is to want less. So an upload in peace watches its own CPU time and
starts no further part while it is ahead of its allowance: a small share of the machine, and
what nobody uses besides. After a notice nothing of this applies.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Of all cores, when all are busy. With it the trainer's steps get some 2 % longer; one core
# sends 1 GB a second and more, so two cores still leave 40 MB/s and eight 160.
SHARE = 0.02
_SAMPLE = 0.1  # seconds; the kernel counts idle time in hundredths
_AHEAD = 0.25  # core seconds that may be saved up: an upload begins at once
# However much was used (a long listing, a slow clock), the next part comes after so many seconds:
# training that leaves nothing idle must still get its checkpoints stored.
_PATIENCE = 2.0
_LONGEST = 0.5  # seconds until it looks again: cores may have become idle
_TICKS = os.sysconf("SC_CLK_TCK")
_IDLE, _WAITING_FOR_DISK = 4, 5  # words of /proc/stat's first line, proc(5)


def idle_seconds() -> float:
    """Returns the seconds for which cores had nothing to do since boot, over all of them.

    Waiting for a disk is having nothing to do. 0 where the kernel does not tell.
    """
    try:
        with Path("/proc/stat").open("rb") as file:
            words = file.readline().split()
        return (int(words[_IDLE]) + int(words[_WAITING_FOR_DISK])) / _TICKS
    except (OSError, ValueError, IndexError):
        return 0.0


class Allowance:
    """CPU time that this process may use: a share of the machine, and half of what is idle.

    Taking as much as is left idle leaves half of it idle; two hyper-threads are one core, and
    a trainer that uses every second one wants them so.

    Args:
        cores: Of the machine.
        used: Returns core seconds this process has used.
        idle: Returns core seconds nobody has used.
        clock: Returns seconds.
    """

    def __init__(
        self,
        cores: int,
        used: Callable[[], float] = time.process_time,
        idle: Callable[[], float] = idle_seconds,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cores = cores
        self._used, self._idle, self._clock = used, idle, clock
        self._lock = threading.Lock()
        self._last = (clock(), used(), idle())
        self._rate = SHARE * cores  # core seconds a second
        self._left = _AHEAD
        self._granted = clock()  # the last turn: there is one even while others in here are busy

    def wait(self) -> float:
        """Returns the seconds to wait before looking again; 0: go on."""
        with self._lock:
            now, used, idle = self._clock(), self._used(), self._idle()
            then, used_then, idle_then = self._last
            passed = now - then
            if passed >= _SAMPLE:
                unused = min(self._cores, max(0.0, idle - idle_then) / passed)
                self._rate = SHARE * self._cores + unused
                left = self._left + passed * self._rate - (used - used_then)
                self._left = max(-_PATIENCE * self._rate, min(_AHEAD, left))
                self._last = (now, used, idle)
                used_then = used
            short = (used - used_then) - self._left
            if short <= 0 or now - self._granted > 2 * _PATIENCE:
                self._granted = now
                return 0.0
            return min(_LONGEST, max(_SAMPLE, short / self._rate))
