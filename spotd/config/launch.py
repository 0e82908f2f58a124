"""`[launch]`: what `spotd launch` asks EC2 for. The daemon itself never reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd import units
from spotd.config import kinds
from spotd.config.key import declare
from spotd.config.kinds import BadValue, Kind, line, type_name

if TYPE_CHECKING:
    from collections.abc import Mapping

GIB = 1024**3
_LARGEST_VOLUME = 64 * 1024  # GiB; EBS user guide, "General Purpose SSD volumes"
_TAG_NAME, _TAG_VALUE = 128, 256  # characters; EC2 user guide, "Tag restrictions"


def listed(pattern: str, what: str, example: str) -> Kind[tuple[str, ...]]:
    """One name or a list of names, each matching `pattern`, none twice."""

    def parse(value: object) -> tuple[str, ...]:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list):
            raise BadValue(f"is {type_name(value)}; a name or a list of names is wanted")
        for name in names:
            if not re.fullmatch(pattern, line(name)):
                raise BadValue(f'has "{str(name)[:60]}", which is not {what}', f"like {example}")
        return tuple(dict.fromkeys(names))

    return Kind("name or list", parse)


def _volume(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadValue(f"is {type_name(value)}; a size is wanted", 'like "100GiB"')
    try:
        size = units.parse_size(value)
    except ValueError as error:
        raise BadValue(str(error), 'like "100GiB"') from None
    if not GIB <= size <= _LARGEST_VOLUME * GIB:
        raise BadValue("is not between 1GiB and 64TiB", 'like "100GiB"')
    return -(-size // GIB) * GIB


def _image(value: object) -> str:
    text = line(value)
    if text in IMAGES or re.fullmatch(r"ami-[0-9a-f]{8,17}|/[A-Za-z0-9_./-]{1,1010}", text):
        return text
    close = kinds.nearest(text, IMAGES)
    said = f"did you mean {close}?" if close else f"one of {', '.join(IMAGES)}, ami-..., or the "
    raise BadValue("is not an image", said if close else f"{said}path of an SSM parameter")


def _tags(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise BadValue(f"is {type_name(value)}; a section of names and texts is wanted")
    found = {}
    for name, entry in value.items():
        if not name or len(name) > _TAG_NAME or name.lower().startswith(("aws:", "spotd:")):
            raise BadValue("is no name for a tag of yours", below=name)
        if isinstance(entry, (bool, dict, list)) or len(str(entry)) > _TAG_VALUE:
            raise BadValue("is no text of at most 256 characters", below=name)
        found[name] = str(entry)
    return found


def _digest(value: object) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text := line(value).lower()):
        raise BadValue("is not 64 hex digits", "sha256sum FILE prints it")
    return text


# Names for images that AWS and Canonical publish as SSM parameters, by architecture as EC2
# calls it. Sources: Canonical's "Find Ubuntu images on AWS"; AWS Deep Learning AMIs developer
# guide, release notes of "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04)".
_UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/{}/hvm/ebs-gp3/ami-id"
_LEARNING = "/aws/service/deeplearning/ami/{}/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
IMAGES: Mapping[str, Mapping[str, str]] = {
    "ubuntu-24.04": {"x86_64": _UBUNTU.format("amd64"), "arm64": _UBUNTU.format("arm64")},
    "deep-learning": {"x86_64": _LEARNING.format("x86_64"), "arm64": _LEARNING.format("arm64")},
}
INSTANCE_TYPES = listed(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", "an instance type", "g5.xlarge")
ZONES = listed(r"[a-z]{2,4}-[a-z0-9-]+-\d[a-z0-9-]*[a-z]", "an availability zone", "us-east-1a")
SUBNETS = listed(r"subnet-[0-9a-f]{8,17}", "a subnet", "subnet-0a1b2c3d")
GROUPS = listed(r"sg-[0-9a-f]{8,17}", "the id of a security group", "sg-0a1b2c3d")
VOLUME = Kind("size", _volume)
IMAGE = Kind("`ubuntu-24.04`, `deep-learning`, AMI or SSM parameter", _image)
TAGS = Kind("section of texts", _tags)
SHA256 = Kind("64 hex digits", _digest)


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """What `spotd launch` asks EC2 for; its options override these. The daemon ignores them."""

    instance_types: tuple[str, ...] = declare(
        INSTANCE_TYPES,
        "Which instance types will do. All are tried, in every zone, in the order of price and "
        "placement score; three or more let EC2 give scores.",
        default=[],
        example=["g5.xlarge", "g6.xlarge", "g4dn.xlarge"],
    )
    region: str | None = declare(
        kinds.REGION,
        "Where. Without it: what the environment says, else `store.region`.",
        example="us-east-1",
    )
    zones: tuple[str, ...] = declare(
        ZONES,
        "Which availability zones will do. Without it: every zone that has the type.",
        default=[],
        example=["us-east-1a", "us-east-1b"],
    )
    subnets: tuple[str, ...] = declare(
        SUBNETS,
        "Subnets to launch into, at most one a zone. Without it: each zone's default subnet.",
        default=[],
        example=["subnet-0a1b2c3d"],
    )
    security_groups: tuple[str, ...] = declare(
        GROUPS,
        "Security groups. Without it: the default one, which lets nobody in.",
        default=[],
        example=["sg-0a1b2c3d"],
    )
    key_name: str | None = declare(
        kinds.TEXT, "The key pair for SSH. Without it: nobody can log in by SSH.", example="laptop"
    )
    instance_profile: str | None = declare(
        kinds.TEXT,
        "Name or ARN of the instance profile whose role may use the store.",
        example="spotd",
    )
    image: str = declare(
        IMAGE,
        "What it boots: `ubuntu-24.04`, `deep-learning` (the same with NVIDIA drivers), an AMI, "
        "or an SSM parameter that names one.",
        default="ubuntu-24.04",
    )
    volume_size: int = declare(
        VOLUME,
        "The root volume. It survives a stop, and is paid for while the instance is stopped.",
        default="100GiB",
    )
    volume_type: str = declare(kinds.choice("gp3", "gp2"), "Its kind.", default="gp3")
    valid_for: float = declare(
        kinds.duration(3600.0),
        "How long EC2 keeps starting the instance again; a guard against a forgotten request.",
        default="7d",
    )
    on_demand_fallback: bool = declare(
        kinds.FLAG,
        "Launch on demand, at several times the price, when no Spot capacity is to be had.",
        default=False,
    )
    hop_limit: int = declare(
        kinds.count(1, 64),
        "How far answers of the metadata service travel: 1 reaches the instance, 2 containers "
        "on it as well. IMDSv2 is required in any case.",
        default=1,
    )
    package: str | None = declare(
        kinds.TEXT,
        "Where the instance gets spotd from: see `spotd user-data --package`. Without it: pip, "
        "this version.",
        example="s3://my-bucket/training/spotd.deb",
    )
    package_sha256: str | None = declare(
        SHA256, "What that package must hash to.", example="0123456789abcdef" * 4
    )
    tags: Mapping[str, str] = declare(
        TAGS,
        "Tags of yours for instance, volume and request.",
        default={},
        example={"project": "mono-to-3d"},
    )
