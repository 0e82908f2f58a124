"""How much of the disk a sending thread takes.

Linux keeps I/O classes for each thread (ioprio_set(2)), so an upload in peace lowers only
its own threads, and the next upload has new ones. Not their nice value: it counts only
against what is in the same session or control group (sched(7)), a process that is not root
could not raise it again, and a thread that waits for a core while it holds the
interpreter's lock holds up the notice as well. `spotd.shell.store.peace` sees to the cores.
"""

from __future__ import annotations

import ctypes
import platform

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
_WHO_PROCESS = 1
_BEST_EFFORT_LOWEST = (2 << 13) | 7


def after_all_others() -> None:
    """Lowers the calling thread: the disk goes to the trainer first."""
    if _IOPRIO_SET is not None:
        # Where it is forbidden the upload is only less polite.
        ctypes.CDLL(None, use_errno=True).syscall(_IOPRIO_SET, _WHO_PROCESS, 0, _BEST_EFFORT_LOWEST)
