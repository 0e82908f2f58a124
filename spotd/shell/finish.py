"""`completion.action`: ends the instance's bill once the run is complete and stored.

Facts (EC2 user guide, "Spot Instance requests"): terminating an instance re-opens its
persistent request, and EC2 launches a fresh one; so the request is cancelled first. A stop
by the user disables the request, so EC2 does not start the instance again; cancelling it
as well would make EC2 terminate what is stopped, so a stop leaves the request alone.

Runs in a process of its own, so that boto3's 30 MiB come and go with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from spotd.core.actions import Announce
from spotd.errors import EXIT_DONE, EXIT_FAILED, SpotdError

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 90.0  # seconds for one try
FIRST_PAUSE = 5.0  # seconds between two tries, doubled each time
LONGEST_PAUSE = 300.0
GIVE_UP_AFTER = 3600.0  # seconds; by then somebody has been told for an hour
_OVER = frozenset({"shutting-down", "terminated"})
_STOPPED = frozenset({"stopping", "stopped"}) | _OVER
_ENDED = frozenset({"cancelled", "closed", "failed"})


def finish_instance(
    action: str,
    instance_id: str,
    region: str | None,
    announce: Callable[[Announce], None],
    *,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Stops or terminates this instance, in the background; failing is announced.

    Args:
        action: "stop" or "terminate".
        instance_id: This instance's.
        region: Of the instance, None to have boto3 find it.
        announce: Takes the line that says how it went wrong.
        before: What is waited for first: people being told, say.
    """
    if not instance_id.startswith("i-"):
        text = f"{instance_id} is no EC2 instance: completion.action has nothing to {action}"
        announce(Announce("finish_failed", text, 4))
        return

    def work() -> None:
        before()
        _until_done(action, instance_id, region, announce)

    threading.Thread(target=work, name="finish", daemon=True).start()


def _until_done(
    action: str, instance_id: str, region: str | None, announce: Callable[[Announce], None]
) -> None:
    """Tries until it is done, telling of the first failure and of giving up."""
    deadline, pause, told = time.monotonic() + GIVE_UP_AFTER, FIRST_PAUSE, ""
    while True:
        reason = _once(action, instance_id, region)
        if not reason:
            return
        over = time.monotonic() + pause > deadline
        if over or reason != told:
            then = f"it goes on costing money: {action} it by hand" if over else "tried again"
            text = f"could not {action} {instance_id}: {reason}; {then}"
            announce(Announce("finish_failed", text, 3))
            told = reason
        if over:
            return
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)


def _once(action: str, instance_id: str, region: str | None) -> str:
    """Runs the helper; returns why it failed, "" when it did not."""
    # The same modules from the same places, whichever way the daemon found them.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "spotd.shell.finish", action, instance_id, region or ""],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False,
            text=True, cwd="/", env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer within {PATIENCE:.0f} s"
    except OSError as error:
        return str(error.strerror or error)
    if done.returncode == EXIT_DONE:
        return ""
    return (done.stderr.strip().splitlines() or [f"the helper ended with {done.returncode}"])[-1]


def carry_out(ec2: Any, action: str, instance_id: str) -> None:
    """Does it, in the order that a persistent request cannot undo; what is done stays done.

    Args:
        ec2: A boto3 EC2 client.
        action: "stop" or "terminate".
        instance_id: The instance.

    Raises:
        SpotdError: Not allowed (the action and the resource are named), not possible, no
            answer. A Spot instance whose request is not seen to be cancelled is not
            terminated: EC2 would launch another one.
    """
    from spotd.shell.account import call, describe_instance, request_of  # noqa: PLC0415

    instance = describe_instance(ec2, instance_id)
    state = instance.get("State", {}).get("Name", "")
    if action == "stop":
        if state not in _STOPPED:
            ids = [instance_id]
            call("ec2:StopInstances", instance_id, lambda: ec2.stop_instances(InstanceIds=ids))
        return
    if state in _OVER:
        return
    request = request_of(ec2, instance)
    if request is not None and request.get("State") not in _ENDED:
        _cancel(ec2, str(request["SpotInstanceRequestId"]))
    call(
        "ec2:TerminateInstances",
        instance_id,
        lambda: ec2.terminate_instances(InstanceIds=[instance_id]),
    )


def _cancel(ec2: Any, request_id: str) -> None:
    from spotd.shell.account import call  # noqa: PLC0415

    answer = call(
        "ec2:CancelSpotInstanceRequests",
        request_id,
        lambda: ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[request_id]),
    )
    states = {r.get("State") for r in answer.get("CancelledSpotInstanceRequests", ())}
    if not states or not states <= _ENDED:
        raise SpotdError(f"the Spot request {request_id} is not cancelled yet: {states}")


def main(arguments: list[str]) -> int:
    """Runs in the child process."""
    from spotd.shell.account import client  # noqa: PLC0415 - boto3

    action, instance_id, region = arguments
    try:
        carry_out(client("ec2", region or None), action, instance_id)
    except SpotdError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the daemon reads it
        return EXIT_FAILED
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
