"""What to ask EC2 for, and in which order. Decides only; `api` asks.

A *pool* is one instance type in one zone: Spot capacity and prices are per pool. Every pool is
asked once, the best first, until one gives an instance. Facts: EC2 API reference, RunInstances;
EC2 user guide, "Spot placement score", "Ensuring idempotency in Amazon EC2 API requests".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from spotd.config.launch import GIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from spotd.config.launch import LaunchSettings

RUN_TAG = "spotd:run"
SPOT, ON_DEMAND = "spot", "on-demand"
BEST_SCORE = 10  # a placement score is 1 (unlikely) to 10 (likely)
SCORED_TYPES = 3  # with fewer types the score is always low, so it says nothing
# What each missing point of score is worth: a pool with score 1 counts as nearly twice as dear.
# Too little capacity now is also what interrupts later, and an interruption costs minutes.
PER_POINT = 0.1

NEXT_POOL = frozenset(
    {"InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientCapacity",
     "InsufficientFreeAddressesInSubnet", "Unsupported", "SpotMaxPriceTooLow"}
)  # fmt: skip
NEXT_TYPE = frozenset(
    {"MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "InstanceLimitExceeded"}
)
MISMATCH = "IdempotentParameterMismatch"

# Which quota counts a type's vCPUs, by its family letters; Service Quotas, "Amazon EC2".
_QUOTAS = {
    "dl": "DL", "f": "F", "g": "G and VT", "vt": "G and VT", "hpc": "HPC", "inf": "Inf",
    "p": "P", "trn": "Trn", "u": "High Memory", "x": "X",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pool:
    """An instance type in a zone. `price`: dollars an hour now; `score`: 1 to 10."""

    instance_type: str
    zone: str
    subnet: str = ""
    price: float | None = None
    score: int | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.instance_type} in {self.zone}"

    @property
    def cost(self) -> float:
        """What it is ordered by: the price, dearer for each missing point of score."""
        if self.price is None:
            return float("inf")
        missing = 0 if self.score is None else BEST_SCORE - self.score
        return self.price * (1 + PER_POINT * missing)


@dataclass(frozen=True, slots=True)
class Image:
    """What boots. `size`: bytes its root volume needs at least."""

    id: str
    root_device: str
    size: int
    architecture: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to run, apart from where."""

    run: str
    store_url: str
    settings: LaunchSettings
    user_data: str
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class Ask:
    """One RunInstances call: its parameters are all there is to it."""

    pool: Pool
    market: str
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.pool.name}, {self.market}"


def pools(
    offered: Iterable[tuple[str, str]],
    *,
    types: Sequence[str],
    zones: Sequence[str],
    subnets: Mapping[str, str],
    prices: Mapping[tuple[str, str], float],
    scores: Mapping[str, int],
) -> list[Pool]:
    """The pools that will do, the best first.

    Args:
        offered: (type, zone) that exist.
        types: Wanted, in the user's order, which decides between equals.
        zones: Wanted; empty: all.
        subnets: Zone to subnet; empty: default subnets.
        prices: Dollars an hour by (type, zone), where known.
        scores: Placement score by zone, where known.
    """
    found = [
        Pool(t, z, subnets.get(z, ""), prices.get((t, z)), scores.get(z))
        for t, z in set(offered)
        if t in types and (not zones or z in zones) and (not subnets or z in subnets)
    ]
    return sorted(found, key=lambda p: (p.cost, types.index(p.instance_type), p.zone))


def ask(wanted: Wanted, pool: Pool, image: Image, market: str, past: Sequence[str] = ()) -> Ask:
    """The call that asks this pool for one instance.

    Args:
        wanted: What is to run.
        pool: Where.
        image: What it boots.
        market: SPOT or ON_DEMAND.
        past: Instances of this run that have ended; they make the token another one.
    """
    s = wanted.settings
    tags = [{"Key": k, "Value": v} for k, v in s.tags.items() if k != "Name"]
    tags.append({"Key": RUN_TAG, "Value": wanted.run})
    named = {"Key": "Name", "Value": s.tags.get("Name", f"spotd-{wanted.run}")}
    tagged = ["instance", "volume"] + (["spot-instances-request"] if market == SPOT else [])
    volume = {
        "VolumeSize": max(s.volume_size, image.size) // GIB,
        "VolumeType": s.volume_type,
        "DeleteOnTermination": True,
    }
    parameters: dict[str, Any] = {
        "ClientToken": token(wanted, pool, market, past),
        "ImageId": image.id,
        "InstanceType": pool.instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "BlockDeviceMappings": [{"DeviceName": image.root_device, "Ebs": volume}],
        "InstanceInitiatedShutdownBehavior": "stop",
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": s.hop_limit,
        },
        "TagSpecifications": [{"ResourceType": kind, "Tags": [named, *tags]} for kind in tagged],
        "UserData": wanted.user_data,
    }
    if market == SPOT:
        # No MaxPrice: a low one only means more interruptions, and on-demand is never exceeded.
        parameters["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {
                "SpotInstanceType": "persistent",
                "InstanceInterruptionBehavior": "stop",
                "ValidUntil": wanted.valid_until,
            },
        }
    return Ask(pool, market, parameters | _optional(s, pool))


def _optional(s: LaunchSettings, pool: Pool) -> dict[str, Any]:
    found: dict[str, Any] = {"Placement": {"AvailabilityZone": pool.zone}}
    if pool.subnet:
        found = {"SubnetId": pool.subnet}
    if s.security_groups:
        found["SecurityGroupIds"] = list(s.security_groups)
    if s.key_name:
        found["KeyName"] = s.key_name
    if s.instance_profile:
        key = "Arn" if s.instance_profile.startswith("arn:") else "Name"
        found["IamInstanceProfile"] = {key: s.instance_profile}
    return found


def token(wanted: Wanted, pool: Pool, market: str, past: Sequence[str]) -> str:
    """The ClientToken: EC2 launches one instance for it, however often it is asked.

    What is not in it (image, user data, validity, volume) cannot make a second instance either:
    the same token with other parameters is refused (IdempotentParameterMismatch).
    """
    said = [wanted.run, wanted.store_url, pool.instance_type, pool.zone, market, sorted(past)]
    return "spotd-" + hashlib.sha256(json.dumps(said).encode()).hexdigest()[:48]


def again(one: Ask, number: int) -> Ask:
    """The same ask under another token, once the one it had has been used up."""
    first = one.parameters["ClientToken"].partition(".")[0]
    return replace(one, parameters={**one.parameters, "ClientToken": f"{first}.{number}"})


def architecture_problem(image: Image, architectures: Mapping[str, Sequence[str]]) -> str:
    """Which wanted type cannot boot the image, in words; "" when all can."""
    for name, known in architectures.items():
        if image.architecture not in known:
            return f"{image.id} is for {image.architecture}, and {name} is {' or '.join(known)}"
    return ""


def quota(instance_type: str, market: str = SPOT) -> str:
    """The name of the quota that a type's vCPUs count against, as Service Quotas calls it."""
    family = instance_type.partition(".")[0]
    letters = family[: next((i for i, c in enumerate(family) if c.isdigit()), len(family))]
    name = _QUOTAS.get(letters, "Standard (A, C, D, H, I, M, R, T, Z)")
    if market == SPOT:
        return f"All {name} Spot Instance Requests"
    return f"Running On-Demand {name} instances"


def rfc3339(moment: datetime) -> str:
    """UTC, to the second."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def shown(one: Ask, *, whole: bool = False) -> dict[str, Any]:
    """The parameters as JSON can hold them; user data only counted unless `whole`."""
    parameters = dict(one.parameters)
    if not whole:
        size = len(parameters["UserData"].encode())
        parameters["UserData"] = f"<{size} bytes: spotd user-data>"
    text = json.dumps(parameters, default=rfc3339)
    found: dict[str, Any] = json.loads(text)
    return found
