"""Runs a command that must succeed before a start, as the trainer's user, for a bounded time."""

from __future__ import annotations

import contextlib
import os
import signal as signals
import subprocess
import time

from spotd.shell.trainer import proc
from spotd.shell.trainer.output import last_lines
from spotd.shell.trainer.starting import Order, Prepared
from spotd.shell.trainer.tree import Tree

LONGEST = 60.0  # seconds for one try; nvidia-smi takes half of that on a cold machine


def preflight(order: Order, timeout: float) -> str:
    """Runs it once; returns why it failed, in one line, or "" when it succeeded.

    Raises:
        StartRefused: It could not be executed.
        OSError: Nor could anything else.
    """
    import tempfile  # noqa: PLC0415 - half a megabyte that most daemons never need

    seconds = min(timeout, LONGEST)
    with tempfile.NamedTemporaryFile() as output:  # a pipe could fill up, or be held open
        prepared = Prepared(order, output.fileno())
        tree = Tree(prepared.identity, order.marker)
        try:
            prepared.execute()
            status = prepared.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(tree)
            prepared.popen.wait()
        lines = last_lines(f"file:{output.name}", 0)
    if status == 0:
        return ""
    how = (
        f"took longer than {seconds:g} s" if status is None
        else f"ended with status {status}" if status > 0
        else f"was ended by signal {-status}"
    )  # fmt: skip
    return f"{order.command[0]} {how}" + (f": {lines[-1]}" if lines else "")


def _end(tree: Tree) -> None:
    """Nothing of it stays behind; what does not die of SIGKILL is not waited for."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        tree.sweep(full=True)
        for stat in tree.living():
            proc.send(stat.identity, signals.SIGKILL)
        for pid in tree.identities():
            found = proc.stat(pid)
            if found and found.parent == os.getpid() and pid != tree.main.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        if not tree.living():
            return
        time.sleep(0.01)
