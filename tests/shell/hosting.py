"""What the tests of the trainer's host share: real programs, and a host that listens."""

from __future__ import annotations

import dataclasses
import os
import queue
import sys
import textwrap
import time
from typing import TYPE_CHECKING

from spotd.config import TrainerSettings
from spotd.core import actions, events
from spotd.shell.trainer import TrainerHost, proc

if TYPE_CHECKING:
    from pathlib import Path

RUN = "a-run"


def wait_for(condition, *, seconds=20.0, what="the condition"):
    """Waits until the condition is true and returns what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.01)
    return found


def alive(pid):
    found = proc.stat(pid)
    return found is not None and found.alive


class Hosted:
    """A host over a directory of its own, and the events it posted."""

    def __init__(self, directory: Path, **settings):
        self.directory = directory
        self.work = directory / "work"
        self.work.mkdir(exist_ok=True)
        self.posted: queue.Queue[events.Event] = queue.Queue()
        given = {"command": ("true",), "directory": self.work, **settings}
        self.host = TrainerHost(
            TrainerSettings(**given),
            run=RUN,
            checkpoint_directory=self.work / "checkpoints",
            runtime_directory=directory,
            state_directory=directory / "state",
            post=self.posted.put,
            socket=directory / "trainer.sock",
            linger=0.5,
        )

    def use(self, *command: str, **settings):
        self.host.settings = dataclasses.replace(self.host.settings, command=command, **settings)

    def program(self, name: str, source: str) -> Path:
        path = self.work / name
        path.write_text(textwrap.dedent(source))
        return path

    def python(self, source: str, *arguments: str):
        """Uses a Python program as the command."""
        self.use(sys.executable, str(self.program("train.py", source)), *arguments)

    def next(self, kind, *, seconds=30.0):
        event = self.posted.get(timeout=seconds)
        assert isinstance(event, kind), event
        return event

    def start(self, *, attempt=1, resume_from=None, grace=100.0) -> int:
        self.host.start(actions.StartTrainer(attempt, resume_from, grace))
        return self.next(events.TrainerStarted).pid

    def start_refused(self) -> events.TrainerStartFailed:
        self.host.start(actions.StartTrainer(1, None, 100.0))
        return self.next(events.TrainerStartFailed)

    def signal(self, name="SIGTERM", purpose="stop") -> tuple[int, ...]:
        self.host.signal(actions.SignalTrainer(name, purpose))
        return self.next(events.SignalSent).targets

    def kill(self) -> events.TrainerExited:
        self.host.kill(actions.KillTrainer("a test"))
        return self.next(events.TrainerExited)

    def exited(self, *, seconds=30.0) -> events.TrainerExited:
        return self.next(events.TrainerExited, seconds=seconds)

    def file(self, name: str, *, seconds=30.0) -> str:
        """The content of a file that the trainer writes, once it is there and not empty."""
        path = self.work / name
        wait_for(lambda: path.exists() and path.read_text().endswith("\n"),
                 seconds=seconds, what=f"{name} of the trainer")  # fmt: skip
        return path.read_text()

    def marked(self) -> list[int]:
        """Living processes that carry this run's marker, found by looking at every one."""
        if not self.host._store.directory.exists():
            return []
        prefix = f"SPOTD_TRAINER_TOKEN={self.host._store.marker_prefix}".encode()
        return [
            pid
            for pid in proc.pids()
            if prefix in (proc.read(f"/proc/{pid}/environ") or b"") and alive(pid)
        ]

    def clean_up(self):
        if self.host.main_pid is not None:
            self.host.kill(actions.KillTrainer("the test is over"))
            wait_for(lambda: self.host.main_pid is None, what="the trainer's end")
        for pid in self.marked():
            os.kill(pid, 9)
