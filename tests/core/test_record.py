"""The record: what is written is read again, and whatever is read, spotd starts."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from spotd.core import events as on
from spotd.core.lifecycle import step
from spotd.core.record import counts_from, interruption_from, known_from, to_record
from spotd.core.state import Now, Phase, Policy, State
from spotd.simulation.daemon import Daemon
from spotd.simulation.schedules import schedule_from
from spotd.simulation.world import World

WALL = 1_750_000_000.0


def start(record: object, boot: str = "same-boot", trainer: on.TrainerFound | None = None) -> State:
    event = on.Started(record, boot, "boot-1", "i-1", trainer, WALL - 100)
    state, _ = step(State(policy=Policy(), run="run"), event, Now(50.0, WALL))
    return state


def states_of_a_bad_day(seeds):
    """Every state of some random schedules."""
    seen = []
    original = Daemon._handle

    def noting(daemon, event):
        original(daemon, event)
        seen.append(daemon.state)

    Daemon._handle = noting
    try:
        for seed in seeds:
            World(schedule_from(seed)).run()
    finally:
        Daemon._handle = original
    return seen


STATES = states_of_a_bad_day(range(300, 312))


def as_a_later_daemon_knows(known):
    """What could not be held is known by its name to one daemon only: the next asks anew."""
    return tuple(replace(k, hold=None) if k.hold == "none" else k for k in known)


def test_a_record_is_plain_json_and_reads_back_as_it_was_written():
    for state in STATES:
        record = to_record(state)
        again = json.loads(json.dumps(record, allow_nan=False))
        assert again == json.loads(json.dumps(again))
        assert known_from(again["known"]) == as_a_later_daemon_knows(state.known)
        assert counts_from(again["counts"]) == state.counts


def test_a_daemon_started_with_a_record_knows_what_the_last_one_knew():
    for state in STATES:
        if not state.boot or state.completed:
            continue
        told = json.loads(json.dumps(to_record(state)))
        event = on.Started(told, "same-boot", state.boot_id, state.instance_id, None, state.booted)
        after, _ = step(State(policy=state.policy, run=state.run), event, Now(9e5, WALL + 9e5))
        assert after.known == as_a_later_daemon_knows(state.known)
        for name in ("attempt", "next_sequence", "lost_steps", "best_step", "rejected",
                     "blamed", "crashes_from", "lease_until_wall"):  # fmt: skip
            assert getattr(after, name) == getattr(state, name), name


def test_a_record_of_another_run_is_not_ours():
    record = {**to_record(State(policy=Policy(), run="other")), "attempt": 7, "completed": True}
    state = start(record)
    assert state.attempt == 0
    assert state.phase is Phase.RESTORING


def test_a_notice_on_record_keeps_its_deadline_across_a_restart():
    record = {"source": "notice", "action": "stop", "seen_wall": WALL - 30,
              "deadline_wall": WALL + 70, "resume_wall": WALL + 370, "killable": True}  # fmt: skip
    i = interruption_from(record, 1000.0, WALL)
    assert (i.seen, i.deadline, i.resume_at) == (970.0, 1070.0, 1370.0)


def test_a_stop_or_a_drill_ends_with_the_daemon_that_did_it():
    for source in ("stop", "drill", "", None, 5):
        assert interruption_from({"source": source}, 0.0, WALL) is None


def test_a_notice_on_record_is_bounded_even_when_the_clock_was_set():
    far = {"source": "notice", "action": "stop", "seen_wall": WALL + 9e4,
           "deadline_wall": WALL + 9e4, "resume_wall": WALL + 1e5, "killable": True}  # fmt: skip
    state = start({"run": "run", "interruption": far})
    assert state.interruption.deadline <= 50.0 + 120.0
    assert state.interruption.resume_at <= 50.0 + 120.0 + 300.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip
KEYS = sorted(to_record(replace(STATES[-1])))
KNOWN_KEYS = sorted(next(r for s in STATES for r in to_record(s)["known"]))
INSIDE = st.dictionaries(
    st.sampled_from(
        ["source", "action", "seen_wall", "deadline_wall", "resume_wall", "killable", "attempt",
         "stop", "killed", "step", "resumed_from", "first_sequence"]
    ),
    JSON | st.just("notice"),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(KEYS),
        JSON | INSIDE | st.lists(st.dictionaries(st.sampled_from(KNOWN_KEYS), JSON), max_size=3),
    ),
    st.sampled_from(["first", "same-boot", "reboot", "interrupted", "power-loss", "new-instance"]),
    st.booleans(),
)
def test_a_damaged_record_never_keeps_spotd_from_starting(record, boot, living):
    trainer = on.TrainerFound(77, 3, WALL - 60) if living else None
    state = start({**record, "run": "run"}, boot, trainer)
    assert state.phase is not Phase.STARTING
    json.dumps(to_record(state))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_record_damaged_in_one_place_never_keeps_spotd_from_starting(data):
    record = json.loads(json.dumps(to_record(data.draw(st.sampled_from(STATES)))))
    place = record
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(JSON)
        break
    if isinstance(record, dict):
        record["run"] = "run"
    state = start(record)
    assert state.phase is not Phase.STARTING
