"""`spotd launch`: one persistent Spot instance, with stop behaviour, that trains this run."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, print_json, settings_of, table
from spotd.cli.user_data import DEFAULT_PACKAGE, text_of
from spotd.config.kinds import BadValue
from spotd.config.schema import KEYS
from spotd.ec2.following import GOALS
from spotd.errors import EXIT_DONE, SpotdError
from spotd.units import format_duration, format_size, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.config import LaunchSettings, Settings
    from spotd.ec2.api import Ec2
    from spotd.ec2.intent import Intent
    from spotd.ec2.launching import Planned, Present

UP = ("pending", "running")
# (option, key of [launch], how it is called, may stand several times)
_OPTIONS = (
    ("--instance-type", "instance_types", "TYPE", True),
    ("--region", "region", "REGION", False),
    ("--zone", "zones", "ZONE", True),
    ("--subnet", "subnets", "SUBNET", True),
    ("--security-group", "security_groups", "GROUP", True),
    ("--key-name", "key_name", "NAME", False),
    ("--instance-profile", "instance_profile", "PROFILE", False),
    ("--image", "image", "IMAGE", False),
    ("--volume-size", "volume_size", "SIZE", False),
    ("--volume-type", "volume_type", "TYPE", False),
    ("--valid-for", "valid_for", "DURATION", False),
    ("--hop-limit", "hop_limit", "HOPS", False),
    ("--package", "package", "WHAT", False),
    ("--sha256", "package_sha256", "HEX", False),
)


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("launch", help="launch a persistent Spot instance with stop behaviour")
    add_options(p)
    for option, name, metavar, several in _OPTIONS:
        key = KEYS[f"launch.{name}"]
        text = f"{key.doc.partition('. ')[0].rstrip('.')} (overrides launch.{name})"
        p.add_argument(
            option, dest=name, metavar=metavar, type=_value(name, several),
            action="append" if several else "store", help=text.replace("%", "%%"),
        )  # fmt: skip
    p.add_argument(
        "--tag", metavar="NAME=VALUE", action="append", default=[], help="a tag more; several times"
    )
    p.add_argument(
        "--on-demand-fallback", action="store_true", default=None,
        help="launch on demand when no Spot capacity is to be had",
    )  # fmt: skip
    p.add_argument(
        "--no-profile", action="store_true",
        help="launch without an instance profile although the store is S3",
    )  # fmt: skip
    p.add_argument(
        "--dry-run", action="store_true",
        help="print exactly what would be asked, have EC2 check the permission, launch nothing",
    )  # fmt: skip
    p.add_argument(
        "--until", choices=GOALS, default="spotd",
        help="watch until: launched; running; both status checks pass; spotd there has taken "
        "the run; a checkpoint from there is stored (default: spotd)",
    )  # fmt: skip
    p.add_argument(
        "--timeout", metavar="DURATION", type=_duration, default=1200.0,
        help="watch for so long at most (default: 20min)",
    )  # fmt: skip


def _value(name: str, several: bool) -> Callable[[str], Any]:
    kind = KEYS[f"launch.{name}"].kind

    def parse(text: str) -> Any:
        value: Any = int(text) if name == "hop_limit" and text.isdigit() else text
        try:
            found = kind.parse(value)
        except BadValue as error:
            said = f"{text} {error.reason}" + (f" ({error.hint})" if error.hint else "")
            raise argparse.ArgumentTypeError(said) from None
        return found[0] if several else found

    return parse


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} {error}") from None


def overridden(settings: LaunchSettings, options: argparse.Namespace) -> LaunchSettings:
    """`[launch]` with the options laid over it.

    Raises:
        SpotdError: A --tag is none.
    """
    given = {name: getattr(options, name) for _, name, _, _ in _OPTIONS}
    given["on_demand_fallback"] = options.on_demand_fallback
    laid: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None
    }
    tags = dict(settings.tags)
    for text in options.tag:
        name, equals, value = text.partition("=")
        if not equals:
            raise SpotdError(f"--tag {text} is not NAME=VALUE", exit_code=2)
        tags[name] = value
    try:
        KEYS["launch.tags"].kind.parse(tags)
    except BadValue as error:
        raise SpotdError(f"--tag {error.below}: {error.reason}", exit_code=2) from None
    return replace(settings, tags=tags, **laid)


@dataclass(frozen=True, slots=True)
class Launch:
    """One call of the verb."""

    settings: Settings
    wanted: LaunchSettings
    ec2: Ec2
    options: argparse.Namespace

    def say(self, line: str) -> None:
        """Prints a line of progress; aside where JSON is wanted."""
        print(line, file=sys.stderr if self.options.json else sys.stdout, flush=True)


def run(options: argparse.Namespace) -> int:
    """Launches, unless the run has an instance already, and watches until training runs."""
    from spotd.ec2.api import Ec2, region_of  # noqa: PLC0415 - boto3, only here
    from spotd.ec2.intent import held  # noqa: PLC0415

    settings = settings_of(options)
    wanted = overridden(settings.launch, options)
    _refuse_without_credentials(settings, wanted, options)
    ec2 = Ec2(region_of(wanted.region, settings.store.region))
    launch = Launch(settings, wanted, ec2, options)
    if options.dry_run:
        return _dry_run(launch)
    with held(settings.run, ec2.region, settings.store.url) as intent:
        instance = _there(launch, intent) or _launched(launch, intent)
    return _watch(launch, instance)


def _refuse_without_credentials(
    settings: Settings, wanted: LaunchSettings, options: argparse.Namespace
) -> None:
    if settings.store.url.startswith("s3://") and not (
        wanted.instance_profile or options.no_profile
    ):
        raise SpotdError(
            "without an instance profile the instance cannot use the store, so nothing is kept",
            hint="--instance-profile NAME (packaging/aws/iam-policy.md says how to make one); "
            "--no-profile if the image brings its own credentials",
        )


def _there(launch: Launch, intent: Intent) -> dict[str, Any] | None:
    """The instance that the run already has, if any; named, and never joined by a second one."""
    from spotd.ec2.launching import present, take_up  # noqa: PLC0415

    instance = take_up(launch.ec2, intent, launch.say)
    if instance is not None and instance["State"]["Name"] in UP:
        launch.say(f"the last launch got {instance['InstanceId']}: nothing was launched")
        return instance
    found = present(launch.ec2, launch.settings.run)
    _refuse_waiting(launch, found)
    for one in found.living:
        launch.say(f"run {launch.settings.run} has {_named(found, one)}: nothing was launched")
        if one["State"]["Name"] in UP:
            return one
    if found.living or instance is not None:
        raise SpotdError(
            f"the instance of run {launch.settings.run} is stopped: nothing was launched",
            hint="`spotd instances` says whether EC2 starts it again; `spotd terminate` ends it",
        )
    return None


def _refuse_waiting(launch: Launch, found: Present) -> None:
    if found.waiting and not found.living:
        names = ", ".join(r["SpotInstanceRequestId"] for r in found.waiting)
        raise SpotdError(
            f"run {launch.settings.run} has the open request {names}: EC2 launches for it",
            hint="wait for it, or `spotd terminate` cancels it",
        )


def _named(found: Present, instance: dict[str, Any]) -> str:
    from spotd.ec2.words import explain  # noqa: PLC0415

    zone = instance.get("Placement", {}).get("AvailabilityZone", "")
    words = explain(instance, found.request_of(instance), datetime.now(timezone.utc))
    return f"{instance['InstanceId']}, {instance['InstanceType']} in {zone} ({words.what})"


def _plan(launch: Launch) -> Planned:
    from spotd.ec2.launching import planned, present  # noqa: PLC0415
    from spotd.ec2.plan import Wanted  # noqa: PLC0415

    settings, wanted = launch.settings, launch.wanted
    text = text_of(settings, wanted.package or DEFAULT_PACKAGE, wanted.package_sha256 or "")
    until = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(seconds=wanted.valid_for)
    past = present(launch.ec2, settings.run).ended
    return planned(launch.ec2, Wanted(settings.run, settings.store.url, wanted, text, until), past)


def _launched(launch: Launch, intent: Intent) -> dict[str, Any]:
    from spotd.ec2 import launching  # noqa: PLC0415

    _look_at_the_store(launch)
    plan = _plan(launch)
    launch.say(outline(launch, plan))
    instance = launching.launch(launch.ec2, launch.settings.run, plan.asks, intent, launch.say)
    launch.say(f"launched {instance['InstanceId']}, {instance['InstanceType']}")
    return instance


def _look_at_the_store(launch: Launch) -> None:
    """What would make the launch pointless is said before it costs anything."""
    from spotd.ec2.standing import look  # noqa: PLC0415

    try:
        standing = look(launch.settings)
    except SpotdError as error:
        return launch.say(f"the store cannot be looked at from here: {error}")
    if standing.completed:
        raise SpotdError(
            f"run {launch.settings.run} is complete: an instance would have nothing to do",
            hint="give `run` another name for a new training",
        )
    if standing.lease_left > 0:
        launch.say(
            f"{standing.holder} has the run; a new instance waits until its lease ends, in "
            f"{standing.lease_left:.0f} s unless it is renewed"
        )
    if standing.newest is not None:
        launch.say(f"it will resume from {standing.newest.id}")
    return None


def outline(launch: Launch, plan: Planned) -> str:
    """What is asked, in which order, for people."""
    s = launch.wanted
    rows: list[tuple[str, ...]] = [("", "TYPE", "ZONE", "MARKET", "$/HOUR", "SCORE")]
    for number, one in enumerate(plan.asks, start=1):
        p = one.pool
        price = "-" if p.price is None or one.market != "spot" else f"{p.price:.4f}"
        score = "-" if p.score is None else f"{p.score}/10"
        rows.append((str(number), p.instance_type, p.zone, one.market, price, score))
    until = format_duration(round(s.valid_for / 60) * 60)
    size = format_size(s.volume_size)
    text = f"run {launch.settings.run} in {launch.ec2.region}: {s.image}, {size} {s.volume_type}, "
    text += f"EC2 starts it again for {until}; asked in this order:"
    return "\n".join([text, table(rows), *(f"note: {note}" for note in plan.notes)])


def _dry_run(launch: Launch) -> int:
    from spotd.ec2.launching import present  # noqa: PLC0415
    from spotd.ec2.plan import shown  # noqa: PLC0415

    found = present(launch.ec2, launch.settings.run)
    plan = _plan(launch)
    launch.ec2.run(plan.asks[0].parameters, dry=True)
    if launch.options.json:
        asks = [shown(one, whole=True) for one in plan.asks]
        print_json({"region": launch.ec2.region, "asks": asks, "notes": plan.notes})
        return EXIT_DONE
    print(outline(launch, plan))
    first = shown(plan.asks[0])
    print(f"\nRunInstances, {plan.asks[0].name}:")
    print_json(first)
    for one in plan.asks[1:]:
        print(f"\nif that is refused for lack of capacity, {one.name}: the same with")
        said = shown(one)
        print_json({k: said.get(k) for k in first | said if said.get(k) != first.get(k)})
    print("\nEC2 would allow it. Nothing was launched.")
    for here in found.living:
        print(f"Without --dry-run nothing would be either: the run has {_named(found, here)}.")
    return EXIT_DONE


def _watch(launch: Launch, instance: dict[str, Any]) -> int:
    from spotd.ec2.following import Way, follow  # noqa: PLC0415
    from spotd.ec2.standing import look  # noqa: PLC0415

    instance_id, started = instance["InstanceId"], time.monotonic()

    def say(line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        launch.say(f"{minutes:3d}:{seconds:02d}  {line}")

    way = Way(launch.ec2, instance_id, lambda: look(launch.settings), say)
    try:
        follow(way, launch.options.until, timeout=launch.options.timeout)
    except KeyboardInterrupt:
        launch.say(f"{instance_id} goes on; `spotd launch` watches again")
        raise
    if launch.options.json:
        zone = instance.get("Placement", {}).get("AvailabilityZone")
        request = instance.get("SpotInstanceRequestId")
        print_json({
            "instance_id": instance_id, "instance_type": instance["InstanceType"], "zone": zone,
            "request_id": request, "region": launch.ec2.region,
        })  # fmt: skip
    return EXIT_DONE
