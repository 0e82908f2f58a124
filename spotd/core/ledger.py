"""One boot of one instance, as `spotd cost` and `spotd report` need it: what, when, how long.

A record is folded from announcements, kept as a small JSON file, and copied to
`<store.url>/<run>/ledger/<instance>-<boot>.json` whenever something else is stored anyway.
What is read back is believed only as far as its types go: anybody who may write to the
bucket may have written it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from spotd.core.curve import Point, plain, point_from

if TYPE_CHECKING:
    from collections.abc import Callable

FORMAT = 1
LARGEST = 64 * 1024  # bytes of one record
MOST_NOTICES = 64
MOST_POINTS = 240  # of the loss curve of one boot; some 10 kB
FOLDER = "ledger/"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.json")
_LONGEST_TEXT = 128


@dataclass
class NoticeRecord:
    """One notice; wall clock seconds, None for what did not happen or was not seen.

    `outcome`: "" while it is open or the instance was taken, "not carried out" else.
    """

    action: str = "stop"
    seen: float = 0.0
    deadline: float | None = None
    signalled: float | None = None
    saved: float | None = None
    stored: float | None = None
    drained: float | None = None
    outcome: str = ""


@dataclass
class BootRecord:
    """One boot. Times are wall clock seconds; None: not known, or it did not happen.

    Attributes:
        kind: How it began: "first", "interrupted", "reboot", "power-loss", "new-instance".
        booted, began: When the machine booted, and when spotd was there.
        restored: When a checkpoint had been fetched or put back.
        started, stepped: The first start of the trainer, and its first step.
        seen: The last moment spotd is known to have been alive.
        trained: Seconds a trainer ran.
        lost_steps, lost_seconds: Work repeated because of how the boot before ended.
        spot_price, on_demand_price: Of the configuration, dollars per hour.
        curve: Steps and losses, at least `pause` seconds apart; of more than `MOST_POINTS`
            every second one goes and the pause is doubled, so that it stays even.
    """

    run: str = ""
    instance_id: str = ""
    boot_id: str = ""
    kind: str = ""
    instance_type: str | None = None
    zone: str | None = None
    region: str | None = None
    life_cycle: str | None = None
    booted: float = 0.0
    began: float = 0.0
    restored: float | None = None
    started: float | None = None
    stepped: float | None = None
    seen: float = 0.0
    trained: float = 0.0
    training_since: float | None = None
    starts: int = 0
    crashes: int = 0
    stored: int = 0
    stored_bytes: int = 0
    lost_steps: int = 0
    lost_seconds: float | None = None
    completed: float | None = None
    stopped: float | None = None
    spot_price: float | None = None
    on_demand_price: float | None = None
    notices: list[NoticeRecord] = field(default_factory=list)
    pause: float = 1.0
    curve: list[Point] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The record's file name: the same boot has the same one everywhere."""
        boot = re.sub(r"[^A-Za-z0-9]", "", self.boot_id)[-12:]
        return f"{re.sub(r'[^A-Za-z0-9.-]', '-', self.instance_id)}-{boot}.json"

    def book(self, name: str, said: dict[str, Any], wall: float) -> None:
        """Takes one announcement in."""
        self.seen = max(self.seen, wall)
        handler = self._HANDLERS.get(name)
        if handler is not None:
            handler(self, said, wall)

    def alive(self, wall: float) -> None:
        """Notes that spotd lives."""
        self.seen = max(self.seen, wall)

    def plot(self, point: Point) -> None:
        """Takes a point of the loss curve in, unless the last one is too recent."""
        last = self.curve[-1] if self.curve else None
        same = last is not None and last.attempt == point.attempt
        if same and 0 <= point.time - self.curve[-1].time < self.pause:
            return
        self.curve.append(point)
        if len(self.curve) > MOST_POINTS:
            self.curve = self.curve[::2]
            self.pause *= 2

    def training_seconds(self) -> float:
        """Returns seconds a trainer ran, up to `seen`."""
        since = self.training_since
        return self.trained + (max(0.0, self.seen - since) if since is not None else 0.0)

    def to_bytes(self) -> bytes:
        """Returns it as JSON."""
        value = {"format": FORMAT} | {f.name: getattr(self, f.name) for f in fields(self)}
        value["notices"] = [asdict(notice) for notice in self.notices]
        value["curve"] = [plain(point) for point in self.curve]
        return json.dumps(value, separators=(",", ":")).encode()

    # --- what each announcement means ------------------------------------------------

    def _boot(self, said: dict[str, Any], wall: float) -> None:
        if said.get("boot") != "same-boot":
            self.kind, self.began = str(said.get("boot", "")), wall

    def _restored(self, _said: dict[str, Any], wall: float) -> None:
        if self.started is None:
            self.restored = wall

    def _started(self, _said: dict[str, Any], wall: float) -> None:
        self._end_training(wall)
        self.started = wall if self.started is None else self.started
        self.starts += 1
        self.training_since = wall

    def _adopted(self, _said: dict[str, Any], wall: float) -> None:
        if self.training_since is None:
            self.training_since = wall

    def _stepped(self, _said: dict[str, Any], wall: float) -> None:
        self.stepped = wall if self.stepped is None else self.stepped

    def _ended(self, _said: dict[str, Any], wall: float) -> None:
        self._end_training(wall)

    def _end_training(self, wall: float) -> None:
        if self.training_since is not None:
            self.trained += max(0.0, wall - self.training_since)
            self.training_since = None

    def _lost(self, said: dict[str, Any], _wall: float) -> None:
        lost = said.get("lost_steps")
        self.lost_steps += lost if isinstance(lost, int) else 0

    def _saved(self, _said: dict[str, Any], wall: float) -> None:
        notice = self._open()
        if notice is not None:
            notice.saved = wall

    def _stored(self, said: dict[str, Any], wall: float) -> None:
        size = said.get("bytes")
        self.stored += 1
        self.stored_bytes += size if isinstance(size, int) else 0
        notice = self._open()
        if notice is not None:
            notice.stored = wall

    def _notice(self, said: dict[str, Any], wall: float) -> None:
        left = said.get("seconds_left")
        deadline = wall + left if isinstance(left, (int, float)) else None
        self.notices.append(NoticeRecord(str(said.get("action", "stop")), wall, deadline))
        del self.notices[:-MOST_NOTICES]

    def _signalled(self, _said: dict[str, Any], wall: float) -> None:
        notice = self._open()
        if notice is not None:
            notice.signalled = wall

    def _drained(self, _said: dict[str, Any], wall: float) -> None:
        notice = self._open()
        if notice is not None:
            notice.drained = wall

    def _not_carried_out(self, _said: dict[str, Any], _wall: float) -> None:
        if self.notices:
            self.notices[-1].outcome = "not carried out"

    def _completed(self, _said: dict[str, Any], wall: float) -> None:
        self.completed = wall if self.completed is None else self.completed

    def _asked_to_stop(self, _said: dict[str, Any], wall: float) -> None:
        self.stopped = wall

    def _open(self) -> NoticeRecord | None:
        """The notice under way: one that is not drained and was not dropped."""
        last = self.notices[-1] if self.notices else None
        return None if last is None or last.outcome or last.drained is not None else last

    _HANDLERS: ClassVar[dict[str, Callable[[Any, dict[str, Any], float], None]]] = {
        "boot_classified": _boot,
        "restore_finished": _restored,
        "trainer_started": _started,
        "trainer_adopted": _adopted,
        "training": _stepped,
        "trainer_exited": _ended,
        "steps_lost": _lost,
        "checkpoint_seen": _saved,
        "checkpoint_stored": _stored,
        "interruption_notice": _notice,
        "stop_signal_sent": _signalled,
        "drained": _drained,
        "not_carried_out": _not_carried_out,
        "completed": _completed,
        "stop_requested": _asked_to_stop,
    }


def is_record_name(name: str) -> bool:
    """Whether this could be the name of a record."""
    return _NAME.fullmatch(name) is not None


def parse(data: bytes, run: str) -> BootRecord | None:
    """Reads a record; None when it is none, or another run's."""
    if len(data) > LARGEST:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("run") != run:
        return None
    record = BootRecord()
    _fill(record, value)
    notices = value.get("notices")
    for each in notices[-MOST_NOTICES:] if isinstance(notices, list) else ():
        if isinstance(each, dict):
            notice = NoticeRecord()
            _fill(notice, each)
            record.notices.append(notice)
    record.curve = _curve(value.get("curve"), f"{record.instance_id} {record.boot_id}")
    sound = 0 < record.booted <= record.seen and record.instance_id and record.boot_id
    return record if sound else None


def _curve(value: object, boot: str) -> list[Point]:
    points = value[:MOST_POINTS] if isinstance(value, list) else []
    return [found for found in (point_from(each, boot) for each in points) if found is not None]


def _fill(target: BootRecord | NoticeRecord, value: dict[str, Any]) -> None:
    for f in fields(target):
        new = value.get(f.name)
        if isinstance(new, bool) or new is None:
            continue
        wants = str(f.type)
        if wants.startswith("str") and isinstance(new, str):
            text = "".join(c for c in new if c.isprintable())[:_LONGEST_TEXT]
            setattr(target, f.name, text)
        elif wants.startswith(("int", "float")) and _is_sound(new):
            setattr(target, f.name, int(new) if wants.startswith("int") else float(new))


def _is_sound(value: object) -> bool:
    """Whether it can be a time or a count."""
    return isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value < 1e15  # noqa: PLR2004
