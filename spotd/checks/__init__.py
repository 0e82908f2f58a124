"""`spotd check`: what makes such set-ups fail, found before it costs money.

One file for each thing that is looked at. Each has a `probe` that only looks (and, in the
store, leaves nothing behind) and a `judge` that only decides: pure, and tested without a
cloud.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spotd.config import Settings
    from spotd.shell.clouds import InstanceIdentity

OK, WARNING, FAILED = "ok", "warning", "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: OK, WARNING or FAILED.
        subject: What was looked at.
        found: What was found.
        advice: What to do about it; "" where nothing is to be done.
    """

    level: str
    subject: str
    found: str
    advice: str = ""


@dataclass(slots=True)
class Surroundings:
    """What the probes share; filled in by those that come first.

    Attributes:
        settings: The configuration.
        cloud: "ec2", "gce" or "azure".
        identity: What the metadata service says of the instance, None while it is silent.
        newest_size: Bytes of the newest checkpoint, None when there is none.
        rate: Bytes per second of past uploads, None before the first.
    """

    settings: Settings
    cloud: str = "ec2"
    identity: InstanceIdentity | None = None
    newest_size: int | None = None
    rate: float | None = None


def ok(subject: str, found: str) -> Finding:
    """Returns a finding that needs nothing."""
    return Finding(OK, subject, found)


def warning(subject: str, found: str, advice: str) -> Finding:
    """Returns a finding that may cost something, or could not be looked at."""
    return Finding(WARNING, subject, found, advice)


def failed(subject: str, found: str, advice: str) -> Finding:
    """Returns a finding that will cost work or money."""
    return Finding(FAILED, subject, found, advice)
