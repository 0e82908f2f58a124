"""What kind of start this is, told from evidence and not from hope.

The boot id is the kernel's (random(4)); when this boot began is when pid 1 did, which is
also right inside a container, where the kernel's own `btime` is the host's. A daemon that
ended in good order leaves a mark with its boot id; a boot after one without a mark came
after a crash, a power loss, or a stop that did not wait.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# For rehearsals on one machine (`spotd demo`): "<boot id>@<seconds since the epoch>".
OVERRIDE = "SPOTD_REHEARSED_BOOT"
_STARTTIME = 19  # field 22 of /proc/pid/stat, counted behind the command's closing bracket


@dataclass(frozen=True, slots=True)
class Boot:
    """This boot: its id, and when it began (wall clock, seconds)."""

    id: str
    began: float


def this_boot(environment: Mapping[str, str] = os.environ) -> Boot:
    """Returns the boot this process runs in."""
    said = environment.get(OVERRIDE, "")
    if "@" in said:
        name, _, when = said.rpartition("@")
        try:
            return Boot(name, float(when))
        except ValueError:
            pass  # not the form a rehearsal uses: the kernel's word counts
    return Boot(Path("/proc/sys/kernel/random/boot_id").read_text().strip(), _pid_one_began())


def _pid_one_began() -> float:
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    stat = Path("/proc/1/stat").read_text()
    ticks = int(stat.rpartition(")")[2].split()[_STARTTIME])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def classify(
    record: Mapping[str, object] | None, *, boot: Boot, instance_id: str, clean_boot_id: str
) -> str:
    """Returns "first", "same-boot", "new-instance", "interrupted", "reboot" or "power-loss".

    Args:
        record: What the last daemon left, or None.
        boot: This boot.
        instance_id: This instance.
        clean_boot_id: The boot in which a daemon last ended in good order, or "".
    """
    if record is None:
        return "first"
    if record.get("boot_id") == boot.id:
        return "same-boot"
    if record.get("instance_id") not in ("", None, instance_id):
        return "new-instance"
    interruption = record.get("interruption")
    if isinstance(interruption, dict) and interruption.get("source") == "notice":
        return "interrupted"
    return "reboot" if clean_boot_id == record.get("boot_id") else "power-loss"


def machine_name() -> str:
    """Returns a name for a machine that is no cloud instance: stable, and not its secret id."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    # machine-id(5) asks that the id itself be kept confidential.
    digest = hashlib.sha256(f"spotd {machine}".encode()).hexdigest()[:8]
    return f"{socket.gethostname()}-{digest}"
