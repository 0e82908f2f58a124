"""The Spot request and the volumes behind this instance: will EC2 start it again, with its disk?

Facts: EC2 user guide, "Spot Instance requests", "Interrupted Spot Instances"; a stop needs a
persistent request without a launch group and an EBS root volume; only a request that is still
valid is fulfilled again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from spotd.checks import Finding, Surroundings, failed, ok, warning
from spotd.errors import SpotdError
from spotd.shell.account import client, describe_instance, request_of

SUBJECT = "spot request"
_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What EC2 said; a `*_trouble` is (reason, advice) where it did not."""

    instance_trouble: tuple[str, str] | None = None
    root: str = ""
    hop_limit: int | None = None
    request_trouble: tuple[str, str] | None = None
    request: dict[str, Any] | None = None
    now: float = 0.0


def probe(around: Surroundings) -> list[Finding]:
    """Asks EC2, where the role may."""
    identity = around.identity
    if around.cloud != "ec2" or identity is None or identity.instance_id is None:
        return []
    return judge(look(identity.instance_id, identity.region))


def look(instance_id: str, region: str | None) -> Facts:
    """Describes the instance, then its request."""
    try:
        ec2 = client("ec2", region)
        instance = describe_instance(ec2, instance_id)
    except SpotdError as error:
        return Facts(instance_trouble=(error.message, error.hint))
    root = str(instance.get("RootDeviceType", ""))
    hop_limit = instance.get("MetadataOptions", {}).get("HttpPutResponseHopLimit")
    try:
        request = request_of(ec2, instance)
    except SpotdError as error:
        return Facts(None, root, hop_limit, request_trouble=(error.message, error.hint))
    return Facts(None, root, hop_limit, None, request, time.time())


def judge(facts: Facts) -> list[Finding]:
    """Decides."""
    if facts.instance_trouble is not None:
        reason, hint = facts.instance_trouble
        text = f"cannot be looked at: {reason}"
        return [warning("root volume", text, hint), warning(SUBJECT, text, hint)]
    found = [_judge_root(facts.root)]
    if facts.hop_limit is not None:
        found.append(ok("hop limit", f"{facts.hop_limit} (a container needs 2)"))
    if facts.request_trouble is not None:
        reason, hint = facts.request_trouble
        found.append(warning(SUBJECT, f"cannot be looked at: {reason}", hint))
    elif facts.request is None:
        advice = "`spotd launch` makes one that is persistent and stops"
        found.append(warning(SUBJECT, "this instance has none, so it is no Spot instance", advice))
    else:
        found += judge_request(facts.request, facts.now)
    return found


def _judge_root(root: str) -> Finding:
    if root == "ebs":
        return ok("root volume", "EBS: it survives a stop")
    advice = "launch from an AMI with an EBS root; the others lose everything at a stop"
    return failed("root volume", f"{root or 'of unknown type'}, not EBS", advice)


def judge_request(request: dict[str, Any], now: float) -> list[Finding]:
    """Decides about one request, as `describe_spot_instance_requests` gives it."""
    again = "launch anew with a persistent request and InstanceInterruptionBehavior=stop"
    request_id = request.get("SpotInstanceRequestId", "the request")
    kind = request.get("Type", "one-time")
    behaviour = request.get("InstanceInterruptionBehavior", "terminate")
    found = []
    if kind != "persistent":
        text = f"{request_id} is {kind}: EC2 does not start the instance again"
        found.append(failed(SUBJECT, text, again))
    elif behaviour == "terminate":
        text = f"{request_id} terminates at an interruption: the disk is lost"
        found.append(warning(SUBJECT, text, f"resuming needs the store then; or {again}"))
    else:
        found.append(ok(SUBJECT, f"{request_id} is persistent, interruption means {behaviour}"))
    if request.get("LaunchGroup"):
        text = f"it has the launch group {request['LaunchGroup']}, which stop does not work with"
        found.append(failed("launch group", text, again))
    state = request.get("State", "")
    if state in ("disabled", "cancelled", "closed", "failed"):
        text = f"{request_id} is {state}: EC2 will not start the instance again"
        advice = (
            "start the instance once by hand: that enables it again"
            if state == "disabled"
            else again
        )
        found.append(failed("request state", text, advice))
    until = request.get("ValidUntil")
    if until is not None:
        left = until.timestamp() - now
        when = until.strftime("%Y-%m-%d %H:%M UTC")
        advice = "after that EC2 does not start the instance again: launch a new one in time"
        if left < _DAY:
            found.append(warning("request validity", f"it ends {when}", advice))
        else:
            found.append(ok("request validity", f"until {when}"))
    return found
