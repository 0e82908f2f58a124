"""The processes of one trainer, whatever they did to hide.

A process belongs when its parent does, when it is in the trainer's control group or
session, or when the marker that its first process was given is in its environment; and
once it belongs it belongs until it ends. A background sweep keeps the set, so that at
a notice only what is new since then has to be read.
"""

from __future__ import annotations

import contextlib
import os
import signal as signals
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spotd.core.targets import Process
from spotd.shell.trainer import proc

if TYPE_CHECKING:
    from pathlib import Path

MARKER = "SPOTD_TRAINER_TOKEN"
_MOST_EVER = 10000
_SETTLED = 10.0  # seconds after which a process is not expected to execute another program


@dataclass(slots=True)
class _Member:
    stat: proc.Stat
    first_seen: float
    read_at: float = -1.0
    comm: str = ""
    command: tuple[str, ...] = ()
    rank: str | None = None
    written: int = 0

    @property
    def is_young(self) -> bool:
        """Young enough to be about to execute another program."""
        return self.read_at - self.first_seen < _SETTLED

    def describe(self) -> None:
        """Reads its command line and rank.

        Not at every look: reading these waits for a process that is mapping memory. What a
        program has written over (setproctitle) keeps its last good value.
        """
        pid = self.stat.pid
        command = proc.command(pid)
        self.command = command if command != ("",) else self.command
        rank = proc.rank(proc.environment(pid))
        self.rank = rank if rank is not None else self.rank
        now = proc.stat(pid)
        self.comm = now.comm if now is not None else self.comm
        self.read_at = time.monotonic()


@dataclass(slots=True)
class Tree:
    """The living processes of a trainer.

    Args:
        main: The command's own process.
        marker: The value of `MARKER` in its environment; None finds nothing by it.
        cgroup: The directory of its control group, when it has one to itself.
    """

    main: proc.Identity
    marker: str | None
    cgroup: Path | None = None
    ever: set[int] = field(default_factory=set)  # every pid that belonged, for the kernel's log
    _members: dict[int, _Member] = field(default_factory=dict)
    _strays: dict[proc.Identity, float] = field(default_factory=dict)  # see `_note_strays`
    _strangers: set[int] = field(default_factory=set)
    _written_by_gone: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def sweep(self, *, full: bool = False) -> None:
        """Looks for processes that are new since the last time.

        Args:
            full: Look at all of them anew: at members for what became of them, at others
                because their numbers may have come to be used again.
        """
        with self._lock:
            if full:
                self._strangers.clear()
            present = proc.pids()
            self._forget_gone(present, full=full)
            found = self._new(present)
            self._admit(found)
            self._note_strays(found)
            self._strangers = self._strangers.intersection(present).union(
                stat.pid for stat in found if stat.pid not in self._members
            )
            for member in self._members.values():
                if member.read_at < 0 or (full and member.is_young):
                    member.describe()
            if len(self.ever) > _MOST_EVER:
                self.ever.clear()
            self.ever.update(self._members)

    def add(self, pid: int) -> None:
        """Takes a process in that was found by other means (it holds the lock)."""
        found = proc.stat(pid)
        if found is not None:
            with self._lock:
                self._members[pid] = _Member(found, time.monotonic())

    def living(self) -> list[proc.Stat]:
        """Those that run, as the last sweep saw them; parents before children as a rule."""
        with self._lock:
            members = [m.stat for m in self._members.values() if m.stat.alive]
        return sorted(members, key=lambda s: (s.pid != self.main.pid, s.started))

    def identities(self) -> tuple[int, ...]:
        """The pids of all members, ended ones that nobody has waited for included."""
        with self._lock:
            return tuple(self._members)

    def strays_since(self, latest: float) -> tuple[proc.Stat, ...]:
        """Orphans that have waited since then (monotonic) or longer; see `_note_strays`."""
        found = []
        with self._lock:
            for stray, since in list(self._strays.items()):
                stat = proc.stat(stray.pid)
                if stat is None or stat.started != stray.started:
                    del self._strays[stray]
                elif since <= latest:
                    found.append(stat)
        return tuple(found)

    def snapshot(self) -> tuple[Process, ...]:
        """What a choice of targets needs; single-digit milliseconds for a hundred of them."""
        with self._lock:
            self.sweep()
            found = []
            for member in self._members.values():
                status = proc.status(member.stat.pid)
                if status is not None and status.alive:
                    if status.comm != member.comm:
                        member.describe()
                    found.append(_as_process(member, status))
            return tuple(found)

    def identity(self, pid: int) -> proc.Identity | None:
        """Which process the number meant in the last snapshot."""
        with self._lock:
            member = self._members.get(pid)
        return member.stat.identity if member else None

    def kill(self) -> None:
        """SIGKILL to each of them, the topmost first so that nobody starts others again."""
        if self.cgroup is not None:
            # Before Linux 5.14, or read-only to us: one by one does it as well.
            with contextlib.suppress(OSError):
                (self.cgroup / "cgroup.kill").write_text("1", encoding="ascii")
        for process in self.living():
            proc.send(process.identity, signals.SIGKILL)

    def written(self) -> int:
        """Bytes ever written by all of them together; never goes down."""
        with self._lock:
            self.sweep()
            for member in self._members.values():
                member.written = max(member.written, proc.written(member.stat.pid) or 0)
            return self._written_by_gone + sum(m.written for m in self._members.values())

    def _forget_gone(self, present: list[int], *, full: bool) -> None:
        running = set(present)
        for pid, member in list(self._members.items()):
            if pid in running and not full:
                continue
            found = proc.stat(pid) if pid in running else None
            if found is None or found.started != member.stat.started:
                self._written_by_gone += member.written
                del self._members[pid]
            else:
                member.stat = found

    def _new(self, present: list[int]) -> list[proc.Stat]:
        unknown = (p for p in present if p not in self._members and p not in self._strangers)
        return [found for pid in unknown if (found := proc.stat(pid)) is not None]

    def _admit(self, candidates: list[proc.Stat]) -> None:
        in_cgroup = self._cgroup_pids()
        waiting = []
        for stat in candidates:
            if stat.identity == self.main or stat.pid in in_cgroup or self._has_marker(stat):
                self._members[stat.pid] = _Member(stat, time.monotonic())
            else:
                waiting.append(stat)
        while related := [s for s in waiting if self._is_related(s)]:
            for stat in related:
                self._members[stat.pid] = _Member(stat, time.monotonic())
            waiting = [s for s in waiting if s.pid not in self._members]

    def _note_strays(self, found: list[proc.Stat]) -> None:
        """Orphans that ended before they were seen alive, and are ours to wait for.

        They cannot be told from a child of the daemon's own that somebody is about to wait
        for, so `_strays` says since when they have been waiting.
        """
        for stat in found:
            unknown = stat.pid not in self._members and stat.session != os.getsid(0)
            if unknown and stat.parent == os.getpid() and not stat.alive:
                self._strays.setdefault(stat.identity, time.monotonic())

    def _has_marker(self, stat: proc.Stat) -> bool:
        if self.marker is None or stat.pid == os.getpid():
            return False
        content = proc.read(f"/proc/{stat.pid}/environ") or b""
        return f"\0{MARKER}={self.marker}\0".encode() in b"\0" + content + b"\0"

    def _is_related(self, stat: proc.Stat) -> bool:
        """A child of a member, or in the session of one that is not somebody else's.

        A session's number cannot be used again while a member is in it.
        """
        if stat.pid == os.getpid():
            return False
        if stat.parent in self._members:
            return True
        own = os.getsid(0)
        sessions = {m.stat.session for m in self._members.values()} | {self.main.pid}
        sessions.discard(own)
        if stat.session not in sessions or stat.session == stat.pid:
            return False
        return stat.session in self._members or proc.stat(stat.session) is None

    def _cgroup_pids(self) -> set[int]:
        if self.cgroup is None:
            return set()
        found: set[int] = set()
        for directory, _, _ in os.walk(self.cgroup):
            content = proc.read(f"{directory}/cgroup.procs") or b""
            found.update(int(pid) for pid in content.split())
        found.discard(0)  # not in our pid namespace
        return found


def _as_process(member: _Member, status: proc.Status) -> Process:
    return Process(
        pid=member.stat.pid,
        parent=status.parent,
        comm=status.comm,
        command=member.command,
        caught=status.caught,
        ignored=status.ignored,
        rank=member.rank,
    )
