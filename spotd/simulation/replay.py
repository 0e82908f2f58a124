"""A trace played through the core: what a run would have come to on this instance.

The core, its actions and their order are those of the instance. Only saves that nothing
can depend on, in the middle of hours without an interruption, are not played one by one
(`World.calm_until`); a test holds the figures against those with every save played.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from random import Random
from typing import TYPE_CHECKING

from spotd.core.state import Policy
from spotd.simulation.models import Schedule, Setup, StoreModel, TrainerModel
from spotd.simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spotd.simulation.trace import Trace

NOTICE = 120.0  # seconds between notice and stop (EC2 user guide)


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained, and on what.

    Attributes:
        step_seconds: Seconds a step takes.
        save_seconds: Seconds a save holds training up.
        size: Bytes of a checkpoint.
        bandwidth: Bytes per second to the store.
        catches: The trainer saves when it gets the stop signal.
        boot_seconds: From power to spotd.
        import_seconds: From the trainer's start to its first step.
        unannounced: Share of the interruptions without a notice.
        margin: `interruption.margin`.
    """

    step_seconds: float = 1.0
    save_seconds: float = 3.0
    size: int = 2_000_000_000
    bandwidth: float = 200e6
    catches: bool = True
    boot_seconds: float = 30.0
    import_seconds: float = 20.0
    unannounced: float = 0.0
    margin: float = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one replay. Times in seconds; `window` from notice to safe, where there was one.

    `timeline` are (second, step) to draw: a run's beginning, its end, and what it went back to.
    """

    policy: str
    interval: float
    seconds: float
    up_seconds: float
    useful_steps: int
    lost_steps: int
    useful_seconds: float
    interruptions: int
    met: int
    missed: int
    starts: int
    window: tuple[float, ...]
    timeline: tuple[tuple[float, int], ...]
    decisions: int = 0

    @property
    def goodput(self) -> float:
        """Share of the time with an instance that went into steps that count."""
        return self.useful_seconds / self.up_seconds if self.up_seconds else 0.0


def setup_of(job: Job, interval: float) -> Setup:
    """Returns the world of a job that saves every `interval` seconds."""
    return Setup(
        policy=Policy(margin=job.margin, keep=3),
        trainer=TrainerModel(
            step_seconds=job.step_seconds,
            save_every=max(1, round(interval / job.step_seconds)),
            save_seconds=job.save_seconds,
            size=job.size,
            catches=job.catches,
            import_seconds=job.import_seconds,
            keeps=3,
        ),
        store=StoreModel(bandwidth=job.bandwidth, lease_seconds=6 * 3600.0),
        hold="link",
        boot_seconds=job.boot_seconds,
    )


class Replay(World):
    """The world of a trace: capacity comes and goes, with a notice or without."""

    def __init__(self, trace: Trace, job: Job, interval: float, *, thin: bool = True) -> None:
        super().__init__(Schedule(setup_of(job, interval), (), trace.seconds))
        self.job = job
        self.met = self.missed = 0
        self.window: list[float] = []
        self.timeline: list[tuple[float, int]] = []
        self._thin = thin
        random = Random(0)  # noqa: S311 - which interruptions come without a notice
        for begin, end in trace.up:
            self.clock.at(begin, self._up, begin, end, random.random() >= job.unannounced,
                          end < trace.seconds)  # fmt: skip

    def play(self) -> Replay:
        """Plays the trace to its end."""
        self.clock.run(self.schedule.until)
        self._note()
        return self

    def _up(self, begin: float, end: float, announced: bool, taken: bool) -> None:
        notice = max(begin, end - NOTICE)
        if self._thin:
            self.calm_until = (notice if announced else end) if taken else end
        self.machine.boot()
        if not taken:
            return
        if announced:
            self.clock.at(notice, self._notice, end)
        self.clock.at(end, self._down)

    def _notice(self, end: float) -> None:
        machine = self.machine
        machine.imds.action = "stop"
        machine.imds.time = self.clock.wall + end - self.clock.mono
        self._metadata_changed(machine)

    def _down(self) -> None:
        machine = self.machine
        daemon = machine.daemon
        i = None if daemon is None else daemon.state.interruption
        if i is not None:
            self.window += [at for what, at in i.marks if what == "drained"]
        self._note()
        before = 0 if machine.trainer is None else machine.trainer.step - machine.trainer.saved_step
        lost = max(before, machine.unsaved if machine.trainer is None else 0)
        if lost:
            self.missed += 1
        else:
            self.met += 1
        machine.cut(None)

    def _note(self) -> None:
        trainer = self.machine.trainer
        step = self.reached() if trainer is None else trainer.step
        self.timeline.append((self.clock.mono, step))

    def reached(self) -> int:
        """Returns the step reached by the newest attempt."""
        trainer = self.machine.trainer
        if trainer is not None and trainer.ready:
            return trainer.step
        return self.oracle.last_step


def replay(trace: Trace, job: Job, interval: float, *, thin: bool = True) -> Outcome:
    """Plays a trace with spotd; `interval` seconds of training between two checkpoints."""
    world = Replay(trace, job, interval, thin=thin).play()
    resumes = world.oracle.resumes
    lost = sum(r.lost for r in resumes)
    useful = world.reached()
    drawn = [*world.timeline, *((r.at, r.step) for r in resumes)]
    return Outcome(
        "spotd", interval, trace.seconds, trace.up_seconds, useful, lost,
        useful * job.step_seconds, trace.interruptions, world.met, world.missed, len(resumes),
        tuple(world.window), tuple(sorted(drawn)), world.steps,
    )  # fmt: skip


def replay_naive(trace: Trace, job: Job, interval: float) -> Outcome:
    """Plays a trace with a trainer that saves every `interval` seconds and knows of no notice.

    It is started at each boot from its newest checkpoint on the disk, which is more than
    many a script does.
    """
    saved = lost = reached = met = 0
    every = max(1, round(interval / job.step_seconds))
    cycle = every * job.step_seconds + job.save_seconds
    timeline: list[tuple[float, int]] = []
    for begin, end in trace.up:
        start = begin + job.boot_seconds + job.import_seconds
        here = max(0.0, end - start)
        timeline.append((min(start, end), saved))
        done = int(here // cycle)
        rest = min(every, int((here - done * cycle) // job.step_seconds))
        reached = saved + done * every + rest
        timeline.append((end, reached))
        if end < trace.seconds:
            gone = rest
            saved += done * every
            lost += gone
            met += not gone
            reached = saved
    return Outcome(
        "naive", interval, trace.seconds, trace.up_seconds, reached, lost,
        reached * job.step_seconds, trace.interruptions, met, trace.interruptions - met,
        len(trace.up), (), tuple(timeline),
    )  # fmt: skip


def young(save_seconds: float, seconds_between: float) -> float:
    """Returns Young's interval (1974): sqrt(2 x cost of a save x mean time between failures)."""
    return sqrt(2.0 * save_seconds * seconds_between)


def daly(save_seconds: float, seconds_between: float) -> float:
    """Returns Daly's interval (2006), his higher-order estimate."""
    d, m = save_seconds, seconds_between
    if d >= 2 * m:
        return m
    x = d / (2 * m)
    return sqrt(2 * d * m) * (1 + sqrt(x) / 3 + x / 9) - d


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """Returns the one with the most steps that count; of equal ones, that which saves least."""
    return max(outcomes, key=lambda o: (o.useful_steps, o.interval))
