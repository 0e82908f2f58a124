"""The way from "this run should train" to what it resumes from.

looking -> (reinstating | fetching) -> clearing -> preflight -> starting

`spotd.core.restoring` puts the choice under its name, `spotd.core.starting` does the rest.
Looking waits for two answers at once, the disk's and the store's, and goes on with the
disk's alone when the store does not answer and a good checkpoint is there, or when the
lease is known to be ours still and nothing newer can be in the store. With nothing on
the disk it waits for the store, since starting from scratch would train again what is
stored; a machine that has never seen this run stored stops waiting after
`store.start_timeout`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core import keeping, restoring, starting
from spotd.core.checkpoint import parse_checkpoint_id
from spotd.core.resume import NOTHING, is_newer
from spotd.core.state import Phase, Resuming

if TYPE_CHECKING:
    from spotd.core.resume import Choice
    from spotd.core.turn import Turn

STORE_PATIENCE = 5.0  # seconds a good checkpoint on the disk waits for the store's answer
LEASE_SLACK = 30.0  # seconds a lease on record must still have for a start without asking


def begin(t: Turn, reason: str = "") -> None:
    """Starts looking for what to resume from."""
    state = t.state
    if state.trainer is not None:
        return
    t.enter(Phase.RESTORING, reason)
    t.set(resuming=Resuming(since=t.now.mono), retry_at=None)
    t.set_store(halted=False)
    if state.store.status != "open":
        t.set_store(retry_at=None, asked_at=None)
    _inspect(t)


def _inspect(t: Turn) -> None:
    keeping.inspect(t)
    t.set_resuming(inspecting=True)


def cancel(t: Turn) -> None:
    """A notice or a stop came: the resume is given up, what has been fetched is kept."""
    r = t.state.resuming
    if r is not None and r.stage == "fetching":
        t.do(do.StopFetch())
    t.set(resuming=None)


def on_inventory(t: Turn, event: on.LocalInventory) -> None:
    """What the checkpoint directory holds."""
    t.set(
        disk_seen=True,
        disk_empty=not (event.checkpoints or event.torn or event.held),
        look_at=None,
        directory_trouble="",
        held=event.held,
        inspections=max(0, t.state.inspections - 1),
    )
    keeping.compare_with_disk(t, event)
    _void(t, event)
    if t.state.resuming is not None:
        if t.state.inspections == 0:  # an older answer may have been asked of a live trainer
            t.set_resuming(local=event, inspecting=False)
            starting.put_torn_aside(t, dict(event.torn))
        return
    trainer = t.state.trainer
    void = trainer is not None and trainer.superseded
    alive = trainer is not None
    if not void and keeping.register_newest(t, event.checkpoints, overwrites=alive) is None:
        keeping.hold_again(t)
    if t.state.inspections:
        return
    if t.state.interruption is not None and t.state.interruption.inspection == "asked":
        t.set_interruption(inspection="done")
    if t.state.completed:
        t.set(completion_inspected=True)


def _void(t: Turn, event: on.LocalInventory) -> None:
    """What a superseded trainer wrote without being seen is not wanted either."""
    since = t.state.void_since
    if since is None:
        return
    recorded = {(k.name, k.fingerprint) for k in t.state.known}
    void = {
        c.fingerprint
        for c in event.checkpoints
        if c.mtime_ns >= since * 1e9 and (c.name, c.fingerprint) not in recorded
    }
    t.set(rejected=t.state.rejected | void)


def on_directory_trouble(t: Turn, event: on.DirectoryTrouble) -> None:
    """Said once per reason, tried again."""
    advice = f". {event.hint}" if event.hint else ""
    if t.state.directory_trouble != event.reason:
        t.announce("directory_trouble", f"{event.reason}{advice}", 3)
    t.set(directory_trouble=event.reason, inspections=max(0, t.state.inspections - 1))
    if t.state.resuming is not None:
        t.set_resuming(inspecting=False, inspect_at=t.now.mono + restoring.DIRECTORY_RETRY)
        t.set(reason=f"{event.reason}{advice}")
        return
    if t.state.interruption is not None and t.state.interruption.inspection == "asked":
        t.set_interruption(inspection="done")  # a drain does not wait for it
    unlooked = t.state.completed and not t.state.completion_inspected
    if unlooked or not t.state.disk_seen:
        t.set(look_at=t.now.mono + restoring.DIRECTORY_RETRY)
    if unlooked:
        t.set(reason=f"{event.reason}{advice}")


def advance_look(t: Turn) -> None:
    """Looks again at a checkpoint directory that could not be looked at."""
    due = t.state.look_at is not None and t.now.mono >= t.state.look_at
    if not due or t.state.resuming is not None or t.state.inspections:
        return
    t.set(look_at=None)
    keeping.inspect(t, settled=t.state.trainer is None)


# --- looking -------------------------------------------------------------------------


def advance(t: Turn) -> None:
    """Goes as far as is possible now."""
    r = t.state.resuming
    if r is None or t.state.interruption is not None:
        return
    if t.state.completed:
        if r.stage == "starting":
            return  # a process is on its way: it is stopped as soon as it is known
        t.set(resuming=None)
        if not t.state.disk_seen and t.state.look_at is None:
            t.set(look_at=t.now.mono + restoring.DIRECTORY_RETRY)
        t.announce("completed", f"run {t.state.run} is complete: nothing to train", 5)
        t.set(completion_inspected=True)
        t.enter(Phase.COMPLETED, "this run is complete; another `run` name starts a new one")
        return
    if r.stage == "looking" or _must_look_again(t, r):
        _look(t)
    elif r.stage == "clearing":
        if not r.clearing or t.now.mono >= r.clear_by:
            starting.preflight(t)
    elif r.stage == "preflight" and r.retry_at is not None and t.now.mono >= r.retry_at:
        t.set_resuming(retry_at=None)
        t.do(do.RunPreflight())


def _must_look_again(t: Turn, r: Resuming) -> bool:
    """Whether the store has answered since a choice was made without it, and knows better.

    From the start on it is the running trainer that is superseded (`leasing`); before it,
    and a preflight command can take minutes, nothing has been trained yet.
    """
    if r.stage not in ("clearing", "preflight"):
        return False
    status = t.state.store.status
    if status == "open" and r.blind and restoring.choose_for(t, with_store=True) == r.choice:
        t.set_resuming(blind=False)
        return False
    if status != "refused" and not (status == "open" and r.blind):
        return False
    t.set_resuming(stage="looking", choice=None, blind=False, local=None, retry_at=None)
    return True


def _look(t: Turn) -> None:
    r = t.state.resuming
    if r is None:
        return
    if r.local is None:
        if not r.inspecting and t.now.mono >= r.inspect_at:
            _inspect(t)
        return
    if r.retry_at is not None and t.now.mono < r.retry_at:
        return
    store = t.state.store
    without = restoring.choose_for(t, with_store=False)
    alone = _needs_no_store(t, without)
    if store.status == "refused":
        _wait(t, f"held by {store.holder}, which trains this run; waiting for its lease to run out")
        return
    if store.status == "open":
        _take(t, restoring.choose_for(t, with_store=True))
    elif alone or (without is not NOTHING and _has_waited_enough(t, without)):
        _take(t, without, blind=not alone)
    elif without is NOTHING and _may_start_from_scratch(t):
        t.announce(
            "blind_start",
            "the store has not answered and nothing is on the disk: training starts from "
            "scratch; should the store turn out to have this run, it is resumed from there",
            4,
        )
        _take(t, NOTHING, blind=True)
    else:
        said = f": {store.reason}. {store.hint}" if store.reason else ""
        _wait(t, f"waiting for the store{said}")


def _wait(t: Turn, reason: str) -> None:
    r = t.state.resuming
    if r is not None and r.waiting_for != reason:
        t.set_resuming(waiting_for=reason)
        t.set(reason=reason)


def _is_up_to_date(t: Turn, choice: Choice) -> bool:
    """Whether nothing newer is on record as stored."""
    stored = max((k for k in t.state.known if k.stored), key=lambda k: k.sequence, default=None)
    parsed = parse_checkpoint_id(choice.id) if choice.id else None
    if stored is None or (parsed is not None and parsed[0] >= stored.sequence):
        return True
    r = t.state.resuming
    found = () if parsed is not None or r is None or r.local is None else r.local.checkpoints
    return any(c.fingerprint == choice.fingerprint and is_newer(c, stored) for c in found)


def _needs_no_store(t: Turn, choice: Choice) -> bool:
    """Whether the lease on record is ours still, so that nobody can have stored anything.

    Nobody but ourselves: the upload of a newer one may have ended without being recorded.
    """
    ours = t.state.lease_until_wall - LEASE_SLACK > t.now.wall
    if choice is NOTHING or not ours or not _is_up_to_date(t, choice):
        return False
    if t.state.void_since is not None:
        return False  # the store is known to be ahead
    parsed = parse_checkpoint_id(choice.id) if choice.id else None
    return parsed is None or not any(
        k.sequence > parsed[0] and not (k.stored or k.unsendable) for k in t.state.known
    )


def _has_waited_enough(t: Turn, choice: Choice) -> bool:
    """A good checkpoint is on the disk: is the store's answer worth more waiting?"""
    if not _is_up_to_date(t, choice):
        r = t.state.resuming
        return r is not None and t.now.mono - r.since >= t.policy.start_timeout
    asked = t.state.store.asked_at
    return t.state.store.status == "failed" or (
        asked is not None and t.now.mono - asked >= STORE_PATIENCE
    )


def _may_start_from_scratch(t: Turn) -> bool:
    r = t.state.resuming
    if r is None or any(k.stored for k in t.state.known):
        return False  # this run is in the store: starting from scratch would lose it
    return t.now.mono - r.since >= t.policy.start_timeout


def _take(t: Turn, choice: Choice, *, blind: bool = False) -> None:
    r = t.state.resuming
    if r is None:
        return
    t.set_resuming(choice=choice, blind=blind)
    t.set(reason="")
    if choice.id is None or choice.source not in ("store", "hold"):
        t.set_resuming(stage="clearing")
        return
    if choice.source == "store":
        stage, doing = "fetching", f"fetching checkpoint {choice.id} from the store"
        action: do.Action = do.Fetch(choice.id)
    else:
        stage, doing = "reinstating", f"putting {choice.name} back from its hold on the disk"
        action = do.Reinstate(choice.id)
    if r.announced != doing:
        t.announce("restore_started", doing, checkpoint=choice.id)
    t.set_resuming(stage=stage, retry_at=None, announced=doing)
    t.set(reason=doing)
    t.do(action)
