"""How much of the machine a sending thread takes.

Linux keeps nice values and I/O classes for each thread (sched(7), ioprio_set(2)), so an
upload in peace lowers only its own threads: a process that is not root could never raise
itself again, but the next upload gets new threads.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
_WHO_PROCESS = 1
_BEST_EFFORT_LOWEST = (2 << 13) | 7


def take_what_is_left() -> None:
    """Lowers the calling thread: cores and disk go to the trainer first."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    except OSError:
        return  # a sandbox that forbids it: the upload is only less polite
    if _IOPRIO_SET is not None:
        # The call's failure has the same meaning, and errno would not change what we do.
        ctypes.CDLL(None, use_errno=True).syscall(_IOPRIO_SET, _WHO_PROCESS, 0, _BEST_EFFORT_LOWEST)
