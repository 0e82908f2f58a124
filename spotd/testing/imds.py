"""EC2's instance metadata service on loopback, for the demo, the drill and the tests.

Paths, headers and refusals are those of the EC2 user guide ("Use the Instance Metadata
Service to access instance metadata", "Spot Instance interruption notices", "EC2 instance
rebalance recommendations", "View scheduled events"):

    with MetadataSimulator() as imds:
        imds.give_notice("stop", in_seconds=120)

`python -m spotd.testing.imds --port N` runs it alone; `spotd.testing.metadata.drive`
calls the same verbs from another process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import secrets
import sys
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from spotd.testing.metadata import MetadataServer, http_date, serve
from spotd.testing.moody_http import Answer, Question, error_answer

if TYPE_CHECKING:
    from collections.abc import Callable

ACTIONS = ("stop", "terminate", "hibernate")
TOKEN_PATH = "/api/token"  # noqa: S105 - a path
TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "x-aws-ec2-metadata-token"  # noqa: S105 - a header
LONGEST_TTL = 21600
_VERSIONED = re.compile(r"/(?:latest|\d{4}-\d\d-\d\d)(/.*)?")


class MetadataSimulator(MetadataServer):
    """One instance's metadata.

    Args:
        host, port: Where to listen; port 0 takes a free one.
        instance_id, instance_type, zone, life_cycle, account: What the instance is.
        credentials: Access key, secret key and session token of the instance's role;
            None: it has no role.
        v1: Whether questions without a token are answered.
        hop_limit, hops: With more hops than the limit, the answer to a PUT never arrives.
        clock: Wall clock, seconds since the epoch.
    """

    server_name = "EC2ws"

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        instance_id: str = "i-0123456789abcdef0",
        instance_type: str = "g5.xlarge",
        zone: str = "us-east-1a",
        life_cycle: str = "spot",
        account: str = "123456789012",
        credentials: tuple[str, str, str] | None = None,
        v1: bool = False,
        hop_limit: int = 1,
        hops: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(host=host, port=port)
        self.instance_id, self.instance_type = instance_id, instance_type
        self.zone, self.region, self.life_cycle = zone, zone.rstrip("abcdefghij"), life_cycle
        self.account, self.credentials = account, credentials
        self.v1, self.hop_limit, self.hops = v1, hop_limit, hops
        self._clock = clock
        self._tokens: dict[str, float] = {}
        self._notice: tuple[str, float, float | None] | None = None
        self._raw_action: bytes | None = None
        self._rebalance: str | None = None
        self._events: dict[str, dict[str, str]] = {}
        self._lifecycle_state: str | None = None
        self._event_numbers = itertools.count(1)

    # --- what happens to the instance ---

    def give_notice(self, action: str = "stop", *, in_seconds: float = 120.0) -> None:
        """EC2 will do `action` at about now + `in_seconds`."""
        if action not in ACTIONS:
            raise ValueError(f"{action!r} is no action; one of {', '.join(ACTIONS)}")
        with self._lock:
            self._notice = (action, self._clock() + in_seconds, None)

    def slide(self, *, in_seconds: float = 120.0) -> None:
        """From now on the notice's time is always `in_seconds` away, as on some mocks."""
        with self._lock:
            action = self._notice[0] if self._notice else "stop"
            self._notice = (action, 0.0, in_seconds)

    def withdraw(self) -> None:
        """There is no notice any more, and no recommendation."""
        with self._lock:
            self._notice = self._raw_action = self._rebalance = None

    def say(self, body: str) -> None:
        """Answer `spot/instance-action` with exactly this text."""
        with self._lock:
            self._raw_action = body.encode()

    def rebalance(self) -> None:
        """Recommend rebalancing, as of now."""
        with self._lock:
            self._rebalance = _iso(self._clock())

    def schedule(
        self,
        code: str = "instance-reboot",
        *,
        in_seconds: float = 86400.0,
        lasts: float = 7200.0,
        description: str = "scheduled reboot",
        event_id: str = "",
    ) -> str:
        """Schedule maintenance; returns the event's id."""
        event_id = event_id or f"instance-event-{next(self._event_numbers):017x}"
        start = self._clock() + in_seconds
        with self._lock:
            self._events[event_id] = {
                "NotBefore": _gmt(start),
                "Code": code,
                "Description": description,
                "EventId": event_id,
                "NotAfter": _gmt(start + lasts),
                "State": "active",
                "NotBeforeDeadline": _gmt(start + 9 * 86400),
            }
        return event_id

    def finish_event(self, event_id: str, *, state: str = "completed") -> None:
        """Move an event to the history, as "completed" or "canceled"."""
        with self._lock:
            event = self._events[event_id]
            event["State"] = state
            event["Description"] = f"[{state.capitalize()}] {event['Description']}"

    def autoscaling(self, state: str | None) -> None:
        """Set `autoscaling/target-lifecycle-state`; None: not in a group."""
        with self._lock:
            self._lifecycle_state = state

    def forget_tokens(self) -> None:
        """Every token given so far is worth nothing any more."""
        with self._lock:
            self._tokens.clear()

    def configure(
        self, *, v1: bool | None = None, hop_limit: int | None = None, hops: int | None = None
    ) -> None:
        """Change the instance's metadata options; None leaves one as it is."""
        self.v1 = self.v1 if v1 is None else v1
        self.hop_limit = hop_limit or self.hop_limit
        self.hops = hops or self.hops

    def verbs(self) -> dict[str, Callable[..., object]]:
        """See the methods of these names."""
        own = (
            self.give_notice, self.slide, self.withdraw, self.say, self.rebalance, self.schedule,
            self.finish_event, self.autoscaling, self.forget_tokens, self.configure,
        )  # fmt: skip
        return {**super().verbs(), **{method.__name__: method for method in own}}

    def state(self) -> dict[str, Any]:
        """What it is doing, as JSON."""
        with self._lock:
            action = self._instance_action()
            return {
                **super().state(),
                "notice": json.loads(action) if action and not self._raw_action else None,
                "rebalance": self._rebalance,
                "events": list(self._events.values()),
                "tokens": len(self._tokens),
            }

    # --- what the instance can ask ---

    def answer(self, question: Question) -> Answer:
        """Tokens first, then the tree."""
        match = _VERSIONED.fullmatch(question.path.partition("?")[0])
        path = match[1] or "/" if match else ""
        if path == TOKEN_PATH and question.method == "PUT":
            return self._token(question)
        if question.method not in ("GET", "HEAD"):
            return error_answer(405)
        refused = self._refusal(question)
        if refused:
            return error_answer(refused)
        found = self._look_up(path)
        if found is None:
            return error_answer(404)
        mark = {"Accept-Ranges": "none", "Last-Modified": http_date(self._clock())}
        return Answer(200, found, mark)

    def _token(self, question: Question) -> Answer:
        if "x-forwarded-for" in question.headers:
            return error_answer(403)
        ttl = question.headers.get(TTL_HEADER, "")
        if not (ttl.isascii() and ttl.isdigit() and 1 <= int(ttl) <= LONGEST_TTL):
            return error_answer(400)
        token = secrets.token_urlsafe(41)[:54] + "=="
        with self._lock:
            self._tokens[token] = time.monotonic() + int(ttl)
        if self.hops > self.hop_limit:
            return Answer(hang=True)
        return Answer(200, token.encode(), {TTL_HEADER: ttl})

    def _refusal(self, question: Question) -> int:
        token = question.headers.get(TOKEN_HEADER)
        if token is None:
            return 0 if self.v1 else 401
        with self._lock:
            return 0 if self._tokens.get(token, 0.0) > time.monotonic() else 401

    def _look_up(self, path: str) -> bytes | None:
        with self._lock:
            tree = self._tree()
        if path in tree:
            return tree[path]
        folder = path if path.endswith("/") else f"{path}/"
        names = {
            name + ("/" if rest else "")
            for entry in tree
            if entry.startswith(folder)
            for name, rest, _ in [entry[len(folder) :].partition("/")]
        }
        return "\n".join(sorted(names)).encode() if names else None

    def _instance_action(self) -> bytes | None:
        if self._raw_action is not None or self._notice is None:
            return self._raw_action
        action, at, sliding = self._notice
        at = at if sliding is None else self._clock() + sliding
        return json.dumps({"action": action, "time": _iso(at)}).encode()

    def _tree(self) -> dict[str, bytes]:
        meta: dict[str, str | bytes | None] = {
            "ami-id": "ami-0123456789abcdef0",
            "instance-id": self.instance_id,
            "instance-type": self.instance_type,
            "instance-life-cycle": self.life_cycle,
            "placement/availability-zone": self.zone,
            "placement/region": self.region,
            "local-ipv4": "10.0.0.7",
            "spot/instance-action": self._instance_action(),
            "events/maintenance/scheduled": self._listed("active"),
            "events/maintenance/history": self._listed("completed", "canceled"),
            "autoscaling/target-lifecycle-state": self._lifecycle_state,
            "services/domain": "amazonaws.com",
            "services/partition": "aws",
        }
        if self._notice and self._notice[0] == "terminate":
            meta["spot/termination-time"] = _iso(self._notice[1])
        if self._rebalance:
            said = json.dumps({"noticeTime": self._rebalance})
            meta["events/recommendations/rebalance"] = said
        tree = {f"/meta-data/{name}": _bytes(value) for name, value in meta.items() if value}
        tree["/dynamic/instance-identity/document"] = self._document()
        tree.update(self._role())
        return tree

    def _listed(self, *states: str) -> str:
        return json.dumps([e for e in self._events.values() if e["State"] in states], indent=1)

    def _document(self) -> bytes:
        return json.dumps(
            {
                "accountId": self.account,
                "architecture": "x86_64",
                "availabilityZone": self.zone,
                "imageId": "ami-0123456789abcdef0",
                "instanceId": self.instance_id,
                "instanceType": self.instance_type,
                "pendingTime": "2026-11-21T08:00:00Z",
                "privateIp": "10.0.0.7",
                "region": self.region,
                "version": "2017-09-30",
            },
            indent=2,
        ).encode()

    def _role(self) -> dict[str, bytes]:
        if self.credentials is None:
            return {}
        access, secret, token = self.credentials
        said = {
            "Code": "Success",
            "LastUpdated": _iso(self._clock() - 60),
            "Type": "AWS-HMAC",
            "AccessKeyId": access,
            "SecretAccessKey": secret,
            "Token": token,
            "Expiration": _iso(self._clock() + 6 * 3600),
        }
        profile = f"arn:aws:iam::{self.account}:instance-profile/spotd"
        return {
            "/meta-data/iam/security-credentials/spotd": json.dumps(said, indent=2).encode(),
            "/meta-data/iam/info": json.dumps(
                {"Code": "Success", "InstanceProfileArn": profile}
            ).encode(),
        }


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def _iso(seconds: float) -> str:
    return _time(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def _gmt(seconds: float) -> str:
    """A date as scheduled events have it: "21 Jan 2019 09:00:43 GMT"."""
    return _time(seconds).strftime("%d %b %Y %H:%M:%S GMT")


def main(arguments: list[str] | None = None) -> int:
    """Run it in the foreground until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m spotd.testing.imds", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1338)
    parser.add_argument("--instance-id", default="i-0123456789abcdef0")
    parser.add_argument("--v1", action="store_true", help="answer without a token too")
    chosen = parser.parse_args(arguments)
    serve(
        MetadataSimulator(
            host=chosen.host, port=chosen.port, instance_id=chosen.instance_id, v1=chosen.v1
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
