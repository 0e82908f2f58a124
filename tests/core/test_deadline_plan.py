"""At a notice the newest checkpoint that can be finished goes first, and what cannot is said."""

from __future__ import annotations

import pytest

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.checkpoint import LocalCheckpoint
from spotd.core.lifecycle import step
from spotd.core.state import Now, Policy, State
from spotd.core.status import fits_window, status_line, status_of

MB = 1_000_000
WALL = 1_000_000.0


class Machine:
    """A running trainer, a link of 100 MB/s as measured, 90 s to use of each notice."""

    def __init__(self, record=None):
        self.state = State(policy=Policy(margin=10.0), run="r")
        self.actions = []
        self.mono = 10.0
        boot = "first" if record is None else "same"
        self.tell(
            on.Started(record, boot=boot, boot_id="b", instance_id="i-1", booted=WALL),
            on.LocalInventory(),
            on.StoreOpened(generation=1, lease_in=900.0),
            on.TrainerStarted(pid=7),
        )
        self.tell(on.TrainerReported(step=1))

    def tell(self, *events, after=0.0):
        self.mono += after
        self.actions = []
        for event in events:
            self.state, found = step(self.state, event, Now(self.mono, WALL + self.mono))
            self.actions += found

    def measured(self):
        """One checkpoint has gone up, at 100 MB/s."""
        self.saves("measure.pt", 400)
        self.tell(on.Uploaded(self.sent(), 400 * MB, 400 * MB, 4.0, 100.0 * MB), after=4.0)

    def saves(self, name, megabytes):
        seen = LocalCheckpoint(name, "file", megabytes * MB, int((WALL + self.mono) * 1e9), name)
        self.tell(on.CheckpointSeen(seen), after=1.0)
        hold = self.done(do.Hold)[-1]
        before = self.actions
        self.tell(on.Held(hold.id, "link"))
        self.actions = before + self.actions
        return hold.id

    def notice(self):
        self.tell(on.MetadataAnswered("stop", WALL + self.mono + 101.0), after=1.0)

    def done(self, kind):
        return [action for action in self.actions if isinstance(action, kind)]

    def sent(self):
        return self.done(do.Upload)[-1].id

    def said(self, name):
        return [a.message for a in self.done(do.Announce) if a.name == name]


@pytest.fixture
def machine():
    found = Machine()
    found.measured()
    return found


def test_a_newer_checkpoint_that_fits_breaks_a_stale_upload_off(machine):
    old = machine.saves("old.pt", 20_000)
    assert machine.sent() == old
    machine.notice()
    new = machine.saves("new.pt", 5_000)
    assert machine.done(do.StopUploads)
    machine.tell(on.UploadsStopped())
    assert machine.sent() == new
    assert machine.done(do.Upload)[-1].urgent
    assert not machine.said("not_in_time")


def test_one_that_does_not_fit_lets_the_older_be_finished_and_says_so(machine):
    old = machine.saves("old.pt", 4_000)
    machine.notice()
    new = machine.saves("new.pt", 20_000)
    assert not machine.done(do.StopUploads)
    assert machine.said("not_in_time") == [
        (
            "storing new.pt takes about 200 s, 89 s are left: old.pt is finished first, "
            "and what is missing of it goes up after the restart"
        )
    ]
    machine.tell(on.Uploaded(old, 4_000 * MB, 4_000 * MB, 40.0, 100.0 * MB), after=40.0)
    assert machine.sent() == new
    assert not machine.said("not_in_time")


def test_when_neither_fits_the_newest_goes_as_far_as_it_gets(machine):
    machine.saves("old.pt", 30_000)
    machine.notice()
    new = machine.saves("new.pt", 20_000)
    assert machine.done(do.StopUploads)
    machine.tell(on.UploadsStopped())
    assert machine.sent() == new


def test_of_those_that_wait_the_newest_that_fits_goes_first(machine):
    machine.saves("running.pt", 30_000)
    waits = machine.saves("small.pt", 1_000)
    machine.saves("huge.pt", 40_000)
    machine.notice()
    machine.tell(on.UploadsStopped())
    assert machine.sent() == waits


def test_a_newer_upload_is_never_broken_off_for_an_older_one(machine):
    machine.saves("old.pt", 1_000)
    machine.notice()
    new = machine.saves("new.pt", 8_000)
    machine.tell(on.UploadsStopped())
    assert machine.sent() == new
    for second in range(1, 6):
        machine.tell(on.UploadProgressed(new, second * MB, 8_000 * MB), after=1.0)
        assert not machine.done(do.StopUploads)
    assert machine.state.store.rate == pytest.approx(1.0 * MB)


def test_what_a_hurried_upload_really_does_counts_more_than_what_was_measured_before(machine):
    old = machine.saves("old.pt", 12_000)
    machine.tell(on.UploadProgressed(old, 1_000 * MB, 12_000 * MB), after=1.0)
    machine.notice()
    for second in range(1, 6):
        sent = 1_000 + second * 500
        machine.tell(on.UploadProgressed(old, sent * MB, 12_000 * MB), after=1.0)
    assert machine.state.store.rate == pytest.approx(500.0 * MB)
    machine.saves("new.pt", 30_000)
    assert machine.done(do.StopUploads), "at 500 MB/s the newer one fits"


def test_an_upload_that_was_held_back_says_nothing_about_the_link(machine):
    there = machine.saves("slow.pt", 1_000)
    machine.tell(on.Uploaded(there, 1_000 * MB, 1_000 * MB, 200.0, None), after=200.0)
    assert machine.state.store.rate == pytest.approx(100.0 * MB)


def test_status_says_beforehand_that_a_checkpoint_does_not_fit(machine):
    machine.saves("huge.pt", 9_500)
    line = status_line(machine.state, Now(machine.mono, WALL))
    assert "a checkpoint takes 95 s to store: more than a notice leaves" in line
    assert status_of(machine.state, Now(machine.mono, WALL))["checkpoint"]["fits_notice"] is False


def test_the_seconds_a_save_takes_count_and_outlive_the_daemon(machine):
    machine.saves("fits.pt", 8_000)
    assert fits_window(machine.state).fits
    machine.tell(on.DrillRequested(1), after=1.0)
    machine.tell(on.SignalSent("stop", (7,)))
    machine.tell(after=14.0)
    machine.saves("saved.pt", 8_000)
    assert fits_window(machine.state).save == pytest.approx(15.0)
    assert not fits_window(machine.state).fits
    line = status_line(machine.state, Now(machine.mono, WALL))
    assert "a checkpoint takes 15 s to save and 80 s to store" in line
    record = [a for a in machine.actions if isinstance(a, do.Persist)][-1].record
    assert Machine(record).state.save_seconds == pytest.approx(15.0)
