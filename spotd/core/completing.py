"""The end of a run: the last checkpoint, completed.json, the lease, the instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core import leasing, storing
from spotd.core.state import Phase, newest_known, unstored

if TYPE_CHECKING:
    from spotd.core.turn import Turn

MISSING_RETRY = 60.0  # seconds between looks for a checkpoint that is gone from the disk


def advance(t: Turn) -> None:
    """Once the run is complete: the last checkpoint, completed.json, the lease, the instance."""
    state = t.state
    if not state.completed or state.trainer is not None or state.resuming is not None:
        return
    if not state.completion_safe and state.completion_inspected:
        last = newest_known(state)
        if last is None or last.durable or last.stored or last.unsendable:
            t.set(completion_safe=True)
            t.persist()
    if not state.completion_stored:
        if state.store.status != "open" or not state.completion_inspected:
            return
        if unstored(state) or state.store.completing or t.now.mono < state.store.complete_retry_at:
            return
        if _is_missing(t) or not leasing.confirmed(t):
            return
        t.do(do.StoreCompletion())
        t.set_store(completing=True)
        return
    undisturbed = state.interruption is None and state.phase is Phase.COMPLETED
    # What is to be deleted is deleted before: nobody comes after us to do it.
    if not state.finished and undisturbed and not storing.owes_deletion(state):
        t.do(do.ReleaseLease())
        if t.policy.completion_action != "keep":
            t.announce(
                "finishing_instance",
                f"the run is complete and stored: {t.policy.completion_action} this instance",
                5,
            )
            t.do(do.FinishInstance(t.policy.completion_action))
        # On record afterwards: asking EC2 twice does no harm, never asking costs money.
        t.set(finished=True, lease_until_wall=0.0, reason="this run is complete and stored")
        t.persist()


def _is_missing(t: Turn) -> bool:
    """Whether the last checkpoint was made durable, is not stored, and all is gone from the disk.

    A file system that is not mounted looks like an empty directory. A run is not called
    complete, and its instance not ended, for that.
    """
    state = t.state
    last = state.known[-1] if state.known else None
    if last is None or not last.durable or last.stored:
        return False
    if not state.disk_empty or {last.id, last.fingerprint} & state.rejected:
        return False
    if any(s.sequence >= last.sequence for s in state.store.listed):
        return False
    reason = (
        f"{last.name}, the last checkpoint, is not in the store and no longer on the disk: is its "
        "file system mounted? The run is not called complete without it"
    )
    if state.reason != reason:
        t.announce("directory_trouble", reason, 3, checkpoint=last.id)
        t.set(reason=reason)
    if state.look_at is None and not state.inspections:
        t.set(look_at=t.now.mono + MISSING_RETRY)
    return True


def on_completion_stored(t: Turn, _: on.CompletionStored) -> None:
    """The run's end is on record on both sides."""
    if not t.state.store.completing:
        return
    t.set_store(completing=False)
    t.set(completion_stored=True)
    t.persist()
