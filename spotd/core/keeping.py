"""Checkpoints on the disk: ids, holds, and what is remembered of them.

An id is on record before anything is stored under it, and means one content for ever. A
hold is released only when a newer checkpoint is held and durable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.checkpoint import LocalCheckpoint, checkpoint_id, parse_checkpoint_id
from spotd.core.names import without_rank
from spotd.core.resume import is_newer, newest
from spotd.core.state import Known, newest_known
from spotd.core.words import megabytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spotd.core.turn import Turn


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
    if trainer is None and not t.state.contents_checked:
        if not t.state.inspections:
            inspect(t)  # a power cut may have torn it; the scan has seen its structure only
        return
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
    torn = {name for name, _ in event.torn}
    newest_id = t.state.known[-1].id if t.state.known else None
    for k in t.state.known:
        there = (k.name, k.fingerprint) in present
        # "none" promises nothing, so it cannot be missing either. But a power cut can tear a
        # file and leave its size and times: the upload would not notice.
        whole = k.id in held or (k.hold == "none" and (there or k.name not in torn))
        hold = k.hold if whole else None
        if k.id in held and hold is None and k.id != newest_id:
            hold = "link"  # held by a daemon that did not live to say so
        if hold is None and k.hold is not None:
            t.set(holding=t.state.holding - {k.id})  # it went: it may be asked for again
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
    """Holds the newest again where that was not finished: spotd was killed in between.

    `Hold` of what is held already is answered at once, and makes it durable.
    """
    last = newest_known(t.state)
    if last is None or last.unsendable or last.stored or not last.present:
        return
    if not t.state.disk_seen:
        return  # it may have been torn since
    if (last.hold is None or not last.durable) and last.id not in t.state.holding:
        _hold(t, last)


def _hold(t: Turn, k: Known) -> None:
    ids = {known.id for known in t.state.known}
    t.set(holding=(t.state.holding & ids) | {k.id})
    t.do(do.Hold(k.id, k.name, k.fingerprint))


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
    _note_save(t)
    forget_useless(t)
    t.persist()
    _hold(t, k)
    t.announce(
        "checkpoint_seen",
        f"checkpoint {k.name} is whole ({megabytes(k.size)})",
        checkpoint=k.id,
        **({} if k.step is None else {"step": k.step}),
    )
    t.mark("saved")
    _look_for_ranks(t, k)
    return k


def _look_for_ranks(t: Turn, k: Known) -> None:
    """Said once: nothing tells how many ranks there are, so parts are not put together."""
    common = without_rank(k.name)
    if common is None or t.state.ranks_apart:
        return
    other = next(
        (o for o in t.state.known if o.name != k.name and without_rank(o.name) == common), None
    )
    if other is not None:
        t.set(ranks_apart=True)
        t.announce(
            "ranks_apart",
            f"{other.name} and {k.name} look like parts of one checkpoint, a file for each rank: "
            "each counts as a whole one here, and only the newest is stored. Have all ranks save "
            "into one directory for each checkpoint",
            4,
            checkpoint=k.id,
        )


def _note_save(t: Turn) -> None:
    """The first save after a stop signal tells how long a save takes."""
    i = t.state.interruption
    marks = {} if i is None else dict(i.marks)
    if i is not None and "signal sent" in marks and "saved" not in marks:
        t.set(save_seconds=t.now.mono - i.seen - marks["signal sent"])


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
    t: Turn, checkpoints: Iterable[LocalCheckpoint], *, new: bool = True, overwrites: bool = False
) -> Known | None:
    """Gives an id to the newest checkpoint without one, if it is newer than all with one.

    `overwrites`: a trainer runs, so only a later write can have replaced what a name stood
    for, whatever time the file bears: the clock may have been set back.
    """
    recorded = {(k.name, k.fingerprint) for k in t.state.known if k.stored or not k.unsendable}
    fresh = newest(
        c
        for c in checkpoints
        if (c.name, c.fingerprint) not in recorded and c.fingerprint not in t.state.rejected
    )
    if fresh is None:
        return None
    best = newest_known(t.state)
    replaced = overwrites and best is not None and fresh.name == best.name
    if best is not None and not best.unsendable and not replaced and not is_newer(fresh, best):
        return None
    return register(t, fresh, new=new)


def on_vanished(t: Turn, event: on.CheckpointVanished) -> None:
    """The trainer deleted or replaced it. What is held or stored stays."""
    for k in t.state.known:
        if k.name == event.name and k.present:
            t.set_known(k.id, present=False)
    r = t.state.resuming
    if r is None or r.local is None or r.stage not in ("looking", "clearing", "preflight"):
        return
    chosen = "" if r.choice is None else r.choice.name  # fetched or put back since the look
    if event.name in {chosen, *(c.name for c in r.local.checkpoints)}:
        # What was going to be resumed from may be gone: look again.
        t.set_resuming(stage="looking", local=None, choice=None, retry_at=None)


def on_held(t: Turn, event: on.Held) -> None:
    """It is safe from the trainer's rotation and overwriting."""
    if not any(k.id == event.id for k in t.state.known):
        t.do(do.ReleaseHold(event.id))  # replaced and forgotten while it was being held
        return
    t.set_known(event.id, hold=event.mode)
    release_older_holds(t)


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
    release_older_holds(t)
    t.persist()


def release_older_holds(t: Turn) -> None:
    """Lets go of what is older than the newest that is held and durable."""
    held = (k for k in t.state.known if k.hold not in (None, "none") and k.durable)
    safe = [k.sequence for k in held if not {k.id, k.fingerprint} & t.state.rejected]
    if not safe:
        return
    uploading = t.state.store.upload.id if t.state.store.upload else None
    for k in t.state.known:
        if k.hold is not None and k.sequence < max(safe) and k.id != uploading:
            t.do(do.ReleaseHold(k.id))
            t.set_known(k.id, hold=None)
            t.set(holding=t.state.holding - {k.id})
