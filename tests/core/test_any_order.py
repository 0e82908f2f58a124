"""Events in any order, sensible or not: the core never trips, and never does what it must not."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.checkpoint import LocalCheckpoint, StoredCheckpoint, checkpoint_id
from spotd.core.lifecycle import HANDLERS, step, wake_at
from spotd.core.state import Now, Policy, State

WALL = 1_750_000_000.0


def local(n: int) -> LocalCheckpoint:
    return LocalCheckpoint(
        f"step-{n}.pt", "file", 1000 + n, int((WALL + n) * 1e9), f"f{n}", n, declared=False
    )


def stored(n: int) -> StoredCheckpoint:
    return StoredCheckpoint(
        checkpoint_id(n, f"step-{n}.pt"), n, 1, f"step-{n}.pt", "file", 1000 + n, n, WALL + n,
        int((WALL + n) * 1e9),
    )  # fmt: skip


numbers = st.integers(1, 4)
ids = numbers.map(lambda n: checkpoint_id(n, f"step-{n}.pt"))
names = numbers.map(lambda n: f"step-{n}.pt")
locals_ = st.lists(numbers, max_size=3, unique=True).map(lambda ns: tuple(map(local, ns)))
held = st.lists(numbers, max_size=2, unique=True).map(
    lambda ns: tuple(on.HeldCheckpoint(checkpoint_id(n, f"step-{n}.pt"), local(n)) for n in ns)
)
stored_ = st.lists(numbers, max_size=3, unique=True).map(lambda ns: tuple(map(stored, sorted(ns))))
OPERATIONS = st.sampled_from(["open", "lease", "delete", "complete"])
seconds = st.sampled_from([0.0, 1.0, 60.0, 600.0])

EVENTS = st.one_of(
    st.just(on.Tick()),
    st.builds(on.StopRequested, seconds, st.booleans()),
    st.builds(on.Reloaded, st.builds(Policy, keep=st.integers(1, 3))),
    st.just(on.DrillRequested(1)),
    st.just(on.CheckpointRequested(2)),
    st.builds(
        on.MetadataAnswered,
        st.sampled_from([None, None, "stop", "terminate", "hibernate"]),
        st.sampled_from([None, WALL - 1000, WALL + 100, WALL + 130, WALL + 1e6]),
        st.sampled_from([None, "now"]),
        st.sampled_from([(), (("e1", "system-reboot", "soon"),)]),
    ),
    st.just(on.MetadataFailed("no route")),
    st.just(on.PreflightPassed()),
    st.just(on.PreflightFailed("no")),
    st.just(on.TrainerStarted(77)),
    st.just(on.TrainerStartFailed("no such user")),
    st.builds(on.TrainerExited, st.sampled_from([None, 0, 1]), st.sampled_from([None, 9])),
    st.builds(on.TrainerReported, st.integers(0, 5), st.sampled_from([None, 5])),
    st.builds(on.SignalSent, st.sampled_from(["stop", "checkpoint"]), st.sampled_from([(), (77,)])),
    st.builds(on.ActivityMeasured, st.integers(0, 2)),
    st.builds(
        on.LocalInventory, locals_, st.sampled_from([(), (("step-9.pt", "no end record"),)]), held
    ),
    st.builds(on.CheckpointSeen, numbers.map(local)),
    st.builds(on.CheckpointVanished, names),
    st.builds(on.SavesInProgress, st.sampled_from([(), ("step-5.pt",)])),
    st.builds(on.Held, ids, st.sampled_from(["copy", "link", "none"])),
    st.builds(on.HoldFailed, ids, st.just("changed")),
    st.builds(on.Durable, ids),
    st.builds(on.SetAsideDone, names, st.just("aside")),
    st.builds(on.Reinstated, ids, numbers.map(local)),
    st.builds(on.ReinstateFailed, ids, st.just("no")),
    st.just(on.DirectoryTrouble("missing")),
    st.builds(
        on.StoreOpened, st.integers(1, 3), seconds,
        stored_,
        st.sampled_from([False, False, False, True]), st.integers(0, 6),
    ),
    st.just(on.LeaseRefused("i-other", 30.0)),
    st.builds(on.LeaseRenewed, seconds),
    st.builds(on.StoreFailed, OPERATIONS, st.just("no")),
    st.builds(on.UploadProgressed, ids, st.just(5), st.just(10)),
    st.builds(on.Uploaded, ids, st.just(10), st.just(10), st.just(1.0)),
    st.builds(on.UploadFailed, ids, st.just("no"), st.just(""), st.booleans()),
    st.just(on.UploadsStopped()),
    st.builds(on.FetchProgressed, ids, st.just(5), st.just(10)),
    st.builds(on.Fetched, ids, numbers.map(local)),
    st.builds(on.FetchFailed, ids, st.just("no"), st.just(""), st.booleans()),
    st.builds(on.DeletedFromStore, st.lists(ids, max_size=2).map(tuple)),
    st.just(on.CompletionStored()),
)  # fmt: skip
POLICIES = st.builds(
    Policy,
    checkpoint_signal=st.sampled_from([None, "SIGUSR1"]),
    preflight=st.booleans(),
    progress_timeout=st.sampled_from([None, 30.0]),
    max_failures=st.integers(1, 3),
    keep_local=st.sampled_from([None, 1]),
    keep=st.integers(1, 2),
    completion_action=st.sampled_from(["keep", "stop"]),
)
STARTS = st.builds(
    on.Started,
    st.none(),
    st.sampled_from(["first", "same-boot", "reboot", "power-loss"]),
    st.just("boot"),
    st.just("i-1"),
    st.sampled_from([None, None, None, on.TrainerFound(70, 1, WALL)]),
    st.just(WALL - 50),
)
RUNS = st.tuples(
    POLICIES,
    STARTS,
    st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 0.1, 3.0, 70.0])), max_size=60),
)
THOROUGH = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


def play(run):
    """Yields (state before, event, now, state after, actions) for each event."""
    policy, started, events = run
    state = State(policy=policy, run="run")
    mono = 0.0
    for event, pause in ((started, 0.0), *events):
        mono += pause
        now = Now(mono, WALL + mono)
        after, actions = step(state, event, now)
        yield state, event, now, after, actions
        state = after
        if any(isinstance(a, do.Exit) for a in actions):
            return


def test_every_event_has_a_handler():
    from typing import get_args

    assert set(HANDLERS) == set(get_args(on.Event))


@THOROUGH
@given(RUNS)
def test_no_order_of_events_trips_the_core(run):
    for _ in play(run):
        pass


@THOROUGH
@given(RUNS)
def test_no_second_trainer_is_started_before_the_first_one_has_ended(run):
    living = isinstance(run[1].trainer, on.TrainerFound)
    for before, event, _, _, actions in play(run):
        ended = isinstance(event, on.TrainerExited)
        failed = isinstance(event, on.TrainerStartFailed) and before.trainer is not None
        if ended or (failed and before.trainer.pid is None):
            living = False
        for action in actions:
            if isinstance(action, do.StartTrainer):
                assert not living
                living = True


@THOROUGH
@given(RUNS)
def test_what_is_started_is_on_record_first(run):
    for _, _, _, _, actions in play(run):
        kinds = [type(a) for a in actions]
        for kind in (do.StartTrainer, do.Hold):
            if kind in kinds and kind is do.StartTrainer:
                assert do.Persist in kinds[: kinds.index(kind)]
        for i, action in enumerate(actions):
            if isinstance(action, do.SignalTrainer) and action.purpose == "stop":
                told = [a for a in actions[:i] if isinstance(a, do.Persist)]
                assert not told or told[-1].record["trainer"]["stop"] == "intended"


@THOROUGH
@given(RUNS)
def test_deciding_twice_decides_the_same_and_changes_nothing(run):
    for before, event, now, after, actions in play(run):
        said = repr(before)
        assert step(before, event, now) == (after, actions)
        assert repr(before) == said


@THOROUGH
@given(RUNS)
def test_the_newest_in_the_store_is_never_deleted(run):
    for _, _, _, after, actions in play(run):
        for action in actions:
            if isinstance(action, do.DeleteFromStore):
                newest = max(after.store.listed, key=lambda s: s.sequence)
                good = [s for s in after.store.listed if s.id not in after.rejected]
                assert newest.id not in action.ids
                assert {s.id for s in good} - set(action.ids)


@THOROUGH
@given(RUNS)
def test_time_alone_comes_to_rest(run):
    *_, last = play(run)
    _, _, now, state, actions = last
    if any(isinstance(a, do.Exit) for a in actions):
        return
    begin, ticks = now.mono, 0
    while (due := wake_at(state, now)) is not None and due < begin + 900:
        assert due > now.mono, "a busy loop"
        now = Now(due, WALL + due)
        state, _ = step(state, on.Tick(), now)
        ticks += 1
        assert ticks < 2500, "time alone keeps the core busy"


# What makes no sense in a state changes nothing. Each: (event, when it would make sense).
ILLEGAL = [
    (on.Started(None, "first", "b", "i"), lambda s: False),
    (on.PreflightPassed(), lambda s: s.resuming is not None),
    (on.PreflightFailed("no"), lambda s: s.resuming is not None),
    (on.TrainerStarted(5), lambda s: s.resuming is not None),
    (on.TrainerStartFailed("no"), lambda s: s.resuming is not None),
    (on.TrainerExited(0), lambda s: s.trainer is not None),
    (on.TrainerReported(step=9), lambda s: s.trainer is not None),
    (on.SignalSent("stop", (5,)), lambda s: s.trainer is not None),
    (on.ActivityMeasured(5), lambda s: s.trainer is not None),
    (on.HoldFailed("00000099-x", "no"), lambda s: False),
    (on.Durable("00000099-x"), lambda s: False),
    (on.SetAsideDone("x", "y"), lambda s: s.resuming is not None),
    (on.Reinstated("00000001-x", local(1)), lambda s: s.resuming is not None),
    (on.ReinstateFailed("00000001-x", "no"), lambda s: s.resuming is not None),
    (on.StoreOpened(9, 60.0), lambda s: s.store.opening),
    (
        on.LeaseRefused("i-2", 30.0),
        lambda s: s.store.opening or s.store.renewing or s.store.status == "open",
    ),
    (on.LeaseRenewed(60.0), lambda s: s.store.renewing),
    (on.StoreFailed("open", "no"), lambda s: s.store.opening),
    (on.StoreFailed("lease", "no"), lambda s: s.store.renewing),
    (on.StoreFailed("delete", "no"), lambda s: s.store.deleting),
    (on.StoreFailed("complete", "no"), lambda s: s.store.completing),
    (on.UploadProgressed("00000099-x", 1, 2), lambda s: False),
    (on.UploadFailed("00000099-x", "no"), lambda s: False),
    (on.UploadsStopped(), lambda s: s.store.upload is not None),
    (on.FetchProgressed("00000001-x", 1, 2), lambda s: s.resuming is not None),
    (on.Fetched("00000001-x", local(1)), lambda s: s.resuming is not None),
    (on.FetchFailed("00000001-x", "no"), lambda s: s.resuming is not None),
    (on.CompletionStored(), lambda s: s.store.completing),
    (on.DeletedFromStore(("00000099-x",)), lambda s: s.store.deleting),
]


@settings(THOROUGH, max_examples=60)
@given(RUNS)
def test_an_event_that_makes_no_sense_changes_nothing(run):
    for _, _, now, state, actions in play(run):
        if any(isinstance(a, do.Exit) for a in actions):
            return
        for event, makes_sense in ILLEGAL:
            if not makes_sense(state):
                after, done = step(state, event, now)
                assert after == state
                assert done == ()


def test_before_it_is_started_nothing_but_a_stop_is_heard():
    state = State(policy=Policy(), run="run")
    for event, _ in ILLEGAL[1:]:
        assert step(state, event, Now(0, WALL)) == (state, ())


@pytest.mark.parametrize("restart", [False, True])
def test_a_stop_before_the_record_is_read_does_not_overwrite_it(restart):
    state = State(policy=Policy(), run="run")
    _, actions = step(state, on.StopRequested(120.0, restart=restart), Now(0, WALL))
    assert Counter(type(a) for a in actions) == {do.Exit: 1}
