"""The way from "this run should train" to a started trainer.

looking -> (reinstating | fetching) -> clearing -> preflight -> starting

Looking waits for two answers at once, the disk's and the store's, and goes on with the
disk's alone when the store does not answer and a good checkpoint is there, or when the
lease is known to be ours still and nothing newer can be in the store. With nothing on
the disk it waits for the store, since starting from scratch would train again what is
stored; a machine that has never seen this run stored stops waiting after
`store.start_timeout`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core import keeping, leasing
from spotd.core.checkpoint import parse_checkpoint_id
from spotd.core.resume import NOTHING, Choice, choose, is_newer
from spotd.core.state import Known, Phase, Resuming, Trainer, Turn

if TYPE_CHECKING:
    from spotd.core.checkpoint import LocalCheckpoint

STORE_PATIENCE = 5.0  # seconds a good checkpoint on the disk waits for the store's answer
DIRECTORY_RETRY = 5.0  # seconds between looks at a checkpoint directory in trouble
PREFLIGHT_RETRY = 2.0
CLEAR_PATIENCE = 10.0  # seconds to wait for torn checkpoints to be put aside
LEASE_SLACK = 30.0  # seconds a lease on record must still have for a start without asking


def begin(t: Turn, reason: str = "", *, void_since: float | None = None) -> None:
    """Starts looking for what to resume from.

    `void_since`: what the trainer wrote from then on (wall clock) is behind the store.
    """
    state = t.state
    if state.trainer is not None:
        return
    t.enter(Phase.RESTORING, reason)
    t.set(resuming=Resuming(since=t.now.mono, void_since=void_since), retry_at=None)
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
    t.set(directory_trouble="", held=event.held, inspections=max(0, t.state.inspections - 1))
    keeping.compare_with_disk(t, event)
    if t.state.resuming is not None:
        if t.state.inspections == 0:  # an older answer may have been asked of a live trainer
            _void(t, event)
            t.set_resuming(local=event, inspecting=False)
            _put_torn_aside(t, dict(event.torn))
        return
    trainer = t.state.trainer
    void = trainer is not None and trainer.superseded
    if not void and keeping.register_newest(t, event.checkpoints) is None:
        keeping.hold_again(t)
    if t.state.inspections:
        return
    if t.state.interruption is not None and t.state.interruption.inspection == "asked":
        t.set_interruption(inspection="done")
    if t.state.completed:
        t.set(completion_inspected=True)


def _void(t: Turn, event: on.LocalInventory) -> None:
    """What a superseded trainer wrote without being seen is not to be resumed from either."""
    r = t.state.resuming
    if r is None or r.void_since is None:
        return
    recorded = {(k.name, k.fingerprint) for k in t.state.known}
    void = {
        c.fingerprint
        for c in event.checkpoints
        if c.mtime_ns >= r.void_since * 1e9 and (c.name, c.fingerprint) not in recorded
    }
    t.set(rejected=t.state.rejected | void)


def on_directory_trouble(t: Turn, event: on.DirectoryTrouble) -> None:
    """Said once per reason, tried again."""
    advice = f". {event.hint}" if event.hint else ""
    if t.state.directory_trouble != event.reason:
        t.announce("directory_trouble", f"{event.reason}{advice}", 3)
    t.set(directory_trouble=event.reason, inspections=max(0, t.state.inspections - 1))
    if t.state.resuming is not None:
        t.set_resuming(inspecting=False, inspect_at=t.now.mono + DIRECTORY_RETRY)
        t.set(reason=f"{event.reason}{advice}")
    elif t.state.interruption is not None and t.state.interruption.inspection == "asked":
        t.set_interruption(inspection="done")
    elif t.state.completed:
        t.set(completion_inspected=True)


# --- looking -------------------------------------------------------------------------


def advance(t: Turn) -> None:
    """Goes as far as is possible now."""
    r = t.state.resuming
    if r is None or t.state.interruption is not None:
        return
    if t.state.completed:
        t.set(resuming=None)
        t.announce("completed", f"run {t.state.run} is complete: nothing to train", 5)
        t.set(completion_inspected=True)
        t.enter(Phase.COMPLETED, "this run is complete; another `run` name starts a new one")
        return
    if r.stage == "looking":
        _look(t)
    elif r.stage == "clearing":
        if not r.clearing or t.now.mono >= r.clear_by:
            _preflight(t)
    elif r.stage == "preflight" and r.retry_at is not None and t.now.mono >= r.retry_at:
        t.set_resuming(retry_at=None)
        t.do(do.RunPreflight())


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
    without = _choose(t, with_store=False)
    alone = _needs_no_store(t, without)
    if store.status == "refused":
        _wait(t, f"held by {store.holder}, which trains this run; waiting for its lease to run out")
        return
    if store.status == "open":
        _take(t, _choose(t, with_store=True))
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


def _choose(t: Turn, *, with_store: bool) -> Choice:
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


def _take(t: Turn, choice: Choice, *, blind: bool = False) -> None:
    r = t.state.resuming
    if r is None:
        return
    t.set_resuming(choice=choice, blind=blind)
    t.set(reason="")
    if choice.id is None or choice.source not in ("store", "hold"):
        _clear(t)
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


# --- fetching and reinstating --------------------------------------------------------


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
    _know_as(t, event.id, c, step)
    t.set_known(event.id, durable=True)
    t.announce(
        "restore_finished",
        f"checkpoint {c.name} is back from the store in {t.now.mono - r.since:.1f} s",
        checkpoint=event.id,
        seconds=round(t.now.mono - r.since, 3),
        **({} if step is None else {"step": step}),
    )
    _clear(t)


def _know_as(t: Turn, checkpoint_id: str, c: LocalCheckpoint, step: int | None) -> None:
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
    if _choose(t, with_store=False) is NOTHING:
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
    _clear(t)


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
    if _choose(t, with_store=t.state.store.status == "open") is NOTHING:
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


# --- clearing, preflight, starting ---------------------------------------------------


def _put_torn_aside(t: Turn, torn: dict[str, str]) -> None:
    """Out of the sight of the trainer's own search, before a whole one takes a name back."""
    for name, reason in torn.items():
        t.announce(
            "checkpoint_rejected",
            f"{name} is torn ({reason}): put aside, not deleted",
            4,
            checkpoint=name,
        )
        t.do(do.SetAside(name, reason))
    t.set_resuming(clearing=frozenset(torn), clear_by=t.now.mono + CLEAR_PATIENCE)


def _clear(t: Turn) -> None:
    """Waits until what is torn has been put aside."""
    t.set_resuming(stage="clearing")


def on_set_aside(t: Turn, event: on.SetAsideDone) -> None:
    """Out of the trainer's sight."""
    r = t.state.resuming
    if r is not None:
        t.set_resuming(clearing=r.clearing - {event.name})


def _preflight(t: Turn) -> None:
    if not t.policy.preflight:
        _start(t)
        return
    t.set_resuming(stage="preflight", preflight_until=t.now.mono + t.policy.preflight_timeout)
    t.set(reason="waiting for the preflight command")
    t.do(do.RunPreflight())


def on_preflight_passed(t: Turn, _: on.PreflightPassed) -> None:
    """What the trainer needs is there."""
    if t.state.resuming is not None and t.state.resuming.stage == "preflight":
        t.set(reason="")
        _start(t)


def on_preflight_failed(t: Turn, event: on.PreflightFailed) -> None:
    """Not yet, or never."""
    r = t.state.resuming
    if r is None or r.stage != "preflight":
        return
    t.set(reason=f"preflight fails: {event.reason}")
    if r.preflight_until is not None and t.now.mono >= r.preflight_until:
        on_start_failed(
            t,
            on.TrainerStartFailed(
                f"trainer.preflight failed for {t.policy.preflight_timeout:.0f} s: {event.reason}",
                "run the command by hand, or raise trainer.preflight_timeout",
            ),
        )
        return
    t.set_resuming(retry_at=t.now.mono + PREFLIGHT_RETRY)


def _start(t: Turn) -> None:
    r = t.state.resuming
    if r is None:
        return
    choice = r.choice or NOTHING
    state = t.state
    lost = 0
    if state.last_step is not None:
        # Without a step in the name nothing can be said; from scratch, everything is lost.
        resumed = choice.step if choice.source != "nothing" else 0
        lost = max(0, state.last_step - resumed) if resumed is not None else 0
    t.set(
        attempt=state.attempt + 1,
        attempt_in_boot=state.attempt_in_boot + 1,
        lost_steps=state.lost_steps + lost,
        last_step=None,
        contents_checked=True,
        trainer=Trainer(
            attempt=state.attempt + 1,
            started=t.now.wall,
            started_mono=t.now.mono,
            resumed_from=choice.id or choice.fingerprint,
            resumed_step=choice.step,
            blind=r.blind,
            first_sequence=state.next_sequence,
            last_progress=t.now.mono,
        ),
    )
    if lost:
        t.announce("steps_lost", f"{lost} steps are trained again", 5, lost_steps=lost)
    t.set_resuming(stage="starting")
    t.persist()
    grace = max(0.0, 100.0 - t.policy.margin)
    t.do(do.StartTrainer(t.state.attempt, choice.name, grace))


def on_started(t: Turn, event: on.TrainerStarted) -> None:
    """It runs."""
    r = t.state.resuming
    if r is None or r.stage != "starting" or t.state.trainer is None:
        return
    t.set_trainer(pid=event.pid)
    t.set(start_failures=0, start_trouble="")
    local = r.local
    choice = r.choice or NOTHING
    t.set(resuming=None)
    if t.state.interruption is None:
        t.enter(Phase.RUNNING)
    t.persist()
    origin = "from scratch"
    fields: dict[str, object] = {"pid": event.pid}
    if choice.name is not None:
        origin = f"from {choice.name}"
        fields["checkpoint"] = choice.id or choice.name
        if choice.step is not None:
            origin += f" (step {choice.step})"
            fields["step"] = choice.step
    t.announce("trainer_started", f"attempt {t.state.attempt} started {origin}", 5, **fields)
    if t.state.attempt > 1:
        t.set(counts=replace(t.state.counts, restarts=t.state.counts.restarts + 1))
    if choice.id is not None and choice.id not in {k.id for k in t.state.known}:
        # Restored by a spotd that did not live to record it: known by name, size and time.
        found = () if local is None else local.checkpoints
        for c in found:
            if c.fingerprint == choice.fingerprint:
                _know_as(t, choice.id, c, choice.step)
    if local is not None and keeping.register_newest(t, local.checkpoints, new=False) is None:
        keeping.hold_again(t)
    t.set_trainer(first_sequence=t.state.next_sequence)


def on_start_failed(t: Turn, event: on.TrainerStartFailed) -> None:
    """Nothing runs. Waiting may help, so it is tried again, with the reason in the status."""
    if t.state.resuming is None:
        return
    t.set(trainer=None, resuming=None, start_failures=t.state.start_failures + 1)
    advice = f". {event.hint}" if event.hint else ""
    if t.state.start_trouble != event.reason:
        t.announce("trainer_start_failed", f"{event.reason}{advice}", 3)
    t.set(start_trouble=event.reason)
    if t.state.interruption is not None:
        return
    wait = min(60.0, t.policy.backoff_min * 2.0 ** min(t.state.start_failures, 10))
    t.set(retry_at=t.now.mono + wait)
    t.enter(Phase.BACKING_OFF, f"{event.reason}{advice}")
    t.persist()
