"""Pid 1 of a container: buries every orphan, passes signals on, ends as the daemon ends.

The kernel gives orphans to pid 1, and what nobody waits for stays a zombie. The daemon
cannot wait for just any child without stealing the exit status of its own, so as pid 1
spotd is two processes, as with tini: this one, forked before anything else is imported,
and the daemon below it.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def become_init() -> int | None:
    """Forks; returns None in the daemon, and in pid 1 the daemon's exit status once it ended."""
    # Blocked until the child's pid is known, so that no signal is lost in between.
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return None

    def pass_on(number: int, _: FrameType | None) -> None:
        os.kill(child, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
