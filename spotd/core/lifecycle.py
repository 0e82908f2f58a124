"""The lifecycle: `step(state, event, now) -> (state, actions)`.

Theory of operation
===================

spotd owns one training *run* on one machine. A run is trained in *attempts*: each is one
start of the trainer's command, from a checkpoint or from scratch. What spotd does at any
moment follows from four things that change independently of each other:

- the **trainer**: none, being started, running, told to stop;
- the **resume** under way, if any: looking at disk and store, fetching, clearing, starting
  (`spotd.core.resuming`, `restoring`, `starting`);
- the **interruption** under way, if any: a notice, a stop of the daemon, a drill
  (`spotd.core.noticing`, `interrupting`);
- the **store**: lease, listing, upload (`spotd.core.storing`).

The *phase* is what a person sees of it, and `spotd.core.state.TRANSITIONS` says which may
follow which:

    starting ----> restoring ----> running ----> completed
                    ^   |  ^         |  |
                    |   |  |  crash  |  | notice, stop, drill
                    |   v  +-- backing-off  v
                    |  failed          draining / stopping ----> drained ----> (EC2 stops us)
                    +----------------------+----------------------+
                          not carried out, drill over

Every call of `step` does two things. First the *handler* of the event notes what has
happened. Then `advance` runs: each of the four looks at the state and does what has become
possible, in an order that puts the interruption first, until nothing changes any more. So
no handler has to know who waits for what it learned, and a lost event can at worst delay,
never wedge: time (`Tick`) makes `advance` look again, and `wake_at` says when that is due.

What must survive the daemon goes out as `Persist` *before* the action that depends on it:
an attempt before its trainer is started, an id before anything is stored under it, the
intention to signal before the signal. Killed between any two actions, the next daemon
finds a record that is never ahead of the world by more than one intention, and `Started`
handles each such intention by looking at the world: is there a trainer, what is on the
disk, what is in the store.

An event that makes no sense in the present state changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spotd.core import (
    ahead,
    completing,
    interrupting,
    keeping,
    leasing,
    noticing,
    record,
    restoring,
    resuming,
    starting,
    storing,
    training,
)
from spotd.core import events as on
from spotd.core.deadline import WINDOW
from spotd.core.state import Phase, Policy, State, Trainer
from spotd.core.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.core.actions import Action
    from spotd.core.events import Event
    from spotd.core.state import Interruption, Now

SETTLE = 12  # rounds of `advance`; more would be a livelock and is a defect


def step(state: State, event: Event, now: Now) -> tuple[State, tuple[Action, ...]]:
    """Decides. Pure: the same arguments give the same answer, and nothing else happens."""
    t = decide(state, event, now)
    return t.state, tuple(t.actions)


def decide(state: State, event: Event, now: Now) -> Turn:
    """Returns the whole of a decision: besides what `step` returns, the phases on its way."""
    t = Turn(state, now)
    if not state.boot and not isinstance(event, (on.Started, on.StopRequested)):
        return t  # nothing is known yet; the shell sends `Started` first
    HANDLERS[type(event)](t, event)
    for _ in range(SETTLE):
        before = t.state
        advance(t)
        if t.state == before:
            return t
    raise AssertionError(f"no rest after {event!r} in {state.phase.value}")


def advance(t: Turn) -> None:
    """Does what has become possible; what is urgent comes first."""
    if not t.state.boot:
        return
    storing.expire(t)
    interrupting.advance(t)
    training.advance(t)
    resuming.advance_look(t)
    resuming.advance(t)
    storing.advance(t)
    ahead.advance(t)
    completing.advance(t)
    noticing.advance_metadata(t)


def wake_at(state: State, now: Now) -> float | None:
    """Returns when (`Now.mono`) the next `Tick` is due at the latest, or None.

    Only what lies ahead counts: what was due by `now` has been looked at.
    """
    times = [
        state.retry_at, state.measure_at, state.look_at,
        *_trainer_times(state), *_resuming_times(state), *_store_times(state),
    ]  # fmt: skip
    i = state.interruption
    if i is not None:
        times += [None if i.stopped_uploads else i.kill_at, i.resume_at]
    m = state.metadata
    if m.last_ok is not None and not m.announced:
        times.append(m.last_ok + noticing.SILENCE * max(state.policy.poll_interval, 5.0))
    due = [x for x in times if x is not None and x > now.mono]
    return min(due, default=None)


def _trainer_times(state: State) -> list[float | None]:
    trainer = state.trainer
    if trainer is None:
        return []
    times = [trainer.stop_retry_at, None if trainer.killed else trainer.kill_at]
    if state.policy.progress_timeout is not None:
        pause = state.policy.progress_timeout / training.MEASURES
        times.append(max(trainer.last_progress + pause, state.measure_at or 0.0))
    return times


def _resuming_times(state: State) -> list[float | None]:
    r = state.resuming
    if r is None:
        return []
    times = [r.retry_at, r.clear_by if r.clearing else None]
    if r.local is None and not r.inspecting:
        times.append(r.inspect_at)
    if r.stage == "looking" and state.store.status != "open":
        if state.store.asked_at is not None:
            times.append(state.store.asked_at + resuming.STORE_PATIENCE)
        times.append(r.since + state.policy.start_timeout)
    return times


def _store_times(state: State) -> list[float | None]:
    store = state.store
    times = [store.lease_until if store.status == "open" else None]
    if store.halted or not storing.wanted(state):
        return times
    times += [store.retry_at, store.upload_retry_at, store.delete_retry_at or None]
    if store.status == "open":
        times.append(None if store.renewing else store.renew_at)
        if state.completed and not state.completion_stored:
            times.append(store.complete_retry_at)
    return times


# --- the daemon itself ---------------------------------------------------------------


def on_started(t: Turn, event: on.Started) -> None:
    """The record is read, and a living trainer looked for."""
    if t.state.boot:
        return
    t.set(boot=event.boot, boot_id=event.boot_id, instance_id=event.instance_id,
          since=t.now.wall, booted=event.booted)  # fmt: skip
    r = event.record if event.record is not None else {}
    if r.get("run") not in (None, t.state.run):
        r = {}  # another run was trained here before; its record is its own
    same_boot = event.boot == "same-boot"
    _load(t, r, same_boot=same_boot)
    t.announce("daemon_started", f"spotd watches run {t.state.run}", 5)
    t.announce("boot_classified", BOOTS.get(event.boot, event.boot), boot=event.boot)
    if event.trainer is not None:
        _adopt(t, event.trainer, record.mapping(r.get("trainer")))
        return
    if t.state.completed:
        t.set(completion_inspected=False)
        keeping.inspect(t)
        t.enter(Phase.COMPLETED, "this run is complete; another `run` name starts a new one")
        return
    _trainer_is_gone(t, record.mapping(r.get("trainer")), same_boot=same_boot)
    if t.state.interruption is not None:
        t.enter(Phase.DRAINING, "a notice from before spotd was started again")
        keeping.inspect(t)
        t.set_interruption(inspection="asked")
        return
    resuming.begin(t)


BOOTS = {
    "first": "first start of this run on this machine",
    "same-boot": "spotd was started again; the machine was up all along",
    "reboot": "the machine was rebooted in good order",
    "interrupted": "the machine is back after an interruption by EC2",
    "power-loss": "the machine went down without warning",
    "new-instance": "a new instance with an older instance's disk",
}


def _load(t: Turn, r: dict[str, object], *, same_boot: bool) -> None:
    crashes = r.get("crashes_from")
    t.set(
        attempt=record.integer(r.get("attempt")),
        next_sequence=max(1, record.integer(r.get("next_sequence"), 1)),
        known=record.known_from(r.get("known")),
        counts=record.counts_from(r.get("counts")),
        lost_steps=record.integer(r.get("lost_steps")),
        best_step=record.optional_integer(r.get("best_step")),
        last_step=record.optional_integer(r.get("last_step")),
        failures=record.integer(r.get("failures")) if same_boot else 0,
        rejected=frozenset(record.texts(r.get("rejected"))),
        void_since=record.number(r.get("void_since")) or None,
        blamed=record.texts(r.get("blamed")),
        crashes_from=(record.text(crashes[0]), record.integer(crashes[1]))
        if isinstance(crashes, list) and len(crashes) == 2  # noqa: PLR2004 - a pair
        else None,
        completed=r.get("completed") is True,
        completion_safe=r.get("completed") is True,
        completion_stored=r.get("completion_stored") is True,
        finished=r.get("finished") is True,
        lease_until_wall=record.number(r.get("lease_until_wall"))
        if r.get("instance_id") == t.state.instance_id
        else 0.0,
        lease_generation=record.integer(r.get("lease_generation")),
        contents_checked=same_boot and r.get("contents_checked") is True,
    )
    rate = record.number(r.get("rate"))
    t.set_store(rate=rate or None)
    t.set(save_seconds=record.number(r.get("save_seconds")) or None)
    if same_boot:
        i = record.interruption_from(r.get("interruption"), t.now.mono, t.now.wall)
        t.set(interruption=None if i is None else _bounded(t, i))


def _bounded(t: Turn, i: Interruption) -> Interruption:
    """Fits the times of a notice on record to this moment: the wall clock may have been set."""
    deadline = min(i.deadline, t.now.mono + WINDOW)
    after = t.policy.not_carried_out_after
    resume_at = deadline + after if i.resume_at is None else i.resume_at
    return replace(
        i,
        deadline=deadline,
        kill_at=None if i.kill_at is None else deadline - t.policy.margin,
        resume_at=min(resume_at, t.now.mono + WINDOW + after),
    )


def _adopt(t: Turn, found: on.TrainerFound, told: dict[str, Any]) -> None:
    """A trainer of an earlier daemon lives: it goes on as if nothing had happened."""
    mine = record.integer(told.get("attempt"), -1) == found.attempt
    told = told if mine else {}
    stop = record.text(told.get("stop")) or None
    t.set(
        attempt=max(t.state.attempt, found.attempt),
        attempt_in_boot=1,
        trainer=Trainer(
            attempt=found.attempt,
            started=found.started,
            started_mono=t.now.mono - max(0.0, t.now.wall - found.started),
            pid=found.pid,
            adopted=True,
            resumed_from=record.text(told.get("resumed_from")) or None,
            resumed_step=record.optional_integer(told.get("resumed_step")),
            blind=told.get("blind") is True,
            first_sequence=record.integer(told.get("first_sequence"), t.state.next_sequence),
            superseded=told.get("superseded") is True,
            # "intended": it is not known whether the signal went out, so it goes out.
            stop=stop if stop == "sent" else None,
            progressed=told.get("progressed") is True,
            step=record.optional_integer(told.get("step")),
            total_steps=record.optional_integer(told.get("total_steps")),
            last_progress=t.now.mono,
        ),
    )
    t.announce("trainer_adopted", f"attempt {found.attempt} trains on as pid {found.pid}", 5,
               pid=found.pid)  # fmt: skip
    i = t.state.interruption
    if i is not None:
        t.enter(Phase.DRAINING, f"{i.action} notice")
        t.set_trainer(kill_at=i.kill_at)
    else:
        t.enter(Phase.RUNNING)
    if t.state.completed:
        training.kill(t, "this run is complete")
    elif i is None and stop in ("sent", "intended"):
        # Told to stop by a daemon that did not live to see it: it ends, and is started
        # again. Should it not have heard, it is told again and given its time.
        t.set_trainer(kill_at=t.now.mono + t.policy.stop_timeout)
    keeping.inspect(t, settled=False)
    t.persist()


def _trainer_is_gone(t: Turn, told: dict[str, Any], *, same_boot: bool) -> None:
    """A trainer is on record and is not there: it ended while no spotd was looking."""
    if not told or not same_boot:
        return
    t.announce("trainer_exited", "the trainer ended while spotd was away", 4)
    stopped = record.text(told.get("stop")) in ("intended", "sent") or told.get("killed") is True
    if not stopped and told.get("progressed") is not True:
        t.set(failures=t.state.failures + 1)


def on_tick(t: Turn, event: on.Tick) -> None:
    """Nothing but time."""


def on_reloaded(t: Turn, event: on.Reloaded) -> None:
    """The configuration was read again and is valid as a whole."""
    if isinstance(event.policy, Policy):
        t.set(policy=event.policy)
        t.announce("configuration_reloaded", "the configuration was taken over", 5)


HANDLERS: dict[type, Callable[[Turn, Any], None]] = {
    on.Started: on_started,
    on.Tick: on_tick,
    on.StopRequested: interrupting.on_stop,
    on.Reloaded: on_reloaded,
    on.DrillRequested: interrupting.on_drill,
    on.CheckpointRequested: training.on_checkpoint_requested,
    on.MetadataAnswered: noticing.on_metadata,
    on.MetadataFailed: noticing.on_metadata_failed,
    on.PreflightPassed: starting.on_preflight_passed,
    on.PreflightFailed: starting.on_preflight_failed,
    on.TrainerStarted: starting.on_started,
    on.TrainerStartFailed: starting.on_start_failed,
    on.TrainerExited: training.on_exited,
    on.TrainerReported: training.on_reported,
    on.SignalSent: training.on_signal_sent,
    on.ActivityMeasured: training.on_activity,
    on.LocalInventory: resuming.on_inventory,
    on.CheckpointSeen: keeping.on_seen,
    on.CheckpointVanished: keeping.on_vanished,
    on.SavesInProgress: training.on_saves,
    on.Held: keeping.on_held,
    on.HoldFailed: keeping.on_hold_failed,
    on.Durable: keeping.on_durable,
    on.SetAsideDone: starting.on_set_aside,
    on.Reinstated: restoring.on_reinstated,
    on.ReinstateFailed: restoring.on_reinstate_failed,
    on.DirectoryTrouble: resuming.on_directory_trouble,
    on.StoreOpened: leasing.on_opened,
    on.LeaseRefused: leasing.on_refused,
    on.LeaseRenewed: leasing.on_renewed,
    on.StoreFailed: leasing.on_failed,
    on.UploadProgressed: storing.on_progress,
    on.AheadProgressed: ahead.on_progress,
    on.Uploaded: storing.on_uploaded,
    on.UploadFailed: storing.on_upload_failed,
    on.UploadsStopped: storing.on_uploads_stopped,
    on.FetchProgressed: restoring.on_fetch_progress,
    on.Fetched: restoring.on_fetched,
    on.FetchFailed: restoring.on_fetch_failed,
    on.DeletedFromStore: storing.on_deleted,
    on.CompletionStored: completing.on_completion_stored,
}
