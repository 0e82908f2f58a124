"""What a simulated world is made of, as values: a schedule can be printed, kept and shrunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from spotd.core.state import Policy


@dataclass(frozen=True, slots=True)
class TrainerModel:
    """The user's training command.

    Attributes:
        step_seconds: Seconds a step takes.
        save_every: Steps between two checkpoints.
        save_seconds: Seconds a save takes; training waits for it.
        size: Bytes of a checkpoint.
        total_steps: It exits 0 after so many, None never.
        writes: "atomic" (a temporary name, then a rename), "in-place" (over its only
            checkpoint) or "directory" (a new directory per step, its marker last).
        catches: It has a handler for the stop signal (once it has started up).
        saves: The handler saves before it ends.
        exit_status: With which it ends after the stop signal.
        catches_request: It has a handler for `trainer.checkpoint_signal`.
        import_seconds: Until it catches anything and trains.
        reports: It tells its step on SPOTD_SOCKET.
        keeps: Checkpoints it leaves on the disk, None all.
        searches: It looks for the newest checkpoint itself and does not check it.
    """

    step_seconds: float = 1.0
    save_every: int = 60
    save_seconds: float = 3.0
    size: int = 200_000_000
    total_steps: int | None = None
    writes: str = "atomic"
    catches: bool = True
    saves: bool = True
    exit_status: int = 0
    catches_request: bool = False
    import_seconds: float = 5.0
    reports: bool = True
    keeps: int | None = None
    searches: bool = False

    def name(self, step: int) -> str:
        """Returns what the trainer calls its checkpoint of this step."""
        return "ckpt.pt" if self.writes == "in-place" else f"step-{step}.pt"


@dataclass(frozen=True, slots=True)
class StoreModel:
    """The bucket and the way to it; seconds, bytes per second.

    `down_seconds`: until a question to a store that is down has failed; at once where
    connections are refused, seconds later where nothing answers.
    """

    latency: float = 0.2
    bandwidth: float = 100e6
    lease_seconds: float = 60.0
    down_seconds: float = 3.0


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything about a world that does not change while it runs.

    Attributes:
        hold: How checkpoints can be held: "copy", "link", "none" (no room).
        copy_bandwidth: Bytes per second of a copy and of an fsync.
        boot_seconds: From power to the start of spotd.
        restart_seconds: Until systemd starts a spotd again that ended on its own.
        watchdog_seconds: A deciding loop that has not moved for so long is killed.
        clears_notice: IMDS forgets the notice when the instance has been stopped.
        lazy: Polls and lease renewals that change nothing are not played one by one.
        jitter: Seeds the noise on every delay; None for a world without noise.
    """

    policy: Policy = field(default_factory=Policy)
    trainer: TrainerModel = field(default_factory=TrainerModel)
    store: StoreModel = field(default_factory=StoreModel)
    hold: str = "copy"
    copy_bandwidth: float = 500e6
    watch_seconds: float = 0.3
    boot_seconds: float = 10.0
    restart_seconds: float = 1.0
    watchdog_seconds: float = 30.0
    clears_notice: bool = True
    lazy: bool = True
    jitter: int | None = None


@dataclass(frozen=True, slots=True)
class Weather:
    """Something that happens to the world at `at` seconds; `spotd.simulation.world` knows what."""

    at: float
    what: str
    how: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        how = ", ".join(f"{k}={v!r}" for k, v in self.how.items())
        return f"{self.what}({how})"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A world and what happens to it; `until` seconds, then quiet for `settle` seconds."""

    setup: Setup = field(default_factory=Setup)
    weather: tuple[Weather, ...] = ()
    until: float = 3600.0
    settle: float = 0.0
