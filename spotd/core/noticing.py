"""What the metadata service says, and what of it is news.

One notice is one notice however often it is read, a spotd that cannot see says so once,
and what was there at the first poll may be history.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spotd.core import interrupting, training
from spotd.core.deadline import plan_deadline
from spotd.core.state import Notice

if TYPE_CHECKING:
    from spotd.core import events as on
    from spotd.core.turn import Turn

STEADY = 3  # polls with an unchanged time after which a changed one is a new notice
BLIND_AFTER = 2  # polls that failed in a row; a single one is weather
SILENCE = 6.0  # polls' worth of silence after which the watcher itself counts as blind


# --- the metadata service ------------------------------------------------------------


def on_metadata(t: Turn, event: on.MetadataAnswered) -> None:
    """One poll that worked."""
    m = t.state.metadata
    if event.action is not None:
        _on_notice(t, event.action, event.time)
    elif m.notice is not None:
        if not m.notice.ignored:
            t.announce("notice_withdrawn", "the notice is no longer in the metadata", 5)
        t.set_metadata(notice=None)
    if m.announced:
        t.announce("imds_back", "the metadata service answers again", 5)
    t.set_metadata(
        last_ok=t.now.mono,
        last_ok_wall=t.now.wall,
        failures=0,
        blind_since=None,
        reason="",
        announced=False,
    )
    if event.rebalance != m.rebalance:
        t.set_metadata(rebalance=event.rebalance)
        if event.rebalance is not None:
            _on_rebalance(t, event.rebalance)
    ids = frozenset(e[0] for e in event.events)
    for event_id, code, not_before in event.events:
        if event_id not in m.scheduled:
            _on_scheduled(t, event_id, code, not_before)
    if ids != m.scheduled:
        t.set_metadata(scheduled=ids)


def on_metadata_failed(t: Turn, event: on.MetadataFailed) -> None:
    """Reported once; training is untouched."""
    m = t.state.metadata
    failures = m.failures + 1
    since = m.blind_since if m.blind_since is not None else t.now.wall
    t.set_metadata(failures=failures, blind_since=since, reason=event.reason)
    if failures >= BLIND_AFTER and not m.announced:
        _announce_blind(t, event.reason, event.hint)


def _announce_blind(t: Turn, reason: str, hint: str = "") -> None:
    advice = f". {hint}" if hint else ""
    t.set_metadata(announced=True)
    t.announce(
        "imds_blind",
        f"the metadata service does not answer, so no notice can be seen: {reason}{advice}. "
        "Training goes on; spotd keeps asking",
        4,
    )


def advance_metadata(t: Turn) -> None:
    """The watcher's own silence is blindness too."""
    m = t.state.metadata
    silent_after = SILENCE * max(t.policy.poll_interval, 5.0)
    last = m.last_ok
    if last is not None and not m.announced and t.now.mono - last >= silent_after:
        since = m.blind_since if m.blind_since is not None else m.last_ok_wall
        t.set_metadata(blind_since=since, reason=m.reason or "no answer from the watcher")
        _announce_blind(t, t.state.metadata.reason)


def _ask_for_checkpoint(t: Turn, policy: str) -> bool:
    """Returns whether the trainer was asked: as the policy wants it, and not in a drain."""
    wanted = policy == "checkpoint" and t.state.interruption is None
    return wanted and training.ask_for_checkpoint(t)


def _on_rebalance(t: Turn, when: str) -> None:
    policy = t.policy.on_rebalance
    if policy == "ignore":
        return
    asked = _ask_for_checkpoint(t, policy)
    then = "asking for a checkpoint" if asked else "training goes on"
    t.announce(
        "rebalance_recommended",
        f"EC2 says this instance is at elevated risk since {when}: {then}",
        5,
    )


def _on_scheduled(t: Turn, event_id: str, code: str, not_before: str) -> None:
    policy = t.policy.on_scheduled_event
    if policy == "ignore":
        return
    asked = _ask_for_checkpoint(t, policy)
    then = ": asking for a checkpoint" if asked else ""
    t.announce(
        "scheduled_event", f"EC2 has scheduled {code} ({event_id}) for {not_before}{then}", 5
    )


# --- notices -------------------------------------------------------------------------


def _on_notice(t: Turn, action: str, time: float | None) -> None:
    seen = t.state.metadata.notice
    if seen is not None and seen.action == action:
        jumped = seen.ignored and seen.time != time and seen.steady_polls >= STEADY
        steady = seen.steady_polls + 1 if seen.time == time else 0
        t.set_metadata(notice=replace(seen, time=time, steady_polls=steady))
        # One notice is one notice though its time slides. Only of a notice that is over
        # (its time stood still, poll after poll) a new time in the future is a new one.
        if not (jumped and time is not None and time > t.now.wall):
            return
    # What was not there at an earlier poll has just come, whatever its time says: the clock
    # may have jumped. Only what was there from the first poll on can be history.
    fresh = seen is None and t.state.metadata.last_ok is not None
    deadline = plan_deadline(action, time, t.now.wall, 0.0 if fresh else t.state.booted)
    i = t.state.interruption
    carried_over = i is not None and i.source == "notice" and seen is None and i.action == action
    overdue = time is not None and t.now.wall - time > t.policy.not_carried_out_after and i is None
    if deadline.history or (overdue and not fresh):
        t.set_metadata(notice=Notice(action, time, ignored=True))
        t.announce("notice_ignored", f"an old {action} notice is still in the metadata: history")
        return
    t.set_metadata(notice=Notice(action, time))
    if carried_over and i is not None and i.resume_at is not None:
        # The daemon was started again in the middle of it; or it was withdrawn and is
        # meant after all, and then it is waited for once more.
        until = t.now.mono + deadline.seconds + t.policy.not_carried_out_after
        if time is not None and until > i.resume_at:
            t.set_interruption(resume_at=until)
            t.persist()
        return
    interrupting.begin(t, "notice", action, deadline.seconds)
