"""Years of Spot in minutes: seeded random worlds, the invariants after each, and shrinking.

    python -m spotd.simulation.weather --schedules 1000000 --seed 1

A schedule is made from its seed alone, so a failing seed is a whole bug report. It prints
the shortest schedule that still fails, as Python (to keep as a scenario) and as a story.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field, replace
from multiprocessing import Pool
from random import Random
from typing import TYPE_CHECKING, Any

from spotd.core.state import TRANSITIONS, Phase, Policy
from spotd.simulation.models import Schedule, Setup, StoreModel, TrainerModel, Weather
from spotd.simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK = 250  # schedules a worker takes at a time
LOG_EVERY = 30.0  # seconds between two lines of progress in a file
SETTLE = 3 * 3600.0  # seconds of quiet in which everything must come to rest


def schedule_from(seed: int) -> Schedule:
    """Makes a world and its weather out of a seed."""
    random = Random(seed)  # noqa: S311 - weather, not secrets
    trainer = _trainer(random)
    setup = Setup(
        policy=_policy(random, trainer),
        trainer=trainer,
        store=StoreModel(
            latency=random.choice((0.05, 0.2, 2.0)),
            bandwidth=random.choice((2e6, 10e6, 100e6, 1e9)),
            lease_seconds=random.choice((60.0, 600.0, 600.0)),
            down_seconds=(0.3, 3.0, 5.0)[seed % 3],
        ),
        hold=random.choice(("copy", "copy", "link", "none"))
        if trainer.writes != "in-place"
        else random.choice(("copy", "copy", "none")),
        boot_seconds=random.choice((3.0, 10.0, 40.0)),
        restart_seconds=random.choice((0.5, 5.0)),
        clears_notice=random.random() < 0.7,  # noqa: PLR2004 - unverified, so both
        jitter=seed,
    )
    length = trainer.step_seconds * (trainer.total_steps or 0)
    length += length / (trainer.save_every * trainer.step_seconds) * trainer.save_seconds
    span = setup.boot_seconds + trainer.import_seconds + length
    count = random.choice((1, 2, 3, 3, 4, 5, 7))
    moments = sorted(random.uniform(0.0, 1.2 * span) for _ in range(count))
    weather = tuple(_weather(random, at) for at in moments)
    rare = random.random()
    if rare < 0.04:  # noqa: PLR2004 - what would else hardly ever come together
        setup = replace(setup, policy=replace(setup.policy, max_failures=1))
        if rare < 0.005:  # noqa: PLR2004
            weather = _given_up_before(trainer, random)
    elif rare < 0.08:  # noqa: PLR2004
        weather = _second_thoughts(weather, random)
    elif rare < 0.14:  # noqa: PLR2004
        more = random.choice(_TOGETHER)(random.uniform(5.0, 0.8 * span), random)
        weather = tuple(sorted((*weather, *more), key=lambda w: w.at))
    return Schedule(setup, weather, until=1.2 * span + 200.0, settle=SETTLE)


def _second_thoughts(weather: tuple[Weather, ...], random: Random) -> tuple[Weather, ...]:
    """A second notice while the first still counts: the same withdrawn and meant, or a worse."""
    first = next((w for w in weather if w.what == "notice"), None)
    if first is None:
        return weather
    withdrawn = first.at + random.choice((8.0, 30.0, 90.0))
    again = withdrawn + random.choice((6.0, 20.0, 60.0))
    how = random.choice(({"stop": "cut"}, {"stop": "none"}, {"action": "terminate"}))
    if "action" in how:
        how["stop"] = random.choice(("replace", "none"))
    more = (Weather(withdrawn, "withdraw"), Weather(again, "notice", how))
    changed = (replace(w, how={**w.how, "stop": "none"}) if w is first else w for w in weather)
    return tuple(sorted((*changed, *more), key=lambda w: w.at))


def _cut_in_a_notice(at: float, random: Random) -> tuple[Weather, ...]:
    """The power fails after the notice, which still stands at the boot; the mount may be late."""
    cut = Weather(at + random.uniform(0.5, 20.0), "cut", {"down": 5.0})
    notice = Weather(at, "notice", {"stop": random.choice(("none", "cut")), "down": 20.0})
    late = Weather(cut.at + random.uniform(0.5, 20.0), "directory", _seconds(30.0, 60.0)(random))
    return (notice, cut, late) if random.random() < 0.6 else (notice, cut)  # noqa: PLR2004


def _cut_in_an_outage(at: float, random: Random) -> tuple[Weather, ...]:
    """The power fails while the store is away or lying, and the mount is late."""
    how = {"mood": random.choice(("down", "lying")), "seconds": random.uniform(5.0, 600.0)}
    return (
        Weather(max(0.0, at - 4.0), "store", how),
        Weather(at, "cut", {"down": random.choice((5.0, 20.0))}),
        Weather(at + 1.0, "directory", _seconds(10.0, 30.0)(random)),
    )


def _replaced_in_an_outage(at: float, random: Random) -> tuple[Weather, ...]:
    """A replacement starts without the store, its preflight waiting; somebody else may train."""
    weather = [
        Weather(at, "replace", {"down": 10.0, "keep_disk": random.random() < 0.6}),  # noqa: PLR2004
        Weather(at + 5.0, "store", {"mood": "down", "seconds": random.uniform(10.0, 120.0)}),
        Weather(at + 6.0, "preflight", {"seconds": random.uniform(20.0, 200.0)}),
    ]
    if random.random() < 0.4:  # noqa: PLR2004
        weather.append(Weather(at + random.uniform(0.0, 60.0), "second_machine", {}))
    if random.random() < 0.3:  # noqa: PLR2004
        seconds = random.uniform(30.0, 300.0)
        weather.append(Weather(at + random.uniform(10.0, 100.0), "network", {"seconds": seconds}))
    return tuple(weather)


def _mount_lost_at_the_end(at: float, random: Random) -> tuple[Weather, ...]:
    """The store goes, and a while later the mount: the end of the run may lie between."""
    return (
        Weather(at, "store", {"mood": "down", "seconds": random.uniform(60.0, 600.0)}),
        Weather(at + random.uniform(0.0, 100.0), "directory", _seconds(100.0, 600.0)(random)),
    )


# What would else hardly ever come so close together.
_TOGETHER = (_cut_in_a_notice, _cut_in_an_outage, _replaced_in_an_outage, _mount_lost_at_the_end)


def _given_up_before(trainer: TrainerModel, random: Random) -> tuple[Weather, ...]:
    """A crash too many with the store down, then a notice that is not carried out."""
    between_saves = trainer.step_seconds * trainer.save_every + trainer.save_seconds
    down = trainer.import_seconds + random.uniform(0.2, 1.0) * between_saves
    crash = down + random.uniform(1.0, 1.5) * between_saves
    how: dict[str, Any] = random.choice(
        ({"stop": "none"}, {"stop": "none", "action": "hibernate", "seconds": 0.0})
    )
    return (
        Weather(down, "store", {"mood": "down", "seconds": 3000.0}),
        Weather(crash, "crash", {}),
        Weather(crash + random.choice((5.0, 60.0)), "notice", how),
    )


def _trainer(random: Random) -> TrainerModel:
    step_seconds = random.choice((0.5, 1.0, 5.0))
    save_every = random.choice((20, 50, 100))
    return TrainerModel(
        step_seconds=step_seconds,
        save_every=save_every,
        save_seconds=random.choice((0.5, 3.0, 15.0)),
        size=random.choice((10_000_000, 200_000_000, 1_000_000_000)),
        total_steps=save_every * random.randint(2, 5) + random.choice((0, 7)),
        writes=random.choice(("atomic", "atomic", "in-place", "directory")),
        catches=random.random() < 0.75,  # noqa: PLR2004 - most do
        saves=random.random() < 0.85,  # noqa: PLR2004
        exit_status=random.choice((0, 0, 1, 143)),
        catches_request=random.random() < 0.5,  # noqa: PLR2004
        import_seconds=random.choice((1.0, 8.0, 30.0)),
        reports=random.random() < 0.7,  # noqa: PLR2004
        keeps=random.choice((None, None, 1, 2)),
        searches=random.random() < 0.3,  # noqa: PLR2004
    )


def _policy(random: Random, trainer: TrainerModel) -> Policy:
    quiet = trainer.step_seconds * trainer.save_every + trainer.import_seconds
    return Policy(
        margin=random.choice((5.0, 10.0, 10.0, 30.0)),
        on_rebalance=random.choice(("checkpoint", "checkpoint", "notify", "ignore")),
        on_scheduled_event=random.choice(("notify", "checkpoint", "ignore")),
        not_carried_out_after=random.choice((60.0, 300.0)),
        checkpoint_signal=random.choice((None, "SIGUSR1")),
        preflight=random.random() < 0.2,  # noqa: PLR2004
        preflight_timeout=random.choice((20.0, 120.0)),
        backoff_min=random.choice((1.0, 10.0)),
        backoff_max=60.0,
        progress_timeout=random.choice((None, 2 * quiet + 60.0)),
        keep_local=random.choice((None, None, 1, 2)),
        keep=random.choice((1, 2, 5)),
        start_timeout=random.choice((30.0, 300.0)),
        completion_action=random.choice(("keep", "keep", "keep", "stop")),
    )


def _seconds(*choices: float) -> Callable[[Random], dict[str, Any]]:
    return lambda random: {"seconds": random.choice(choices)}


def _notice(random: Random) -> dict[str, Any]:
    action = random.choice(("stop", "stop", "stop", "terminate", "hibernate"))
    how: dict[str, Any] = {"action": action}
    how["stop"] = random.choice(("cut", "cut", "orderly", "none"))
    if action == "terminate":
        how["stop"] = random.choice(("replace", "none"))
    elif action == "hibernate":
        how["stop"] = "none"
        how["seconds"] = 0.0
    if random.random() < 0.25:  # noqa: PLR2004
        how["late"] = random.choice((-115.0, -60.0, -20.0, 60.0, 200.0))
    if random.random() < 0.15:  # noqa: PLR2004
        how["slides"] = True
    elif random.random() < 0.1:  # noqa: PLR2004
        how["time"] = False
    how["down"] = random.choice((20.0, 120.0, 1500.0))
    return how


def _down(random: Random) -> dict[str, Any]:
    return {"down": random.choice((5.0, 60.0, 1000.0))}


def _store(random: Random) -> dict[str, Any]:
    mood = random.choice(("down", "down", "slow", "lying"))
    return {"mood": mood, "seconds": random.choice((5.0, 60.0, 400.0, 1500.0))}


def _nothing(_: Random) -> dict[str, Any]:
    return {}


KINDS: dict[str, tuple[int, Callable[[Random], dict[str, Any]]]] = {
    "notice": (20, _notice),
    "withdraw": (2, _nothing),
    "cut": (12, _down),
    "replace": (5, lambda r: {**_down(r), "keep_disk": r.random() < 0.3}),  # noqa: PLR2004
    "reboot": (3, _seconds(10.0, 90.0)),
    "kill_daemon": (12, _nothing),
    "hang_daemon": (3, _seconds(5.0, 20.0, 60.0)),
    "restart_daemon": (3, _nothing),
    "stop": (3, _seconds(5.0, 30.0, 120.0)),
    "start": (2, _nothing),
    "drill": (2, _nothing),
    "checkpoint": (2, _nothing),
    "crash": (5, _nothing),
    "oom": (3, _nothing),
    "hang": (3, _nothing),
    "poison": (2, _nothing),
    "tear": (4, _nothing),
    "vanish": (3, _nothing),
    "damage": (3, _nothing),
    "disk_full": (3, _seconds(10.0, 100.0)),
    "directory": (2, _seconds(10.0, 100.0)),
    "start_trouble": (2, _seconds(10.0, 100.0)),
    "preflight": (2, _seconds(10.0, 100.0)),
    "store": (12, _store),
    "network": (4, _seconds(30.0, 200.0, 900.0)),
    "second_machine": (3, _nothing),
    "clock_jump": (3, _seconds(-90000.0, -100.0, 100.0, 90000.0)),
    "imds": (4, lambda r: {"mood": r.choice(("failing", "silent")),
                           "seconds": r.choice((10.0, 60.0, 400.0))}),
    "rebalance": (3, _nothing),
    "scheduled": (2, _nothing),
    "complete_elsewhere": (1, _nothing),
    "reload": (1, lambda r: {"keep": r.choice((1, 3))}),
}  # fmt: skip
_NAMES = list(KINDS)
_WEIGHTS = [weight for weight, _ in KINDS.values()]


def _weather(random: Random, at: float) -> Weather:
    what = random.choices(_NAMES, _WEIGHTS)[0]
    how = KINDS[what][1](random)
    return Weather(round(at, 3), what, how)


def faults(schedule: Schedule, *, story: bool = False) -> tuple[list[str], World]:
    """Plays a schedule; returns what was broken, a raised exception included."""
    world = World(schedule, story=story)
    try:
        world.run()
    except Exception:  # noqa: BLE001 - a defect may raise anything; it is what is looked for
        return [f"raised: {traceback.format_exc(limit=-3)}"], world
    return world.oracle.violations, world


def shrink(schedule: Schedule) -> Schedule:
    """Returns a schedule with less in it that is broken in the same way."""
    kind = _kind(faults(schedule)[0])
    for smaller in _smaller(schedule):
        found = faults(smaller)[0]
        if found and _kind(found) == kind:
            return shrink(smaller)
    return schedule


def _kind(found: list[str]) -> str:
    return found[0].split(" at ")[0] if found else ""


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    weather = schedule.weather
    for i in range(len(weather)):
        yield replace(schedule, weather=weather[:i] + weather[i + 1 :])
    for part in ("policy", "trainer", "store"):
        value = getattr(schedule.setup, part)
        for name in type(value).__dataclass_fields__:
            default = getattr(type(value)(), name)
            if getattr(value, name) != default and name != "total_steps":
                changed = replace(value, **{name: default})
                yield replace(schedule, setup=replace(schedule.setup, **{part: changed}))
    for name in ("hold", "boot_seconds", "restart_seconds", "clears_notice", "jitter"):
        default = getattr(Setup(), name)
        if getattr(schedule.setup, name) != default:
            yield replace(schedule, setup=replace(schedule.setup, **{name: default}))
    for i, one in enumerate(weather):
        rounded = replace(one, at=float(round(one.at)))
        if rounded != one:
            yield replace(schedule, weather=(*weather[:i], rounded, *weather[i + 1 :]))


@dataclass
class Tally:
    """What many schedules came to. `cut_short`: somebody pressed Ctrl-C."""

    schedules: int = 0
    steps: int = 0
    seconds: float = 0.0
    phases: Counter[tuple[Phase, Phase]] = field(default_factory=Counter)
    failed: list[tuple[int, list[str]]] = field(default_factory=list)
    cut_short: bool = False

    def add(self, other: Tally) -> None:
        """Takes another tally in."""
        self.schedules += other.schedules
        self.steps += other.steps
        self.seconds += other.seconds
        self.phases += other.phases
        self.failed += other.failed


def play(seeds: range) -> Tally:
    """Plays the schedules of these seeds."""
    tally = Tally()
    for seed in seeds:
        found, world = faults(schedule_from(seed))
        tally.schedules += 1
        tally.steps += world.steps
        tally.seconds += world.clock.mono
        tally.phases.update(world.phases)
        if found:
            tally.failed.append((seed, found))
    return tally


def play_many(
    schedules: int,
    seed: int,
    *,
    workers: int | None = None,
    stop_after: int = 20,
    on_progress: Callable[[Tally], None] | None = None,
) -> Tally:
    """Plays so many schedules on all cores, beginning with this seed."""
    chunks = [
        range(s, min(s + CHUNK, seed + schedules)) for s in range(seed, seed + schedules, CHUNK)
    ]
    total = Tally()
    # Ctrl-C is for whoever asked; the workers are ended with the pool.
    with Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            for tally in pool.imap_unordered(play, chunks):
                total.add(tally)
                if on_progress is not None:
                    on_progress(total)
                if len(total.failed) >= stop_after:
                    break
        except KeyboardInterrupt:
            total.cut_short = True
    return total


def explain(seed: int) -> str:
    """Returns the shrunk schedule of a failing seed, as Python and as a story."""
    small = shrink(schedule_from(seed))
    found, world = faults(small, story=True)
    told = world.trace.text()  # type: ignore[attr-defined]
    return f"seed {seed}, shrunk:\n{small!r}\n\n{told}\n" + "\n".join(found)


def coverage(phases: Counter[tuple[Phase, Phase]]) -> str:
    """Returns how often every transition of the table was taken."""
    lines = []
    for before, follow in TRANSITIONS.items():
        for after in sorted(follow, key=lambda p: p.value):
            count = phases[before, after]
            lines.append(f"{before.value:>12} -> {after.value:<12} {count or 'NEVER'}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Plays schedules until one fails or all are played."""
    parser = argparse.ArgumentParser(prog="python -m spotd.simulation.weather", description=__doc__)
    parser.add_argument("--schedules", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1, help="the first one; one each")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--only", type=int, metavar="SEED", help="tell the story of one seed")
    parser.add_argument("--whole", action="store_true", help="with --only: do not shrink")
    args = parser.parse_args(argv)
    if args.only is not None:
        return _tell(args.only, whole=args.whole)
    begin = said = time.perf_counter()

    def progress(tally: Tally) -> None:
        nonlocal said
        often = sys.stderr.isatty()
        if time.perf_counter() - said > (0.5 if often else LOG_EVERY):
            said = time.perf_counter()
            text = f"{tally.schedules} schedules, {len(tally.failed)} failed, {said - begin:.0f} s"
            text += "".join(f"; seed {seed}" for seed, _ in tally.failed)
            sys.stderr.write(f"\r{text}" if often else f"{text}\n")

    tally = play_many(args.schedules, args.seed, workers=args.workers, on_progress=progress)
    seconds = time.perf_counter() - begin
    if tally.cut_short:
        _say(f"cut short after {tally.schedules} of {args.schedules} schedules")
    _say(
        f"{tally.schedules} schedules, {tally.seconds / 86400 / 365.25:.1f} years of Spot, "
        f"{tally.steps} decisions in {seconds:.0f} s, {len(tally.failed)} failed"
    )
    _say(coverage(tally.phases))
    for seed, found in tally.failed:
        _say(f"seed {seed}: {found[0]}")
    if tally.failed:
        _say(explain(min(tally.failed)[0]))
    return 1 if tally.failed or tally.cut_short else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _tell(seed: int, *, whole: bool) -> int:
    found, world = faults(schedule_from(seed), story=True)
    if found and not whole:
        _say(explain(seed))
    else:
        _say("\n".join([world.trace.text(), *found]))  # type: ignore[attr-defined]
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
