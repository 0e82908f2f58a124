"""From "held" to "in the store": uploads, and what may be deleted afterwards.

One upload at a time. In peace a running upload is never broken off (with saves faster than
the link, breaking off would mean that nothing is ever stored); when it ends, the newest
checkpoint goes next and what it has made useless is skipped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core import keeping, leasing
from spotd.core.checkpoint import StoredCheckpoint
from spotd.core.deadline import first_to_send
from spotd.core.retention import superfluous
from spotd.core.state import Known, State, Upload, newest_known, unstored
from spotd.core.words import megabytes

if TYPE_CHECKING:
    from spotd.core.turn import Turn

RATE_FLOOR = 1 << 20  # bytes; smaller uploads say nothing about the link
RATE_AFTER = 2.0  # seconds of hurry from which on the pace is the link's
RATE_SECONDS = 1.0  # of it that are enough to measure it
DELETIONS = 2  # that failed, after which the end of a run waits for no other


def on_progress(t: Turn, event: on.UploadProgressed) -> None:
    """Some more of it is on its way."""
    upload = t.state.store.upload
    if upload is not None and upload.id == event.id:
        moved = t.now.mono if event.sent > upload.sent else upload.moved
        t.set_store(upload=replace(upload, size=event.size, sent=event.sent, moved=moved))
        _measure(t)


def _measure(t: Turn) -> None:
    """With a deadline near, the upload under way is the best measure of the link there is."""
    upload = t.state.store.upload
    if upload is None or upload.hurried is None or t.now.mono < upload.hurried + RATE_AFTER:
        return
    if upload.ahead:
        return  # it counts what is read again, not only what goes over the link
    if upload.measured is None:
        t.set_store(upload=replace(upload, measured=(t.now.mono, upload.sent)))
        return
    since, before = upload.measured
    seconds, sent = t.now.mono - since, upload.sent - before
    if seconds >= RATE_SECONDS and sent >= RATE_FLOOR:
        t.set_store(rate=sent / seconds)


def on_uploaded(t: Turn, event: on.Uploaded) -> None:
    """The manifest is in the store."""
    state = t.state
    k = next((k for k in state.known if k.id == event.id), None)
    if state.store.upload is not None and state.store.upload.id == event.id:
        t.set_store(upload=None)
    if k is None:
        return
    leasing.store_answers(t)
    t.set_store(upload_failures=0, upload_retry_at=None)
    t.set_known(k.id, stored=True)
    if event.rate is not None and event.sent >= RATE_FLOOR:
        old = t.state.store.rate
        t.set_store(rate=event.rate if old is None else 0.5 * old + 0.5 * event.rate)
    listed = StoredCheckpoint(
        k.id, k.sequence, t.state.store.generation, k.name, k.kind, k.size, k.step,
        k.created, k.mtime_ns, state.instance_id,
    )  # fmt: skip
    if k.id not in {s.id for s in t.state.store.listed}:
        t.set_store(listed=(*t.state.store.listed, listed))
    keeping.release_older_holds(t)
    t.persist()
    took = f"{megabytes(k.size)} in {event.seconds:.1f} s"
    if event.ahead:
        took += f", after {megabytes(event.ahead)} while it was being written"
    t.announce(
        "checkpoint_stored",
        f"checkpoint {k.name} is in the store ({took})",
        checkpoint=k.id,
        bytes=k.size,
        sent=event.sent,
        seconds=round(event.seconds, 3),
        **({"ahead": event.ahead} if event.ahead else {}),
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
        advice = f". {event.hint}" if event.hint else ""
        t.announce(
            "checkpoint_rejected",
            f"checkpoint {event.id} was not stored: {event.reason}{advice}",
            5,
            checkpoint=event.id,
        )
        keeping.hold_again(t)  # the one before it is the newest now
        if t.state.completed and t.state.trainer is None:
            # Gone, or is its file system? The run is not called complete before that is known.
            t.set(completion_inspected=False)
            keeping.inspect(t)
        return
    failures = t.state.store.upload_failures + 1
    t.set_store(upload_failures=failures, upload_retry_at=t.now.mono + leasing.delay(t, failures))
    leasing.trouble(t, event.reason, event.hint)


def on_uploads_stopped(t: Turn, _: on.UploadsStopped) -> None:
    """Nothing is being sent any more."""
    if t.state.store.upload is not None and t.state.store.upload.stopping:
        t.set_store(upload=None)


def halt(t: Turn) -> None:
    """Stops uploads until `unhalt`: the margin before the deadline has begun."""
    if not t.state.store.halted:
        t.set_store(halted=True)
        leasing.stop_upload(t)


def waiting(state: State) -> list[Known]:
    """Returns the checkpoints that are not in the store and could be, the newest last.

    None before the disk has been looked at: after a boot it may be torn, and only then does the
    shell know what is held under which id.
    """
    if not state.disk_seen:
        return []
    found = (k for k in unstored(state) if k.hold is not None)
    return sorted(found, key=lambda k: k.sequence)


def _next_upload(t: Turn) -> Known | None:
    """The newest that waits; with a deadline near, the newest that can be there in time."""
    there, i, store = waiting(t.state), t.state.interruption, t.state.store
    if not there or i is None:
        return there[-1] if there else None
    left = i.deadline - t.policy.margin - t.now.mono
    sent = {each.id: each.sent for each in (store.ahead, store.upload) if each is not None}
    sizes = [max(0, k.size - sent.get(k.id, 0)) for k in there]
    first = there[first_to_send(sizes, left=left, rate=store.rate)]
    newest, seconds = there[-1], sizes[-1] / store.rate if store.rate else 0.0
    if seconds > left and store.told_late != newest.id:
        t.set_store(told_late=newest.id)
        instead = "" if first is newest else f"{first.name} is finished first, and "
        t.announce(
            "not_in_time",
            f"storing {newest.name} takes about {seconds:.0f} s, {max(0.0, left):.0f} s are left: "
            f"{instead}what is missing of it goes up after the restart",
            4,
            checkpoint=newest.id,
        )
    return first


def wanted(state: State) -> bool:
    """Whether there is any business with the store: training, or something left to store."""
    if state.resuming is not None or state.trainer is not None:
        return True
    if state.interruption is not None and not state.interruption.drained:
        return True
    if state.completed and not state.completion_stored:
        return True
    return bool(unstored(state)) or (not state.finished and owes_deletion(state))


def expire(t: Turn) -> None:
    """A lease that has run out is no lease, whatever else is going on."""
    store = t.state.store
    if store.status != "open" or store.lease_until is None or t.now.mono < store.lease_until:
        return
    t.set_store(status="failed", retry_at=t.now.mono, renewing=False)
    leasing.stop_upload(t)


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
    _retain(t)
    _pump(t)


def _pump(t: Turn) -> None:
    store = t.state.store
    first = _next_upload(t)
    if first is None:
        return
    i = t.state.interruption
    if store.upload is not None:
        # A newer one is never broken off for an older: estimates swing.
        newer = first.sequence > store.upload.sequence
        if i is not None and newer and not store.upload.stopping:
            leasing.stop_upload(t)
        return
    if store.upload_retry_at is not None and t.now.mono < store.upload_retry_at:
        return
    if store.opening:
        return  # a new generation is on its way, and what is sent under the old one is refused
    t.do(_upload_of(t, first, urgent=i is not None))
    hurried = None if i is None else t.now.mono
    upload = Upload(first.id, first.sequence, first.size, t.now.mono, hurried=hurried)
    ahead = store.ahead
    if ahead is not None and ahead.id == first.id:
        upload, ahead = replace(upload, sent=ahead.sent, ahead=True), None
    t.set_store(upload=upload, ahead=ahead)
    t.mark("upload started")


def hurry(t: Turn) -> None:
    """An interruption has begun: the upload under way takes the whole machine from now on."""
    upload = t.state.store.upload
    if upload is None or upload.stopping:
        return
    k = next((k for k in t.state.known if k.id == upload.id), None)
    if k is not None:
        t.do(_upload_of(t, k, urgent=True))
        t.set_store(upload=replace(upload, hurried=t.now.mono, measured=None))


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
    ids = _superfluous(t.state)
    if ids and leasing.confirmed(t):
        t.do(do.DeleteFromStore(ids))
        t.set_store(deleting=True)


def _superfluous(state: State) -> tuple[str, ...]:
    listed = [s for s in state.store.listed if s.id not in state.rejected]
    return superfluous(listed, state.policy.keep)


def owes_deletion(state: State) -> bool:
    """Whether a run that is over still has checkpoints to delete, and the store lets it.

    Two failures in a row are not waited for: a machine that is to be ended goes on costing.
    """
    store = state.store
    if not state.completed or store.status != "open" or store.halted:
        return False
    if store.deletions_failed >= DELETIONS:
        return False
    return store.deleting or bool(_superfluous(state))


def on_deleted(t: Turn, event: on.DeletedFromStore) -> None:
    """Retention has done its work."""
    if not t.state.store.deleting:
        return
    gone = set(event.ids)
    listed = tuple(s for s in t.state.store.listed if s.id not in gone)
    t.set_store(deleting=False, deletions_failed=0, listed=listed)


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
