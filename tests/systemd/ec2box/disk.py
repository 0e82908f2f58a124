"""A disk that can lose its power: ext4 in a sparse file on a loop device."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

#: linux/fs.h: _IOR('X', 125, __u32); flag 2: do not even flush the journal.
FS_IOC_SHUTDOWN = 0x8004587D
GOING_DOWN_WITHOUT_LOG_FLUSH = 2


class Disk:
    """`mount` it, write to `path`, `cut` the power: what was not written out is gone."""

    def __init__(self, folder: Path, size: int = 2 << 30, options: str = "noatime") -> None:
        self.path = folder / "disk"
        self.path.mkdir(parents=True)
        self.image = folder / "disk.ext4"
        self._options = options
        with self.image.open("wb") as file:
            file.truncate(size)
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", str(self.image))
        self.mounted = False

    def mount(self) -> None:
        """Mounts it; after a cut this replays the journal, as a boot would."""
        if not self.mounted:
            run("mount", "-o", f"loop,{self._options}", str(self.image), str(self.path))
            self.mounted = True

    def unmount(self) -> None:
        """Unmounts it, and waits until no dying process holds on to the file system."""
        if not self.mounted:
            return
        device = _device(self.path)
        detach(self.path)
        self.mounted = False
        deadline = time.monotonic() + 10
        while Path("/sys/fs/ext4", device).exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{device} is still mounted in another namespace")
            time.sleep(0.005)

    def cut(self) -> None:
        """The power goes: no page of the cache reaches the disk from here on."""
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(handle, FS_IOC_SHUTDOWN, struct.pack("I", GOING_DOWN_WITHOUT_LOG_FLUSH))
        finally:
            os.close(handle)

    def close(self) -> None:
        self.unmount()
        self.image.unlink(missing_ok=True)


def detach(path: Path, patience: float = 10.0) -> None:
    """Unmounts, waiting for processes that were killed a moment ago to be gone.

    By umount2(2) itself: umount(8) first looks at the path, which a dead disk does not survive.

    Raises:
        OSError: still busy after `patience` seconds.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    deadline = time.monotonic() + patience
    while libc.umount2(str(path).encode(), 0):
        number = ctypes.get_errno()
        if number != errno.EBUSY or time.monotonic() > deadline:
            raise OSError(number, os.strerror(number), str(path))
        time.sleep(0.02)


def is_mounted(path: Path) -> bool:
    """By the kernel's table: os.path.ismount says no to a disk that has lost its power."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[1] == str(path) for line in lines)


def _device(path: Path) -> str:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, target, *_ = line.split()
        if target == str(path):
            return Path(source).name
    raise RuntimeError(f"{path} is not mounted")


def run(*command: str) -> str:
    """Runs a command and returns what it printed.

    Raises:
        RuntimeError: with what the command said.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
