"""Gets one instance for a run: asks pool after pool, and never for a second one.

What keeps it at one, in this order: a living instance or an open request of the run is found
first; every question is on the disk before it is sent (`intent`); its ClientToken makes EC2
answer a repeated question with the instance it has; and a request that a refused question left
behind is cancelled before the next pool is asked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from spotd.ec2 import plan
from spotd.ec2.intent import FRESH
from spotd.ec2.problems import Refused
from spotd.ec2.words import ENDED_REQUESTS, LIVING
from spotd.errors import SpotdError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spotd.ec2.api import Ec2
    from spotd.ec2.intent import Intent

    Say = Callable[[str], None]

# How long EC2's lists may lag behind what it has answered (EC2 API developer guide, "Eventual
# consistency"): so many looks, PAUSE seconds apart.
LOOKS, PAUSE = 10, 2.0
TOKENS = 5  # used up by instances that ended, before something else must be wrong


@dataclass(frozen=True, slots=True)
class Present:
    """What a run has: instances of the last hour, and the requests that are its."""

    instances: tuple[dict[str, Any], ...]
    requests: tuple[dict[str, Any], ...]

    @property
    def living(self) -> tuple[dict[str, Any], ...]:
        """Instances that cost money or will again."""
        return tuple(i for i in self.instances if i["State"]["Name"] in LIVING)

    @property
    def ended(self) -> tuple[str, ...]:
        """Ids of instances that have ended."""
        living = {i["InstanceId"] for i in self.living}
        return tuple(i["InstanceId"] for i in self.instances if i["InstanceId"] not in living)

    @property
    def held(self) -> tuple[dict[str, Any], ...]:
        """Requests for which EC2 still may start something."""
        return tuple(r for r in self.requests if r["State"] not in ENDED_REQUESTS)

    @property
    def waiting(self) -> tuple[dict[str, Any], ...]:
        """Requests for which EC2 will launch an instance that is not there yet."""
        living = {i["InstanceId"] for i in self.living}
        return tuple(r for r in self.held if r.get("InstanceId") not in living)

    def request_of(self, instance: dict[str, Any]) -> dict[str, Any] | None:
        """The request of an instance."""
        wanted = instance.get("SpotInstanceRequestId")
        for request in self.requests:
            if wanted and request["SpotInstanceRequestId"] == wanted:
                return request
            if request.get("InstanceId") == instance["InstanceId"]:
                return request
        return None


def present(ec2: Ec2, run: str | None) -> Present:
    """Looks what a run has; None: every run."""
    instances = ec2.instances(run)
    named = [i["SpotInstanceRequestId"] for i in instances if i.get("SpotInstanceRequestId")]
    requests = ec2.requests(run, named)
    return Present(tuple(instances), tuple(requests))


@dataclass(frozen=True, slots=True)
class Planned:
    """What will be asked, in order, and what could not be found out on the way."""

    asks: tuple[plan.Ask, ...]
    notes: tuple[str, ...] = ()


def planned(ec2: Ec2, wanted: plan.Wanted, past: Sequence[str]) -> Planned:
    """Finds out what there is and in which order to ask for it; changes nothing.

    Raises:
        SpotdError: There is nothing to ask for, or the image does not fit.
    """
    s = wanted.settings
    if not s.instance_types:
        raise SpotdError(
            "no instance type is named",
            hint="--instance-type g5.xlarge (several times), or launch.instance_types",
        )
    architectures = ec2.architectures(s.instance_types)
    first = architectures.get(s.instance_types[0], ())
    image = ec2.image(s.image, "arm64" if "arm64" in first else "x86_64")
    if problem := plan.architecture_problem(image, architectures):
        raise SpotdError(problem, hint="name types and an image of one architecture")
    notes: list[str] = []
    found = plan.pools(
        ec2.offered(s.instance_types),
        types=s.instance_types,
        zones=s.zones,
        subnets=ec2.subnets(s.subnets),
        prices=_prices(ec2, s.instance_types, notes),
        scores=_scores(ec2, s.instance_types, notes),
    )
    if not found:
        raise SpotdError(
            f"{', '.join(s.instance_types)}: not to be had in {_where(ec2, wanted)}",
            hint="name other types, zones or another region",
        )
    asks = [plan.ask(wanted, p, image, plan.SPOT, past) for p in found]
    if s.on_demand_fallback:
        order = sorted(found, key=lambda p: s.instance_types.index(p.instance_type))
        asks += [plan.ask(wanted, p, image, plan.ON_DEMAND, past) for p in order]
    return Planned(tuple(asks), tuple(notes))


def _where(ec2: Ec2, wanted: plan.Wanted) -> str:
    return ", ".join(wanted.settings.zones or wanted.settings.subnets) or ec2.region


def _prices(ec2: Ec2, types: Sequence[str], notes: list[str]) -> dict[tuple[str, str], float]:
    now = datetime.now(timezone.utc)
    try:
        changes = ec2.prices(types, now - timedelta(minutes=1), now)
    except SpotdError as error:
        notes.append(f"prices are not known: {error}; pools are asked in your order")
        return {}
    return {(c.instance_type, c.zone): c.price for c in changes}


def _scores(ec2: Ec2, types: Sequence[str], notes: list[str]) -> dict[str, int]:
    if len(types) < plan.SCORED_TYPES:
        notes.append(
            f"no placement scores: EC2 gives useful ones for {plan.SCORED_TYPES} types or more"
        )
        return {}
    try:
        by_id = ec2.scores(types)
        return {name: by_id[i] for name, i in ec2.zones().items() if i in by_id}
    except SpotdError as error:
        notes.append(f"placement scores are not known: {error}; prices alone decide")
        return {}


def launch(
    ec2: Ec2,
    run: str,
    asks: Sequence[plan.Ask],
    intent: Intent,
    say: Say,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Asks until there is an instance; returns it as EC2 describes it.

    Raises:
        SpotdError: No pool has capacity; or it was refused for good, nothing launched.
        Refused: With `sure` false: it is not known whether something was launched.
    """
    tried: list[tuple[plan.Ask, Refused]] = []
    exhausted: set[tuple[str, str]] = set()
    for one in asks:
        kind = (one.market, one.pool.instance_type)
        if kind in exhausted:
            continue
        try:
            return _one(ec2, one, intent, sleep)
        except Refused as error:
            if error.code not in plan.NEXT_POOL | plan.NEXT_TYPE:
                raise
            tried.append((one, error))
            say(f"{one.name}: {_briefly(error)}")
            if error.code in plan.NEXT_TYPE:
                exhausted.add(kind)
            _cancel_left_over(ec2, run, say)
    raise _nothing(tried)


def take_up(
    ec2: Ec2, intent: Intent, say: Say, *, sleep: Callable[[float], None] = time.sleep
) -> dict[str, Any] | None:
    """Clears up a question that an earlier launch did not see answered; returns its instance."""
    if (launched := intent.launched()) is not None:
        return _seen(ec2, launched, sleep)
    found = intent.open()
    if found is None:
        return None
    one, age = found
    if age <= FRESH:
        say(f"the last launch asked for {one.name} {age:.0f} s ago and saw no answer: asking again")
        try:
            return _one(ec2, one, intent, sleep)
        except Refused as error:
            if not error.sure:
                raise
            say(f"{one.name}: {_briefly(error)}")
            return None
    living = _with_token(ec2, str(one.parameters["ClientToken"]))
    intent.answered()
    return living


def _one(ec2: Ec2, one: plan.Ask, intent: Intent, sleep: Callable[[float], None]) -> dict[str, Any]:
    for number in range(TOKENS):
        attempt = plan.again(one, number) if number else one
        intent.asking(attempt)
        try:
            instance = ec2.run(attempt.parameters)
        except Refused as error:
            if error.code != plan.MISMATCH:
                if error.sure:
                    intent.answered()
                raise
            # Something was launched with this token and other parameters: the run, most likely.
            found = _appearing(ec2, str(attempt.parameters["ClientToken"]), sleep)
            if found is None:
                continue
            instance = found
        if instance["State"]["Name"] in LIVING:
            intent.answered(instance["InstanceId"])
            return instance
    intent.answered()
    raise SpotdError(
        f"{one.name}: EC2 only names instances that have ended",
        hint="`spotd instances` shows them; try again in an hour, when EC2 has forgotten them",
    )


def _appearing(ec2: Ec2, token: str, sleep: Callable[[float], None]) -> dict[str, Any] | None:
    for _ in range(LOOKS):
        found = ec2.by_token(token)
        if found:
            return next((i for i in found if i["State"]["Name"] in LIVING), found[0])
        sleep(PAUSE)
    return None


def _seen(ec2: Ec2, instance_id: str, sleep: Callable[[float], None]) -> dict[str, Any] | None:
    """The instance of a moment ago, which EC2's lists may not show yet; None when it has ended."""
    for _ in range(LOOKS):
        found = ec2.instance(instance_id)
        if found is not None:
            return found if found["State"]["Name"] in LIVING else None
        sleep(PAUSE)
    return None


def _with_token(ec2: Ec2, token: str) -> dict[str, Any] | None:
    return next((i for i in ec2.by_token(token) if i["State"]["Name"] in LIVING), None)


def _cancel_left_over(ec2: Ec2, run: str, say: Say) -> None:
    """An open request that stayed behind would get an instance later, beside ours."""
    left = (r for r in ec2.requests(run) if r["State"] == "open" and not r.get("InstanceId"))
    waiting = [r["SpotInstanceRequestId"] for r in left]
    if waiting:
        ec2.cancel(waiting)
        say(f"cancelled {', '.join(waiting)}, which was left open")


def _briefly(error: Refused) -> str:
    if error.code in plan.NEXT_TYPE:
        return f"the account's quota is reached ({error.code})"
    return "no capacity" if "Capacity" in error.code else error.message


def _nothing(tried: Sequence[tuple[plan.Ask, Refused]]) -> SpotdError:
    names = "; ".join(f"{one.name}: {error.code}" for one, error in tried)
    short = [one for one, error in tried if error.code in plan.NEXT_TYPE]
    hints = []
    if len(short) < len(tried):
        hints.append("add types (--instance-type), zones or another --region, or try later")
    if short:
        quotas = sorted({plan.quota(one.pool.instance_type, one.market) for one in short})
        hints.append(f"have raised in Service Quotas: {', '.join(quotas)}")
    if all(one.market == plan.SPOT for one, _ in tried):
        hints.append("--on-demand-fallback launches on demand, at several times the price")
    return SpotdError(f"nothing was launched; tried {names}", hint="; ".join(hints))
