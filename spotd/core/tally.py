"""Counters that mean the run, folded from announcements; they survive the daemon.

Training time is counted along the line of checkpoints: `progress` is the seconds of training
that are in the weights now. A start from a checkpoint sets it back to what it was when that
checkpoint was seen, so what it falls by was lost, and what it keeps was saved.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_CHECKPOINTS = 64  # whose progress is remembered; more than any retention keeps


@dataclass
class Tally:
    """What has been counted so far. Times are wall clock seconds.

    Attributes:
        interruptions: Notices by action.
        stored_bytes: Of checkpoints, once each is in the store.
        notice_to_stored: Seconds, of the last notice after which something was stored.
        progress: Seconds of training in the weights now.
        trained: Seconds of training altogether, repeated ones too.
        saved: Seconds of training that resumes did not have to repeat.
        lost: Seconds of training that were repeated, as far as known.
        seen: When anything was last counted.
    """

    interruptions: dict[str, int] = field(default_factory=dict)
    rebalances: int = 0
    store_failures: int = 0
    imds_failures: int = 0
    stored: int = 0
    stored_bytes: int = 0
    notice_to_stored: float | None = None
    progress: float = 0.0
    trained: float = 0.0
    saved: float = 0.0
    lost: float = 0.0
    progress_at: dict[str, float] = field(default_factory=dict)
    training_since: float | None = None
    notice_at: float | None = None
    last_lost: float | None = None  # by the last start; None: not known
    seen: float = 0.0

    def count(self, name: str, fields: dict[str, Any], wall: float) -> None:
        """Takes one announcement in."""
        handler = self._HANDLERS.get(name)
        if handler is not None:
            handler(self, fields, wall)
        self.seen = max(self.seen, wall)

    def alive(self, wall: float) -> None:
        """Notes that all is as it was."""
        self.seen = max(self.seen, wall)

    def training_seconds(self, wall: float) -> float:
        """Returns seconds of training in the weights at this moment."""
        since = self.training_since
        return self.progress + (max(0.0, wall - since) if since is not None else 0.0)

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Tally:
        """Reads what `to_json` gave; a field that does not fit falls back to its default."""
        tally = cls()
        if not isinstance(value, dict):
            return tally
        for f in fields(cls):
            old, new = getattr(tally, f.name), value.get(f.name)
            if isinstance(old, dict) and isinstance(new, dict):
                kept = {
                    k: v for k, v in new.items() if isinstance(k, str) and _is_number(v) and v >= 0
                }
                setattr(tally, f.name, kept)
            elif isinstance(new, (int, float)) and _is_number(new) and new >= 0:
                setattr(tally, f.name, int(new) if isinstance(old, int) else float(new))
        return tally

    # --- what each announcement means ------------------------------------------------

    def _boot(self, said: dict[str, Any], _wall: float) -> None:
        if said.get("boot") != "same-boot":
            # Nobody saw the trainer end: it lived at least until something was last seen.
            self._end_training(self.seen)
            self.notice_at = None

    def _started(self, said: dict[str, Any], wall: float) -> None:
        self._end_training(wall)
        checkpoint = said.get("checkpoint")
        before = self.progress
        known = checkpoint is None or str(checkpoint) in self.progress_at
        if checkpoint is None:
            self.progress = 0.0
        else:
            self.progress = self.progress_at.get(str(checkpoint), before)
            self.saved += self.progress
        self.last_lost = max(0.0, before - self.progress) if known else None
        self.lost += self.last_lost or 0.0
        self.training_since = wall

    def _adopted(self, _said: dict[str, Any], wall: float) -> None:
        if self.training_since is None:
            self.training_since = wall

    def _ended(self, _said: dict[str, Any], wall: float) -> None:
        self._end_training(wall)

    def _end_training(self, wall: float) -> None:
        if self.training_since is not None:
            seconds = max(0.0, wall - self.training_since)
            self.progress += seconds
            self.trained += seconds
            self.training_since = None

    def _checkpoint(self, said: dict[str, Any], wall: float) -> None:
        self.progress_at[str(said.get("checkpoint"))] = self.training_seconds(wall)
        while len(self.progress_at) > MOST_CHECKPOINTS:
            del self.progress_at[next(iter(self.progress_at))]

    def _stored(self, said: dict[str, Any], wall: float) -> None:
        size = said.get("bytes")
        self.stored += 1
        self.stored_bytes += size if isinstance(size, int) else 0
        if self.notice_at is not None:
            self.notice_to_stored = max(0.0, wall - self.notice_at)

    def _notice(self, said: dict[str, Any], wall: float) -> None:
        action = str(said.get("action", "stop"))
        self.interruptions[action] = self.interruptions.get(action, 0) + 1
        self.notice_at = wall

    def _notice_over(self, _said: dict[str, Any], _wall: float) -> None:
        self.notice_at = None

    def _rebalance(self, _said: dict[str, Any], _wall: float) -> None:
        self.rebalances += 1

    _HANDLERS: ClassVar[dict[str, Callable[[Any, dict[str, Any], float], None]]] = {
        "boot_classified": _boot,
        "trainer_started": _started,
        "trainer_adopted": _adopted,
        "trainer_exited": _ended,
        "checkpoint_seen": _checkpoint,
        "checkpoint_stored": _stored,
        "interruption_notice": _notice,
        "drained": _notice_over,
        "not_carried_out": _notice_over,
        "rebalance_recommended": _rebalance,
    }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
