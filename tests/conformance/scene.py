"""What a scenario can have happen, and what is seen of it: the same words for both worlds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SAVE_EVERY = 10
STEPS = 40


@dataclass(frozen=True)
class Cast:
    """How trainer and configuration of a scenario differ from the usual.

    `interruption`, `trainer`, `store`, `checkpoints`: keys of these sections of the
    configuration. `small_disk`: it can become full.
    """

    catches: bool = True
    saves: bool = True
    in_place: bool = False
    small_disk: bool = False
    interruption: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    store: dict[str, Any] = field(default_factory=dict)
    checkpoints: dict[str, Any] = field(default_factory=dict)

    def sections(self) -> dict[str, dict[str, Any]]:
        return {
            "imds": {"poll_interval": 0.2, "timeout": 1.0},
            "interruption": {"margin": 1.0, "not_carried_out_after": 1.0, **self.interruption},
            "store": {**self.store},
            "checkpoints": {**self.checkpoints},
        }

    def trainer_keys(self) -> dict[str, Any]:
        return {"backoff_min": 0.5, "backoff_max": 2.0, "checkpoint_signal": "SIGUSR1",
                **self.trainer}  # fmt: skip


@dataclass
class Seen:
    """What came of it: the journal, what each attempt began with, and what is left."""

    events: list[dict[str, Any]]
    loaded: list[tuple[int, int]]  # (attempt, step)
    left: dict[str, Any]


class Scene(ABC):
    """One machine, perhaps two, one bucket; `machine` is 0 or 1."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        self._waited: Counter[tuple[int, str]] = Counter()

    # --- the machine -----------------------------------------------------------------

    @abstractmethod
    def boot(self, machine: int = 0) -> None: ...

    @abstractmethod
    def cut(self, machine: int = 0) -> None:
        """A power cut; what has been written stays."""

    @abstractmethod
    def new_instance(self) -> None:
        """While it is off: another instance with an empty disk takes its place."""

    @abstractmethod
    def full(self, is_full: bool) -> None: ...

    # --- spotd -----------------------------------------------------------------------

    @abstractmethod
    def stop(self, machine: int = 0) -> None:
        """`systemctl stop spotd`; returns when it has ended."""

    @abstractmethod
    def kill(self) -> None:
        """kill -9 of spotd."""

    @abstractmethod
    def start(self) -> None:
        """systemd starts it again."""

    @abstractmethod
    def drill(self) -> None: ...

    # --- the trainer -----------------------------------------------------------------

    @abstractmethod
    def train(self, step: int, machine: int = 0) -> None:
        """Lets it train up to a step, and waits until it has."""

    @abstractmethod
    def train_into_crash(self, step: int) -> None:
        """Lets it train up to a step at which it cannot save."""

    @abstractmethod
    def trainer_lives(self) -> bool: ...

    @abstractmethod
    def crash(self) -> None: ...

    @abstractmethod
    def crash_at_start(self, does: bool) -> None: ...

    @abstractmethod
    def poison(self, name: str) -> None: ...

    @abstractmethod
    def hold_saves(self, holds: bool) -> None: ...

    @abstractmethod
    def wait_in_save(self) -> None: ...

    # --- the disk --------------------------------------------------------------------

    @abstractmethod
    def tear(self, name: str) -> None:
        """While nothing runs: half of this checkpoint is gone."""

    @abstractmethod
    def delete(self, name: str) -> None: ...

    # --- EC2 -------------------------------------------------------------------------

    @abstractmethod
    def notice(self, action: str = "stop", seconds: float = 120.0) -> None: ...

    @abstractmethod
    def withdraw(self) -> None: ...

    @abstractmethod
    def rebalance(self) -> None: ...

    @abstractmethod
    def imds(self, works: bool) -> None: ...

    # --- the store -------------------------------------------------------------------

    @abstractmethod
    def store(self, works: bool) -> None: ...

    @abstractmethod
    def damage(self, checkpoint_id: str) -> None:
        """Other bytes than were stored, of the same length."""

    @abstractmethod
    def lease_runs_out(self) -> None: ...

    # --- looking ---------------------------------------------------------------------

    @abstractmethod
    def events(self, machine: int = 0) -> list[dict[str, Any]]: ...

    @abstractmethod
    def status(self, machine: int = 0) -> dict[str, Any]: ...

    @abstractmethod
    def until(self, condition: Any, what: str) -> None:
        """Waits until it is true."""

    @abstractmethod
    def seen(self) -> list[Seen]: ...

    def wait_told(self, step: int, machine: int = 0) -> None:
        """Waits until the trainer's step is known to spotd, if both are there."""

        def is_told() -> bool:
            status = self.status(machine)
            if status.get("state") != "running" or status["trainer"]["pid"] is None:
                return True
            return (status["trainer"]["step"] or 0) >= step

        self.until(is_told, f"word of step {step}")

    def wait(self, name: str, machine: int = 0) -> None:
        """Waits until this has been announced once more than it was waited for so far."""
        self._waited[machine, name] += 1
        wanted = self._waited[machine, name]
        self.until(
            lambda: sum(e["event"] == name for e in self.events(machine)) >= wanted,
            f"{name}, number {wanted}",
        )

    def wait_state(self, name: str, machine: int = 0) -> None:
        """Waits until spotd is in this state."""
        self.until(lambda: self.status(machine).get("state") == name, f"the state {name}")

    def wait_stored(self, step: int, machine: int = 0) -> None:
        """Waits until the checkpoint of this step is the newest, durable and in the store."""
        self._wait_newest(step, machine, stored=True)

    def wait_durable(self, step: int, machine: int = 0) -> None:
        """Waits until the checkpoint of this step is the newest, and durable."""
        self._wait_newest(step, machine, stored=None)

    def _wait_newest(self, step: int, machine: int, *, stored: bool | None) -> None:
        def is_newest() -> bool:
            newest = (self.status(machine).get("checkpoint") or {}).get("newest")
            if not newest or newest["step"] != step or not newest["durable"]:
                return False
            return stored is None or newest["stored"] is stored

        self.until(is_newest, f"a checkpoint of step {step}")

    def wait_open(self, machine: int = 0) -> None:
        """Waits until the lease is this machine's, and what the store has is known."""
        self.until(
            lambda: (self.status(machine).get("store") or {}).get("status") == "open",
            "the lease and a listing",
        )

    def finish(self, machine: int = 0) -> None:
        """Trains to the end, save by save, and waits until the store knows."""
        reached = (self.status(machine)["checkpoint"]["newest"] or {"step": 0})["step"]
        for step in range(reached + SAVE_EVERY, STEPS, SAVE_EVERY):
            self.train(step, machine)
            self.wait_stored(step, machine)
        self.train(STEPS, machine)
        self.wait("completed", machine)
        self.wait_complete(machine)

    def wait_complete(self, machine: int = 0) -> None:
        """Waits until completed.json is in the store."""
        self.until(
            lambda: self.status(machine).get("reason", "").endswith("complete and stored"),
            "completed.json",
        )
