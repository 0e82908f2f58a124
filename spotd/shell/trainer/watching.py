"""One running trainer, followed until nothing of it is left."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal as signals
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spotd.core import events
from spotd.shell.trainer import evidence, proc
from spotd.shell.trainer.output import bound, last_lines
from spotd.shell.wake import Wake

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from spotd.shell.trainer.record import Record, RecordStore
    from spotd.shell.trainer.tree import Tree

log = logging.getLogger(__name__)

LINGER = 3.0  # seconds that the rest of the tree has to end by itself after its main process
_YOUNG = 15.0  # seconds in which a tree grows quickly
_SWEEP_YOUNG = 0.5
_SWEEP = 5.0
_FULL_SWEEP = 60.0
_STRAY = 30.0  # seconds after which nobody else will wait for a child that has ended
_STUBBORN = 10.0  # seconds after which a process that does not die of SIGKILL is mentioned


@dataclass(slots=True)
class Running:
    """A trainer that was started or adopted, and the thread that follows it.

    Args:
        record: Which one.
        tree: Its processes.
        pidfd: Of its main process; None when that had ended before it was adopted.
        child: Its main process, when it is the daemon's own child.
        store: Where its record and lock are.
        post: Gets `TrainerExited`, after everything of it has gone.
        linger: Seconds that the rest of the tree gets when the main process ends.
    """

    record: Record
    tree: Tree
    pidfd: int | None
    child: subprocess.Popen[bytes] | None
    store: RecordStore
    post: Callable[[events.Event], None]
    linger: float = LINGER
    over: threading.Event = field(default_factory=threading.Event)
    _killing: threading.Event = field(default_factory=threading.Event)
    _wake: Wake = field(default_factory=Wake)
    _memory: evidence.Memory | None = None
    _status: int | None = None
    _unbounded: bool = False  # its log cannot be moved aside, and that has been said

    def follow(self) -> None:
        """Starts to follow it."""
        self._memory = evidence.Memory(self.record.pid)
        threading.Thread(target=self._follow, name="trainer", daemon=True).start()

    def kill(self) -> None:
        """SIGKILL to all of it now; `TrainerExited` follows when it has gone."""
        self._killing.set()
        self.tree.sweep()
        self.tree.kill()
        self._wake.set()

    def _follow(self) -> None:
        self._wait()
        if self.child is not None:
            self._status = self.child.wait()
        left = self._end_the_rest()
        lines = last_lines(self.record.output, self.record.output_from)
        reason = self._reason(left)
        self.store.forget()
        if self.pidfd is not None:
            os.close(self.pidfd)
        self.over.set()
        self._wake.close()
        status = self._status
        self.post(events.TrainerExited(
            status=status if status is not None and status >= 0 else None,
            signal=-status if status is not None and status < 0 else None,
            last_lines=lines,
            reason=reason,
        ))  # fmt: skip

    def _wait(self) -> None:
        """Returns when the main process has ended; keeps the set of its descendants meanwhile."""
        if self.pidfd is None:
            return
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.register(self._wake.fileno(), select.POLLIN)
        began = swept = time.monotonic()
        while True:
            young = time.monotonic() - began < _YOUNG
            ready = {fd for fd, _ in poll.poll(1000 * (_SWEEP_YOUNG if young else _SWEEP))}
            if self.pidfd in ready:
                return
            if self._wake.fileno() in ready:
                self._wake.clear()
            full = young or time.monotonic() - swept >= _FULL_SWEEP
            self.tree.sweep(full=full)
            if full:
                swept = time.monotonic()
                self._reap()
            if self._killing.is_set():
                self.tree.kill()
            else:
                self._bound_output()

    def _bound_output(self) -> None:
        try:
            bound(self.record.output)
        except OSError as error:
            if not self._unbounded:
                log.warning("the trainer's log grows on: %s", error.strerror or error)
            self._unbounded = True

    def _end_the_rest(self) -> int:
        """Nothing may be left behind. Returns how many had to be killed."""
        began = time.monotonic()
        killed: set[int] = set()
        pause = 0.005
        mentioned = False
        while True:
            self.tree.sweep(full=True)
            self._reap()
            living = self.tree.living() or self._lock_holders()
            if not living:
                return len(killed)
            waited = time.monotonic() - began
            if self._killing.is_set() or waited >= self.linger:
                killed.update(p.pid for p in living)
                self.tree.kill()
            if waited > self.linger + _STUBBORN and not mentioned:
                mentioned = True
                names = ", ".join(f"{p.pid} ({p.comm}, {p.state})" for p in living)
                log.warning("processes of the trainer do not die of SIGKILL: %s", names)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)

    def _lock_holders(self) -> list[proc.Stat]:
        """Processes that shed everything else but still hold the inherited lock."""
        if not self.store.is_locked():
            return []
        for pid in proc.holders(self.store.lock_path):
            if pid != os.getpid():
                self.tree.add(pid)
        return self.tree.living()

    def _reap(self) -> None:
        """Waits for orphans that became ours (a subreaper's, or pid 1's, children)."""
        own = self.child.pid if self.child is not None else None
        for pid in self.tree.identities():
            if pid != own:
                _wait_for(proc.stat(pid))
        for found in self.tree.strays_since(time.monotonic() - _STRAY):
            _wait_for(found)

    def _reason(self, left: int) -> str:
        if self._killing.is_set():
            return ""
        if self._status != 0 and self._memory is not None:
            killed = self._memory.evidence(set(self.tree.ever))
            if killed:
                return killed
        if self._status is not None and self._status < 0:
            return f"ended by {_signal_name(-self._status)}"
        if left:
            return f"{left} of its processes were still there when it ended, and were killed"
        return ""


def _wait_for(found: proc.Stat | None) -> None:
    if found is not None and found.parent == os.getpid() and not found.alive:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(found.pid, os.WNOHANG)


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
