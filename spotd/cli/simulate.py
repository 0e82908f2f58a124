"""`spotd simulate`: what a run would come to on Spot, and how often it should save."""

from __future__ import annotations

import argparse
from multiprocessing import Pool
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.cli.common import print_json, settings_of
from spotd.errors import EXIT_DONE, SpotdError
from spotd.simulation import picture
from spotd.simulation.replay import Job, Outcome, replay, replay_naive
from spotd.simulation.report import Prices, Report, as_json, as_text
from spotd.simulation.trace import Trace, read_trace, repeated, trace_from_rate
from spotd.units import parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

SWEEP = (60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0)
EPILOG = """\
A trace is a file like those of github.com/skypilot-org/spot-traces:
{"metadata": {"gap_seconds": 30}, "data": [1, 1, 0, ...]}. The decisions are those of the
daemon itself; trainer, disk, store and EC2 are models of what the options say.
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser(
        "simulate", help="replay a trace of interruptions: goodput, cost, best interval",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--config", metavar="PATH", help="take interruption.margin from it")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    p.add_argument("--picture", type=Path, metavar="FILE", help="draw it too, as .svg or .png")
    which = p.add_argument_group("the weather")
    which.add_argument("trace", nargs="?", type=Path, metavar="TRACE", help="a file of capacity")
    which.add_argument("--rate", type=_positive, metavar="N",
                       help="instead: N interruptions a day of running (default: 10)")  # fmt: skip
    which.add_argument("--gap", type=_of(parse_duration), default=1440.0, metavar="TIME",
                       help="with --rate: mean time without one (default: 24min)")  # fmt: skip
    which.add_argument("--days", type=_positive, help="so many days of it (default: the trace; 30)")
    which.add_argument("--seed", type=int, default=1, help="of --rate (default: 1)")
    which.add_argument("--unannounced", type=_share, default=0.05, metavar="SHARE",
                       help="interruptions without a notice (default: 0.05)")  # fmt: skip
    job = p.add_argument_group("the run")
    job.add_argument("--save-every", type=_of(parse_duration), action="append", metavar="TIME",
                     help="several times (default: a sweep from 1min to 2h)")  # fmt: skip
    job.add_argument("--naive-every", type=_of(parse_duration), default=1800.0, metavar="TIME",
                     help="what a run without spotd would save at (default: 30min)")  # fmt: skip
    job.add_argument("--step", type=_of(parse_duration), default=1.0, metavar="TIME",
                     help="a training step takes (default: 1s)")  # fmt: skip
    job.add_argument("--save", type=_of(parse_duration), default=3.0, metavar="TIME",
                     help="a save holds training up for (default: 3s)")  # fmt: skip
    job.add_argument("--size", type=_of(parse_size), default=2_000_000_000, metavar="BYTES",
                     help="of a checkpoint (default: 2GB)")  # fmt: skip
    job.add_argument("--bandwidth", type=_of(parse_size), default=200_000_000, metavar="BYTES",
                     help="per second to the store (default: 200MB)")  # fmt: skip
    job.add_argument("--boot", type=_of(parse_duration), default=30.0, metavar="TIME",
                     help="from power to spotd (default: 30s)")  # fmt: skip
    job.add_argument("--startup", type=_of(parse_duration), default=20.0, metavar="TIME",
                     help="from the trainer's start to its first step (default: 20s)")  # fmt: skip
    job.add_argument("--no-handler", action="store_true", help="it does not save at the signal")
    job.add_argument("--margin", type=_of(parse_duration), metavar="TIME",
                     help="interruption.margin (default: 10s)")  # fmt: skip
    money = p.add_argument_group("the money, dollars per hour")
    money.add_argument(
        "--spot-price", type=_positive, help="default: the trace's, where it has one"
    )
    money.add_argument(
        "--on-demand-price", type=_positive, help="what the same machine costs there"
    )


def _of(parse: Callable[[object], Any]) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        try:
            value = parse(float(text) if text.replace(".", "", 1).isdigit() else text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text!r} must be more than nothing")
        return value

    return parsed


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def run(options: argparse.Namespace) -> int:
    """Plays, prints and draws."""
    trace = _trace(options)
    if not trace.up:
        raise SpotdError(f"{trace.name}: there never was an instance")
    job = Job(
        step_seconds=options.step,
        save_seconds=options.save,
        size=int(options.size),
        bandwidth=float(options.bandwidth),
        catches=not options.no_handler,
        boot_seconds=options.boot,
        import_seconds=options.startup,
        unannounced=options.unannounced,
        margin=_margin(options),
    )
    spot = options.spot_price if options.spot_price is not None else trace.price
    report = Report(
        trace, job, Prices(spot, options.on_demand_price),
        _sweep(trace, job, sorted(set(options.save_every or SWEEP))),
        replay_naive(trace, job, options.naive_every),
    )  # fmt: skip
    if options.picture is not None:
        picture.write(report, options.picture)
    if options.json:
        print_json(as_json(report))
    else:
        print(as_text(report))
    return EXIT_DONE


def _margin(options: argparse.Namespace) -> float:
    if options.margin is not None:
        return float(options.margin)
    if options.config is not None:
        return settings_of(options).interruption.margin
    return Job().margin


def _trace(options: argparse.Namespace) -> Trace:
    if options.trace is None:
        rate = options.rate if options.rate is not None else 10.0
        return trace_from_rate(rate, days=options.days or 30.0, gap=options.gap, seed=options.seed)
    if options.rate is not None:
        raise SpotdError("a trace and --rate are two answers to one question", hint="give one")
    trace = read_trace(options.trace)
    return trace if options.days is None else repeated(trace, options.days)


def _sweep(trace: Trace, job: Job, intervals: list[float]) -> tuple[Outcome, ...]:
    asked = [(trace, job, interval) for interval in intervals]
    if len(asked) == 1:
        return (replay(*asked[0]),)
    with Pool(min(len(asked), cpu_count() or 1)) as pool:
        return tuple(pool.starmap(replay, asked, chunksize=1))
