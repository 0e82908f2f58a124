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
from typing import TYPE_CHECKING

from spotd.core.state import TRANSITIONS, Phase
from spotd.simulation.models import Schedule, Setup
from spotd.simulation.schedules import schedule_from
from spotd.simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK = 250  # schedules a worker takes at a time
LOG_EVERY = 30.0  # seconds between two lines of progress in a file


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
