"""kill -9 of spotd at every moment of every scenario: what follows comes right."""

from __future__ import annotations

import os
from multiprocessing import Pool

import pytest
from scenarios import SCENARIOS

from spotd.simulation.killing import killed_anywhere

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KILLED = [s for s in SCENARIOS if s.kill_anywhere]


def whatever_went_wrong(index: int) -> tuple[str, int, list[str]]:
    scenario = KILLED[index]
    wrong = []
    moments = 0
    for moment, world in killed_anywhere(scenario.schedule, fate=scenario.fate):
        moments += 1
        wrong += [f"killed at {moment}: {v}" for v in world.oracle.violations]
        try:
            scenario.after_kill(world)
        except AssertionError as error:
            wrong.append(f"killed at {moment}: it does not end as it should: {error}")
    return scenario.name, moments, wrong


def test_spotd_killed_at_any_moment_of_any_scenario_comes_back_right():
    wrong = []
    total = 0
    with Pool(os.cpu_count()) as pool:
        for name, moments, found in pool.imap_unordered(whatever_went_wrong, range(len(KILLED))):
            total += moments
            wrong += [f"{name}: {w}" for w in found]
    assert wrong == []
    assert total > 5000  # moments
