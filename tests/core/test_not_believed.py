"""A manifest in the store that cannot be read is said, and shown, and passed over."""

from __future__ import annotations

from itertools import pairwise

from spotd.cli import status as status_verb
from spotd.core import actions as do
from spotd.core import events as on
from spotd.core import leasing
from spotd.core.checkpoint import StoredCheckpoint
from spotd.core.lifecycle import step
from spotd.core.state import Now, Policy, State
from spotd.core.status import status_of
from spotd.shell.store.wire import decode_event, encode_event

OLDER = StoredCheckpoint(
    id="00000001-a.pt", sequence=1, name="a.pt", kind="file", step=1, size=10, mtime_ns=0,
    created=0.0, generation=1,
)  # fmt: skip
OPENED = on.StoreOpened(
    generation=2, lease_in=900.0, stored=(OLDER,), top_sequence=2,
    damaged=(("00000002-b.pt", "MANIFEST.json is not JSON"),),
)  # fmt: skip


def lines(actions):
    return [a.message for a in actions if isinstance(a, do.Announce)]


def opened(state, mono):
    """The answer to an opening of the store, asked for by whoever wants it."""
    if not state.store.opening:
        state, _ = step(state, on.StoreFailed("lease", "gone"), Now(mono, mono))
        state, _ = step(state, on.Tick(), Now(mono + 400, mono + 400))
    assert state.store.opening
    return step(state, OPENED, Now(mono + 401, mono + 401))


def begun():
    state = State(policy=Policy(), run="r")
    started = on.Started(record=None, boot="first", boot_id="b", instance_id="i-1", booted=0.0)
    return step(state, started, Now(0.0, 0.0))[0]


def test_the_newest_that_is_not_believed_is_said_once_and_shown():
    state, actions = opened(begun(), 1.0)
    said = [line for line in lines(actions) if "00000002-b.pt" in line]
    assert len(said) == 1
    assert "passed over: MANIFEST.json is not JSON" in said[0]
    shown = status_of(state, Now(402.0, 402.0))
    assert shown["store"]["damaged"] == ["00000002-b.pt"]
    assert "passed over as damaged: 00000002-b.pt" in status_verb.render(shown)


def test_a_lease_that_still_holds_is_tried_to_be_renewed_to_its_very_end():
    state, _ = opened(begun(), 1.0)
    tried, mono = [], 402.0
    while mono < state.store.lease_until - 1:
        mono += 1.0
        state, actions = step(state, on.Tick(), Now(mono, mono))
        if any(isinstance(a, do.RenewLease) for a in actions):
            tried.append(mono)
            state, _ = step(state, on.StoreFailed("lease", "gone"), Now(mono, mono))
    assert state.store.status == "open"
    longest = leasing.RETRY_MIN * 2**leasing.LEASE_DOUBLED + 1
    assert max(b - a for a, b in pairwise(tried)) <= longest
    assert mono - tried[-1] <= longest


def test_its_number_is_not_given_to_another():
    state, _ = opened(begun(), 1.0)
    assert state.next_sequence == 3


def test_what_is_not_believed_arrives_at_the_daemon():
    assert decode_event(encode_event(OPENED)) == OPENED
