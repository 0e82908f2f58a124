"""What the end-to-end tests play on: machines with a real daemon, a little trainer, a store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from spotd.testing.stage import Stage, wait_until

TRAINER = Path(__file__).with_name("little_trainer.py")
WITHIN = 30.0  # seconds: for what takes one or two on a quiet machine
FAST = {"poll_interval": 0.2, "timeout": 1.0}


@dataclass
class Machine(Stage):
    """A stage with a little trainer, and what the tests look at."""

    levers_up: tuple[str, ...] = ()  # before the trainer is first started
    spent: list[str] = field(default_factory=list)

    def configure(self) -> None:
        self.levers.mkdir(parents=True, exist_ok=True)
        for name in self.levers_up:
            (self.levers / name).touch()
        self.levers_up = ()
        super().configure()

    # --- the trainer -----------------------------------------------------------------

    @property
    def work(self) -> Path:
        return self.disk / "work"

    @property
    def levers(self) -> Path:
        return self.work / "levers"

    def pull(self, name: str, text: str = "") -> None:
        (self.levers / name).write_text(text)

    def release(self, name: str) -> None:
        (self.levers / name).unlink(missing_ok=True)

    def steps(self, attempt: int | None = None) -> list[dict]:
        try:
            lines = (self.work / "steps.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        steps = [json.loads(line) for line in lines]
        return [s for s in steps if attempt is None or s["attempt"] == attempt]

    def last_step(self) -> int:
        steps = self.steps()
        return steps[-1]["step"] if steps else 0

    def wait_for_steps(self, count: int = 1, *, attempt: int | None = None) -> list[dict]:
        """Waits until so many steps more (or of this attempt) have been trained."""
        wanted = count + (0 if attempt is not None else len(self.steps()))
        return self.wait(
            lambda: (s := self.steps(attempt)) and len(s) >= wanted and s,
            f"{count} steps of attempt {attempt}",
        )

    def wait(self, condition, what: str, within: float = WITHIN):
        try:
            return wait_until(condition, within=within, what=what)
        except TimeoutError as e:
            raise AssertionError(f"{e}\n{self.status()}\n{self.story()}") from None

    def saved(self) -> dict:
        """Has the trainer save, and waits until it is in the store; the newest's status."""
        before = self.newest_id()
        self.pull("save")
        return self.wait_stored(after=before)

    def newest_id(self) -> str:
        newest = self.status().get("checkpoint", {}).get("newest")
        return newest["id"] if newest else ""

    def wait_stored(self, after: str = "") -> dict:
        def stored():
            newest = self.status().get("checkpoint", {}).get("newest")
            return newest if newest and newest["stored"] and newest["id"] > after else None

        return self.wait(stored, "a newer checkpoint in the store")

    # --- the daemon ------------------------------------------------------------------

    def named(self, event: str) -> list[dict]:
        return [e for e in self.events() if e["event"] == event]

    def spotd(self, *words: str, check: bool = False) -> subprocess.CompletedProcess:
        """Runs a verb as a user would."""
        verb, *rest = words
        return subprocess.run(
            [sys.executable, "-m", "spotd", verb, "--config", str(self.config), *rest],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=check,
        )  # fmt: skip

    def run_to_its_end(self) -> subprocess.CompletedProcess:
        """Runs the daemon where it is expected to refuse."""
        self.configure()
        return self.spotd("run")

    def pid(self) -> int:
        """The trainer's."""
        return self.wait(lambda: self.status().get("trainer", {}).get("pid"), "a trainer")

    def exit_status(self, within: float = WITHIN) -> int:
        assert self.daemon is not None
        return self.daemon.wait(within)


def little_trainer(*options: object) -> list[str]:
    return [sys.executable, "-S", str(TRAINER), *map(str, options)]


def new_run() -> str:
    return f"run-{uuid.uuid4().hex[:12]}"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
