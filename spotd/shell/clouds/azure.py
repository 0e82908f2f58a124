"""Azure's instance metadata service: Scheduled Events, with Preempt and Terminate among them.

Facts: Azure documentation, "Scheduled Events for Linux VMs" and "Azure Instance Metadata
Service". A Preempt leaves at least 30 seconds, a Terminate 5 to 15 minutes. All machines of
a scale set see the events of all: only those that name this machine count. Events are never
acknowledged: that would have them carried out at once.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from spotd.core.events import MetadataAnswered
from spotd.shell.clouds import InstanceIdentity, MetadataTrouble, printable
from spotd.shell.clouds.http import Endpoint, MetadataTimeout, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.config import ImdsSettings

EVENTS_PATH = "/metadata/scheduledevents?api-version=2020-07-01"
COMPUTE_PATH = "/metadata/instance/compute?api-version=2021-02-01"
SHORTEST_NOTICE = 30.0
_ENDING = ("Preempt", "Terminate")
# A Terminate can be a quarter of an hour away: until it is near it is an event like others.
_NEAR = 120.0
_MOST_EVENTS = 20
_HINTS = {
    400: "something removes the Metadata header or adds X-Forwarded-For: a proxy?",
    404: "is this an Azure machine? See cloud",
}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE = re.compile(r"\w{3}, (\d{1,2}) (\w{3}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT", re.ASCII)


@dataclass(frozen=True, slots=True)
class _ScheduledEvent:
    name: str
    kind: str
    started: bool
    not_before: str
    resources: tuple[str, ...]


class AzureMetadata:
    """Asks Azure's service; not for use by two threads at once."""

    longest_interval = 1.0  # what Microsoft recommends for notices of thirty seconds

    def __init__(self, settings: ImdsSettings) -> None:
        self._endpoint = Endpoint(settings.endpoint)
        self._compute: dict[str, Any] | None = None
        self._deadlines: dict[str, float] = {}

    def poll(
        self,
        timeout: float,
        early: Callable[[MetadataAnswered], None],  # noqa: ARG002 - one question answers all
    ) -> MetadataAnswered:
        """See `NoticeSource.poll`."""
        deadline = time.monotonic() + timeout
        try:
            said = self._get(EVENTS_PATH, deadline)
        except MetadataTimeout as trouble:
            trouble.hint = "the first question ever asked of a machine can take two minutes"
            raise
        found = read_events(said)
        if found:
            name = str(self._about_me(deadline).get("name", "")).lower()
            found = [event for event in found if name in event.resources or not event.resources]
        self._deadlines = {e.name: self._deadline_of(e) for e in found if e.kind in _ENDING}
        near = time.time() + _NEAR
        ending = [e for e in found if self._deadlines.get(e.name, near) < near]
        others = tuple((e.name, e.kind, e.not_before) for e in found if e not in ending)
        if not ending:
            return MetadataAnswered(events=others)
        first = min(ending, key=lambda event: self._deadlines[event.name])
        return MetadataAnswered(self._action(first), self._deadlines[first.name], None, others)

    def identity(self, timeout: float) -> InstanceIdentity:
        """See `NoticeSource.identity`."""
        about = self._about_me(time.monotonic() + timeout)
        text = {
            key: printable(about.get(key)) or None
            for key in ("vmId", "vmSize", "location", "zone", "priority")
        }
        zone = f"{text['location']}-{text['zone']}" if text["zone"] else None
        return InstanceIdentity(
            instance_id=text["vmId"],
            instance_type=text["vmSize"],
            az=zone,
            region=text["location"],
            life_cycle="spot" if text["priority"] in ("Spot", "Low") else "on-demand",
        )

    def _about_me(self, deadline: float) -> dict[str, Any]:
        if self._compute is None:
            said = _json(self._get(COMPUTE_PATH, deadline), "instance/compute")
            if not isinstance(said, dict):
                raise MetadataTrouble("instance/compute: what it says is no description")
            self._compute = said
        return self._compute

    def _action(self, event: _ScheduledEvent) -> str:
        """What a preempted machine comes to: deallocated, to be started again, or deleted."""
        deleted = (self._compute or {}).get("evictionPolicy") == "Delete"
        return "terminate" if event.kind == "Terminate" or deleted else "stop"

    def _deadline_of(self, event: _ScheduledEvent) -> float:
        """Seconds since the epoch. An event that has started no longer says when it begins."""
        told = read_date(event.not_before)
        if told is not None and not event.started:
            return told
        return self._deadlines.get(event.name, time.time() + SHORTEST_NOTICE)

    def _get(self, path: str, deadline: float) -> bytes:
        reply = self._endpoint.ask("GET", path, {"Metadata": "true"}, deadline)
        if reply.status != 200:  # noqa: PLR2004 - HTTP
            raise refusal(path.partition("?")[0].removeprefix("/metadata/"), reply.status, _HINTS)
        return reply.body


def read_events(body: bytes) -> list[_ScheduledEvent]:
    """The events of a Scheduled Events document.

    Raises:
        MetadataTrouble: It is no such document.
    """
    said = _json(body, "scheduledevents")
    listed = said.get("Events") if isinstance(said, dict) else None
    if not isinstance(listed, list):
        raise MetadataTrouble("scheduledevents: what it says is no list of events")
    return [_read_event(event) for event in listed[:_MOST_EVENTS] if isinstance(event, dict)]


def _read_event(event: dict[str, Any]) -> _ScheduledEvent:
    resources = event.get("Resources")
    kind, start = printable(event.get("EventType")), printable(event.get("NotBefore"))
    return _ScheduledEvent(
        name=printable(event.get("EventId")) or f"{kind} {start}",
        kind=kind,
        started=event.get("EventStatus") == "Started",
        not_before=start,
        resources=tuple(str(r).lower() for r in resources) if isinstance(resources, list) else (),
    )


def read_date(text: str) -> float | None:
    """Seconds since the epoch of "Mon, 19 Sep 2016 18:29:47 GMT"; None when it is no such date."""
    match = _DATE.fullmatch(text)
    if match is None or match[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(match[n]) for n in (1, 3, 4, 5, 6))
    month = _MONTHS.index(match[2]) + 1
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        return None
    return moment.timestamp()


def _json(body: bytes, path: str) -> Any:
    try:
        return json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise MetadataTrouble(f"{path}: what it says is no JSON") from None
