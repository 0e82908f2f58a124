"""A network namespace, and a thread of this process that lives in it."""

from __future__ import annotations

import concurrent.futures
import ctypes
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")
CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18


class NetNamespace:
    """Sockets opened and processes started by `call` belong to the namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/netns", name)
        ip("netns", "add", name)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, name, initializer=self._enter)
        self.ip("link", "set", "lo", "up")

    def _enter(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with self.path.open("rb") as handle:
            if libc.setns(handle.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `function` in the namespace; threads that it starts stay in it."""
        return self._thread.submit(function, *args, **kwargs).result()

    def ip(self, *arguments: str) -> None:
        ip("-n", self.name, *arguments)

    def close(self) -> None:
        self._thread.shutdown()
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


def private_mounts() -> None:
    """From here on this process mounts for itself and its children alone.

    Nobody else's process then keeps a disk busy that is to be unmounted, and what a killed test
    run leaves mounted is gone with it: unshare(2), mount_namespaces(7).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"", b"/", None, MS_REC | MS_PRIVATE, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "private mount namespace")


def ip(*arguments: str) -> None:
    """Runs ip(8).

    Raises:
        RuntimeError: with what ip said.
    """
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def sweep(prefix: str) -> None:
    """Removes namespaces `<prefix><pid>-...` whose process is gone (a killed test run)."""
    for path in Path("/run/netns").glob(f"{prefix}*"):
        pid = path.name.removeprefix(prefix).split("-")[0]
        if not pid.isdigit() or not _alive(int(pid)):
            subprocess.run(["ip", "netns", "del", path.name], check=False, capture_output=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
