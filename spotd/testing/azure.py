"""Azure's instance metadata service on loopback, as far as Scheduled Events need it.

Paths, headers and refusals are those of the Azure documentation ("Azure Instance Metadata
Service", "Scheduled Events for Linux VMs"): `Metadata: true` or 400, no X-Forwarded-For, an
api-version always. `python -m spotd.testing.azure --port N` runs it alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from spotd.testing.metadata import MetadataServer, http_date, serve
from spotd.testing.moody_http import Answer, Question

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = ("Freeze", "Reboot", "Redeploy", "Preempt", "Terminate")
_JSON = {"Content-Type": "application/json; charset=utf-8"}


class AzureSimulator(MetadataServer):
    """One machine's metadata.

    Args:
        host: Where to listen.
        port: The same; 0 takes a free one.
        name: The machine's name, which events name.
        eviction_policy: "Deallocate" or "Delete".
        clock: Wall clock, seconds since the epoch.
    """

    server_name = "IMDS/150.870.65.1475"

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str = "trainer-1",
        eviction_policy: str = "Deallocate",
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(host=host, port=port)
        self.name = name
        self._clock = clock
        self._incarnation = 1
        self._events: dict[str, dict[str, Any]] = {}
        self.acknowledged: list[str] = []
        self._compute = {
            "azEnvironment": "AzurePublicCloud",
            "evictionPolicy": eviction_policy,
            "location": "westeurope",
            "name": name,
            "priority": "Spot",
            "vmId": "02aab8a4-74ef-476e-8182-f6d2ba4166a6",
            "vmSize": "Standard_NC4as_T4_v3",
            "zone": "1",
        }

    def schedule(
        self, kind: str = "Preempt", *, in_seconds: float = 30.0, resources: list[str] | None = None
    ) -> str:
        """An event for this machine, or for those named; returns its id."""
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
        event_id = str(uuid.uuid4()).upper()
        with self._lock:
            self._incarnation += 1
            self._events[event_id] = {
                "EventId": event_id,
                "EventStatus": "Scheduled",
                "EventType": kind,
                "ResourceType": "VirtualMachine",
                "Resources": [self.name] if resources is None else resources,
                "NotBefore": http_date(self._clock() + in_seconds),
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            }
        return event_id

    def begin(self, event_id: str) -> None:
        """The event is being carried out: it no longer says when."""
        with self._lock:
            self._incarnation += 1
            self._events[event_id].update({"EventStatus": "Started", "NotBefore": ""})

    def withdraw(self) -> None:
        """There are no events any more."""
        with self._lock:
            self._incarnation += 1
            self._events.clear()

    def verbs(self) -> dict[str, Callable[..., object]]:
        """See the methods of these names."""
        own = (self.schedule, self.begin, self.withdraw)
        return {**super().verbs(), **{method.__name__: method for method in own}}

    def state(self) -> dict[str, Any]:
        """What it is doing, as JSON."""
        return {**super().state(), "events": list(self._events.values())}

    def answer(self, question: Question) -> Answer:
        """Scheduled events, and what the machine is."""
        parts = urlsplit(question.path)
        headers = question.headers
        if headers.get("metadata", "").lower() != "true" or "x-forwarded-for" in headers:
            return _error(400, "Bad request. Required metadata header not specified")
        if "api-version" not in parse_qs(parts.query):
            return _error(400, "Bad request. api-version is invalid or was not specified")
        if parts.path == "/metadata/scheduledevents":
            if question.method == "POST":
                self.acknowledged.append(question.path)
                return Answer(200, b"", _JSON)
            with self._lock:
                said: dict[str, Any] = {
                    "DocumentIncarnation": self._incarnation,
                    "Events": list(self._events.values()),
                }
            return Answer(200, json.dumps(said).encode(), _JSON)
        if parts.path == "/metadata/instance/compute":
            return Answer(200, json.dumps(self._compute).encode(), _JSON)
        return _error(404, "Not found")


def _error(status: int, message: str) -> Answer:
    return Answer(status, json.dumps({"error": message}).encode(), _JSON)


def main(arguments: list[str] | None = None) -> int:
    """Run it in the foreground until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m spotd.testing.azure", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1340)
    chosen = parser.parse_args(arguments)
    serve(AzureSimulator(host=chosen.host, port=chosen.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
