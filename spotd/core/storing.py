"""Checkpoints from "seen whole" to "in the store": ids, holds, uploads, the lease, retention.

Rules that the rest relies on:

- An id is on record before anything is stored under it, and means one content for ever.
- One upload at a time. In peace a running upload is never broken off (with saves faster
  than the link, breaking off would mean that nothing is ever stored); when it ends, the
  newest checkpoint goes next and what it has made useless is skipped.
- Nothing is stored without the lease. A machine that lost it keeps training and says so.
- A hold is released only when a newer checkpoint is held and durable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.checkpoint import StoredCheckpoint, checkpoint_id, parse_checkpoint_id
from spotd.core.deadline import worth_preempting
from spotd.core.resume import is_newer, newest, same_content
from spotd.core.retention import superfluous
from spotd.core.state import Known, Phase, Turn, Upload, newest_known, unstored

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spotd.core.checkpoint import LocalCheckpoint
    from spotd.core.state import State

RETRY_MIN = 2.0  # seconds between tries while the store fails, doubled to RETRY_MAX
RETRY_MAX = 60.0
RETRY_URGENT = 1.0  # the same while a deadline runs
LEASE_SHARE = 1 / 3  # of the lease's time after which it is renewed
SUPERSEDE_GRACE = 30.0  # seconds a trainer has that turned out to be behind the store
RATE_FLOOR = 1 << 20  # bytes; smaller uploads say nothing about the link


# --- checkpoints on the disk ---------------------------------------------------------


def on_seen(t: Turn, event: on.CheckpointSeen) -> None:
    """The watcher found a whole checkpoint."""
    if t.state.directory_trouble:
        t.set(directory_trouble="")
    trainer = t.state.trainer
    if trainer is not None and trainer.superseded:
        t.set(rejected=t.state.rejected | {event.checkpoint.fingerprint})
        t.persist()
        return
    if t.state.resuming is not None and trainer is None:
        return  # what appears while no trainer runs is what spotd itself puts back
    register(t, event.checkpoint)


def inspect(t: Turn, *, settled: bool = True) -> None:
    """Asks what the disk holds; `settled` when no trainer runs.

    Only what was written since the last fsync can have been torn by a power loss; what is
    on record as durable is known to be good, so a boot costs no second read of it.
    """
    trusted = tuple(k.fingerprint for k in t.state.known if k.durable)
    contents = settled and not t.state.contents_checked
    t.do(do.Inspect(settled=settled, contents=contents, trusted=trusted if contents else ()))
    t.set(inspections=t.state.inspections + 1)


def compare_with_disk(t: Turn, event: on.LocalInventory) -> None:
    """Corrects what is on record: what stands in the directory, what is held."""
    present = {(c.name, c.fingerprint) for c in event.checkpoints}
    held = {h.id: h.checkpoint for h in event.held}
    newest_id = t.state.known[-1].id if t.state.known else None
    for k in t.state.known:
        there = (k.name, k.fingerprint) in present
        # "none" promises nothing, so it cannot be missing either.
        hold = k.hold if k.id in held or k.hold == "none" else None
        if k.id in held and hold is None and k.id != newest_id:
            hold = "link"  # held by a daemon that did not live to say so
        if k.present != there or k.hold != hold:
            t.set_known(k.id, present=there, hold=hold)
    for unknown in sorted(held.keys() - {k.id for k in t.state.known}):
        _adopt_hold(t, unknown, held[unknown])
    t.set(older_on_disk=len(event.checkpoints) > 1)


def _adopt_hold(t: Turn, hold: str, c: LocalCheckpoint) -> None:
    """A hold without a record of it: the record was lost, or written before it was made."""
    parsed = parse_checkpoint_id(hold)
    if parsed is None:
        return
    k = Known(
        hold, parsed[0], c.name, c.kind, c.size, c.mtime_ns, c.fingerprint, c.step,
        t.now.wall, present=False, hold="link",
    )  # fmt: skip
    known = sorted((*t.state.known, k), key=lambda x: x.sequence)
    t.set(known=tuple(known), next_sequence=max(t.state.next_sequence, parsed[0] + 1))


def hold_again(t: Turn) -> None:
    """Holds what has an id and stands on the disk but is not held (spotd was killed between)."""
    last = t.state.known[-1] if t.state.known else None
    if last is None or last.unsendable or last.stored or last.hold is not None or not last.present:
        return
    t.do(do.Hold(last.id, last.name, last.fingerprint))


def register(t: Turn, c: LocalCheckpoint, *, new: bool = True) -> Known | None:
    """Gives a whole checkpoint an id, and has it held. None when it has one already.

    `new`: the trainer that runs wrote it, so it is progress.
    """
    state = t.state
    for k in state.known:
        if (k.name, k.fingerprint) == (c.name, c.fingerprint) and (k.stored or not k.unsendable):
            if not k.present:
                t.set_known(k.id, present=True)
            return None
    step = c.step
    if step is None and state.trainer is not None:
        step = state.trainer.step
    sequence = state.next_sequence
    k = Known(
        id=checkpoint_id(sequence, c.name),
        sequence=sequence,
        name=c.name,
        kind=c.kind,
        size=c.size,
        mtime_ns=c.mtime_ns,
        fingerprint=c.fingerprint,
        step=step,
        created=t.now.wall,
    )
    # What stood under this name before is no longer there.
    for old in state.known:
        if old.name == c.name and old.present:
            t.set_known(old.id, present=False)
    t.set(known=(*t.state.known, k), next_sequence=sequence + 1)
    if new:
        _note_progress(t, k)
    forget_useless(t)
    t.persist()
    t.do(do.Hold(k.id, k.name, k.fingerprint))
    t.announce(
        "checkpoint_seen",
        f"checkpoint {k.name} is whole ({megabytes(k.size)})",
        checkpoint=k.id,
        **({} if k.step is None else {"step": k.step}),
    )
    t.mark("saved")
    return k


def _note_progress(t: Turn, k: Known) -> None:
    """A checkpoint of a step never reached before: the failures up to it are forgotten.

    One that only says again what an earlier attempt had reached does not count, or a
    trainer that dies at the same step each time would be started for ever.
    """
    trainer = t.state.trainer
    last = t.state.saved_at
    if trainer is not None:
        since = last if last is not None and last >= trainer.started_mono else None
        t.set(
            saved_at=t.now.mono,
            save_every=None if since is None else t.now.mono - since,
        )
    t.set_trainer(last_progress=t.now.mono)
    best = t.state.best_step
    if k.step is not None and best is not None and k.step <= best:
        return
    t.set(failures=0, crashes_from=None, blamed=())
    if k.step is not None:
        t.set(best_step=k.step)
    t.set_trainer(progressed=True)


def forget_useless(t: Turn) -> None:
    """Drops records of checkpoints that are nowhere and will never be needed."""
    last = t.state.known[-1].id if t.state.known else None
    stored = max((k.id for k in t.state.known if k.stored), default=None)
    uploading = t.state.store.upload.id if t.state.store.upload else None
    kept = tuple(
        k
        for k in t.state.known
        if k.present or k.hold is not None or k.id in (last, stored, uploading)
    )
    t.set(known=kept)


def register_newest(
    t: Turn, checkpoints: Iterable[LocalCheckpoint], *, new: bool = True
) -> Known | None:
    """Gives an id to the newest checkpoint without one, if it is newer than all with one."""
    recorded = {(k.name, k.fingerprint) for k in t.state.known if k.stored or not k.unsendable}
    fresh = newest(
        c
        for c in checkpoints
        if (c.name, c.fingerprint) not in recorded and c.fingerprint not in t.state.rejected
    )
    if fresh is None:
        return None
    best = newest_known(t.state)
    if best is not None and not best.unsendable and not is_newer(fresh, best):
        return None
    return register(t, fresh, new=new)


def on_vanished(t: Turn, event: on.CheckpointVanished) -> None:
    """The trainer deleted or replaced it. What is held or stored stays."""
    for k in t.state.known:
        if k.name == event.name and k.present:
            t.set_known(k.id, present=False)
    r = t.state.resuming
    looking = r is not None and r.stage in ("looking", "clearing", "preflight")
    if r is None or r.local is None or not looking:
        return
    if event.name in {c.name for c in r.local.checkpoints}:
        # What was going to be resumed from may be gone: look again.
        t.set_resuming(stage="looking", local=None, choice=None, retry_at=None)


def on_held(t: Turn, event: on.Held) -> None:
    """It is safe from the trainer's rotation and overwriting."""
    if not any(k.id == event.id for k in t.state.known):
        t.do(do.ReleaseHold(event.id))  # replaced and forgotten while it was being held
        return
    t.set_known(event.id, hold=event.mode)
    _release_older_holds(t)


def on_hold_failed(t: Turn, event: on.HoldFailed) -> None:
    """It was gone or changed before it could be held: nothing can be stored under this id."""
    if not any(k.id == event.id for k in t.state.known):
        return
    t.set_known(event.id, unsendable=True)
    t.announce(
        "checkpoint_rejected",
        f"checkpoint {event.id} changed before it could be held: {event.reason}",
        5,
        checkpoint=event.id,
    )


def on_durable(t: Turn, event: on.Durable) -> None:
    """It survives a power cut; older holds are no longer needed."""
    if not any(k.id == event.id for k in t.state.known):
        return
    t.set_known(event.id, durable=True)
    _release_older_holds(t)
    t.persist()


def _release_older_holds(t: Turn) -> None:
    safe = [k.sequence for k in t.state.known if k.hold not in (None, "none") and k.durable]
    if not safe:
        return
    uploading = t.state.store.upload.id if t.state.store.upload else None
    for k in t.state.known:
        if k.hold is not None and k.sequence < max(safe) and k.id != uploading:
            t.do(do.ReleaseHold(k.id))
            t.set_known(k.id, hold=None)


# --- the store's answers -------------------------------------------------------------


def on_opened(t: Turn, event: on.StoreOpened) -> None:
    """The lease is ours, and we know what the store has."""
    if not t.state.store.opening:
        return
    stored_ids = {s.id for s in event.stored}
    top = max((s.sequence for s in event.stored), default=0)
    _store_answers(t)
    t.set_store(
        status="open",
        opening=False,
        generation=event.generation,
        listed=event.stored,
        confirmed=frozenset(stored_ids),
        ever_listed=True,
        lost=False,
        holder="",
        retry_at=None,
    )
    _lease_granted(t, event.lease_in)
    t.set(
        lease_generation=event.generation,
        next_sequence=max(t.state.next_sequence, event.top_sequence + 1, top + 1),
    )
    for k in t.state.known:
        if k.id in stored_ids:
            t.set_known(k.id, stored=True)
        elif k.sequence > top:
            if k.stored:
                _not_there(t, k)
            t.set_known(k.id, stored=False)
        elif not k.stored:
            t.set_known(k.id, unsendable=True)
    if event.completed and not t.state.completed:
        t.set(completed=True, completion_safe=True, completion_stored=True)
    _supersede(t, event)
    trainer = t.state.trainer
    if trainer is not None and not trainer.superseded:
        if any(k.unsendable and k.present for k in t.state.known):
            # Ids given without knowing the store: what they named gets new ones.
            inspect(t, settled=False)
        hold_again(t)
    t.persist()


def _not_there(t: Turn, k: Known) -> None:
    """The store said that it has this one, and does not list it."""
    trouble(t, f"it acknowledged {k.id} and does not have it", "see whether it can be trusted")
    t.set_store(upload_retry_at=t.now.mono + RETRY_MAX)


def confirmed(t: Turn) -> bool:
    """Whether what is about to be relied on was seen in a listing; asks for one if not.

    Nothing is deleted, and no machine ended, on the word of an answered upload alone.
    """
    store = t.state.store
    newest = sorted(store.listed, key=lambda s: s.sequence)[-max(1, t.policy.keep) :]
    if all(s.id in store.confirmed for s in newest):
        return True
    if not store.opening:
        t.do(do.OpenStore())
        t.set_store(opening=True)
    return False


def _supersede(t: Turn, event: on.StoreOpened) -> None:
    """A trainer that was started without knowing the store may be behind what is there."""
    trainer = t.state.trainer
    if trainer is None or trainer.superseded or t.state.interruption is not None:
        return
    top = max(event.stored, key=lambda s: s.sequence, default=None)
    if event.completed:
        why = f"the store says that run {t.state.run} is complete"
    elif trainer.blind and top is not None and _is_ahead(t, top):
        why = f"the store has {top.id}, which this trainer started without"
    else:
        return
    t.announce("trainer_superseded", f"{why}: stopping it to go on from the store", 4)
    _void_attempt(t)


def _is_ahead(t: Turn, top: StoredCheckpoint) -> bool:
    """Whether the store's newest is ahead of where the trainer started, and of where it is."""
    trainer = t.state.trainer
    if trainer is None:
        return False
    if top.step is not None and trainer.step is not None and top.step <= trainer.step:
        return False
    origin = trainer.resumed_from
    base = next((k for k in t.state.known if origin in (k.id, k.fingerprint)), None)
    if base is None:
        return True
    if base.sequence >= top.sequence or same_content(base, top):
        return False
    return not is_newer(base, top)


def _void_attempt(t: Turn) -> None:
    """Stops the trainer; what this attempt has saved is never resumed from nor stored."""
    trainer = t.state.trainer
    if trainer is None:
        return
    void = [k for k in t.state.known if k.sequence >= trainer.first_sequence]
    t.set(rejected=t.state.rejected | {x for k in void for x in (k.id, k.fingerprint)})
    for k in void:
        t.set_known(k.id, unsendable=True)
    t.set_trainer(superseded=True, kill_at=t.now.mono + SUPERSEDE_GRACE)


def _lease_granted(t: Turn, lease_in: float) -> None:
    t.set_store(
        lease_until=t.now.mono + lease_in,
        renew_at=t.now.mono + lease_in * LEASE_SHARE,
        renewing=False,
    )
    t.set(lease_until_wall=t.now.wall + lease_in)


def on_renewed(t: Turn, event: on.LeaseRenewed) -> None:
    """Still ours."""
    if not t.state.store.renewing:
        return  # it came after the lease had run out: taken anew, or lost
    _store_answers(t)
    _lease_granted(t, event.lease_in)


def on_refused(t: Turn, event: on.LeaseRefused) -> None:
    """Another machine trains this run."""
    if not (t.state.store.opening or t.state.store.renewing):
        return
    had = t.state.store.status == "open"
    news = t.state.store.holder != event.holder
    unleased = t.state.store.generation == 0  # this daemon never had it
    _store_answers(t)
    wait = min(max(event.expires_in, 1.0), 30.0)
    t.set_store(
        status="refused",
        opening=False,
        renewing=False,
        holder=event.holder,
        lost=had or t.state.store.lost,
        retry_at=t.now.mono + wait,
        lease_until=None,
    )
    t.set(lease_until_wall=0.0)
    if t.state.store.upload is not None and not t.state.store.upload.stopping:
        _stop_upload(t)
    trainer = t.state.trainer
    if trainer is not None and unleased and not trainer.superseded and not trainer.adopted:
        t.announce(
            "lease_refused",
            f"run {t.state.run} is being trained by {event.holder}: stopping the trainer that "
            "was started here while the store did not answer",
            4,
            holder=event.holder,
        )
        _void_attempt(t)
    elif news and (had or trainer is not None):
        t.announce(
            "lease_lost",
            f"{event.holder} has taken over run {t.state.run}: nothing is stored from here. "
            "Stop one of the two, or give this one another `run` name",
            4,
            holder=event.holder,
        )
    elif news:
        t.announce(
            "lease_refused",
            f"run {t.state.run} is being trained by {event.holder}; its lease runs out in "
            f"{event.expires_in:.0f} s. Stop spotd there, or wait",
            4,
            holder=event.holder,
        )


def on_failed(t: Turn, event: on.StoreFailed) -> None:
    """The store does not answer, or says no. Training is untouched."""
    store = t.state.store
    waiting = {
        "open": store.opening,
        "lease": store.renewing,
        "delete": store.deleting,
        "complete": store.completing,
    }
    if not waiting.get(event.operation, False):
        return
    if event.operation == "open":
        t.set_store(status="failed", opening=False)
    elif event.operation == "lease":
        t.set_store(renewing=False)
    elif event.operation == "delete":
        t.set_store(deleting=False, delete_retry_at=t.now.mono + RETRY_MAX)
    else:
        t.set_store(completing=False, complete_retry_at=t.now.mono + _delay(t, store.failures + 1))
    trouble(t, event.reason, event.hint)
    retry = t.now.mono + _delay(t, t.state.store.failures)
    if event.operation == "open":
        t.set_store(retry_at=retry)
    elif event.operation == "lease":
        t.set_store(renew_at=retry)


def trouble(t: Turn, reason: str, hint: str) -> None:
    """Says that the store does not answer, once."""
    store = t.state.store
    news = not store.announced or store.hint != hint
    t.set_store(failures=store.failures + 1, reason=reason, hint=hint, announced=True)
    if news:
        advice = f". {hint}" if hint else ""
        t.announce(
            "store_failed",
            f"the store does not answer: {reason}{advice}. Training goes on; spotd tries again",
            4,
        )


def _store_answers(t: Turn) -> None:
    if t.state.store.announced:
        t.announce("store_back", "the store answers again", 5)
    t.set_store(failures=0, reason="", hint="", announced=False)


def _delay(t: Turn, failures: int) -> float:
    if t.state.interruption is not None:
        return RETRY_URGENT
    return float(min(RETRY_MAX, RETRY_MIN * 2.0 ** min(max(failures - 1, 0), 10)))


# --- uploads -------------------------------------------------------------------------


def on_progress(t: Turn, event: on.UploadProgressed) -> None:
    """Some more of it is on its way."""
    upload = t.state.store.upload
    if upload is not None and upload.id == event.id:
        t.set_store(
            upload=Upload(
                upload.id, upload.sequence, event.size, upload.since, event.sent, upload.stopping
            )
        )


def on_uploaded(t: Turn, event: on.Uploaded) -> None:
    """The manifest is in the store."""
    state = t.state
    k = next((k for k in state.known if k.id == event.id), None)
    if state.store.upload is not None and state.store.upload.id == event.id:
        t.set_store(upload=None)
    if k is None:
        return
    _store_answers(t)
    t.set_store(upload_failures=0, upload_retry_at=None)
    t.set_known(k.id, stored=True)
    if event.seconds > 0 and event.sent >= RATE_FLOOR:
        rate = event.sent / event.seconds
        old = t.state.store.rate
        t.set_store(rate=rate if old is None else 0.5 * old + 0.5 * rate)
    listed = StoredCheckpoint(
        k.id, k.sequence, t.state.store.generation, k.name, k.kind, k.size, k.step,
        k.created, k.mtime_ns, state.instance_id,
    )  # fmt: skip
    if k.id not in {s.id for s in t.state.store.listed}:
        t.set_store(listed=(*t.state.store.listed, listed))
    _release_older_holds(t)
    t.persist()
    t.announce(
        "checkpoint_stored",
        f"checkpoint {k.name} is in the store ({megabytes(k.size)} in {event.seconds:.1f} s)",
        checkpoint=k.id,
        bytes=k.size,
        sent=event.sent,
        seconds=round(event.seconds, 3),
        **({} if k.step is None else {"step": k.step}),
    )
    t.mark("stored")
    _delete_local(t)
    _answer_requests(t, k)


def on_upload_failed(t: Turn, event: on.UploadFailed) -> None:
    """It is not in the store."""
    upload = t.state.store.upload
    if upload is None or upload.id != event.id:
        return
    t.set_store(upload=None)
    if event.gone:
        t.set_known(event.id, unsendable=True)
        t.announce(
            "checkpoint_rejected",
            f"checkpoint {event.id} was not stored: {event.reason}",
            5,
            checkpoint=event.id,
        )
        return
    failures = t.state.store.upload_failures + 1
    t.set_store(upload_failures=failures, upload_retry_at=t.now.mono + _delay(t, failures))
    trouble(t, event.reason, event.hint)


def on_uploads_stopped(t: Turn, _: on.UploadsStopped) -> None:
    """Nothing is being sent any more."""
    if t.state.store.upload is not None and t.state.store.upload.stopping:
        t.set_store(upload=None)


def _stop_upload(t: Turn) -> None:
    upload = t.state.store.upload
    if upload is not None and not upload.stopping:
        t.do(do.StopUploads())
        t.set_store(
            upload=Upload(
                upload.id, upload.sequence, upload.size, upload.since, upload.sent, stopping=True
            )
        )


def halt(t: Turn) -> None:
    """Stops uploads until `unhalt`: the margin before the deadline has begun."""
    if not t.state.store.halted:
        t.set_store(halted=True)
        _stop_upload(t)


def next_upload(state: State) -> Known | None:
    """Returns the newest checkpoint that is not in the store but could be, or None."""
    waiting = [k for k in unstored(state) if k.hold is not None]
    return max(waiting, key=lambda k: k.sequence, default=None)


def wanted(state: State) -> bool:
    """Whether there is any business with the store: training, or something left to store."""
    if state.resuming is not None or state.trainer is not None:
        return True
    if state.interruption is not None and not state.interruption.drained:
        return True
    if state.completed and not state.completion_stored:
        return True
    return bool(unstored(state))


def expire(t: Turn) -> None:
    """A lease that has run out is no lease, whatever else is going on."""
    store = t.state.store
    if store.status != "open" or store.lease_until is None or t.now.mono < store.lease_until:
        return
    t.set_store(status="failed", retry_at=t.now.mono, renewing=False)
    _stop_upload(t)


def advance(t: Turn) -> None:
    """Opens the store, keeps the lease, sends the newest, deletes the superfluous."""
    store = t.state.store
    now = t.now.mono
    if not wanted(t.state) or store.halted:
        return
    if store.status != "open":
        if not store.opening and (store.retry_at is None or now >= store.retry_at):
            t.do(do.OpenStore())
            asked = now if store.asked_at is None else store.asked_at
            t.set_store(opening=True, asked_at=asked, retry_at=None)
        return
    if store.renew_at is not None and now >= store.renew_at and not store.renewing:
        t.do(do.RenewLease())
        t.set_store(renewing=True)
    _pump(t)
    _retain(t)


def _pump(t: Turn) -> None:
    store = t.state.store
    waiting = next_upload(t.state)
    if waiting is None:
        return
    i = t.state.interruption
    if store.upload is not None:
        if i is None or store.upload.stopping or store.upload.sequence >= waiting.sequence:
            return
        left = (i.deadline - t.policy.margin) - t.now.mono
        remaining = max(0, store.upload.size - store.upload.sent)
        if worth_preempting(
            left=left, rate=store.rate, current_remaining=remaining, newer_size=waiting.size
        ):
            _stop_upload(t)
        return
    if store.upload_retry_at is not None and t.now.mono < store.upload_retry_at:
        return
    t.do(_upload_of(t, waiting, urgent=i is not None))
    t.set_store(upload=Upload(waiting.id, waiting.sequence, waiting.size, t.now.mono))
    t.mark("upload started")


def hurry(t: Turn) -> None:
    """An interruption has begun: the upload under way takes the whole machine from now on."""
    upload = t.state.store.upload
    if upload is None or upload.stopping:
        return
    k = next((k for k in t.state.known if k.id == upload.id), None)
    if k is not None:
        t.do(_upload_of(t, k, urgent=True))


def _upload_of(t: Turn, k: Known, *, urgent: bool) -> do.Upload:
    return do.Upload(
        id=k.id,
        name=k.name,
        fingerprint=k.fingerprint,
        step=k.step,
        created=k.created,
        generation=t.state.store.generation,
        urgent=urgent,
    )


def _retain(t: Turn) -> None:
    store = t.state.store
    if store.deleting or t.state.interruption is not None or t.now.mono < store.delete_retry_at:
        return
    if t.state.resuming is not None:
        return  # the newest may turn out to be damaged, and then an older one is wanted
    ids = superfluous([s for s in store.listed if s.id not in t.state.rejected], t.policy.keep)
    if ids and confirmed(t):
        t.do(do.DeleteFromStore(ids))
        t.set_store(deleting=True)


def on_deleted(t: Turn, event: on.DeletedFromStore) -> None:
    """Retention has done its work."""
    if not t.state.store.deleting:
        return
    gone = set(event.ids)
    t.set_store(deleting=False, listed=tuple(s for s in t.state.store.listed if s.id not in gone))


def _delete_local(t: Turn) -> None:
    """`checkpoints.keep_local`: deletes old ones that are verified, durable and stored."""
    if t.policy.keep_local is None:
        return
    safe = sorted(
        (k for k in t.state.known if k.present and k.stored and k.durable),
        key=lambda k: k.sequence,
    )
    last = newest_known(t.state)
    for k in safe[: -max(1, t.policy.keep_local)]:
        if last is not None and k.id != last.id:
            t.do(do.DeleteLocal(k.name, k.fingerprint))


def _answer_requests(t: Turn, k: Known) -> None:
    waiting = []
    for request, after in t.state.checkpoint_requests:
        if k.sequence < after:
            waiting.append((request, after))
            continue
        t.do(
            do.Reply(
                request, ok=True, message=f"checkpoint {k.id} is in the store", data={"id": k.id}
            )
        )
    t.set(checkpoint_requests=tuple(waiting))


# --- the end of the run --------------------------------------------------------------


def advance_completion(t: Turn) -> None:
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
        if not confirmed(t):
            return
        t.do(do.StoreCompletion())
        t.set_store(completing=True)
        return
    if not state.finished and state.interruption is None and state.phase is Phase.COMPLETED:
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


def on_completion_stored(t: Turn, _: on.CompletionStored) -> None:
    """The run's end is on record on both sides."""
    if not t.state.store.completing:
        return
    t.set_store(completing=False)
    t.set(completion_stored=True)
    t.persist()


def megabytes(size: int) -> str:
    """Returns a size people read: 512 kB, 205 MB, 3.2 GB."""
    if size >= 10**9:
        return f"{size / 10**9:.1f} GB"
    return f"{size / 10**6:.1f} MB" if size >= 10**6 else f"{size / 1000:.0f} kB"
