"""Google Compute Engine's metadata server on loopback.

Paths, headers and refusals are those of the Compute Engine documentation ("View and query
VM metadata"): `Metadata-Flavor: Google` both ways, 403 without it or with X-Forwarded-For,
`wait_for_change` left out. `python -m spotd.testing.gce --port N` runs it alone.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from spotd.testing.metadata import MetadataServer, serve
from spotd.testing.moody_http import Answer, Question, error_answer

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT = "/computeMetadata/v1/instance/"
_FLAVOR = {"Metadata-Flavor": "Google", "Content-Type": "application/text"}
MAINTENANCE = ("NONE", "MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE")


class GceSimulator(MetadataServer):
    """One instance's metadata.

    Args:
        host: Where to listen.
        port: The same; 0 takes a free one.
        preemptible: Whether it is a Spot VM.
    """

    server_name = "Metadata Server for VM"

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, preemptible: bool = True) -> None:
        super().__init__(host=host, port=port)
        self._values = {
            "id": "4520031799277581759",
            "name": "trainer-1",
            "machine-type": "projects/123456789/machineTypes/g2-standard-4",
            "zone": "projects/123456789/zones/us-central1-a",
            "scheduling/preemptible": "TRUE" if preemptible else "FALSE",
            "scheduling/on-host-maintenance": "TERMINATE",
            "preempted": "FALSE",
            "maintenance-event": "NONE",
        }

    def preempt(self) -> None:
        """The instance is being taken away; 30 seconds are left."""
        self._values["preempted"] = "TRUE"

    def maintain(self, event: str = MAINTENANCE[2]) -> None:
        """Host maintenance is about to begin; one of `MAINTENANCE`."""
        if event not in MAINTENANCE:
            raise ValueError(f"{event!r} is none of {', '.join(MAINTENANCE)}")
        self._values["maintenance-event"] = event

    def withdraw(self) -> None:
        """Nothing is about to happen any more."""
        self._values.update({"preempted": "FALSE", "maintenance-event": "NONE"})

    def say(self, path: str, text: str) -> None:
        """Answer a path below `instance/` with exactly this text."""
        self._values[path] = text

    def verbs(self) -> dict[str, Callable[..., object]]:
        """See the methods of these names."""
        own = (self.preempt, self.maintain, self.withdraw, self.say)
        return {**super().verbs(), **{method.__name__: method for method in own}}

    def state(self) -> dict[str, Any]:
        """What it is doing, as JSON."""
        return {**super().state(), "values": dict(self._values)}

    def answer(self, question: Question) -> Answer:
        """The value of a path below `instance/`."""
        headers = question.headers
        if headers.get("metadata-flavor") != "Google" or "x-forwarded-for" in headers:
            return error_answer(403)
        path = question.path.partition("?")[0]
        value = self._values.get(path.removeprefix(_ROOT)) if path.startswith(_ROOT) else None
        if value is None:
            missing = error_answer(404)
            return Answer(404, missing.body, {**missing.headers, "Metadata-Flavor": "Google"})
        return Answer(200, value.encode(), _FLAVOR)


def main(arguments: list[str] | None = None) -> int:
    """Run it in the foreground until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m spotd.testing.gce", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1339)
    chosen = parser.parse_args(arguments)
    serve(GceSimulator(host=chosen.host, port=chosen.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
