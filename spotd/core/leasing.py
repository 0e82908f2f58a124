"""What the store says: the lease, the listing, and trouble.

Nothing is stored without the lease. A machine that lost it keeps training and says so; one
that never had it, because the store did not answer when it started, stops.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core import keeping
from spotd.core.resume import is_newer, same_content

if TYPE_CHECKING:
    from spotd.core.checkpoint import StoredCheckpoint
    from spotd.core.state import Known
    from spotd.core.turn import Turn

RETRY_MIN = 2.0  # seconds between tries while the store fails, doubled to RETRY_MAX
RETRY_MAX = 60.0
LEASE_DOUBLED = 2  # times, for a lease that still holds: somebody else waits for its end
RECHECK = 30.0  # seconds between looks at a lease that somebody else holds
RETRY_URGENT = 1.0  # the same while a deadline runs
LEASE_SHARE = 1 / 3  # of the lease's time after which it is renewed
SUPERSEDE_GRACE = 30.0  # seconds a trainer has that turned out to be behind the store


def on_opened(t: Turn, event: on.StoreOpened) -> None:
    """The lease is ours, and we know what the store has."""
    if not t.state.store.opening:
        return
    stored_ids = {s.id for s in event.stored}
    top = max((s.sequence for s in event.stored), default=0)
    store_answers(t)
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
    _not_believed(t, event.damaged)
    _lease_granted(t, event.lease_in)
    t.set(
        lease_generation=event.generation,
        next_sequence=max(t.state.next_sequence, event.top_sequence + 1, top + 1),
    )
    _compare(t, event.stored, top)
    if event.completed and not t.state.completed:
        t.set(completed=True, completion_safe=True, completion_stored=True)
    _supersede(t, event)
    trainer = t.state.trainer
    if trainer is not None and not trainer.superseded:
        t.set_trainer(blind=False)  # from here on nobody else can get ahead of it
        ours = {k.id for k in t.state.known}
        foreign = bool(event.stored) and event.stored[-1].id not in ours
        if foreign and any(k.unsendable and k.present for k in t.state.known):
            # Ids given without knowing the store: what they named gets new ones.
            keeping.inspect(t, settled=False)
    t.persist()


def _compare(t: Turn, stored: tuple[StoredCheckpoint, ...], top: int) -> None:
    """What is on record, held against what the store has.

    Two machines that could not see each other may have given one id to two contents.
    """
    by_id = {s.id: s for s in stored}
    for k in t.state.known:
        s = by_id.get(k.id)
        ours = s is not None and (
            k.stored or s.instance_id == t.state.instance_id or same_content(k, s)
        )
        if s is not None and not ours:
            t.set_known(k.id, unsendable=True)
        elif s is not None:
            if not k.stored:
                _found_stored(t, k)
            t.set_known(k.id, stored=True)
        elif k.sequence > top:
            if k.stored:
                _not_there(t, k)
                t.set_known(k.id, stored=False)
                keeping.hold_again(t)
        elif not k.stored:
            t.set_known(k.id, unsendable=True)


def _found_stored(t: Turn, k: Known) -> None:
    """Whoever stored it did not live to say so; an upload under way says it itself."""
    upload = t.state.store.upload
    if upload is None or upload.id != k.id:
        t.announce(
            "checkpoint_stored",
            f"checkpoint {k.name} is in the store already",
            checkpoint=k.id,
            bytes=k.size,
            **({} if k.step is None else {"step": k.step}),
        )


def _not_believed(t: Turn, damaged: tuple[tuple[str, str], ...]) -> None:
    """What is passed over is said, once each: it may be newer than what is resumed from."""
    for checkpoint, reason in damaged:
        if checkpoint not in t.state.store.damaged:
            t.announce(
                "checkpoint_rejected",
                f"checkpoint {checkpoint} in the store is passed over: {reason}. It is not deleted",
                4,
                checkpoint=checkpoint,
            )
    t.set_store(damaged=tuple(checkpoint for checkpoint, _ in damaged))


def _not_there(t: Turn, k: Known) -> None:
    """The store said that it has this one, and does not list it."""
    trouble(t, f"it acknowledged {k.id} and does not have it", "see whether it can be trusted")
    r = t.state.resuming
    if r is not None:
        # Its hold could not be put back, and the store's copy was to serve instead: there is none.
        t.set_resuming(rejected=r.rejected - {f"hold:{k.id}"})
    t.set_store(upload_retry_at=t.now.mono + RETRY_MAX)


def confirmed(t: Turn) -> bool:
    """Whether what is about to be relied on was seen in a listing; asks for one if not.

    Nothing is deleted, and no machine ended, on the word of an answered upload alone.
    """
    store = t.state.store
    newest = sorted(store.listed, key=lambda s: s.sequence)[-max(1, t.policy.keep) :]
    if all(s.id in store.confirmed for s in newest):
        return True
    if not store.opening and store.upload is None:
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
    void_attempt(t)


def _is_ahead(t: Turn, top: StoredCheckpoint) -> bool:
    """Whether the store's newest is ahead of where the trainer started, and of where it is."""
    trainer = t.state.trainer
    if trainer is None:
        return False
    if top.step is not None and trainer.step is not None and top.step <= trainer.step:
        return False
    if any(k.id == top.id and k.sequence >= trainer.first_sequence for k in t.state.known):
        return False  # it is what this trainer has saved
    origin = trainer.resumed_from
    base = next((k for k in t.state.known if origin in (k.id, k.fingerprint)), None)
    if base is None:
        return True
    if base.sequence >= top.sequence or same_content(base, top):
        return False
    return not is_newer(base, top)


def void_attempt(t: Turn) -> None:
    """Stops the trainer; what this attempt has saved is never resumed from nor stored."""
    trainer = t.state.trainer
    if trainer is None:
        return
    void = [k for k in t.state.known if k.sequence >= trainer.first_sequence]
    marks = {x for k in void for x in (k.id, k.fingerprint)}
    t.set(rejected=t.state.rejected | marks, void_since=trainer.started)
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
    store_answers(t)
    _lease_granted(t, event.lease_in)


def on_refused(t: Turn, event: on.LeaseRefused) -> None:
    """Another machine trains this run."""
    if not (t.state.store.opening or t.state.store.renewing or t.state.store.status == "open"):
        return
    had = t.state.store.status == "open"
    news = t.state.store.holder != event.holder
    unleased = t.state.store.generation == 0  # this daemon never had it
    store_answers(t)
    wait = min(max(event.expires_in, 1.0), RECHECK)
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
        stop_upload(t)
    trainer = t.state.trainer
    if trainer is not None and unleased and not trainer.superseded and not trainer.adopted:
        t.announce(
            "lease_refused",
            f"run {t.state.run} is being trained by {event.holder}: stopping the trainer that "
            "was started here while the store did not answer",
            4,
            holder=event.holder,
        )
        void_attempt(t)
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
            f"{event.expires_in:.0f} s. Stop spotd there, or wait: it is looked at again every "
            f"{RECHECK:.0f} s",
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
        t.set_store(renewing=False, failures=min(store.failures, LEASE_DOUBLED))
    elif event.operation == "delete":
        t.set_store(
            deleting=False,
            deletions_failed=store.deletions_failed + 1,
            delete_retry_at=t.now.mono + RETRY_MAX,
        )
    else:
        t.set_store(completing=False, complete_retry_at=t.now.mono + delay(t, store.failures + 1))
    trouble(t, event.reason, event.hint)
    retry = t.now.mono + delay(t, t.state.store.failures)
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
        goes_on = "Training goes on; spotd" if t.state.trainer is not None else "spotd"
        t.announce(
            "store_failed", f"the store does not answer: {reason}{advice}. {goes_on} tries again", 4
        )


def store_answers(t: Turn) -> None:
    """Says that the store answers again, if it had been said that it did not."""
    if t.state.store.announced:
        t.announce("store_back", "the store answers again", 5)
    t.set_store(failures=0, reason="", hint="", announced=False)


def delay(t: Turn, failures: int) -> float:
    """Returns the seconds until the next try after so many that failed."""
    if t.state.interruption is not None:
        return RETRY_URGENT
    return float(min(RETRY_MAX, RETRY_MIN * 2.0 ** min(max(failures - 1, 0), 10)))


def stop_upload(t: Turn) -> None:
    """Breaks the upload under way off; what has been sent is kept for later."""
    upload = t.state.store.upload
    if upload is not None and not upload.stopping:
        t.do(do.StopUploads())
        t.set_store(upload=replace(upload, stopping=True))
