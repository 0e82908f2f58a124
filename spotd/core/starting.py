"""The last steps to a started trainer: clearing -> preflight -> starting."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core import keeping, restoring
from spotd.core.resume import NOTHING
from spotd.core.state import Phase, Trainer

if TYPE_CHECKING:
    from spotd.core.turn import Turn

PREFLIGHT_RETRY = 2.0  # seconds between tries of the preflight command
CLEAR_PATIENCE = 10.0  # seconds to wait for torn checkpoints to be put aside


def put_torn_aside(t: Turn, torn: dict[str, str]) -> None:
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


def on_set_aside(t: Turn, event: on.SetAsideDone) -> None:
    """Out of the trainer's sight."""
    r = t.state.resuming
    if r is not None:
        t.set_resuming(clearing=r.clearing - {event.name})


def preflight(t: Turn) -> None:
    """Asks whether what the trainer needs is there, where a command for that is configured."""
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
        void_since=None,
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
                restoring.know_as(t, choice.id, c, choice.step)
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
