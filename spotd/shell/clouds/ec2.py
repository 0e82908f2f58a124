"""EC2's instance metadata service, version 2, and version 1 where the user allows it.

Facts: EC2 user guide, "Use the Instance Metadata Service to access instance metadata",
"Spot Instance interruption notices", "EC2 instance rebalance recommendations", "View
scheduled events that affect your instances".
"""

from __future__ import annotations

import json
import math
import re
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from spotd.core.events import MetadataAnswered
from spotd.shell.clouds import (
    DMI,
    InstanceIdentity,
    MetadataTrouble,
    instance_id_of_firmware,
    printable,
)
from spotd.shell.clouds.http import Endpoint, MetadataTimeout, Reply, refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spotd.config import ImdsSettings

TOKEN_TTL = 21600  # the longest there is, seconds
ACTIONS = ("stop", "terminate", "hibernate")
_ROOT = "/latest/meta-data/"
_OWN_ENDPOINTS = ("http://169.254.169.254", "http://[fd00:ec2::254]")
_LONGEST_WITHOUT_V2 = 300.0
_MOST_EVENTS = 20
_MOST_SKIPS = 64
# Nobody announces an interruption more than a day ahead: such a time is no time.
_FARTHEST = 86400.0
_ISO = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?Z", re.ASCII)
_HOP_HINT = (
    "its answer to a PUT does not come back, so the hop limit is too low: aws ec2 "
    "modify-instance-metadata-options --instance-id ... --http-put-response-hop-limit 2"
)
_OFF_HINT = (
    "it is switched off: aws ec2 modify-instance-metadata-options --instance-id ... "
    "--http-endpoint enabled"
)


class Ec2Metadata:
    """Asks EC2's service; not for use by two threads at once.

    Args:
        settings: Endpoint, and whether version 1 will do.
        dmi: Where the firmware's words are; believed only when the endpoint is EC2's own,
            since a simulator's instance is not this machine.
    """

    longest_interval = math.inf  # a notice leaves two minutes: any pace of the settings will do

    def __init__(self, settings: ImdsSettings, *, dmi: Path = DMI) -> None:
        self._endpoint = Endpoint(settings.endpoint)
        self._v1_fallback = settings.v1_fallback
        self._dmi = dmi if settings.endpoint in _OWN_ENDPOINTS else None
        self._token = ""
        self._token_got = self._token_ends = 0.0
        self._v1_until = 0.0
        self._rebalance: str | None = None
        self._events: tuple[tuple[str, str, str], ...] = ()
        self._skips = self._skip_left = 0

    # --- what the watcher calls ---

    def poll(self, timeout: float, early: Callable[[MetadataAnswered], None]) -> MetadataAnswered:
        """See `NoticeSource.poll`."""
        said = self._get("spot/instance-action", time.monotonic() + timeout)
        action, at = (None, None) if said is None else read_action(said)
        if action:
            early(MetadataAnswered(action, at, self._rebalance, self._events))
        try:
            self._ask_the_rest(time.monotonic() + timeout)
        except MetadataTrouble as trouble:
            # A notice is worth more than why something else could not be had.
            if not action:
                trouble.notices_seen = True
                raise
        return MetadataAnswered(action, at, self._rebalance, self._events)

    def identity(self, timeout: float) -> InstanceIdentity:
        """See `NoticeSource.identity`."""
        deadline = time.monotonic() + timeout

        def text(path: str) -> str | None:
            said = self._get(path, deadline)
            return None if said is None else printable(said.decode("utf-8", "replace")) or None

        return InstanceIdentity(
            instance_id=self.firmware_instance_id() or text("instance-id"),
            instance_type=text("instance-type"),
            az=text("placement/availability-zone"),
            region=text("placement/region"),
            life_cycle=text("instance-life-cycle"),
        )

    def firmware_instance_id(self) -> str | None:
        """The instance id where it can be known without asking."""
        return None if self._dmi is None else instance_id_of_firmware(self._dmi)

    # --- the questions beside the notice ---

    def _ask_the_rest(self, deadline: float) -> None:
        if self._skip_left:
            self._skip_left -= 1
            return
        try:
            said = self._get("events/recommendations/rebalance", deadline)
            self._rebalance = None if said is None else read_rebalance(said)
            said = self._get("events/maintenance/scheduled", deadline)
            self._events = () if said is None else read_scheduled(said)
        except MetadataTrouble as trouble:
            if trouble.throttled:  # then ask for notices only, for a while
                self._skips = min(_MOST_SKIPS, self._skips * 2 or 1)
                self._skip_left = self._skips
            raise
        self._skips = 0
        self._renew_early(deadline)

    def _renew_early(self, deadline: float) -> None:
        """At half of its life, while the old one still works and nothing waits for it."""
        now = time.monotonic()
        if self._token and now > (self._token_got + self._token_ends) / 2:
            try:
                self._renew(deadline)
            except MetadataTrouble:
                return  # the old one holds for hours; the poll that needs a new one will tell

    # --- one question ---

    def _get(self, path: str, deadline: float) -> bytes | None:
        """The body; None for 404, which means that there is nothing to say."""
        reply = self._ask(path, deadline)
        if reply.status == 401 and self._token:  # noqa: PLR2004 - HTTP
            self._token = ""  # expired, or the service has forgotten it: one new one
            reply = self._ask(path, deadline)
        if reply.status == 404:  # noqa: PLR2004
            return None
        if reply.status != 200:  # noqa: PLR2004
            raise self._refusal(path, reply)
        return reply.body

    def _ask(self, path: str, deadline: float) -> Reply:
        headers = self._headers(deadline)
        return self._endpoint.ask("GET", _ROOT + path, headers, deadline)

    def _headers(self, deadline: float) -> dict[str, str]:
        now = time.monotonic()
        if now < self._v1_until:
            return {}
        if not self._token or now > self._token_ends:
            try:
                self._renew(deadline)
            except MetadataTrouble as trouble:
                if not self._v1_fallback or trouble.throttled:
                    raise
                self._v1_until = now + _LONGEST_WITHOUT_V2
                return {}
        return {"X-aws-ec2-metadata-token": self._token}

    def _renew(self, deadline: float) -> None:
        # Part of the time is kept for what follows when the PUT is never answered: the
        # question without a token, which tells a low hop limit from a dead service.
        now = time.monotonic()
        until = now + (deadline - now) * 0.6
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL)}
        try:
            reply = self._endpoint.ask("PUT", "/latest/api/token", headers, until)
        except MetadataTimeout as trouble:
            if not self._v1_fallback and self._answers_without_token(deadline):
                trouble.hint = _HOP_HINT
            raise
        token = reply.body.decode("latin-1").strip()
        if reply.status != 200:  # noqa: PLR2004
            raise self._refusal("api/token", reply)
        if not re.fullmatch(r"[!-~]{1,1024}", token):
            raise MetadataTrouble("api/token: what came is no token")
        given = reply.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        life = int(given) if re.fullmatch(r"[0-9]{1,5}", given) else TOKEN_TTL
        self._token, self._token_got, self._token_ends = token, now, now + life * 0.95

    def _answers_without_token(self, deadline: float) -> bool:
        try:
            self._endpoint.ask("GET", _ROOT, {}, deadline)
        except MetadataTrouble:
            return False
        return True

    def _refusal(self, path: str, reply: Reply) -> MetadataTrouble:
        hints = {403: _OFF_HINT, 401: "the token is not accepted"}
        if reply.status == 401 and time.monotonic() < self._v1_until:  # noqa: PLR2004
            self._v1_until = 0.0
            hints[401] = "it takes no question without a token, and none can be had"
        if path == "api/token":
            for status in (400, 404, 405, 501):
                hints[status] = "is this an EC2 instance? See imds.v1_fallback and cloud"
        return refusal(path, reply.status, hints)


def read_action(body: bytes) -> tuple[str, float | None]:
    """`spot/instance-action`: the action, and its time in seconds since the epoch or None.

    Raises:
        MetadataTrouble: It is not what the user guide says it is.
    """
    said = _json(body, "spot/instance-action")
    action = said.get("action") if isinstance(said, dict) else None
    if not isinstance(action, str) or action.lower() not in ACTIONS:
        raise MetadataTrouble("spot/instance-action: what it says is no notice")
    return action.lower(), read_time(said.get("time"))


def read_rebalance(body: bytes) -> str:
    """`events/recommendations/rebalance`: the time of the recommendation, as text.

    Raises:
        MetadataTrouble: It is not what the user guide says it is.
    """
    said = _json(body, "events/recommendations/rebalance")
    if not isinstance(said, dict):
        raise MetadataTrouble("events/recommendations/rebalance: what it says is no recommendation")
    return printable(said.get("noticeTime"), 64) or "at no time given"


def read_scheduled(body: bytes) -> tuple[tuple[str, str, str], ...]:
    """`events/maintenance/scheduled`: (id, code, not before) of what is still to come.

    Raises:
        MetadataTrouble: It is not what the user guide says it is.
    """
    said = _json(body or b"[]", "events/maintenance/scheduled")
    if not isinstance(said, list):
        raise MetadataTrouble("events/maintenance/scheduled: what it says is no list")
    found = []
    for event in said[:_MOST_EVENTS]:
        if not isinstance(event, dict) or event.get("State", "active") != "active":
            continue
        code, start = printable(event.get("Code")), printable(event.get("NotBefore"))
        name = printable(event.get("EventId")) or f"{code} {start}"
        found.append((name, code, start))
    return tuple(found)


def read_time(value: object) -> float | None:
    """Seconds since the epoch of text like "2026-11-21T08:22:00Z"; None when it is no such time."""
    match = _ISO.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    try:
        # Not strptime, whose modules cost more memory than this whole client.
        whole = datetime.fromisoformat(match[1]).replace(tzinfo=timezone.utc)
        seconds = whole.timestamp() + float(match[2] or 0)
    except (ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < time.time() + _FARTHEST else None


def _json(body: bytes, path: str) -> Any:
    try:
        return json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise MetadataTrouble(f"{path}: what it says is no JSON") from None
