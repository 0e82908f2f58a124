"""From a launched instance to training: what can be seen of the way, as it happens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from spotd.ec2.words import LIVING
from spotd.errors import SpotdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.ec2.api import Ec2
    from spotd.ec2.standing import Standing

# How far to follow: EC2 says running; both status checks pass; spotd there has taken the run's
# lease, which it does right before it restores and trains; a checkpoint from there is stored.
GOALS = ("launched", "running", "checks", "spotd", "checkpoint")
PAUSE = 5.0  # seconds between two looks


class Way:
    """What has been seen of one instance. Says each change once.

    Args:
        ec2: Its region.
        instance_id: The instance.
        look: How the run stands by its store; raises SpotdError.
        say: Takes a line.
    """

    def __init__(
        self, ec2: Ec2, instance_id: str, look: Callable[[], Standing], say: Callable[[str], None]
    ) -> None:
        self._ec2 = ec2
        self._id = instance_id
        self._look = look
        self._say = say
        self._said: dict[str, str] = {}
        self._reached: set[str] = {"launched"}
        self.blind = False  # the store cannot be looked at from here

    def reached(self, goal: str) -> bool:
        """Whether that has been seen."""
        return goal in self._reached

    def step(self) -> None:
        """Looks once.

        Raises:
            SpotdError: The instance has ended, or EC2 refuses to say.
        """
        instance = self._ec2.instance(self._id)
        if instance is None:
            return self._tell("state", "EC2 does not list it yet")
        state = instance["State"]["Name"]
        if state not in LIVING:
            raise SpotdError(
                f"{self._id} ended before it trained: {_reason(instance)}",
                hint="`spotd terminate` cancels what is left of its request",
            )
        self._tell("state", _described(instance))
        if state == "running":
            self._reached.add("running")
            self._checks()
        return self._store()

    def _checks(self) -> None:
        status = self._ec2.status(self._id)
        if status is None:
            return
        both = {status["SystemStatus"]["Status"], status["InstanceStatus"]["Status"]}
        if both == {"ok"}:
            self._reached.add("checks")
        self._tell("checks", f"status checks: {', '.join(sorted(both))}")

    def _store(self) -> None:
        try:
            standing = self._look()
            self.blind = False
        except SpotdError as error:
            self.blind = True
            return self._tell("store", f"the store cannot be looked at from here: {error}")
        newest = standing.newest
        if newest is not None and newest.instance_id == self._id:
            self._reached |= {"spotd", "checkpoint"}
            step = "" if newest.step is None else f", step {newest.step}"
            return self._tell("checkpoint", f"checkpoint {newest.id} is stored{step}")
        if standing.trained_by(self._id):
            self._reached.add("spotd")
            what = (
                f"resumes from {newest.id}" if newest is not None else "starts from the beginning"
            )
            return self._tell("lease", f"spotd there has taken the run, and {what}")
        if standing.holder and standing.lease_left > 0:
            self._tell(
                "lease",
                f"{standing.holder} still has the run; its lease ends in "
                f"{standing.lease_left:.0f} s unless it trains",
            )
        return None

    def _tell(self, about: str, line: str) -> None:
        if self._said.get(about) != line:
            self._said[about] = line
            self._say(line)


def follow(
    way: Way,
    goal: str,
    *,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Looks until `goal` has been seen, or as much of it as can be seen without the store.

    Raises:
        SpotdError: The instance ended, or `timeout` seconds have passed.
    """
    deadline = clock() + timeout
    while not way.reached(goal):
        way.step()
        if way.reached(goal) or (way.blind and way.reached("checks")):
            return
        if clock() >= deadline:
            raise SpotdError(
                f"after {timeout:.0f} s this is all there is to see; the instance runs on",
                hint="aws ec2 get-console-output, or journalctl -u spotd on it, say why; "
                "`spotd launch` again goes on watching",
            )
        sleep(PAUSE)


def _described(instance: dict[str, Any]) -> str:
    zone = instance.get("Placement", {}).get("AvailabilityZone", "")
    address = instance.get("PublicIpAddress") or instance.get("PrivateIpAddress") or ""
    where = f" in {zone}" if zone else ""
    return f"{instance['State']['Name']}{where}" + (f", {address}" if address else "")


def _reason(instance: dict[str, Any]) -> str:
    told = instance.get("StateReason", {})
    return str(told.get("Message") or told.get("Code") or instance["State"]["Name"])
