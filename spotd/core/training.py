"""The trainer while it runs, and what its end means.

Exit status 0 that nobody asked for is completion. Any exit after spotd's own stop
signal, 0 too, is an interruption: trainers exist that exit 0 there without having saved.
Any other exit is a crash. Of an adopted trainer the status cannot be known: it is started
again from its newest checkpoint, and says 0 at once if there was nothing left to do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core import keeping, resuming, storing
from spotd.core.restart import backoff, checkpoint_to_blame
from spotd.core.state import Known, Phase

if TYPE_CHECKING:
    from spotd.core.state import Trainer
    from spotd.core.turn import Turn

RECHECK_UNCAUGHT = 1.0  # seconds: a trainer that still imports torch catches nothing yet
HUNG_GRACE = 60.0  # seconds a trainer without progress has to save after the stop signal
REMEMBER_STEP = 30.0  # seconds between records of the step reached
SAVE_SLACK = 0.8  # of the time between saves; steps do not always take as long
MEASURES = 4  # looks at the trainer's activity in one progress_timeout


def on_reported(t: Turn, event: on.TrainerReported) -> None:
    """A datagram on SPOTD_SOCKET."""
    trainer = t.state.trainer
    if trainer is None:
        return
    changes: dict[str, object] = {}
    if event.step is not None and event.step != trainer.step:
        changes |= {"step": event.step, "last_progress": t.now.mono}
    for name in ("total_steps", "epoch", "loss", "status", "stopping"):
        value = getattr(event, name)
        if value is not None:
            changes[name] = value
    t.set_trainer(**changes)
    if event.step is None:
        return
    i = t.state.interruption
    if trainer.step is None and i is None:
        t.announce("training", f"training goes on at step {event.step}", step=event.step)
    t.set(last_step=max(event.step, t.state.last_step or 0))
    if t.now.mono - t.state.persisted_at >= REMEMBER_STEP:
        t.persist()  # so that a power cut can be told what it cost
    _note_progress(t, trainer, event.step)


def _note_progress(t: Turn, trainer: Trainer, step: int) -> None:
    best = t.state.best_step
    if best is not None and step <= best:
        return
    t.set(best_step=step)
    if trainer.resumed_step is None or step > trainer.resumed_step:
        t.set_trainer(progressed=True)
        if t.state.failures:
            t.set(failures=0, crashes_from=None, blamed=())


def on_activity(t: Turn, event: on.ActivityMeasured) -> None:
    """Something was written, or nothing."""
    trainer = t.state.trainer
    if trainer is None:
        return
    moved = trainer.activity is None or event.counter != trainer.activity
    t.set_trainer(activity=event.counter, measuring=False)
    timeout = t.policy.progress_timeout
    if moved:
        t.set_trainer(last_progress=t.now.mono)
        return
    quiet = t.now.mono - trainer.last_progress
    if timeout is not None and quiet >= timeout and not trainer.hung and trainer.stop is None:
        t.announce(
            "trainer_hung",
            f"no step, checkpoint or output for {quiet:.0f} s: stopping it to start it again",
            4,
        )
        t.set_trainer(hung=True)
        stop(t, kill_in=min(HUNG_GRACE, t.policy.stop_timeout))


def on_saves(t: Turn, event: on.SavesInProgress) -> None:
    """The trainer is writing a checkpoint, or has stopped doing so."""
    t.set(writing=event.names)
    t.set_trainer(last_progress=t.now.mono)


def stop(t: Turn, *, kill_in: float | None) -> None:
    """Sends the stop signal, once, on record before it goes out."""
    trainer = t.state.trainer
    if trainer is None or trainer.stop in ("intended", "sent"):
        return
    if kill_in is not None:
        t.set_trainer(kill_at=t.now.mono + kill_in)
    if trainer.pid is None:
        return  # it is just being started; `advance` comes back to it
    t.set_trainer(stop="intended")  # `stop_retry_at` stays: that nothing catches it was said
    if trainer.stop is None:
        t.persist()
    t.do(do.SignalTrainer(t.policy.stop_signal, "stop"))


def on_signal_sent(t: Turn, event: on.SignalSent) -> None:
    """The signal is out, or nothing of the trainer catches it."""
    trainer = t.state.trainer
    if event.purpose == "checkpoint":
        if event.targets:
            t.announce("checkpoint_requested", "asked the trainer for a checkpoint")
            return
        for request, _ in t.state.checkpoint_requests:
            t.do(
                do.Reply(
                    request,
                    ok=False,
                    message="the trainer does not catch trainer.checkpoint_signal",
                    data={"hint": "it may still be starting; or install a handler for it"},
                )
            )
        t.set(checkpoint_requests=())
        return
    if trainer is None or trainer.stop != "intended":
        return
    if event.targets:
        t.set_trainer(stop="sent", stop_retry_at=None)
        t.persist()
        t.mark("signal sent")
        t.announce(
            "stop_signal_sent",
            f"{t.policy.stop_signal} sent to {_processes(event.targets)}",
            5,
            pids=" ".join(map(str, event.targets)),
        )
        return
    if trainer.stop_retry_at is None and not trainer.hung:
        t.announce(
            "stop_signal_uncaught",
            f"the trainer does not catch {t.policy.stop_signal}, so it was not sent: "
            "it trains on while what it saved is stored",
            5,
        )
    t.set_trainer(stop="uncaught", stop_retry_at=t.now.mono + RECHECK_UNCAUGHT)


def _processes(pids: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, pids[:8])) + (", ..." if len(pids) > 8 else "")  # noqa: PLR2004
    return f"process {shown}" if len(pids) == 1 else f"processes {shown}"


def kill(t: Turn, reason: str) -> None:
    """Kills the trainer's whole tree; its exit comes as an event."""
    trainer = t.state.trainer
    if trainer is None or trainer.killed or trainer.pid is None:
        return
    t.set_trainer(killed=True)
    t.persist()
    t.do(do.KillTrainer(reason))
    t.announce("trainer_killed", f"trainer killed: {reason}", 4)


def advance(t: Turn) -> None:
    """Timers of the trainer: a late signal, a kill, a hang, the end of a back-off."""
    state = t.state
    trainer = state.trainer
    now = t.now.mono
    if trainer is None:
        over = state.retry_at is not None and now >= state.retry_at
        if state.phase is Phase.BACKING_OFF and over and state.interruption is None:
            resuming.begin(t)
        return
    if trainer.pid is None:
        return
    if trainer.stop == "uncaught" and trainer.stop_retry_at is not None:
        if now >= trainer.stop_retry_at:
            stop(t, kill_in=None)
    elif trainer.stop is None and trainer.kill_at is not None:
        stop(t, kill_in=None)  # asked for while it was being started
    if trainer.kill_at is not None and now >= trainer.kill_at:
        kill(t, "it did not end in time after the stop signal")
    _measure(t, trainer)


def _measure(t: Turn, trainer: Trainer) -> None:
    """Asks for the trainer's activity when it has been quiet for a share of its time."""
    timeout = t.policy.progress_timeout
    if timeout is None or trainer.measuring or trainer.stop is not None:
        return
    due = max(trainer.last_progress + timeout / MEASURES, t.state.measure_at or 0.0)
    if t.now.mono >= due:
        t.set_trainer(measuring=True)
        t.set(measure_at=t.now.mono + timeout / MEASURES)
        t.do(do.MeasureActivity())


def on_exited(t: Turn, event: on.TrainerExited) -> None:
    """All of its tree is gone."""
    state = t.state
    trainer = state.trainer
    if trainer is None:
        return
    ran_for = t.now.mono - trainer.started_mono
    ours = trainer.stop in ("intended", "sent") or trainer.killed
    how = _describe(event)
    t.set(last_lines=event.last_lines, writing=(), checkpoint_requests=_refuse_requests(t))
    t.mark("trainer ended")
    # Under torchrun every rank exits 0 when a peer on another machine was told to stop. And what
    # a superseded trainer has finished is not wanted: nothing of it will be in the store.
    asked = ours or trainer.stopping or trainer.superseded
    finished = (event.status == 0 and not asked) or state.completed
    t.announce(
        "trainer_exited",
        f"the trainer {how} after {ran_for:.0f} s",
        6 if ours or finished else 4,
        **({} if event.status is None else {"status": event.status}),
        **({} if event.signal is None else {"signal": event.signal}),
    )
    t.set(trainer=None, measure_at=None)
    if finished:
        _complete(t)
        return
    if state.interruption is None and not trainer.superseded and (trainer.hung or not ours):
        unknown = event.status is None and event.signal is None
        _crashed(t, trainer, "stopped making progress" if trainer.hung else how, ran_for, unknown)
        return
    if state.interruption is not None:
        t.persist()
        keeping.inspect(t)
        t.set_interruption(inspection="asked")
        return
    t.persist()
    resuming.begin(t, "starting again")


def _refuse_requests(t: Turn) -> tuple[tuple[int, int], ...]:
    for request, _ in t.state.checkpoint_requests:
        t.do(do.Reply(request, ok=False, message="the trainer ended before it saved"))
    return ()


def _describe(event: on.TrainerExited) -> str:
    extra = f" ({event.reason})" if event.reason else ""
    if event.signal is not None:
        return f"was killed by signal {event.signal}{extra}"
    if event.status is not None:
        return f"exited with status {event.status}{extra}"
    return f"ended{extra}; its status is unknown, since another spotd started it"


def _complete(t: Turn) -> None:
    t.set(completed=True, failures=0)
    t.persist()
    t.announce("completed", f"run {t.state.run} is complete", 5)
    keeping.inspect(t)
    if t.state.interruption is not None:
        t.set_interruption(inspection="asked")
    elif t.state.phase is not Phase.COMPLETED:
        t.enter(Phase.COMPLETED, "storing the last checkpoint")


def _crashed(t: Turn, trainer: Trainer, how: str, ran_for: float, unknown: bool) -> None:
    """Backs off, puts a checkpoint to blame aside, or gives up."""
    state = t.state
    failures = 1 if trainer.progressed else state.failures + 1
    if unknown and trainer.progressed:
        failures = 0
    t.set(failures=failures, counts=replace(state.counts, crashes=state.counts.crashes + 1))
    last = f": {t.state.last_lines[-1]}" if t.state.last_lines else ""
    if failures >= t.policy.max_failures:
        for name in state.blamed:
            # Whatever is wrong, it is not the checkpoints: the work in them is kept.
            t.do(do.BringBack(name))
        t.set(blamed=(), rejected=frozenset(), crashes_from=None)
        fail(t, f"gave up after {failures} crashes without progress; the last one {how}{last}")
        return
    _blame(t, trainer, ran_for)
    wait = backoff(failures, t.policy.backoff_min, t.policy.backoff_max) if failures else 0.0
    t.set(retry_at=t.now.mono + wait)
    t.enter(Phase.BACKING_OFF, f"the trainer {how}{last}")
    t.persist()


def fail(t: Turn, reason: str) -> None:
    """Gives up until a person restarts spotd, or the machine comes up anew."""
    t.enter(Phase.FAILED, reason)
    t.persist()
    t.announce("gave_up", f"{reason}. Mend it, then: systemctl restart spotd", 3)


def _blame(t: Turn, trainer: Trainer, ran_for: float) -> None:
    """Crashed twice from one checkpoint: the one before it is tried."""
    origin = trainer.resumed_from
    if origin is None or trainer.progressed:
        t.set(crashes_from=None)
        return
    before = t.state.crashes_from
    count = before[1] + 1 if before is not None and before[0] == origin else 1
    t.set(crashes_from=(origin, count))
    bad = next((k for k in t.state.known if origin in (k.id, k.fingerprint)), None)
    if bad is None or not checkpoint_to_blame(count, ran_for) or not _has_other(t, bad):
        return
    t.set(
        rejected=t.state.rejected | {bad.id, bad.fingerprint},
        blamed=(*t.state.blamed, bad.name),
        crashes_from=None,
    )
    t.persist()
    t.do(do.SetAside(bad.name, f"the trainer crashed {count} times when it resumed from it"))
    t.announce(
        "checkpoint_rejected",
        f"the trainer crashed {count} times from {bad.name}: put aside, trying the one before it",
        4,
        checkpoint=bad.id,
    )


def _has_other(t: Turn, bad: Known) -> bool:
    """Whether there is an older checkpoint to go back to (starting from scratch is not one)."""
    others = {k.id for k in t.state.known if k.present or k.hold not in (None, "none")}
    others |= {s.id for s in t.state.store.listed}
    return bool(others - {bad.id} - t.state.rejected) or t.state.older_on_disk


def ask_for_checkpoint(t: Turn) -> bool:
    """Asks the trainer to save and go on; False when it has no signal for that."""
    trainer = t.state.trainer
    if t.policy.checkpoint_signal is None or trainer is None or trainer.pid is None:
        return False
    t.do(do.SignalTrainer(t.policy.checkpoint_signal, "checkpoint"))
    return True


def on_checkpoint_requested(t: Turn, event: on.CheckpointRequested) -> None:
    """`spotd checkpoint`: answered when what the trainer saves now is in the store."""
    refusal = ""
    if t.state.trainer is None or t.state.interruption is not None:
        refusal = f"no trainer to ask: spotd is {t.state.phase.value}"
    elif t.policy.checkpoint_signal is None:
        refusal = "trainer.checkpoint_signal is not set: the trainer cannot be asked"
    if refusal:
        t.do(do.Reply(event.request, ok=False, message=refusal))
        return
    waiting = (*t.state.checkpoint_requests, (event.request, t.state.next_sequence))
    t.set(checkpoint_requests=waiting)
    ask_for_checkpoint(t)


def is_settled(t: Turn) -> bool:
    """Whether nothing is being saved and nothing is left to store."""
    return not t.state.writing and not storing.waiting(t.state)


def saves_before(t: Turn, end: float) -> bool:
    """Whether the trainer's own next save may come before `end` (`Now.mono`).

    Told from the time between its last two saves; before there are two, it may.
    """
    state = t.state
    if state.saved_at is None or state.save_every is None:
        return True
    return state.saved_at + SAVE_SLACK * state.save_every < end
