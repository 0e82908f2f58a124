"""What is said of uploads that went unseen, and of those that do not come on."""

from __future__ import annotations

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.checkpoint import StoredCheckpoint
from spotd.core.lifecycle import step
from spotd.core.state import Known, Now, Policy, State, Store, Upload
from spotd.core.status import status_line, status_of
from spotd.core.turn import changed

SENT = Known("00000001-a.pt", 1, "a.pt", "file", 200, 0, "f", 7, 0.0, hold="link")
LISTED = StoredCheckpoint(
    id=SENT.id, sequence=1, generation=1, name="a.pt", kind="file", size=200, step=7,
    created=0.0, mtime_ns=0,
)  # fmt: skip
OPENED = on.StoreOpened(generation=2, lease_in=900.0, stored=(LISTED,), top_sequence=1)


def said(actions):
    return [
        a.message for a in actions if isinstance(a, do.Announce) and a.name == "checkpoint_stored"
    ]


def a_state(known=SENT, **store):
    event = on.Started(record=None, boot="first", boot_id="b", instance_id="i-1", booted=0.0)
    state, _ = step(State(policy=Policy(), run="r"), event, Now(0.0, 0.0))
    return changed(state, {"known": (known,), "store": Store(**store)})


def test_what_was_stored_by_a_daemon_that_did_not_live_to_say_so_is_said_by_the_next():
    state, actions = step(a_state(opening=True), OPENED, Now(1.0, 1.0))
    assert said(actions) == ["checkpoint a.pt is in the store already"]
    assert state.known[0].stored
    _, actions = step(a_state(state.known[0], opening=True), OPENED, Now(2.0, 2.0))
    assert said(actions) == []


def test_what_is_being_stored_right_now_is_not_said_twice():
    upload = Upload(SENT.id, 1, 200, 0.0)
    state, actions = step(a_state(opening=True, upload=upload), OPENED, Now(1.0, 1.0))
    assert said(actions) == []
    _, actions = step(state, on.Uploaded(SENT.id, 200, 200, 1.0), Now(2.0, 2.0))
    assert len(said(actions)) == 1


def test_an_upload_that_does_not_come_on_is_shown_as_such_long_before_it_fails():
    state = a_state(status="open", upload=Upload(SENT.id, 1, 200, 0.0))
    assert status_line(state, Now(5.0, 5.0)).endswith("uploading (0 %)")
    assert "nothing acknowledged for 20 s" in status_line(state, Now(20.0, 20.0))
    state, _ = step(state, on.UploadProgressed(SENT.id, 100, 200), Now(21.0, 21.0))
    assert "uploading (50 %)" in status_line(state, Now(22.0, 22.0))
    shown = status_of(state, Now(25.0, 25.0))
    assert shown["checkpoint"]["upload"]["quiet"] == 4.0
