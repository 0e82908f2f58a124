"""The threads of a transfer: where they run, and what runs first in each."""

from __future__ import annotations

import os
import threading

from spotd.shell.store.transfer import Lanes


def cores_of(lanes):
    """The cores each of so many jobs at once may run on."""
    together = threading.Barrier(lanes.count)

    def look():
        together.wait(30)  # so that each is in a thread of its own
        return frozenset(os.sched_getaffinity(0))

    return list(lanes.each([look] * lanes.count))


def test_tiny_files_share_one_core_and_large_ones_have_all():
    before = os.sched_getaffinity(0)
    lanes = Lanes(3, tiny=5)
    try:
        tiny, large = cores_of(lanes.tiny), cores_of(lanes)
    finally:
        lanes.close()
    assert len(tiny) == 5
    assert len(set(tiny)) == 1
    assert len(tiny[0]) == 1
    assert tiny[0] <= before
    assert set(large) == {frozenset(before)}
    assert os.sched_getaffinity(0) == before


def test_what_is_to_run_first_runs_once_in_each_thread():
    ran = []
    lanes = Lanes(2, lambda: ran.append(threading.get_ident()), tiny=3)
    try:
        cores_of(lanes.tiny)
        cores_of(lanes)
    finally:
        lanes.close()
    assert len(ran) == len(set(ran)) == 5


def test_where_threads_cannot_be_kept_on_a_core_they_work_all_the_same(monkeypatch):
    def forbidden(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    lanes = Lanes(1, tiny=2)
    try:
        assert len(cores_of(lanes.tiny)) == 2
    finally:
        lanes.close()
