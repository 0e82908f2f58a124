"""Reloads: what is refused and why, two at once, and one before spotd is ready."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from spotd.config import load
from spotd.shell.daemon import Daemon

CONFIGURATION = """
run = "r"
[trainer]
command = ["true"]
directory = "{base}"
backoff_max = {backoff}
[checkpoints]
directory = "{base}/checkpoints"
[store]
url = "file://{base}/store"
[paths]
state = "{base}/state"
runtime = "{base}/runtime"
"""


@pytest.fixture
def daemon(tmp_path):
    """A daemon that is not running, and how to write its configuration."""
    (tmp_path / "store").mkdir()
    path = tmp_path / "spotd.toml"

    def write(backoff):
        path.write_text(CONFIGURATION.format(base=tmp_path, backoff=backoff))

    write(300)
    made = Daemon(load(str(path)))
    made.write = write
    made.host = SimpleNamespace(settings=None)
    made.said = []
    made.notifier.reloading = lambda *, done: made.said.append(done)
    yield made
    made.records.close()


def test_a_reload_before_spotd_is_ready_waits_and_says_nothing(daemon):
    thread = threading.Thread(target=daemon.reloader.reload, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    assert daemon.said == []
    daemon.reloader.ready.set()
    thread.join(20)
    assert daemon.said == [False, True]


def test_of_two_reloads_at_once_what_was_written_last_is_in_force(daemon, monkeypatch):
    daemon.reloader.ready.set()
    first_has_read, go_on = threading.Event(), threading.Event()

    def slow(path):
        found = load(path)
        if not first_has_read.is_set():
            first_has_read.set()
            assert go_on.wait(20)
        return found

    monkeypatch.setattr("spotd.shell.reload.load", slow)
    daemon.write(100)
    first = threading.Thread(target=daemon.reloader.reload, daemon=True)
    first.start()
    assert first_has_read.wait(20)
    daemon.write(200)
    second = threading.Thread(target=daemon.reloader.reload, daemon=True)
    second.start()
    second.join(0.05)
    go_on.set()
    for thread in (first, second):
        thread.join(20)
    assert daemon.settings.trainer.backoff_max == 200
    assert daemon.host.settings is daemon.settings.trainer
    assert daemon.said == [False, True, False, True]


def test_a_reload_that_breaks_does_not_leave_systemd_waiting(daemon, monkeypatch):
    daemon.reloader.ready.set()
    monkeypatch.setattr(daemon.reloader, "_take", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        daemon.reloader.reload()
    assert daemon.said == [False, True]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("backoff_max", "backof_max"), "backof_max"),
        (('run = "r"', 'run = "other"'), "run cannot change"),
        (('run = "r"', "run = "), "spotd.toml"),
    ],
    ids=["unknown key", "another run", "no TOML"],
)
def test_whoever_asks_is_told_why_nothing_was_taken_over(daemon, change, words):
    daemon.reloader.ready.set()
    old, path = daemon.settings, Path(daemon.settings.source_path)
    path.write_text(path.read_text().replace(*change))
    answers = queue.Queue()
    daemon.reloader.ask(7, answers.put)
    answer = answers.get(timeout=20)
    assert (answer.request, answer.ok, answer.final) == (7, False, True)
    assert words in answer.message
    assert answer.data["exit_code"] == 78
    assert daemon.settings is old
    assert daemon.said == [False, True]


def test_another_user_of_the_trainer_is_not_taken_over(daemon, tmp_path):
    daemon.reloader.ready.set()
    path = tmp_path / "spotd.toml"
    path.write_text(path.read_text().replace("[trainer]\n", '[trainer]\nuser = "nobody"\n'))
    problem = daemon.reloader.reload()
    assert problem is not None
    assert problem.message.startswith("trainer.user cannot change")
    assert daemon.settings.trainer.user is None


def test_a_file_that_anybody_may_write_is_not_taken_over(daemon):
    daemon.reloader.ready.set()
    daemon.write(100)
    Path(daemon.settings.source_path).chmod(0o666)
    refused = daemon.reloader.reload()
    assert "written by anybody" in refused.message
    assert daemon.settings.trainer.backoff_max == 300


def test_systemd_hears_that_the_reload_is_over_before_whoever_asked_does(daemon):
    daemon.reloader.ready.set()
    order = queue.Queue()
    daemon.reloader.ask(1, lambda reply: order.put((list(daemon.said), reply.ok)))
    assert order.get(timeout=20) == ([False, True], True)
