"""Two reloads at once, and one that comes before spotd is ready."""

from __future__ import annotations

import threading
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
    thread = threading.Thread(target=daemon._reload, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    assert daemon.said == []
    daemon._ready.set()
    thread.join(20)
    assert daemon.said == [False, True]


def test_of_two_reloads_at_once_what_was_written_last_is_in_force(daemon, monkeypatch):
    daemon._ready.set()
    first_has_read, go_on = threading.Event(), threading.Event()

    def slow(path):
        found = load(path)
        if not first_has_read.is_set():
            first_has_read.set()
            assert go_on.wait(20)
        return found

    monkeypatch.setattr("spotd.shell.daemon.load", slow)
    daemon.write(100)
    first = threading.Thread(target=daemon._reload, daemon=True)
    first.start()
    assert first_has_read.wait(20)
    daemon.write(200)
    second = threading.Thread(target=daemon._reload, daemon=True)
    second.start()
    second.join(0.05)
    go_on.set()
    for thread in (first, second):
        thread.join(20)
    assert daemon.settings.trainer.backoff_max == 200
    assert daemon.host.settings is daemon.settings.trainer
    assert daemon.said == [False, True, False, True]


def test_a_reload_that_breaks_does_not_leave_systemd_waiting(daemon, monkeypatch):
    daemon._ready.set()
    monkeypatch.setattr(daemon, "_take_over", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        daemon._reload()
    assert daemon.said == [False, True]
