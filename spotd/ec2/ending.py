"""Ends a run's instances for good: what would be lost is known first, the request goes first.

Terminating an instance re-opens its persistent request, and EC2 launches a fresh one (EC2 user
guide, "Spot Instance requests"): so requests are cancelled, and seen to be, before anything is
terminated. The root volume goes with the instance: only what is in the store is left.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from spotd.core.status import age, rfc3339
from spotd.ec2.launching import Present, present
from spotd.errors import SpotdError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spotd.core.checkpoint import StoredCheckpoint
    from spotd.ec2.api import Ec2
    from spotd.ec2.standing import Standing

STOP_PATIENCE, PAUSE = 600.0, 5.0  # seconds
LOOKS = 3  # for requests that appear while others are cancelled
# A save at the end is at most so old when the machine is down: a notice, a shutdown, an upload.
LAST_SAVE = 300.0  # seconds
# "User initiated (2026-11-21 08:22:00 GMT)"; EC2 API reference, Instance.reason.
_STOPPED_AT = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")
_SAVE = "--save stops it in good order first, so that the trainer saves and spotd stores"
_FORCE = "--force ends it all the same"


@dataclass(frozen=True, slots=True)
class Alive:
    """An instance that would end. `stopped`: since when, seconds since the epoch."""

    id: str
    state: str
    stopped: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether everything that is worth keeping is in the store. `reason`: why not."""

    safe: bool
    kept: str
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """Ids of what was ended for good: Spot requests that were cancelled, instances terminated."""

    requests: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()


def judge(standing: Standing, living: Sequence[Alive], now: float) -> Verdict:
    """Decides whether these may end.

    Only the instance that has or had the run's lease can hold something newer than the store:
    what another one had, was left behind when the run went on elsewhere.

    Args:
        standing: What the store says.
        living: What would end.
        now: Seconds since the epoch.
    """
    kept = describe(standing, now)
    trainer = next((a for a in living if a.id == standing.holder), None)
    if standing.completed or trainer is None:
        return Verdict(True, kept)
    training = trainer.state != "stopped" and standing.lease_left > 0
    hint = f"{_SAVE}; {_FORCE}" if training else _FORCE
    if standing.newest is None:
        reason = f"{trainer.id} has trained this run, and no checkpoint of it is in the store"
        return Verdict(False, kept, reason, hint)
    if training:
        reason = f"{trainer.id} is training: what it did since the newest stored checkpoint is lost"
        return Verdict(False, kept, reason, hint)
    stopped = trainer.stopped if trainer.state == "stopped" else None
    until = now + standing.lease_left if stopped is None else stopped
    gap = until - standing.newest.created
    if gap > LAST_SAVE:
        reason = f"{trainer.id} may have worked {age(gap)} beyond that: its disk may hold more"
        return Verdict(False, kept, reason, f"start it once, so that it stores; or {_FORCE}")
    return Verdict(True, kept)


def alive(found: Present) -> list[Alive]:
    """The living instances, and since when those that are stopped are."""
    result = []
    for instance in found.living:
        told = _STOPPED_AT.search(instance.get("StateTransitionReason") or "")
        request = found.request_of(instance) or {}
        updated = request.get("Status", {}).get("UpdateTime")
        stopped = updated.timestamp() if updated is not None else None
        if told:
            moment = datetime.fromisoformat(told[1]).replace(tzinfo=timezone.utc)
            stopped = moment.timestamp()
        result.append(Alive(instance["InstanceId"], instance["State"]["Name"], stopped))
    return result


def describe(standing: Standing, now: float) -> str:
    """What is in the store, in words."""
    if standing.newest is None:
        return (
            "nothing is stored, and nobody has trained this run"
            if not standing.holder
            else ("no checkpoint is stored")
        )
    newest = standing.newest
    step = "" if newest.step is None else f" (step {newest.step})"
    done = "the run is complete; " if standing.completed else ""
    when = f"{rfc3339(newest.created)}, {age(now - newest.created)} ago"
    return f"{done}newest stored checkpoint: {newest.id}{step} of {when}"


def saved(before: StoredCheckpoint | None, after: Standing, asked: float) -> str:
    """Why a stop in good order may have left something unstored; "" when it has not.

    Args:
        before: The newest stored checkpoint before the stop.
        after: What the store says now.
        asked: When the stop was asked for, seconds since the epoch.
    """
    newest = after.newest
    if after.completed:
        return ""
    if after.lease_left > 0:
        return "spotd has not given its lease back: it did not end in good order"
    if newest is None:
        return "no checkpoint is stored"
    if before is not None and newest.id == before.id and newest.created < asked:
        return f"nothing newer than {newest.id} has been stored: the trainer did not save"
    return ""


def save(
    ec2: Ec2,
    ids: Sequence[str],
    look: Callable[[], Standing],
    say: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Stops instances in good order and makes sure that they have stored what they had.

    Raises:
        SpotdError: They did not stop, or it is not certain; they keep their disks.
    """
    before, asked = look().newest, clock()
    ec2.stop(ids)
    say(f"stopping {', '.join(ids)}: the trainer saves, spotd stores")
    for one in ids:
        while (found := ec2.instance(one)) is not None and found["State"]["Name"] != "stopped":
            if found["State"]["Name"] in ("shutting-down", "terminated"):
                break
            if clock() - asked > STOP_PATIENCE:
                raise SpotdError(f"{one} has not stopped yet", hint="repeat the command later")
            sleep(PAUSE)
    standing = look()
    if reason := saved(before, standing, asked):
        raise SpotdError(
            f"nothing was ended: {reason}",
            hint=f"{', '.join(ids)} is stopped and keeps its disk: start it (aws ec2 "
            "start-instances) to train on, or end it with --force",
        )
    say(f"stopped; {describe(standing, clock())}")


def end(ec2: Ec2, run: str, only: Present, say: Callable[[str], None]) -> Ended:
    """Cancels the requests, then terminates the instances; returns which.

    Raises:
        SpotdError: A request could not be cancelled; nothing was terminated then.
    """
    cancelled: list[str] = []
    found, living = only, {i["InstanceId"] for i in only.living}
    for _ in range(LOOKS):
        held = [r["SpotInstanceRequestId"] for r in found.held]
        if not (new := [r for r in held if r not in cancelled]):
            break
        ec2.cancel(new)
        cancelled += new
        # Looked at again: what a re-opened request launched meanwhile has to end too.
        found = present(ec2, run)
        living |= {i["InstanceId"] for i in found.living}
    if cancelled:
        say(f"cancelled {', '.join(cancelled)}: EC2 starts nothing for it any more")
    if living:
        ec2.terminate(sorted(living))
        say(f"terminating {', '.join(sorted(living))}")
    return Ended(tuple(cancelled), tuple(sorted(living)))
