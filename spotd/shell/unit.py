"""What systemd knows about this daemon's own unit: its stop time-out, and why it stops."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from spotd.units import parse_duration

PATIENCE = 3.0  # seconds for an answer of systemctl


def own_unit() -> str | None:
    """Returns the name of the unit this process runs in, None outside systemd."""
    if not Path("/run/systemd/system").is_dir() or "INVOCATION_ID" not in os.environ:
        return None
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        for part in reversed(line.rpartition(":")[2].split("/")):
            if part.endswith(".service"):
                return part
    return None


def _systemctl(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["systemctl", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def stop_timeout(unit: str, default: float) -> float:
    """Returns the unit's TimeoutStopSec in seconds."""
    text = _systemctl("show", "--property=TimeoutStopUSec", "--value", unit).strip()
    if text == "infinity":
        return default
    try:
        return parse_duration(text)
    except ValueError:
        return default


def being_restarted(unit: str) -> bool:
    """Whether the unit's pending job is a restart: then the trainer is to live on.

    While a unit of a restart job stops, `systemctl list-jobs` still shows the job as
    "restart"; it becomes "start" afterwards. A package upgrade restarts the unit too.
    """
    for line in _systemctl("list-jobs", "--no-legend", "--plain").splitlines():
        words = line.split()
        if len(words) >= 3 and words[1] == unit:  # noqa: PLR2004 - id, unit, type, state
            return words[2] in ("restart", "try-restart", "reload-or-restart")
    return False
