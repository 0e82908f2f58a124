"""Orphans of the trainer become the daemon's children: found at once, and waited for."""

from __future__ import annotations

import ctypes
import logging
import os

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def become_subreaper() -> bool:
    """Asks the kernel for it; without it orphans are still found by their marker."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0:
        return True
    log.debug("no subreaper: %s", os.strerror(ctypes.get_errno()))
    return False
