"""`spotd prices`: how Spot prices went, per zone and type, and what is saved against on-demand."""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, print_json, settings_of, table
from spotd.cli.instances import add_region
from spotd.config import find
from spotd.config.kinds import BadValue
from spotd.config.launch import INSTANCE_TYPES, LaunchSettings
from spotd.ec2.pricing import (
    BLOCKS,
    MOST_DAYS,
    PLAIN,
    Series,
    advisor,
    chart,
    saving,
    scales,
    series,
)
from spotd.errors import EXIT_DONE, SpotdError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDEST, _NARROWEST, _BESIDE = 60, 20, 85  # columns of the chart, and of what stands beside it


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("prices", help="Spot price history per zone and type")
    add_options(p)
    add_region(p)
    p.add_argument(
        "--instance-type", dest="types", metavar="TYPE", action="append", type=_type,
        help="several times (default: launch.instance_types)",
    )  # fmt: skip
    p.add_argument("--zone", dest="zones", metavar="ZONE", action="append", help="only this zone")
    p.add_argument(
        "--days", metavar="DAYS", type=_days, default=7, help=f"1 to {MOST_DAYS} (default: 7)"
    )
    p.add_argument(
        "--advisor", metavar="FILE", type=Path,
        help="the Spot Instance Advisor's data (spot-advisor-data.json), for interruption rates",
    )  # fmt: skip


def _type(text: str) -> str:
    try:
        return INSTANCE_TYPES.parse(text)[0]
    except BadValue as error:
        raise argparse.ArgumentTypeError(f"{error.reason} ({error.hint})") from None


def _days(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= MOST_DAYS:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {MOST_DAYS}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Prints prices."""
    from spotd.ec2.api import Ec2, region_of  # noqa: PLC0415 - boto3, only here

    known = _known(options)
    types = options.types or list(known.launch.instance_types)
    if not types:
        raise SpotdError(
            "no instance type is named", hint="--instance-type g5.xlarge, or launch.instance_types"
        )
    ec2 = Ec2(region_of(options.region or known.launch.region, known.store_region))
    rates = advisor(options.advisor, ec2.region) if options.advisor else {}
    end = datetime.now(timezone.utc)
    start = end - timedelta(days=options.days)
    found = series(ec2.prices(types, start, end), start.timestamp(), end.timestamp())
    zones = options.zones or known.launch.zones
    found = [s for s in found if not zones or s.zone in zones]
    if not found:
        raise SpotdError(
            f"there are no Spot prices for {', '.join(types)} in {', '.join(zones) or ec2.region}",
            hint="name types, zones or a region where they exist",
        )
    notes: list[str] = []
    on_demand = _on_demand(
        known.on_demand, sorted({s.instance_type for s in found}), ec2.region, notes
    )
    rows = entries(found, on_demand, rates)
    if options.json:
        print_json({"region": ec2.region, "days": options.days, "pools": rows, "notes": notes})
        return EXIT_DONE
    print(render(rows, found, options.days))
    for note in notes:
        print(f"note: {note}")
    return EXIT_DONE


@dataclass(frozen=True, slots=True)
class Known:
    """What the configuration says, where there is one: prices can be looked at before."""

    launch: LaunchSettings
    store_region: str | None = None
    on_demand: float | None = None


def _known(options: argparse.Namespace) -> Known:
    if options.config is None and not find(None).exists():
        return Known(LaunchSettings())
    settings = settings_of(options)
    return Known(settings.launch, settings.store.region, settings.cost.on_demand_price)


def _on_demand(
    given: float | None, types: Sequence[str], region: str, notes: list[str]
) -> dict[str, float]:
    """On-demand prices that are known: looked up, else the configuration's for a single type."""
    from spotd.ec2.on_demand import on_demand_price  # noqa: PLC0415

    if given is not None and len(types) == 1:
        notes.append("the on-demand price is the configuration's (cost.on_demand_price)")
        return {types[0]: given}
    found: dict[str, float] = {}
    for name in types:
        try:
            price = on_demand_price(name, region)
        except SpotdError as error:
            notes.append(f"on-demand prices are not known: {error}; cost.on_demand_price says one")
            return found
        if price is not None:
            found[name] = price
    return found


def entries(
    found: Sequence[Series], on_demand: Mapping[str, float], rates: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One entry a pool, the cheapest first."""
    return [
        {
            "instance_type": s.instance_type,
            "zone": s.zone,
            "now": s.now,
            "mean": s.mean(s.start, s.end),
            "lowest": s.lowest,
            "highest": s.highest,
            "on_demand": on_demand.get(s.instance_type),
            "saving": saving(s.now, on_demand.get(s.instance_type)),
            "interrupted_monthly": rates.get(s.instance_type),
        }
        for s in found
    ]


def render(rows: Sequence[Mapping[str, Any]], found: Sequence[Series], days: int) -> str:
    """The table with a chart in each line; one scale for all zones of a type."""
    width = min(_WIDEST, max(_NARROWEST, shutil.get_terminal_size().columns - _BESIDE))
    blocks = BLOCKS if _can_print(BLOCKS) else PLAIN
    scale = scales(found)
    heading = ("TYPE", "ZONE", "NOW", "MEAN", "LOW", "HIGH", "SAVED", "INTERRUPTED")
    lines: list[tuple[str, ...]] = [(*heading, f"{days} DAYS")]
    for r, s in zip(rows, found, strict=True):
        money = (
            "-" if v is None else f"{v:.4f}" for v in (r["now"], r["mean"], s.lowest, s.highest)
        )
        saved = "-" if r["saving"] is None else f"{100 * r['saving']:.0f} %"
        picture = chart(s, *scale[s.instance_type], width, blocks)
        rate = r["interrupted_monthly"] or "-"
        lines.append((s.instance_type, s.zone, *money, saved, rate, picture))
    dear = {r["instance_type"]: r["on_demand"] for r in rows if r["on_demand"] is not None}
    said = [f"{name} on demand: ${price:.4f} an hour" for name, price in dear.items()]
    return "\n".join([table(lines), *said])


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
