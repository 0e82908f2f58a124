"""A daemon killed with -9 leaves its trainer training, and the next one finds it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hosting import RUN, Hosted, alive, wait_for
from test_trainer_trees import SAVES_ON_SIGNAL

from spotd.core import events
from spotd.shell.trainer import proc


@pytest.fixture
def hosted():
    with tempfile.TemporaryDirectory(prefix="spotd-test-") as directory:
        made = Hosted(Path(directory))
        yield made
        made.clean_up()


@pytest.fixture
def daemons():
    started = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def daemon(hosted, daemons, *command, until=b"TrainerStarted"):
    """Another process that hosts a trainer in the same directory; returns it once it does."""
    program = Path(__file__).with_name("trainer_daemon.py")
    process = subprocess.Popen(
        [sys.executable, str(program), str(hosted.directory), *command], stdout=subprocess.PIPE
    )
    daemons.append(process)
    assert until in process.stdout.readline()
    return process


def left_behind(hosted, daemons, *command):
    """A trainer whose daemon was killed; returns its pid."""
    process = daemon(hosted, daemons, *command)
    pid = json.loads(record_path(hosted).read_text())["pid"]
    process.kill()
    process.wait()
    return pid


def record_path(hosted):
    return hosted.directory / "state" / RUN / "trainer.json"


def python(hosted, source):
    return sys.executable, str(hosted.program("train.py", source))


def test_nothing_is_found_where_nothing_was_started(hosted):
    assert hosted.host.find() is None


def test_nothing_is_found_after_a_trainer_has_ended(hosted):
    hosted.use("true")
    hosted.start()
    hosted.exited()
    assert hosted.host.find() is None


def test_the_trainer_of_a_killed_daemon_is_found_adopted_signalled_and_followed(hosted, daemons):
    pid = left_behind(hosted, daemons, *python(hosted, SAVES_ON_SIGNAL))
    hosted.file("ready.0")
    assert alive(pid)
    found = hosted.host.find()
    assert (found.pid, found.attempt) == (pid, 7)
    assert abs(found.started - Path(f"/proc/{pid}").stat().st_ctime) < 60
    hosted.host.adopt(found)
    assert hosted.host.main_pid == pid
    assert hosted.signal() == (pid,)
    exited = hosted.exited()
    assert (exited.status, exited.signal) == (None, None)
    assert hosted.file("saved.0") == "15\n"


def test_an_adopted_trainer_is_killed_whole(hosted, daemons):
    pid = left_behind(hosted, daemons, "sh", "-c", "sleep 600 & setsid sleep 600 & sleep 600")
    hosted.host.adopt(hosted.host.find())
    wait_for(lambda: len(hosted.host.tree()) == 4, what="the whole tree")
    tree = hosted.host.tree()
    assert tree[0] == pid
    hosted.kill()
    assert not any(alive(member) for member in tree)


def test_an_adopted_trainers_last_lines_are_its_own(hosted, daemons):
    left_behind(hosted, daemons, "sh", "-c", "echo of the first daemon; echo > said; exec sleep 99")
    hosted.file("said")
    hosted.host.adopt(hosted.host.find())
    assert hosted.kill().last_lines == ("of the first daemon",)


def test_while_it_lives_no_other_is_started_beside_it(hosted, daemons):
    pid = left_behind(hosted, daemons, "sleep", "600")
    hosted.use("true")
    refused = hosted.start_refused()
    assert "still there" in refused.reason
    assert str(pid) in refused.hint


def test_two_daemons_never_run_one_trainer_twice(hosted, daemons):
    daemon(hosted, daemons, "sleep", "600")
    daemon(hosted, daemons, "sleep", "600", until=b"TrainerFound")
    assert len(hosted.marked()) == 1


@pytest.mark.parametrize("content", [None, b"", b'{"format": 1, "pid"', b"[]", b'{"format": 2}'])
def test_without_a_record_it_is_found_by_its_lock_or_its_marker(hosted, daemons, content):
    pid = left_behind(hosted, daemons, "sh", "-c", "sleep 600; true")
    if content is None:
        record_path(hosted).unlink()
    else:
        record_path(hosted).write_bytes(content)
    found = hosted.host.find()
    assert (found.pid, found.attempt) == (pid, 7)


def test_without_record_and_environment_the_inherited_lock_finds_it(hosted, daemons):
    pid = left_behind(hosted, daemons, "env", "-i", "sleep", "600")
    record_path(hosted).unlink()
    wait_for(lambda: proc.command(pid)[0] == "sleep")
    assert hosted.host.find().pid == pid
    hosted.host.adopt(hosted.host.find())
    hosted.kill()
    assert not alive(pid)


def test_without_record_and_lock_the_marker_finds_it(hosted, daemons):
    source = """
        import os, time
        os.closerange(3, 100)
        open("ready", "w").write("1\\n")
        time.sleep(600)
    """
    pid = left_behind(hosted, daemons, *python(hosted, source))
    hosted.file("ready")
    assert not hosted.host._store.is_locked()
    record_path(hosted).unlink()
    assert hosted.host.find().pid == pid


def test_a_number_used_again_by_another_process_fools_nobody(hosted, daemons):
    left_behind(hosted, daemons, "sleep", "600")
    hosted.host.adopt(hosted.host.find())
    record = json.loads(record_path(hosted).read_text())
    hosted.kill()
    innocent = subprocess.Popen(["sleep", "600"])
    try:
        record["pid"] = innocent.pid  # and `started` still that of the trainer
        record_path(hosted).write_text(json.dumps(record))
        assert hosted.host.find() is None
        assert not proc.send(proc.Identity(innocent.pid, record["started"]), signal.SIGKILL)
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_record_of_another_boot_means_nothing(hosted, daemons):
    innocent = subprocess.Popen(["sleep", "600"])
    try:
        left_behind(hosted, daemons, "true")
        record_path(hosted).parent.mkdir(parents=True, exist_ok=True)
        stat = proc.stat(innocent.pid)
        record_path(hosted).write_text(json.dumps({
            "format": 1, "pid": innocent.pid, "started": stat.started, "attempt": 1,
            "marker": "x", "boot_id": "0" * 8,
        }))  # fmt: skip
        assert hosted.host.find() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_what_a_dead_trainer_left_behind_is_ended_before_another_starts(hosted, daemons):
    pid = left_behind(hosted, daemons, "sh", "-c", "sleep 600 & echo $! > child; wait")
    child = int(hosted.file("child"))
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid))
    found = hosted.host.find()
    assert found is not None
    hosted.host.adopt(found)
    hosted.exited()
    assert not alive(child)
    hosted.use("true")
    hosted.start()
    assert hosted.exited().status == 0


def test_one_that_ends_between_finding_and_adopting_is_reported_gone(hosted, daemons):
    pid = left_behind(hosted, daemons, "sleep", "600")
    found = hosted.host.find()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid))
    hosted.host.adopt(found)
    assert hosted.exited() == events.TrainerExited()


def test_a_daemon_killed_before_it_says_go_leaves_no_trainer(hosted):
    """The launcher waits for the record to be durable, and ends with the daemon."""
    from spotd.shell.trainer.account import clean_environment, find_account
    from spotd.shell.trainer.starting import Order, Prepared

    account = find_account(None)
    order = Order(("touch", str(hosted.work / "ran")), "/", account, clean_environment(account),
                  None, {}, "marker")  # fmt: skip
    prepared = Prepared(order, os.open(os.devnull, os.O_WRONLY))
    prepared._control.close()
    assert prepared.popen.wait(10) != 0
    prepared.give_up()
    assert not (hosted.work / "ran").exists()


def test_a_full_disk_does_not_keep_it_from_training(hosted, daemons):
    """The record then lies in the runtime directory."""
    directory = record_path(hosted).parent
    directory.mkdir(parents=True)
    (directory / "trainer.json.tmp").mkdir()  # no file of that name can be made
    pid = left_behind_spare(hosted, daemons)
    assert not record_path(hosted).exists()
    assert hosted.host.find().pid == pid


def left_behind_spare(hosted, daemons):
    process = daemon(hosted, daemons, "sleep", "600")
    process.kill()
    process.wait()
    return json.loads((hosted.directory / f"{RUN}.trainer.json").read_text())["pid"]
