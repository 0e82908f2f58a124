"""Every scenario as a story, word for word, and with the daemon killed anywhere in it."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from scenarios import SCENARIOS

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
