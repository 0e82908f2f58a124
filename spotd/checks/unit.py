"""The unit: enabled, because that and nothing else resumes training at boot."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from spotd.checks import Finding, Surroundings, failed, ok, warning
from spotd.core.deadline import WINDOW
from spotd.units import parse_duration

SUBJECT = "unit"
NAME = "spotd.service"
_PROPERTIES = ("LoadState", "UnitFileState", "ActiveState", "TimeoutStopUSec", "After")


@dataclass(frozen=True, slots=True)
class Facts:
    """`properties`: of `systemctl show`; None where no systemd runs."""

    properties: dict[str, str] | None = None


def probe(_around: Surroundings) -> list[Finding]:
    """Asks systemd."""
    return judge(look(os.environ.get("SPOTD_UNIT", NAME)))


def look(unit: str) -> Facts:
    """What systemd knows of the unit."""
    if not Path("/run/systemd/system").is_dir():
        return Facts()
    wanted = ",".join(_PROPERTIES)
    try:
        done = subprocess.run(
            ["systemctl", "show", f"--property={wanted}", unit],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return Facts({})
    lines = (line.partition("=") for line in done.stdout.splitlines())
    return Facts({key: value for key, _, value in lines})


def judge(facts: Facts) -> list[Finding]:
    """Decides."""
    told = facts.properties
    if told is None:
        advice = "without systemd something else must start `spotd run` at each boot"
        return [warning(SUBJECT, "no systemd runs here", advice)]
    if told.get("LoadState") != "loaded":
        advice = "install the package, or systemd/spotd.service; then systemctl enable --now spotd"
        return [failed(SUBJECT, f"systemd knows no {NAME}", advice)]
    found = []
    state = told.get("UnitFileState", "")
    active = told.get("ActiveState", "")
    if state not in ("enabled", "enabled-runtime", "alias", "static"):
        text = f"{NAME} is {state or 'not enabled'}: training does not resume after a boot"
        found.append(failed(SUBJECT, text, "sudo systemctl enable spotd"))
    elif active != "active":
        text = f"{NAME} is enabled, and {active or 'not running'} now"
        found.append(warning(SUBJECT, text, "sudo systemctl start spotd"))
    else:
        found.append(ok(SUBJECT, f"{NAME} is enabled and running"))
    found += _judge_details(told)
    return found


def _judge_details(told: dict[str, str]) -> list[Finding]:
    found = []
    text = told.get("TimeoutStopUSec", "")
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = WINDOW  # "infinity", or a systemd that does not say
    if seconds < WINDOW:
        advice = "systemctl edit spotd: [Service] TimeoutStopSec=150"
        line = f"TimeoutStopSec is {text}: a shutdown kills spotd before the two minutes are over"
        found.append(warning("stop time-out", line, advice))
    if "cloud-final.service" in told.get("After", "").split():
        line = "it is ordered after cloud-final.service: a cycle, and no start after the first boot"
        found.append(failed("unit order", line, "take that After= out of the unit"))
    return found
