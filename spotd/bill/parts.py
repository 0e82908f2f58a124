"""The seconds of each interruption, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spotd.core.ledger import BootRecord, NoticeRecord


@dataclass(frozen=True, slots=True)
class Interruption:
    """One, from the notice (or the last sign of life) to the first step after it.

    Seconds; None where a part did not happen or was not seen. `at`: wall clock seconds.

    Attributes:
        action: "stop", "terminate", "hibernate", or "" when no notice was seen.
        saving: Notice to the checkpoint being whole.
        storing: From there to its being in the store.
        off: Last sign of life to the next boot.
        booting: Boot to spotd.
        restoring: spotd to the trainer being started.
        starting: The trainer being started to its first step.
        lost_steps, lost_seconds: Work repeated after it.
        known_end: The run went on afterwards.
    """

    at: float
    action: str
    saving: float | None = None
    storing: float | None = None
    off: float | None = None
    booting: float | None = None
    restoring: float | None = None
    starting: float | None = None
    lost_steps: int | None = None
    lost_seconds: float | None = None
    known_end: bool = False


PARTS = ("saving", "storing", "off", "booting", "restoring", "starting")
_INTERRUPTED = frozenset({"interrupted", "power-loss", "new-instance"})


def carried_out(boot: BootRecord, following: BootRecord | None, now: float) -> NoticeRecord | None:
    """Returns the notice a boot ended with; None when it did not end with one."""
    last = boot.notices[-1] if boot.notices else None
    if last is None or last.outcome:
        return None
    if following is not None:
        return last
    # The last boot there is: a notice whose time has passed without a later sign of life.
    return last if last.deadline is not None and boot.seen <= last.deadline < now else None


def interruptions(boots: Sequence[BootRecord], now: float) -> list[Interruption]:
    """Returns them, oldest first. `boots`: of one run, ordered by when they began."""
    found = []
    for n, boot in enumerate(boots):
        following = boots[n + 1] if n + 1 < len(boots) else None
        notice = carried_out(boot, following, now)
        unannounced = following is not None and following.kind in _INTERRUPTED
        if notice is not None or unannounced:
            found.append(_between(boot, notice, following))
    return found


def _between(
    boot: BootRecord, notice: NoticeRecord | None, following: BootRecord | None
) -> Interruption:
    at = notice.seen if notice is not None else boot.seen
    saved, stored = (notice.saved, notice.stored) if notice is not None else (None, None)
    if following is None:
        return Interruption(at, notice.action if notice else "", _span(at, saved),
                            _span(saved, stored))  # fmt: skip
    return Interruption(
        at=at,
        action=notice.action if notice is not None else "",
        saving=_span(at, saved),
        storing=_span(saved, stored),
        off=_span(boot.seen, following.booted),
        booting=_span(following.booted, following.began),
        restoring=_span(following.began, following.started),
        starting=_span(following.started, following.stepped),
        lost_steps=following.lost_steps,
        lost_seconds=following.lost_seconds,
        known_end=True,
    )


def _span(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else max(0.0, end - start)
