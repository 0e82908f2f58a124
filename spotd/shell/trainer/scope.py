"""Where a trainer's processes live: a transient systemd scope, or nowhere special.

In a scope of its own the trainer survives the daemon's SIGKILL and its watchdog, and
`Before=spotd.service` makes a shutdown stop the daemon first, which then drains.
`systemd-run --scope` executes the command in place, so that the pid and the exit status
are the command's own (systemd-run(1)).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

_CGROUPS = Path("/sys/fs/cgroup")
_OOM_POLICY_SINCE = 253  # systemd's NEWS: scopes have OOMPolicy=, and it defaults to stop
_VERSION_SECONDS = 5.0


class Placement(Protocol):
    """Puts a command where a trainer belongs."""

    def wrap(self, unit: str, command: list[str], *, stop_seconds: float) -> list[str]:
        """The command line that executes the command in place, in the unit if there is one."""
        ...

    def cgroup(self, pid: int) -> Path | None:
        """The directory of the control group that the process has to itself and its tree."""
        ...


class PlainProcess:
    """A session of its own, and nothing more."""

    def wrap(self, unit: str, command: list[str], *, stop_seconds: float) -> list[str]:  # noqa: ARG002
        """The command as it is."""
        return command

    def cgroup(self, pid: int) -> Path | None:  # noqa: ARG002
        """None: it shares the daemon's."""
        return None


class SystemdScope:
    """A transient scope, gone when its last process is."""

    def __init__(self, systemd_run: str) -> None:
        self._systemd_run = systemd_run
        self._properties: list[str] | None = None

    def wrap(self, unit: str, command: list[str], *, stop_seconds: float) -> list[str]:
        """`systemd-run --scope` in front of the command."""
        properties = ["Before=spotd.service", f"TimeoutStopSec={max(1, round(stop_seconds))}"]
        return [
            self._systemd_run, "--scope", "--collect", "--quiet", "--no-ask-password",
            f"--unit={unit}", "--description=The trainer of spotd",
            *(word for value in properties + self._version_properties() for word in ("-p", value)),
            "--", *command,
        ]  # fmt: skip

    def cgroup(self, pid: int) -> Path | None:
        """The scope's, unless the process turns out not to be in one of ours."""
        path = _cgroup_of(pid)
        return path if path is not None and path.name.startswith("spotd-trainer-") else None

    def _version_properties(self) -> list[str]:
        """One worker killed for want of memory must not make systemd stop the whole scope."""
        if self._properties is None:
            newer = _systemd_version(self._systemd_run) >= _OOM_POLICY_SINCE
            self._properties = ["OOMPolicy=continue"] if newer else []
        return self._properties


def find_placement() -> Placement:
    """The scope where systemd is pid 1 and we may ask it for one, else the plain process."""
    systemd_run = shutil.which("systemd-run")
    if systemd_run and os.geteuid() == 0 and Path("/run/systemd/system").is_dir():
        return SystemdScope(systemd_run)
    return PlainProcess()


def unit_name(run: str, attempt: int, token: str) -> str:
    """The scope's name; the token keeps it apart from one that is still being taken down."""
    return f"spotd-trainer-{re.sub('[^A-Za-z0-9_.-]', '_', run)}-{attempt}-{token[:4]}.scope"


def _systemd_version(systemd_run: str) -> int:
    try:
        answer = subprocess.run(
            [systemd_run, "--version"],
            capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False,
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.match(r"systemd (\d+)", answer)
    return int(match[1]) if match else 0


def _cgroup_of(pid: int) -> Path | None:
    """Of systemd's own hierarchy: the unified one, or the named one of older machines."""
    unified = (_CGROUPS / "cgroup.controllers").exists()
    wanted, base = ("", _CGROUPS) if unified else ("name=systemd", _CGROUPS / "systemd")
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == wanted:
            return base / path.lstrip("/")
    return None
