"""Starts the store's worker process, before the daemon itself is ready if need be.

The worker takes a quarter of a second to be able to do anything, and the daemon as long to
import its own parts. Started first, it is ready when the daemon is: a boot whose lease has
run out has to hear the store before it may train.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from spotd.shell.store.settings import StoreSettings
    from spotd.shell.store.wire import Channel


class Begun(NamedTuple):
    """A worker that knows nothing yet, and our end of the line to it."""

    popen: subprocess.Popen[bytes]
    connection: socket.socket


class Spawned(NamedTuple):
    """A worker that knows the store and nothing else, and our end of the line to it.

    It ends by itself when the connection does, with this process at the latest.
    """

    popen: subprocess.Popen[bytes]
    connection: socket.socket
    channel: Channel


def spawn(settings: StoreSettings, run: str, *, early: bool, begun: Begun | None = None) -> Spawned:
    """Starts a worker and tells it about the store; returns at once.

    Args:
        settings: Which store.
        run: The run's name.
        early: Nothing is asked of it yet, so it imports and looks for credentials first.
        begun: One that has been started already.

    Raises:
        OSError: There is no memory or no process to be had, or the worker has died.
    """
    from spotd.shell.store.wire import Channel  # noqa: PLC0415 - a process is started first

    popen, ours = begun or begin()
    channel = Channel(ours)
    channel.send({"settings": asdict(settings), "run": run, "early": early})
    return Spawned(popen, ours, channel)


def begin() -> Begun:
    """Starts a worker that gets its own imports done; returns at once.

    Raises:
        OSError: There is no memory or no process to be had.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        # The same modules from the same places, whichever way the daemon found them.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            popen = subprocess.Popen(
                [sys.executable, "-m", "spotd.shell.store.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env=environment,
            )
        except OSError:
            ours.close()
            raise
    return Begun(popen, ours)


def reap(popen: subprocess.Popen[bytes]) -> int | None:
    """Waits a moment for a process that is about to end; kills it if it does not."""
    try:
        return popen.wait(2.0)
    except subprocess.TimeoutExpired:
        popen.kill()
    try:
        return popen.wait(1.0)
    except subprocess.TimeoutExpired:
        return None  # in the kernel, on a file system that does not answer


def ending(status: int | None) -> str:
    """Returns how a worker ended, in words."""
    if status is None:
        return "it cannot be killed"
    if status == -9:  # noqa: PLR2004 - SIGKILL
        return "killed, perhaps for memory"
    return f"signal {-status}" if status < 0 else f"exit {status}"
