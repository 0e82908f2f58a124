"""`completion.action`: ends the instance's bill once the run is complete and stored.

Facts (EC2 user guide, "Spot Instance requests"): terminating an instance re-opens its
persistent request, and EC2 launches a fresh one; so the request is cancelled first. A stop
by the user disables the request, so EC2 does not start the instance again; cancelling it
as well would make EC2 terminate what is stopped, so a stop leaves the request alone.

Runs in a process of its own, so that boto3's 30 MiB come and go with it.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from spotd.core.actions import Announce

if TYPE_CHECKING:
    from collections.abc import Callable

TRIES = 5
PATIENCE = 60.0  # seconds for one try


def finish_instance(
    action: str, instance_id: str, region: str | None, announce: Callable[[Announce], None]
) -> None:
    """Stops or terminates this instance, in the background; failing is announced.

    Args:
        action: "stop" or "terminate".
        instance_id: This instance's.
        region: Of the instance, None to have boto3 find it.
        announce: Takes the line that says how it went wrong.
    """
    if not instance_id.startswith("i-"):
        text = f"{instance_id} is no EC2 instance: completion.action has nothing to {action}"
        announce(Announce("finish_failed", text, 4))
        return
    command = [sys.executable, "-m", "spotd.shell.finish", action, instance_id, region or ""]

    def work() -> None:
        reason = ""
        for _ in range(TRIES):
            try:
                done = subprocess.run(
                    command, capture_output=True, timeout=PATIENCE, check=False, text=True
                )
            except (OSError, subprocess.TimeoutExpired) as e:
                reason = str(e)
                continue
            if done.returncode == 0:
                return
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        text = f"could not {action} {instance_id}: {reason}. It goes on costing money: {action} it"
        announce(Announce("finish_failed", text, 3))

    threading.Thread(target=work, name="finish", daemon=True).start()


def carry_out(ec2: Any, action: str, instance_id: str) -> None:
    """Does it, in the order that a persistent request cannot undo.

    Args:
        ec2: A boto3 EC2 client.
        action: "stop" or "terminate".
        instance_id: The instance.
    """
    if action == "terminate":
        found = ec2.describe_instances(InstanceIds=[instance_id])
        instance = found["Reservations"][0]["Instances"][0]
        request = instance.get("SpotInstanceRequestId")
        if request:
            ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[request])
        ec2.terminate_instances(InstanceIds=[instance_id])
    else:
        ec2.stop_instances(InstanceIds=[instance_id])


def main(arguments: list[str]) -> int:
    """Runs in the child process."""
    import boto3  # noqa: PLC0415 - only here

    action, instance_id, region = arguments
    carry_out(boto3.client("ec2", region_name=region or None), action, instance_id)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
