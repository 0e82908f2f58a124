"""Google Compute Engine's metadata server: preemption and host maintenance.

Facts: Compute Engine documentation, "View and query VM metadata", "Spot VMs" (30 seconds
between the notice and the end, best effort), "Query metadata server for maintenance event
notices". The server tells that an instance is being preempted, not when it will be off.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from spotd.core.events import MetadataAnswered
from spotd.shell.clouds import InstanceIdentity, MetadataTrouble, printable
from spotd.shell.clouds.http import Endpoint, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.config import ImdsSettings

NOTICE = 30.0  # seconds from preemption to the end of the instance
_ROOT = "/computeMetadata/v1/instance/"
_FLAVOR = {"Metadata-Flavor": "Google"}
_HINTS = {403: "something removes the Metadata-Flavor header: a proxy?"}
_SIDE_EVERY = 5.0


class GceMetadata:
    """Asks Google's server; not for use by two threads at once."""

    longest_interval = 1.0  # of thirty seconds, five would be a lot

    def __init__(self, settings: ImdsSettings) -> None:
        self._endpoint = Endpoint(settings.endpoint)
        self._last_false = 0.0  # wall clock
        self._deadline: float | None = None
        self._events: tuple[tuple[str, str, str], ...] = ()
        self._side_due = 0.0

    def poll(self, timeout: float, early: Callable[[MetadataAnswered], None]) -> MetadataAnswered:
        """See `NoticeSource.poll`."""
        preempted = self._preempted(time.monotonic() + timeout)
        if preempted:
            early(MetadataAnswered("stop", self._deadline, None, self._events))
        try:
            self._maintenance(time.monotonic() + timeout)
        except MetadataTrouble as trouble:
            if not preempted:
                trouble.notices_seen = True
                raise
        return MetadataAnswered("stop" if preempted else None, self._deadline, None, self._events)

    def identity(self, timeout: float) -> InstanceIdentity:
        """See `NoticeSource.identity`."""
        deadline = time.monotonic() + timeout
        zone = self._last_part("zone", deadline)
        return InstanceIdentity(
            instance_id=self._last_part("id", deadline),
            instance_type=self._last_part("machine-type", deadline),
            az=zone,
            region=zone.rpartition("-")[0] if zone else None,
            life_cycle="spot"
            if self._get("scheduling/preemptible", deadline) == "TRUE"
            else "on-demand",
        )

    def _preempted(self, deadline: float) -> bool:
        said = self._get("preempted", deadline)
        now = time.time()
        if said == "TRUE":
            if self._deadline is None:
                # It cannot have begun before the last time it had not.
                begun = max(self._last_false, now - 5.0)
                self._deadline = min(begun, now) + NOTICE
            return True
        if said not in ("FALSE", None):
            raise MetadataTrouble(f'preempted: what it says is "{printable(said, 40)}"')
        self._last_false, self._deadline = now, None
        return False

    def _maintenance(self, deadline: float) -> None:
        now = time.monotonic()
        if now < self._side_due:
            return
        said = self._get("maintenance-event", deadline)
        # Only an answer ends the wait for the next: what failed is asked again at once.
        self._side_due = now + _SIDE_EVERY
        if said in (None, "NONE"):
            self._events = ()
        elif re.fullmatch(r"[A-Z_]{1,64}", said or ""):
            self._events = (("maintenance-event", said or "", ""),)
        else:
            raise MetadataTrouble(f'maintenance-event: what it says is "{printable(said, 40)}"')

    def _last_part(self, path: str, deadline: float) -> str | None:
        """The end of "projects/123/zones/us-central1-a"."""
        said = self._get(path, deadline)
        return None if said is None else printable(said.rpartition("/")[2]) or None

    def _get(self, path: str, deadline: float) -> str | None:
        reply = self._endpoint.ask("GET", _ROOT + path, dict(_FLAVOR), deadline)
        if reply.status == 404:  # noqa: PLR2004 - HTTP
            return None
        if reply.status != 200:  # noqa: PLR2004
            raise refusal(path, reply.status, _HINTS)
        if reply.headers.get("metadata-flavor") != "Google":
            raise MetadataTrouble(
                f"{path}: the answer is not the metadata server's",
                "is this a Compute Engine instance? See cloud",
            )
        return reply.body.decode("utf-8", "replace").strip()
