"""How much of the machine a sending thread takes.

Linux keeps nice values and I/O classes for each thread (sched(7), ioprio_set(2)), so an
upload lowers only its own threads: a process that is not root could never raise itself
again, but the next upload gets new ones. Nice counts only against what is in the same
session or control group; how much of the cores an upload in peace takes is therefore seen to
by `spotd.shell.store.peace`, and its threads keep their nice value: one that waits for a
core while it holds the interpreter's lock would hold up the notice as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
_WHO_PROCESS = 1
_BEST_EFFORT_LOWEST = (2 << 13) | 7


def one_core() -> None:
    """Keeps the calling thread on the core that all such threads of this process share.

    For threads that hold the interpreter's lock for most of what they do: on several cores they
    spend as much on waking each other as on their work (docs/transfer.md).
    """
    with contextlib.suppress(OSError):  # a sandbox that forbids it: slower, no more
        cores = sorted(os.sched_getaffinity(os.getpid()))  # the main thread's, which is never kept
        os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})


def disk_last() -> None:
    """Lowers the calling thread: the disk goes to the trainer first."""
    if _IOPRIO_SET is not None:
        # Where it is forbidden the upload is only less polite.
        ctypes.CDLL(None, use_errno=True).syscall(_IOPRIO_SET, _WHO_PROCESS, 0, _BEST_EFFORT_LOWEST)


def disk_and_cores_last() -> None:
    """The cores too, as far as nice counts: for what goes up while the trainer saves."""
    disk_last()
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    except OSError:
        return  # a sandbox that forbids it: the upload is only less polite
