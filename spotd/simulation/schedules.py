"""Random worlds and their weather, each made out of a seed alone."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from spotd.core.state import Policy
from spotd.simulation.models import Schedule, Setup, StoreModel, TrainerModel, Weather

if TYPE_CHECKING:
    from collections.abc import Callable

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
