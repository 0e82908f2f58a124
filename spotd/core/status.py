"""What a person is shown: one line for systemd, one object for `spotd status`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from spotd.core.deadline import PLANNED
from spotd.core.state import Phase, newest_known, unstored
from spotd.core.words import readable

if TYPE_CHECKING:
    from spotd.core.state import Known, Now, State

OLD = 48 * 3600.0  # seconds from which an age is given in days
SILENT = 15.0  # seconds after which an upload that does not move is said to


def rfc3339(wall: float | None) -> str | None:
    """Returns a wall clock time as text in UTC, to the second."""
    if wall is None:
        return None
    return datetime.fromtimestamp(wall, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(seconds: float) -> str:
    """Returns a duration people read: 12 s, 4 min, 3.5 h, 2 days."""
    seconds = max(0.0, seconds)
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return f"{seconds:.0f} s"
    if seconds < 7200:  # noqa: PLR2004 - two hours
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < OLD else f"{seconds / 86400:.0f} days"


def status_line(state: State, now: Now) -> str:
    """Is it training, at which step, how old is the newest checkpoint, is it in S3, a notice?"""
    parts = [_activity(state)]
    if state.phase is not Phase.COMPLETED:
        parts.append(_checkpoint(state, now))
    parts += _troubles(state, now)
    return readable("; ".join(p for p in parts if p))


def _activity(state: State) -> str:
    trainer = state.trainer
    word = state.phase.value
    if state.phase is Phase.RUNNING and trainer is not None:
        word = "training"
        if trainer.step is not None:
            total = f" of {trainer.total_steps}" if trainer.total_steps else ""
            word += f" at step {trainer.step}{total}"
        if trainer.loss is not None:
            word += f" (loss {trainer.loss:.4g})"
        return f"{word}, attempt {trainer.attempt}"
    return f"{word}: {state.reason}" if state.reason else word


def _checkpoint(state: State, now: Now) -> str:
    newest = newest_known(state)
    if newest is None:
        return "no checkpoint yet" if state.trainer is not None else ""
    said = f"newest checkpoint {newest.name} is {age(now.wall - newest.created)} old"
    upload = state.store.upload
    if newest.stored:
        return f"{said}, in the store"
    if upload is not None and upload.id == newest.id:
        silent = now.mono - (upload.since if upload.moved is None else upload.moved)
        quiet = f", nothing acknowledged for {age(silent)}" if silent >= SILENT else ""
        return f"{said}, uploading ({100 * upload.sent // max(1, upload.size)} %{quiet})"
    stored = [k.created for k in state.known if k.stored]
    stored += [s.created for s in state.store.listed]
    lag = f" (the store is {age(newest.created - max(stored))} behind)" if stored else ""
    return f"{said}, NOT in the store yet{lag}"


def _troubles(state: State, now: Now) -> list[str]:
    result = []
    i = state.interruption
    if i is not None and i.source == "notice":
        left = max(0.0, i.deadline - now.mono)
        result.append(f"NOTICE: {i.action} in {left:.0f} s")
    if state.store.status == "refused":
        result.append(f"run held by {state.store.holder}: nothing is stored from here")
    elif state.store.announced:
        hint = f" ({state.store.hint})" if state.store.hint else ""
        result.append(f"store fails: {state.store.reason}{hint}")
    if state.directory_trouble and state.directory_trouble not in state.reason:
        result.append(state.directory_trouble)
    if state.metadata.announced:
        result.append(f"IMDS blind since {rfc3339(state.metadata.blind_since)}")
    fit = fits_window(state)
    if fit is not None and not fit.fits:
        save = "" if fit.save is None else f"{fit.save:.0f} s to save and "
        result.append(
            f"a checkpoint takes {save}{fit.store:.0f} s to store: more than a notice leaves"
        )
    return result


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds to save and to store a checkpoint, as measured; `fits`: into a notice's time."""

    fits: bool
    store: float
    save: float | None  # None: no save has been asked for yet


def fits_window(state: State) -> Window | None:
    """Whether the newest checkpoint can be saved and stored within a notice; None: not known."""
    newest = newest_known(state)
    if newest is None or not state.store.rate:
        return None
    store, save = newest.size / state.store.rate, state.save_seconds
    return Window((save or 0.0) + store <= PLANNED - state.policy.margin, store, save)


def _entry(k: Known) -> dict[str, object]:
    return {
        "id": k.id,
        "name": k.name,
        "step": k.step,
        "size": k.size,
        "created": rfc3339(k.created),
        "verified": True,
        "durable": k.durable,
        "stored": k.stored,
        "present": k.present,
        "held": k.hold,
    }


def status_of(state: State, now: Now) -> dict[str, object]:
    """Returns the object of `spotd status --json` (contracts.md, section 5)."""
    newest = newest_known(state)
    trainer = state.trainer
    upload = state.store.upload
    ahead = state.store.ahead
    i = state.interruption
    m = state.metadata
    fit = fits_window(state)
    return {
        "state": state.phase.value,
        "reason": state.reason,
        "line": status_line(state, now),
        "run": state.run,
        "instance_id": state.instance_id,
        "boot": state.boot,
        "attempt": state.attempt,
        "trainer": {
            "pid": trainer.pid if trainer else None,
            "started": rfc3339(trainer.started) if trainer else None,
            "step": trainer.step if trainer else None,
            "total_steps": trainer.total_steps if trainer else None,
            "epoch": trainer.epoch if trainer else None,
            "loss": trainer.loss if trainer else None,
            "status": trainer.status if trainer else None,
            "adopted": trainer.adopted if trainer else False,
            "last_lines": list(state.last_lines),
        },
        "checkpoint": {
            "newest": _entry(newest) if newest is not None else None,
            "resumed_from": trainer.resumed_from if trainer else None,
            "resumed_step": trainer.resumed_step if trainer else None,
            "pending": [k.id for k in unstored(state)],
            "upload": {
                "id": upload.id,
                "sent": upload.sent,
                "size": upload.size,
                "seconds": round(now.mono - upload.since, 1),
                "quiet": round(now.mono - (upload.moved or upload.since), 1),
            }
            if upload
            else None,
            "seconds_to_store": round(fit.store, 1) if fit else None,
            "seconds_to_save": round(fit.save, 1) if fit and fit.save is not None else None,
            "fits_notice": fit.fits if fit else None,
            "writing": list(state.writing),
            "ahead": {"id": ahead.id, "sent": ahead.sent} if ahead else None,
        },
        "store": {
            "status": state.store.status,
            "generation": state.store.generation,
            "holder": state.store.holder or None,
            "reason": state.store.reason,
            "hint": state.store.hint,
            "checkpoints": [s.id for s in state.store.listed],
            "damaged": list(state.store.damaged),
            "bytes_per_second": round(state.store.rate) if state.store.rate else None,
        },
        "interruption": {
            "source": i.source,
            "action": i.action,
            "deadline": rfc3339(now.wall + (i.deadline - now.mono)),
            "seconds_left": round(max(0.0, i.deadline - now.mono), 1),
            "drained": i.drained,
        }
        if i
        else None,
        "imds": {
            "ok": not m.announced and m.last_ok is not None,
            "last_ok": rfc3339(m.last_ok_wall),
            "blind_since": rfc3339(m.blind_since) if m.announced else None,
            "reason": m.reason,
            "rebalance": m.rebalance,
        },
        "counts": {
            "interruptions": state.counts.interruptions,
            "restarts": state.counts.restarts,
            "crashes": state.counts.crashes,
            "not_carried_out": state.counts.not_carried_out,
        },
        "lost_steps": state.lost_steps,
        "since": rfc3339(state.since),
    }
