"""Random weather over the simulated world: no order of events loses work."""

from __future__ import annotations

import os

import pytest

from spotd.core.state import TRANSITIONS
from spotd.simulation import weather
from spotd.simulation.models import Weather
from spotd.simulation.schedules import schedule_from
from spotd.simulation.world import World

SCHEDULES = 20_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_thousand_random_schedules_break_no_invariant():
    tally = weather.play_many(SCHEDULES, seed=1, workers=os.cpu_count())
    assert tally.failed == [], weather.explain(min(tally.failed)[0])
    assert tally.schedules == SCHEDULES
    taken = sum(1 for b, follow in TRANSITIONS.items() for a in follow if tally.phases[b, a])
    assert taken >= 0.8 * sum(map(len, TRANSITIONS.values()))


def test_a_schedule_is_made_from_its_seed_alone():
    assert schedule_from(7) == schedule_from(7)
    assert schedule_from(7) != schedule_from(8)


def test_the_same_schedule_plays_the_same_story_twice():
    schedule = schedule_from(11)
    one, two = (World(schedule, story=True).run() for _ in range(2))
    assert one.trace.text() == two.trace.text()


def test_polls_that_change_nothing_can_be_left_out():
    from dataclasses import replace

    for seed in range(40, 60):
        lazy = schedule_from(seed)
        lazy = replace(lazy, setup=replace(lazy.setup, jitter=None))
        exact = replace(lazy, setup=replace(lazy.setup, lazy=False))
        a, b = World(lazy).run(), World(exact).run()
        assert [(r.step, r.name) for r in a.oracle.resumes] == [
            (r.step, r.name) for r in b.oracle.resumes
        ]
        assert a.phases == b.phases


def test_a_broken_schedule_is_shrunk_to_what_breaks_it(monkeypatch):
    def broken_by_a_cut(schedule, *, story=False):
        found = ["cut at 1.0: broken"] if any(w.what == "cut" for w in schedule.weather) else []
        return found, World(schedule, story=story)

    monkeypatch.setattr(weather, "faults", broken_by_a_cut)
    schedule = next(
        s
        for s in map(schedule_from, range(1000))
        if len(s.weather) > 3 and any(w.what == "cut" for w in s.weather)
    )
    small = weather.shrink(schedule)
    assert [w.what for w in small.weather] == ["cut"]
    assert isinstance(small.weather[0], Weather)


def test_the_command_ends_with_0_when_nothing_broke(capsys):
    assert weather.main(["--schedules", "40", "--seed", "5", "--workers", "1"]) == 0
    assert "40 schedules" in capsys.readouterr().out


def test_a_single_seed_tells_its_story(capsys):
    assert weather.main(["--only", "5"]) == 0
    assert "> Started first" in capsys.readouterr().out


def test_a_hold_is_tried_again_when_the_store_that_was_to_serve_instead_has_lied():
    """A full disk keeps it from being put back, and the store does not have what it took."""
    found, _ = weather.faults(schedule_from(62017607))
    assert found == []
