"""The calls to EC2 and SSM: each does one thing and decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from spotd.config.launch import GIB, IMAGES
from spotd.ec2.plan import RUN_TAG, Image
from spotd.ec2.problems import Refused, refused, unreachable
from spotd.errors import SpotdError
from spotd.shell.account import client, misconfigured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

_T = TypeVar("_T")
LINUX = "Linux/UNIX"


@dataclass(frozen=True, slots=True)
class PriceChange:
    """From `when` on (seconds since the epoch) a pool costs `price` dollars an hour."""

    instance_type: str
    zone: str
    when: float
    price: float


def region_of(launch_region: str | None, store_region: str | None) -> str:
    """Where to ask: the argument, what the environment says, the store's.

    Raises:
        SpotdError: None of them says.
    """
    import boto3  # noqa: PLC0415 - tens of MiB

    def told() -> str | None:
        return boto3.session.Session().region_name

    found = launch_region or asked("AWS configuration", "", told) or store_region
    if not found:
        raise SpotdError(
            "it is not known which AWS region to launch in",
            hint="--region, launch.region in the configuration, or AWS_DEFAULT_REGION",
        )
    return str(found)


def asked(action: str, resource: str, function: Callable[[], _T]) -> _T:
    """Makes a call; what goes wrong becomes a Refused."""
    from botocore import exceptions  # noqa: PLC0415

    try:
        return function()
    except exceptions.ClientError as error:
        told = error.response.get("Error", {})
        code, message = str(told.get("Code", "")), str(told.get("Message", ""))
        raise refused(code, message, action, resource) from error
    except (
        exceptions.NoCredentialsError, exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError, exceptions.TokenRetrievalError,
    ) as error:  # fmt: skip
        hint = "aws configure, AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise SpotdError("there are no AWS credentials", hint=hint) from error
    except (exceptions.ProfileNotFound, exceptions.ConfigParseError) as error:
        raise misconfigured(error) from error
    except exceptions.ParamValidationError as error:
        raise SpotdError(f"{action} cannot be asked for: {error}") from error
    except (exceptions.BotoCoreError, OSError) as error:
        raise unreachable(action, str(error)) from error


class Ec2:
    """EC2 in one region, as the operator sees it. Every call raises SpotdError, mostly Refused."""

    def __init__(self, region: str) -> None:
        self.region = region
        self._ec2 = client("ec2", region)

    def instances(self, run: str | None) -> list[dict[str, Any]]:
        """The instances tagged with the run (None: with any), ended ones of the last hour too."""
        wanted = (
            [{"Name": "tag-key", "Values": [RUN_TAG]}]
            if run is None
            else [{"Name": f"tag:{RUN_TAG}", "Values": [run]}]
        )
        return self._instances(Filters=wanted)

    def by_token(self, token: str) -> list[dict[str, Any]]:
        """The instances that were launched with this ClientToken."""
        return self._instances(Filters=[{"Name": "client-token", "Values": [token]}])

    def instance(self, instance_id: str) -> dict[str, Any] | None:
        """One instance; None when EC2 does not know it (yet)."""
        try:
            found = self._instances(InstanceIds=[instance_id])
        except Refused as error:
            if error.code == "InvalidInstanceID.NotFound":
                return None
            raise
        return found[0] if found else None

    def _instances(self, **wanted: Any) -> list[dict[str, Any]]:
        pages = self._pages("describe_instances", "ec2:DescribeInstances", **wanted)
        return [i for page in pages for r in page["Reservations"] for i in r["Instances"]]

    def requests(self, run: str | None, ids: Iterable[str] = ()) -> list[dict[str, Any]]:
        """The Spot requests tagged with the run, and those named."""
        name, action = "describe_spot_instance_requests", "ec2:DescribeSpotInstanceRequests"
        tag = {"Name": "tag-key", "Values": [RUN_TAG]}
        if run is not None:
            tag = {"Name": f"tag:{RUN_TAG}", "Values": [run]}
        found = {}
        named = [{"Name": "spot-instance-request-id", "Values": sorted(set(ids))}]
        for wanted in [tag], named:
            if wanted[0]["Values"]:
                for page in self._pages(name, action, Filters=wanted):
                    for request in page["SpotInstanceRequests"]:
                        found[request["SpotInstanceRequestId"]] = request
        return list(found.values())

    def status(self, instance_id: str) -> dict[str, Any] | None:
        """System and instance checks; None before there are any."""
        found = asked(
            "ec2:DescribeInstanceStatus", "*",
            lambda: self._ec2.describe_instance_status(InstanceIds=[instance_id]),
        )["InstanceStatuses"]  # fmt: skip
        return found[0] if found else None

    def run(self, parameters: Mapping[str, Any], *, dry: bool = False) -> dict[str, Any]:
        """Launches one instance; with `dry` only asks whether it would be allowed."""
        extra = {"DryRun": True} if dry else {}
        arn = f"arn:aws:ec2:{self.region}:*:instance/*"
        try:
            answer = asked(
                "ec2:RunInstances", arn, lambda: self._ec2.run_instances(**parameters, **extra)
            )
        except Refused as error:
            if dry and error.code == "DryRunOperation":
                return {}
            raise
        instance: dict[str, Any] = answer["Instances"][0]
        return instance

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancels Spot requests: EC2 starts nothing for them any more."""
        action = "ec2:CancelSpotInstanceRequests"
        arn = f"arn:aws:ec2:{self.region}:*:spot-instances-request/*"
        answer = asked(
            action, arn,
            lambda: self._ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=list(ids)),
        )  # fmt: skip
        done = {r["SpotInstanceRequestId"] for r in answer["CancelledSpotInstanceRequests"]}
        if missing := sorted(set(ids) - done):
            raise Refused("", f"{action}: EC2 did not cancel {', '.join(missing)}", sure=False)

    def stop(self, ids: Sequence[str]) -> None:
        """Stops instances as their operating system does: in good order."""
        arn = f"arn:aws:ec2:{self.region}:*:instance/*"
        asked("ec2:StopInstances", arn, lambda: self._ec2.stop_instances(InstanceIds=list(ids)))

    def terminate(self, ids: Sequence[str]) -> None:
        """Terminates instances; their requests must be cancelled before."""
        arn = f"arn:aws:ec2:{self.region}:*:instance/*"
        asked(
            "ec2:TerminateInstances", arn,
            lambda: self._ec2.terminate_instances(InstanceIds=list(ids)),
        )  # fmt: skip

    def zones(self) -> dict[str, str]:
        """The zones this account may use: name to id."""
        found = asked(
            "ec2:DescribeAvailabilityZones", "*",
            lambda: self._ec2.describe_availability_zones(
                Filters=[{"Name": "state", "Values": ["available"]}]
            ),
        )["AvailabilityZones"]  # fmt: skip
        return {z["ZoneName"]: z["ZoneId"] for z in found if z.get("OptInStatus") != "not-opted-in"}

    def offered(self, types: Sequence[str]) -> set[tuple[str, str]]:
        """The (type, zone) that exist."""
        pages = self._pages(
            "describe_instance_type_offerings", "ec2:DescribeInstanceTypeOfferings",
            LocationType="availability-zone",
            Filters=[{"Name": "instance-type", "Values": list(types)}],
        )  # fmt: skip
        found = (o for page in pages for o in page["InstanceTypeOfferings"])
        return {(o["InstanceType"], o["Location"]) for o in found}

    def architectures(self, types: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Which processors' images each instance type boots."""
        pages = self._pages(
            "describe_instance_types", "ec2:DescribeInstanceTypes", InstanceTypes=list(types)
        )
        return {
            t["InstanceType"]: tuple(t["ProcessorInfo"]["SupportedArchitectures"])
            for page in pages
            for t in page["InstanceTypes"]
        }

    def subnets(self, ids: Sequence[str]) -> dict[str, str]:
        """Zone to subnet, of those named."""
        if not ids:
            return {}
        pages = self._pages("describe_subnets", "ec2:DescribeSubnets", SubnetIds=list(ids))
        found = {s["SubnetId"]: s["AvailabilityZone"] for p in pages for s in p["Subnets"]}
        return {found[i]: i for i in reversed(ids) if i in found}

    def image(self, name: str, architecture: str) -> Image:
        """What `launch.image` means for an architecture."""
        where = IMAGES.get(name, {}).get(architecture, name)
        image_id = self._parameter(where) if where.startswith("/") else where
        found = asked(
            "ec2:DescribeImages", "*", lambda: self._ec2.describe_images(ImageIds=[image_id])
        )["Images"]
        if not found:
            raise SpotdError(
                f"there is no image {image_id} in {self.region}",
                hint="launch.image must exist in the region of the launch",
            )
        one = found[0]
        if one.get("RootDeviceType", "ebs") != "ebs":
            raise SpotdError(
                f"{image_id} has no EBS root volume: a stop would lose everything",
                hint="take an image with one; ubuntu-24.04 and deep-learning have",
            )
        root = str(one.get("RootDeviceName") or "/dev/sda1")
        sizes = [
            m["Ebs"].get("VolumeSize", 0) * GIB
            for m in one.get("BlockDeviceMappings", [])
            if m.get("DeviceName") == root and "Ebs" in m
        ]
        return Image(image_id, root, max(sizes, default=0), str(one.get("Architecture", "")))

    def _parameter(self, path: str) -> str:
        ssm = client("ssm", self.region)
        arn = f"arn:aws:ssm:{self.region}::parameter{path}"
        found = asked("ssm:GetParameter", arn, lambda: ssm.get_parameter(Name=path))
        return str(found["Parameter"]["Value"])

    def prices(self, types: Sequence[str], since: datetime, until: datetime) -> list[PriceChange]:
        """How Spot prices went, oldest first; also the last change before `since`."""
        pages = self._pages(
            "describe_spot_price_history", "ec2:DescribeSpotPriceHistory",
            InstanceTypes=list(types), ProductDescriptions=[LINUX], StartTime=since, EndTime=until,
        )  # fmt: skip
        found = [
            PriceChange(
                p["InstanceType"], p["AvailabilityZone"], p["Timestamp"].timestamp(),
                float(p["SpotPrice"]),
            )
            for page in pages
            for p in page["SpotPriceHistory"]
        ]  # fmt: skip
        return sorted(found, key=lambda p: p.when)

    def scores(self, types: Sequence[str]) -> dict[str, int]:
        """Placement scores by zone id: how likely Spot capacity is to be had there, 1 to 10."""
        pages = self._pages(
            "get_spot_placement_scores", "ec2:GetSpotPlacementScores",
            InstanceTypes=list(types), TargetCapacity=1, TargetCapacityUnitType="units",
            SingleAvailabilityZone=True, RegionNames=[self.region],
        )  # fmt: skip
        found = (s for page in pages for s in page["SpotPlacementScores"])
        return {s["AvailabilityZoneId"]: s["Score"] for s in found if "AvailabilityZoneId" in s}

    def _pages(self, name: str, action: str, **wanted: Any) -> list[dict[str, Any]]:
        pages = self._ec2.get_paginator(name).paginate(**wanted)
        return asked(action, "*", lambda: list(pages))
