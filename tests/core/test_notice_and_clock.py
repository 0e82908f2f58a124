"""Whether a notice is news or history does not hang on a clock that jumps."""

from __future__ import annotations

from spotd.core import events as on
from spotd.core.lifecycle import step
from spotd.core.state import Now, Phase, Policy, State

BOOTED = 1_000_000.0


def started():
    state = State(policy=Policy(), run="r")
    event = on.Started(
        record=None, boot="first", boot_id="b", instance_id="i-1", booted=BOOTED
    )  # fmt: skip
    return step(state, event, Now(10.0, BOOTED + 10))[0]


def test_a_notice_that_appears_while_the_clock_is_ahead_is_not_history():
    state, _ = step(started(), on.MetadataAnswered(), Now(20.0, BOOTED + 20))
    ahead = Now(25.0, BOOTED + 25 + 300)
    state, _ = step(state, on.MetadataAnswered("stop", BOOTED + 25 + 60), ahead)
    assert state.interruption is not None
    assert 90 <= state.interruption.deadline - ahead.mono <= 120


def test_a_notice_that_appears_before_the_boot_by_its_time_is_news_when_earlier_polls_had_none():
    state, _ = step(started(), on.MetadataAnswered(), Now(20.0, BOOTED + 20))
    state, _ = step(state, on.MetadataAnswered("stop", BOOTED - 500), Now(25.0, BOOTED + 25))
    assert state.phase in (Phase.DRAINING, Phase.DRAINED)


def test_a_notice_from_before_this_boot_at_the_first_poll_is_history():
    state, _ = step(
        started(), on.MetadataAnswered("stop", BOOTED - 500), Now(20.0, BOOTED + 20)
    )  # fmt: skip
    assert state.interruption is None
    state, _ = step(state, on.MetadataAnswered("stop", BOOTED - 500), Now(25.0, BOOTED + 25))
    assert state.interruption is None
