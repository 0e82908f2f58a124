"""Notices, stops and drills: one road, three reasons to take it.

signal -> (trainer saves and ends) -> look at the disk -> upload the newest -> drained

The stop signal goes out first, once, and everything else waits for it. The trainer is
killed, and uploads stop, when the margin before the deadline begins and not sooner;
only a stop by the user does not wait that long for a trainer that catches no signal,
when all it saved is stored and its next save would come too late. Nothing here ever
stops the machine: an operating-system shutdown would make EC2 disable the persistent
request, and nobody would start it again.

Past the deadline plus `interruption.not_carried_out_after` and still running, the notice
was not carried out and training goes on from the newest checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core import keeping, leasing, resuming, storing, training
from spotd.core.deadline import PLANNED, WINDOW
from spotd.core.state import Interruption, Phase, newest_known, unstored

if TYPE_CHECKING:
    from spotd.core.turn import Turn


def begin(t: Turn, source: str, action: str, seconds: float, *, request: int | None = None) -> None:
    """Begins an interruption, or joins it to the one under way."""
    now = t.now.mono
    deadline = now + seconds
    hibernating = action == "hibernate"  # memory is kept: killing would only lose work
    kill_at = None if hibernating else max(now, deadline - t.policy.margin)
    resume_at = None if source == "stop" else deadline + t.policy.not_carried_out_after
    old = t.state.interruption
    if old is None:
        new = Interruption(
            source, action, now, t.now.wall, deadline, kill_at, resume_at,
            exit_after=source == "stop", request=request,
        )  # fmt: skip
        t.set(interruption=new, retry_at=None)
    else:
        _join(t, old, source, action, times=(deadline, kill_at, resume_at))
    i = t.state.interruption
    if i is None:
        return
    if t.state.trainer is None or t.state.trainer.pid is not None:
        resuming.cancel(t)
    if source == "notice" and (old is None or old.source != "notice"):
        counts = t.state.counts
        t.set(counts=replace(counts, interruptions=counts.interruptions + 1))
    # The signal before all else; `stop` has it on record first.
    training.stop(t, kill_in=None if i.kill_at is None else i.kill_at - now)
    phase = Phase.STOPPING if i.exit_after else Phase.DRAINING
    if not (t.state.phase is Phase.COMPLETED and source != "stop"):
        t.enter(phase, f"{action} in {max(0.0, seconds):.0f} s")
    t.set_interruption(drained=False)
    t.do(do.WarmStore())
    storing.hurry(t)
    t.persist()
    _announce_begin(t, source, action, seconds)
    t.do(do.SyncJournal())
    if t.state.trainer is None and i.inspection == "none":
        keeping.inspect(t)
        t.set_interruption(inspection="asked")


def _join(
    t: Turn,
    old: Interruption,
    source: str,
    action: str,
    *,
    times: tuple[float, float | None, float | None],
) -> None:
    """Two at once: the earlier deadline counts, and a stop of the daemon ends it."""
    deadline, kill_at, resume_at = times
    if old.request is not None and source != "drill":
        t.do(do.Reply(old.request, ok=False, message=f"the drill became real: {action}"))
    kills = [k for k in (old.kill_at, kill_at) if k is not None]
    real = "notice" if "notice" in (old.source, source) else source
    exit_after = old.exit_after or source == "stop"
    resumes = [r for r in (old.resume_at, resume_at) if r is not None]
    t.set_interruption(
        source=real,
        action=action if source != "stop" or old.source == "drill" else old.action,
        deadline=min(old.deadline, deadline),
        kill_at=min(kills) if kills else None,
        resume_at=max(resumes, default=None),
        exit_after=exit_after,
        request=None,
    )


def _announce_begin(t: Turn, source: str, action: str, seconds: float) -> None:
    if source == "notice":
        t.announce("interruption_notice", f"{action} notice: about {seconds:.0f} s left", 4,
                   action=action)  # fmt: skip
    elif source == "drill":
        t.announce("drill_started", "a drill: the whole path short of the stop", 5)
    else:
        t.announce("stop_requested", f"asked to stop: {seconds:.0f} s for it", 5)


def on_stop(t: Turn, event: on.StopRequested) -> None:
    """SIGTERM to the daemon: `systemctl stop`, a shutdown, or the first half of a restart."""
    if not t.state.boot:
        t.do(do.Exit(0))  # nothing has been read yet, so there is nothing to write either
        return
    if t.state.phase is Phase.FAILED:
        t.set(failures=0)  # a person is at it: the next start begins counting anew
    if event.restart:
        t.persist()
        t.announce("daemon_restarting", "spotd is being restarted; the trainer goes on", 5)
        t.do(do.Exit(0))
        return
    if t.state.interruption is not None and t.state.interruption.exit_after:
        return
    begin(t, "stop", "stop", event.seconds)


def on_drill(t: Turn, event: on.DrillRequested) -> None:
    """`spotd drill`."""
    state = t.state
    if state.trainer is None or state.trainer.pid is None or state.interruption is not None:
        t.do(
            do.Reply(
                event.request,
                ok=False,
                message=f"a drill needs a running trainer; spotd is {state.phase.value}",
            )
        )
        return
    begin(t, "drill", "drill", WINDOW, request=event.request)


# --- until it is over ----------------------------------------------------------------


def advance(t: Turn) -> None:
    """Kills at the margin, sees when all is safe, and goes on when nothing came of it."""
    i = t.state.interruption
    if i is None:
        return
    now = t.now.mono
    trainer = t.state.trainer
    if trainer is not None and trainer.pid is not None:
        if trainer.stop is None:
            training.stop(t, kill_in=None if i.kill_at is None else i.kill_at - now)
        if trainer.stop == "uncaught" and training.is_settled(t):
            if i.exit_after and i.source == "stop" and not _save_to_come(t, i):
                training.kill(t, "it does not catch the stop signal, and what it saved is stored")
            elif i.source == "drill":
                _end_uncaught_drill(t)
                return
    if i.kill_at is not None and now >= i.kill_at and not i.stopped_uploads:
        t.set_interruption(stopped_uploads=True)
        training.kill(t, "the margin before the deadline has begun")
        storing.halt(t)
    _check_drained(t)
    i = t.state.interruption
    if i is None or i.exit_after or i.resume_at is None:
        return
    if now >= i.resume_at:
        _not_carried_out(t)


def _save_to_come(t: Turn, i: Interruption) -> bool:
    """Whether it is worth waiting for a save of the trainer's own: for one, not for ever."""
    saved = t.state.saved_at
    if saved is not None and saved >= i.seen:
        return False
    return training.saves_before(t, i.kill_at if i.kill_at is not None else i.deadline)


def _check_drained(t: Turn) -> None:
    state = t.state
    i = state.interruption
    if i is None or i.drained or state.trainer is not None or i.inspection == "asked":
        return
    if state.resuming is not None:
        return
    busy = state.store.upload is not None or bool(unstored(state))
    if state.completed and not state.completion_stored and state.store.status == "open":
        busy = True  # completed.json is part of what is to be kept
    if busy and not i.stopped_uploads:
        return
    newest = newest_known(state)
    _drained(t, saved=newest is None or newest.stored)


def _drained(t: Turn, *, saved: bool) -> None:
    i = t.state.interruption
    if i is None:
        return
    t.mark("drained")
    seconds = t.now.mono - i.seen
    newest = newest_known(t.state)
    t.set_interruption(drained=True, saved=saved)
    if i.exit_after or i.action == "terminate":
        t.set(lease_until_wall=0.0)  # about to be given back
    if newest is None:
        what = "there was no checkpoint to keep"
    elif saved:
        what = f"{newest.name} is in the store"
    else:
        on_disk = "durable on the disk" if newest.durable else "on the disk"
        what = f"{newest.name} is {on_disk} but not in the store; it goes up after the restart"
    t.persist()
    t.announce(
        "drained",
        f"safe to stop after {seconds:.1f} s: {what}",
        5,
        seconds=round(seconds, 3),
        **({} if newest is None else {"checkpoint": newest.id}),
    )
    t.do(do.SyncJournal())
    if i.exit_after:
        t.do(do.ReleaseLease())
        t.do(do.Exit(0))
        return
    if i.source == "drill":
        _end_drill(t, seconds)
        return
    if i.action == "terminate":
        t.do(do.ReleaseLease())  # the replacement may take over at once
        t.set_store(status="new", lease_until=None, retry_at=None)
    if t.state.completed and not i.stopped_uploads:
        t.set(interruption=None)
        t.enter(Phase.COMPLETED, "the run is complete")
        return
    if t.state.phase is not Phase.COMPLETED:
        t.enter(Phase.DRAINED, f"safe to stop: {what}")


def _end_uncaught_drill(t: Turn) -> None:
    """A rehearsal kills nobody who would only lose work by it."""
    i = t.state.interruption
    newest = newest_known(t.state)
    if i is None or i.request is None:
        return
    kept = f"{newest.name} is stored" if newest is not None else "there is no checkpoint yet"
    t.do(
        do.Reply(
            i.request,
            ok=False,
            message=f"the trainer does not catch {t.policy.stop_signal}: at a notice it would "
            f"train on to the margin, then be killed; {kept}, what comes after it would be lost",
            data={"hint": "let it save more often, or install a handler for the signal"},
        )
    )
    t.announce("drill_finished", "the drill found a trainer that catches no stop signal", 5)
    _go_on(t)


def _end_drill(t: Turn, seconds: float) -> None:
    i = t.state.interruption
    if i is None:
        return
    if i.request is not None:
        fits = i.saved and seconds <= PLANNED
        verdict = "fits into" if fits else "does NOT fit into"
        t.do(
            do.Reply(
                i.request,
                ok=fits,
                message=f"{seconds:.1f} s: {verdict} the two minutes "
                f"(planned with {PLANNED:.0f} s, {t.policy.margin:.0f} s of them margin)",
                data={
                    "timeline": [[what, round(at, 3)] for what, at in i.marks],
                    "seconds": round(seconds, 3),
                    "fits": fits,
                    "stored": i.saved,
                },
            )
        )
    t.announce("drill_finished", f"the drill took {seconds:.1f} s; training goes on", 5)
    _go_on(t)


def _not_carried_out(t: Turn) -> None:
    i = t.state.interruption
    if i is None:
        return
    counts = t.state.counts
    t.set(counts=replace(counts, not_carried_out=counts.not_carried_out + 1))
    late = t.now.mono - i.deadline
    t.announce(
        "not_carried_out",
        f"the {i.action} notice was not carried out ({late:.0f} s past its time): training goes on",
        5,
    )
    notice = t.state.metadata.notice
    if notice is not None:
        t.set_metadata(notice=replace(notice, ignored=True, steady_polls=0))
    _go_on(t)


def _go_on(t: Turn) -> None:
    t.set(interruption=None)
    t.set_store(halted=False)
    trainer = t.state.trainer
    if t.state.completed and trainer is None:
        t.enter(Phase.COMPLETED, "the run is complete")
    elif trainer is None and t.state.failures >= t.policy.max_failures:
        training.fail(t, "given up before the interruption")
    elif trainer is None:
        t.persist()
        resuming.begin(t, "going on after the interruption")
    else:
        # Hibernated and woken, or it catches no signal: it has been training all along.
        told = trainer.stop in ("intended", "sent") or trainer.hung or trainer.superseded
        t.set_trainer(
            kill_at=t.now.mono + t.policy.stop_timeout if told else None,
            stop=trainer.stop if told else None,
            stop_retry_at=None,
        )
        t.enter(Phase.RUNNING)
        if t.state.completed:
            leasing.void_attempt(t)  # meanwhile the store has said so
        t.persist()
