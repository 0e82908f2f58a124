"""What one spotd claims for itself, so that two never run one trainer."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from spotd.errors import SpotdError
from spotd.shell.statefile import make_public

if TYPE_CHECKING:
    from pathlib import Path


def own_directory(path: Path, *, public: bool = False) -> Path:
    """Makes a directory of spotd's own; raises SpotdError where it cannot.

    `public`: everybody may look into it, whatever the umask; its sockets say who may speak.
    """
    try:
        if public:
            make_public(path)
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as e:
        raise SpotdError(
            f"cannot make {path}: {e.strerror}",
            hint="run as root, or set paths.state and paths.runtime to places of your own",
        ) from e
    return path


def claim(path: Path) -> list[int]:
    """Takes a lock that goes with the process, however it ends; returns its descriptors.

    Raises:
        SpotdError: Another spotd has it, or the file cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as e:
        raise SpotdError(
            f"cannot open {path}: {e.strerror}",
            hint="run as root, or set paths.state and paths.runtime to places of your own",
        ) from e
    return [_lock(fd, path.parent)]


def _lock(fd: int, path: Path) -> int:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(fd)
        raise SpotdError(
            f"another spotd runs with {path}",
            hint="`spotd status` asks it; a second run needs its own paths.state, paths.runtime "
            "and checkpoint directory",
        ) from e
    except OSError:
        return fd  # a file system without locks: the other ones hold
    return fd
