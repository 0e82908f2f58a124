"""What EC2's answers mean: why an instance is stopped, and whether it will be started again.

Codes: EC2 user guide, "Spot request status codes" and "State changes for a Spot request".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

YES, NO, RUNS, UNKNOWN = "yes", "no", "runs", "unknown"
LIVING = ("pending", "running", "stopping", "stopped")
_DOWN = ("stopping", "stopped")
_GONE = ("shutting-down", "terminated")
ENDED_REQUESTS = ("cancelled", "closed", "failed")
_START = "start it by hand (aws ec2 start-instances), which enables the request again"
_WAIT = "nothing to do: EC2 starts it again, with its disk, when it can"
_CANCEL = "`spotd terminate` cancels the request"
_ANEW = "`spotd launch` asks anew"


@dataclass(frozen=True, slots=True)
class Words:
    """A situation. `again`: YES, NO, RUNS or UNKNOWN; `todo`: "" when there is nothing."""

    what: str
    again: str
    todo: str = ""


_STOPPED = {
    "marked-for-stop": Words("EC2 has given notice: it stops within two minutes", YES, _WAIT),
    "instance-stopped-no-capacity": Words("EC2 needed the capacity", YES, _WAIT),
    "instance-stopped-capacity-oversubscribed": Words(
        "more was asked of this zone than it has", YES, _WAIT
    ),
    "instance-stopped-by-price": Words(
        "the price rose above the request's maximum", YES,
        "leave the maximum price out (spotd launch does): a low one means more interruptions",
    ),
    "instance-stopped-by-user": Words(
        "somebody stopped it, or it shut itself down: the request is disabled", NO, _START
    ),
    "instance-stopped-by-experiment": Words(
        "a fault injection experiment stopped it: it stays stopped", NO, _START
    ),
}  # fmt: skip
_HIBERNATED = {
    "marked-for-hibernation": Words("EC2 hibernates it now", YES, _WAIT),
    "instance-hibernated-no-capacity": Words("EC2 needed the capacity", YES, _WAIT),
}
_WAITING = {
    "pending-evaluation": Words("EC2 looks at the request", UNKNOWN),
    "pending-fulfillment": Words("EC2 prepares an instance", YES),
    "capacity-not-available": Words("there is no capacity in this zone", YES, _WAIT),
    "capacity-oversubscribed": Words("more was asked of this zone than it has", YES, _WAIT),
    "price-too-low": Words(
        "the request's maximum is below the price", UNKNOWN,
        "leave the maximum price out (spotd launch does)",
    ),
    "not-scheduled-yet": Words("the request is valid only later", YES),
    "launch-group-constraint": Words(
        "its launch group cannot be launched together", UNKNOWN, "ask without a launch group"
    ),
    "az-group-constraint": Words("its zone group has no capacity in one zone", UNKNOWN),
    "placement-group-constraint": Words("its placement group has no room", UNKNOWN),
    "constraint-not-fulfillable": Words(
        "what the request asks for does not exist in this zone", NO,
        f"ask for other types or zones: {_CANCEL}, then {_ANEW}",
    ),
    "limit-exceeded": Words(
        "the account's limit for volumes or instances is reached", UNKNOWN,
        "delete volumes that nobody needs, or have the quota raised",
    ),
    "spot-instance-count-limit-exceeded": Words(
        "the account's Spot quota is reached", UNKNOWN, "have the quota raised"
    ),
}  # fmt: skip
_ENDED = {
    "bad-parameters": Words("the request itself is wrong", NO, _ANEW),
    "schedule-expired": Words("its time (launch.valid_for) is over", NO, _ANEW),
    "canceled-before-fulfillment": Words("it was cancelled before it got an instance", NO),
    "system-error": Words("EC2 failed", NO, _ANEW),
    "request-canceled-and-instance-running": Words(
        "the request is cancelled, the instance runs on and is billed; an interruption ends it",
        NO, "`spotd terminate` ends it",
    ),
    "marked-for-termination": Words("EC2 has given notice: it ends within two minutes", UNKNOWN),
    "instance-terminated-by-price": Words("the price rose above the request's maximum", UNKNOWN),
    "instance-terminated-no-capacity": Words("EC2 needed the capacity", UNKNOWN),
    "instance-terminated-capacity-oversubscribed": Words(
        "more was asked of this zone than it has", UNKNOWN
    ),
    "instance-terminated-by-user": Words("somebody terminated it", UNKNOWN),
    "instance-terminated-by-service": Words("it was terminated from the inside", UNKNOWN),
    "instance-terminated-by-schedule": Words("its time is over", NO, _ANEW),
    "instance-terminated-launch-group-constraint": Words("its launch group ended it", UNKNOWN),
    "instance-terminated-by-experiment": Words("a fault injection experiment ended it", UNKNOWN),
}  # fmt: skip
CODES: Mapping[str, Words] = {
    "fulfilled": Words("it runs", RUNS), **_STOPPED, **_HIBERNATED, **_WAITING, **_ENDED,
}  # fmt: skip
_REOPENED = f"the request is open again, so EC2 launches a fresh instance: {_CANCEL} first"


def explain(
    instance: Mapping[str, Any] | None, request: Mapping[str, Any] | None, now: datetime
) -> Words:
    """Says what goes on with an instance, its request, or both.

    Args:
        instance: As describe_instances gives it.
        request: As describe_spot_instance_requests gives it.
        now: With a time zone.
    """
    state = str((instance or {}).get("State", {}).get("Name", ""))
    if request is None:
        return _without_request(state, instance)
    found = _of_request(state, request)
    until = request.get("ValidUntil")
    over = until is not None and until <= now
    if over and found.again == YES:
        return Words(f"{found.what}, and the request's time is over", NO, _ANEW)
    return found


def _without_request(state: str, instance: Mapping[str, Any] | None) -> Words:
    if state in ("pending", "running"):
        if (instance or {}).get("InstanceLifecycle") == "spot":
            todo = "its request is gone: an interruption ends it for good"
            return Words(f"it is {state}", NO, todo)
        return Words(f"it is {state}, on demand", RUNS)
    if state in ("stopping", "stopped"):
        return Words(f"it is {state}, and has no Spot request", NO, "start it by hand")
    return Words(f"it is {state or 'gone'}", NO)


def _of_request(state: str, request: Mapping[str, Any]) -> Words:
    held = str(request.get("State", ""))
    code = str(request.get("Status", {}).get("Code", ""))
    known = CODES.get(code)
    if code.startswith("instance-terminated") or state in _GONE:
        return _of_ended_instance(state, held, code, request)
    if held == "disabled" and (known is None or known.again != NO):
        return CODES["instance-stopped-by-user"]
    if held in ENDED_REQUESTS and (known is None or known.again != NO or state in _DOWN):
        return _of_ended_request(state, held)
    if known is None:
        message = str(request.get("Status", {}).get("Message", ""))
        return Words(f"{code or held}: {message}".rstrip(": "), UNKNOWN)
    if code == "fulfilled" and state in ("pending", *_DOWN):
        return Words(f"it is {state}", RUNS if state == "pending" else UNKNOWN)
    return known


def _of_ended_request(state: str, held: str) -> Words:
    if state in _DOWN:
        return Words(f"its request is {held}: EC2 ends it", NO)
    if state in ("pending", "running"):
        return CODES["request-canceled-and-instance-running"]
    return Words(f"the request is {held}", NO)


def _of_ended_instance(state: str, held: str, code: str, request: Mapping[str, Any]) -> Words:
    what = CODES[code].what if code in _ENDED and code.startswith("instance-") else ""
    what = what or f"it is {state or 'gone'}"
    if held in ("open", "active") and request.get("Type") == "persistent":
        return Words(what, YES, _REOPENED)
    return Words(what, NO)
