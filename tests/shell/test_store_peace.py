"""In peace an upload takes what is left; what it could do is what it did before it had to wait."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise

import pytest

from spotd.shell.store.peace import SHARE, Allowance, idle_seconds
from spotd.shell.store.protocol import Cancelled, Flow

MIB = 1024 * 1024


class Machine:
    """Four cores; what they did is said by the test."""

    def __init__(self):
        self.time = self.used = self.idle = 0.0
        self.allowance = Allowance(4, lambda: self.used, lambda: self.idle, lambda: self.time)

    def passes(self, seconds, *, used=0.0, idle_cores=0.0):
        self.time += seconds
        self.used += used
        self.idle += idle_cores * seconds

    def runs(self, seconds, busy_cores):
        """An upload that takes all it may, in parts of 10 ms CPU, beside other work."""
        end, before = self.time + seconds, self.used
        while self.time < end:
            wait = self.allowance.wait()
            if wait:
                self.passes(wait, idle_cores=4 - busy_cores)
            else:
                self.passes(0.01, used=0.01, idle_cores=4 - busy_cores - 1)
        return (self.used - before) / seconds


def test_where_all_cores_are_busy_it_takes_its_small_share():
    machine = Machine()
    machine.runs(10.0, 4)
    assert machine.runs(100.0, 4) == pytest.approx(4 * SHARE, rel=0.1)


def test_where_cores_are_idle_it_takes_as_much_as_it_leaves():
    machine = Machine()
    assert machine.runs(100.0, 3) == pytest.approx(0.5, rel=0.2)


def test_where_nothing_else_runs_it_does_not_wait():
    machine = Machine()
    assert machine.runs(100.0, 0) > 0.9


def test_it_begins_at_once_and_a_long_rest_saves_up_no_more_than_that():
    machine = Machine()
    machine.passes(3600.0)
    assert machine.allowance.wait() == 0
    machine.passes(0.0, used=1.0)
    assert machine.allowance.wait() > 0


def test_what_was_used_for_something_else_holds_up_an_upload_for_seconds_only():
    machine = Machine()
    machine.passes(1.0, used=60.0)
    waited = 0.0
    while wait := machine.allowance.wait():
        machine.passes(wait)
        waited += wait
    assert 1.0 < waited < 3.0


def test_while_something_else_in_the_process_is_busy_all_the_time_it_has_its_turns_still():
    machine, turns = Machine(), []
    while machine.time < 60:
        wait = machine.allowance.wait()
        if wait == 0:
            turns.append(machine.time)
        machine.passes(wait or 0.05, used=wait or 0.05)
    assert turns[-1] > 50
    assert max(b - a for a, b in pairwise(turns)) < 5


def test_the_kernel_says_how_idle_the_machine_is():
    before = idle_seconds()
    assert 0 < before <= (time.monotonic() + 86400) * (os.cpu_count() or 1)
    assert idle_seconds() >= before


def test_a_part_waits_its_turn_and_a_stop_ends_the_waiting():
    asked = threading.Event()

    def never():
        asked.set()
        return 60.0

    flow, ended = Flow(hold_back=never), threading.Event()

    def send():
        with pytest.raises(Cancelled):
            flow.turn()
        ended.set()

    thread = threading.Thread(target=send)
    thread.start()
    assert asked.wait(10.0)
    flow.stop()
    assert ended.wait(10.0)
    thread.join()


def test_an_upload_that_was_never_held_back_measures_the_link():
    flow = Flow()
    flow.turn()
    flow.passed(3 * MIB)
    assert flow.rate() > 0


@pytest.mark.parametrize(("before", "known"), [(128, True), (16, False), (0, False)])
def test_one_that_was_held_back_counts_until_then_if_that_was_enough(before, known):
    waits = iter([0.001, 0.0])
    flow = Flow(hold_back=lambda: next(waits))
    for _ in range(before):
        flow.passed(MIB)
    flow.turn()
    rate = flow.rate()
    for _ in range(10_000):
        flow.passed(MIB)
    assert (flow.rate() is not None) is known
    assert flow.rate() == rate
