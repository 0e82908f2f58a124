"""The chosen checkpoint comes back under its own name: from the store, or from its hold.

What is damaged gives way to the one before it at once. Where the store or the disk is in
trouble it is tried again, and an older one is taken after `store.start_timeout` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.core import leasing
from spotd.core.checkpoint import parse_checkpoint_id
from spotd.core.resume import NOTHING, Choice, choose
from spotd.core.state import Known

if TYPE_CHECKING:
    from spotd.core import events as on
    from spotd.core.checkpoint import LocalCheckpoint
    from spotd.core.turn import Turn

DIRECTORY_RETRY = 5.0  # seconds between looks at a checkpoint directory in trouble


def choose_for(t: Turn, *, with_store: bool) -> Choice:
    """Returns what to resume from as far as is known now; what was rejected does not count."""
    r = t.state.resuming
    if r is None or r.local is None:
        return NOTHING
    return choose(
        local=r.local.checkpoints,
        held=[(h.id, h.checkpoint) for h in r.local.held],
        stored=t.state.store.listed if with_store else (),
        known=t.state.known,
        rejected=r.rejected | t.state.rejected,
    )


def know_as(t: Turn, checkpoint_id: str, c: LocalCheckpoint, step: int | None) -> None:
    """What stands on the disk is what the store has under this id."""
    parsed = parse_checkpoint_id(checkpoint_id)
    if parsed is None:
        return
    stored = next((s for s in t.state.store.listed if s.id == checkpoint_id), None)
    others = tuple(k for k in t.state.known if k.id != checkpoint_id)
    k = Known(
        checkpoint_id, parsed[0], c.name, c.kind, c.size, c.mtime_ns, c.fingerprint, step,
        stored.created if stored is not None else t.now.wall, stored=True,
    )  # fmt: skip
    t.set(known=tuple(sorted((*others, k), key=lambda x: x.sequence)))
    for old in others:
        if old.name == c.name and old.present:
            t.set_known(old.id, present=False)


def on_fetched(t: Turn, event: on.Fetched) -> None:
    """It is on the disk, verified, under its own name."""
    r = t.state.resuming
    if r is None or r.stage != "fetching":
        return
    parsed = parse_checkpoint_id(event.id)
    stored = next((s for s in t.state.store.listed if s.id == event.id), None)
    if parsed is None:
        return
    c = event.checkpoint
    step = stored.step if stored is not None else c.step
    know_as(t, event.id, c, step)
    t.set_known(event.id, durable=True)
    t.announce(
        "restore_finished",
        f"checkpoint {c.name} is back from the store in {t.now.mono - r.since:.1f} s",
        checkpoint=event.id,
        seconds=round(t.now.mono - r.since, 3),
        **({} if step is None else {"step": step}),
    )
    t.set_resuming(stage="clearing")


def on_fetch_failed(t: Turn, event: on.FetchFailed) -> None:
    """Damaged: the one before it. Otherwise the store is in trouble: again, in a moment."""
    r = t.state.resuming
    if r is None or r.stage != "fetching":
        return
    if event.damaged:
        t.announce(
            "checkpoint_rejected",
            f"checkpoint {event.id} in the store is damaged, trying the one before it: "
            f"{event.reason}",
            3,
            checkpoint=event.id,
        )
        t.set(rejected=t.state.rejected | {event.id})
        t.persist()  # before retention counts it among those that are kept
        t.set_resuming(stage="looking", choice=None)
        return
    advice = f". {event.hint}" if event.hint else ""
    said = f"cannot fetch {event.id}: {event.reason}{advice}"
    if r.waiting_for != said:
        t.announce("store_failed", f"{said}. Tried again", 4, checkpoint=event.id)
    t.set_resuming(stage="looking", choice=None, waiting_for=said)
    t.set(reason=said)
    if choose_for(t, with_store=False) is NOTHING:
        # Whatever keeps the newest from being fetched keeps older ones from it as well.
        t.set_resuming(retry_at=t.now.mono + leasing.RETRY_MIN)
        return
    _try_again(t, event.id, r.rejected | {s.id for s in t.state.store.listed}, leasing.RETRY_MIN)


def on_fetch_progress(t: Turn, event: on.FetchProgressed) -> None:
    """Shown in the status line."""
    r = t.state.resuming
    if r is not None and r.stage == "fetching" and event.size > 0:
        share = 100 * event.received // event.size
        t.set(reason=f"fetching {event.id} from the store, {share} %")


def on_reinstated(t: Turn, event: on.Reinstated) -> None:
    """What was held stands under its own name again."""
    if t.state.resuming is None or t.state.resuming.stage != "reinstating":
        return
    c: LocalCheckpoint = event.checkpoint
    t.set_known(event.id, present=True, fingerprint=c.fingerprint, mtime_ns=c.mtime_ns)
    t.announce(
        "restore_finished", f"checkpoint {c.name} is back from the hold", checkpoint=event.id
    )
    t.set_resuming(stage="clearing")


def on_reinstate_failed(t: Turn, event: on.ReinstateFailed) -> None:
    """It was whole a moment ago: the store's copy of it, or again in a moment (a full disk)."""
    r = t.state.resuming
    if r is None or r.stage != "reinstating":
        return
    said = f"held checkpoint {event.id} could not be put back: {event.reason}"
    if r.waiting_for != said:
        t.announce("checkpoint_rejected", said, 4, checkpoint=event.id)
    t.set_resuming(stage="looking", choice=None, waiting_for=said)
    t.set(reason=said)
    without = r.rejected | {f"hold:{event.id}"}
    if event.id in {s.id for s in t.state.store.listed}:
        t.set_resuming(rejected=without)
        return
    _try_again(t, event.id, without, DIRECTORY_RETRY)
    again = t.state.resuming
    if again is not None and again.retry_at is not None:
        # What is not there any more must not be asked for for ever: the disk is looked at anew.
        t.set_resuming(local=None, inspect_at=again.retry_at)


def _try_again(t: Turn, checkpoint_id: str, without: frozenset[str], pause: float) -> None:
    """Again in a moment; after `store.start_timeout` an older one, if there is one."""
    r = t.state.resuming
    if r is None:
        return
    since = r.failing_since if r.failing_since is not None else t.now.mono
    t.set_resuming(retry_at=t.now.mono + pause, failing_since=since)
    if t.now.mono - since < t.policy.start_timeout:
        return
    t.set_resuming(rejected=without)
    if choose_for(t, with_store=t.state.store.status == "open") is NOTHING:
        t.set_resuming(rejected=r.rejected)
        return
    t.set_resuming(retry_at=None)
    t.announce(
        "restore_gave_up",
        f"{checkpoint_id} could not be put back for {t.policy.start_timeout:.0f} s: resuming from "
        "an older checkpoint",
        4,
        checkpoint=checkpoint_id,
    )
