"""Whose machine this is, and what all clouds' metadata services have in common.

Each cloud's file turns its service's answers into the same events; `spotd.shell.imds`
asks, at a pace, whichever it is given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.config import ImdsSettings
    from spotd.core.events import MetadataAnswered

DMI = Path("/sys/class/dmi/id")
# Microsoft's asset tag of every Azure machine (cloud-init's and waagent's test, too).
_AZURE_ASSET_TAG = "7783-7084-3265-9085-8269-3286-77"
_LONGEST_FIELD = 128


@dataclass(frozen=True, slots=True)
class InstanceIdentity:
    """What the instance is; None where it is not known, or not known yet.

    `az` is an availability zone like "us-east-1a", `life_cycle` "spot" or "on-demand"
    (or what else the service says).
    """

    instance_id: str | None = None
    instance_type: str | None = None
    az: str | None = None
    region: str | None = None
    life_cycle: str | None = None


class MetadataTrouble(Exception):  # noqa: N818 - the project's word for it
    """A question that got no usable answer.

    Attributes:
        reason: What happened, one line.
        hint: What to do about it, one line, or "".
        throttled: The service wants fewer questions.
        notices_seen: The question for a notice was answered (there is none); another was not.
    """

    def __init__(
        self, reason: str, hint: str = "", *, throttled: bool = False, notices_seen: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.throttled = throttled
        self.notices_seen = notices_seen


class NoticeSource(Protocol):
    """A cloud's metadata service: EC2's, Google's, Azure's.

    `longest_interval`: seconds between polls that its notices allow, whatever the settings say.
    """

    longest_interval: float

    def poll(self, timeout: float, early: Callable[[MetadataAnswered], None]) -> MetadataAnswered:
        """Ask once; takes at most twice `timeout` seconds.

        `early` is called with a notice as soon as it is known, before anything else is asked.

        Raises:
            MetadataTrouble: There is no usable answer; after a call of `early`, never.
        """
        ...

    def identity(self, timeout: float) -> InstanceIdentity:
        """What the instance is; at most `timeout` seconds. Raises MetadataTrouble."""
        ...


def detect(dmi: Path = DMI) -> str:
    """Whose machine the firmware says it is: "ec2", "gce", "azure", or "" when it does not say."""
    vendor, product = _read(dmi / "sys_vendor"), _read(dmi / "product_name")
    if vendor == "Amazon EC2" or _read(dmi / "bios_vendor").startswith("Amazon"):
        return "ec2"
    if vendor == "Google" or product == "Google Compute Engine":
        return "gce"
    if _read(dmi / "chassis_asset_tag") == _AZURE_ASSET_TAG:
        return "azure"
    # Xen instances of EC2 have no vendor of their own.
    return "ec2" if _read(dmi / "product_uuid").lower().startswith("ec2") else ""


def instance_id_of_firmware(dmi: Path = DMI) -> str | None:
    """The instance id where the firmware tells it: EC2's Nitro instances."""
    tag = _read(dmi / "board_asset_tag")
    return tag if re.fullmatch(r"i-[0-9a-f]{8,32}", tag) else None


def make_source(cloud: str, settings: ImdsSettings, dmi: Path = DMI) -> NoticeSource:
    """The service of "ec2", "gce" or "azure"; "auto" looks at the firmware, and means EC2 else."""
    # Each imported only where it is used: an idle daemon is to stay small.
    chosen = (detect(dmi) or "ec2") if cloud == "auto" else cloud
    if chosen == "gce":
        from spotd.shell.clouds.gce import GceMetadata  # noqa: PLC0415

        return GceMetadata(settings)
    if chosen == "azure":
        from spotd.shell.clouds.azure import AzureMetadata  # noqa: PLC0415

        return AzureMetadata(settings)
    from spotd.shell.clouds.ec2 import Ec2Metadata  # noqa: PLC0415

    return Ec2Metadata(settings, dmi=dmi)


def printable(value: object, longest: int = _LONGEST_FIELD) -> str:
    """Text from outside, fit for a log line: one line, printable, not too long."""
    text = value if isinstance(value, str) else ""
    return "".join(c if c.isprintable() else "?" for c in text[:longest]).strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # not there, or not for us: then the firmware tells nothing
        return ""
