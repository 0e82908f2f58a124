"""Every scenario as a story, word for word, and with the daemon killed anywhere in it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import get_args

import pytest
from scenarios import SCENARIOS

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.state import TRANSITIONS
from spotd.core.turn import Turn
from spotd.simulation.world import World

GOLDEN = Path(__file__).parent / "golden"
IDS = [s.name for s in SCENARIOS]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=IDS)
def test_the_story_is_as_told(scenario, request):
    world = World(scenario.schedule, story=True, fate=scenario.fate).run()
    assert world.oracle.violations == []
    scenario.expect(world)
    text = f"# {scenario.title}.\n\n{world.trace.text()}"
    path = GOLDEN / f"{scenario.name}.txt"
    if request.config.getoption("--golden-update", default=False):
        path.write_text(text)
    told = path.read_text() if path.exists() else ""
    if text != told:
        diff = difflib.unified_diff(
            told.splitlines(), text.splitlines(), "golden", "now", n=4, lineterm=""
        )
        pytest.fail("the story has changed:\n" + "\n".join(list(diff)[:60]))


def test_every_golden_file_belongs_to_a_scenario():
    assert {p.stem for p in GOLDEN.glob("*.txt")} == set(IDS)


def test_every_transition_of_the_table_is_taken_by_a_story(monkeypatch):
    taken = set()
    enter = Turn.enter

    def noting(turn, phase, reason=""):
        taken.add((turn.state.phase, phase))
        enter(turn, phase, reason)

    monkeypatch.setattr(Turn, "enter", noting)
    for scenario in SCENARIOS:
        World(scenario.schedule, fate=scenario.fate).run()
    table = {(before, after) for before, follow in TRANSITIONS.items() for after in follow}
    assert {f"{b.value} -> {a.value}" for b, a in table - taken} == set()


def test_every_kind_of_event_and_action_is_in_a_story():
    told = "\n".join(path.read_text() for path in GOLDEN.glob("*.txt"))
    words = set(told.split())
    events = {e.__name__ for e in get_args(on.Event)} - {"Tick", "LeaseRenewed"}
    actions = {a.__name__ for a in get_args(do.Action)} - {"Announce", "RenewLease"}
    assert events | actions <= words
