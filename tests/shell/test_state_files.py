"""What the daemon writes down about itself: the history, and the record in two places."""

from __future__ import annotations

import json
import threading

from spotd.core.actions import Announce
from spotd.shell import history
from spotd.shell.statestore import StateStore


def test_threads_that_write_the_history_at_once_leave_whole_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "LARGEST", 4096)  # it changes files all the time
    book = history.History(tmp_path / "history.jsonl")
    started = threading.Barrier(4)

    def write(who):
        started.wait()
        for number in range(300):
            book.append(Announce("attempt", f"{who} {number}", 6, {}), 1.0)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    book.close()
    for part in ("history.jsonl", "history.1.jsonl"):
        for line in (
            (tmp_path / part).read_text().splitlines() if (tmp_path / part).exists() else ()
        ):
            assert json.loads(line)["event"] == "attempt"
    assert sum(1 for _ in history.read(tmp_path / "history.jsonl")) > 0


def test_trouble_in_one_place_is_said_once_while_the_other_works(tmp_path):
    told = []
    blocked = tmp_path / "runtime"
    blocked.write_text("a file where a directory should be")
    store = StateStore(tmp_path / "state.json", blocked / "run.state.json", told.append)
    for attempt in range(5):
        store.save({"attempt": attempt})
    store.close()
    assert json.loads((tmp_path / "state.json").read_bytes()) == {"attempt": 4}
    assert [bool(reason) for reason in told] == [True]


def test_a_record_is_written_though_somebody_removed_the_runtime_directory(tmp_path):
    told = []
    volatile = tmp_path / "runtime" / "run.state.json"
    store = StateStore(tmp_path / "state.json", volatile, told.append)
    store.save({"boot_id": "b", "attempt": 1})
    store.close()
    assert json.loads(volatile.read_bytes())["attempt"] == 1
    assert told == []
