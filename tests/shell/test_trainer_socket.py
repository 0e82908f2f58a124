"""The trainer's socket under honest and hostile senders."""

from __future__ import annotations

import os
import pwd
import queue
import socket
import stat
import time

import pytest
from hosting import wait_for

from spotd.core.events import TrainerReported
from spotd.shell import trainer_socket
from spotd.shell.trainer_socket import TrainerSocket


class Listening:
    def __init__(self, path):
        self.posted: queue.Queue = queue.Queue()
        self.declared: queue.Queue = queue.Queue()
        self.socket = TrainerSocket(
            path, user=None, post=self.posted.put, declare=self.declared.put
        )
        self.socket.open()
        self.trainer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def say(self, datagram):
        self.trainer.sendto(datagram, str(self.socket.path))


@pytest.fixture
def listening(tmp_path):
    made = Listening(tmp_path / "trainer.sock")
    yield made
    made.socket.close()
    made.trainer.close()


def drained(of):
    found = []
    while not of.empty():
        found.append(of.get())
    return found


def test_what_a_trainer_says_is_reported(listening):
    listening.say(b"STEP=3\nLOSS=0.5")
    assert listening.posted.get(timeout=10) == TrainerReported(step=3, loss=0.5)


def test_a_declared_checkpoint_is_passed_on(listening):
    listening.say(b"CHECKPOINT=/a/b.pt")
    assert listening.declared.get(timeout=10) == "/a/b.pt"


def test_of_many_reports_the_newest_values_win_and_few_are_posted(listening):
    began = time.monotonic()
    for step in range(1, 20001):
        listening.say(b"STEP=%d" % step + (b"\nLOSS=1.5" if step == 10 else b""))
    wait_for(lambda: listening.socket.received == 20000)
    listening.socket.close()
    took = time.monotonic() - began
    posted = drained(listening.posted)
    assert posted[-1].step == 20000
    assert [report.loss for report in posted if report.loss is not None] == [1.5]
    assert len(posted) <= 2 + took / 0.5
    steps = [report.step for report in posted]
    assert steps == sorted(steps)


def test_no_checkpoint_is_lost_in_a_flood(listening):
    for step in range(5000):
        listening.say(b"STEP=%d" % step)
        if step % 500 == 0:
            listening.say(b"CHECKPOINT=/c/%d.pt" % step)
    wait_for(lambda: listening.declared.qsize() == 10)
    assert drained(listening.declared) == [f"/c/{step}.pt" for step in range(0, 5000, 500)]


def test_the_same_checkpoint_declared_a_thousand_times_is_passed_on_a_few_times(listening):
    began = time.monotonic()
    for _ in range(1000):
        listening.say(b"CHECKPOINT=/c.pt")
    wait_for(lambda: listening.socket.received == 1000)
    listening.socket.close()
    declared = drained(listening.declared)
    assert set(declared) == {"/c.pt"}
    assert len(declared) <= 3 + (time.monotonic() - began) / 0.1


def test_invented_checkpoints_cannot_fill_the_memory(listening):
    began = time.monotonic()
    for number in range(5000):
        listening.say(b"CHECKPOINT=/%d" % number)
    wait_for(lambda: listening.socket.received == 5000)
    listening.socket.close()
    passed_on = listening.declared.qsize()
    assert passed_on + listening.socket.paths_dropped == 5000
    assert passed_on <= 256 * (3 + (time.monotonic() - began) / 0.1)


def test_bad_datagrams_are_counted_and_change_nothing(listening):
    for datagram in (b"", b"\0", b"nonsense", b"STEP=-1", b"x" * 9000, b"STEP=1\nLOSS=nan"):
        listening.say(datagram)
    wait_for(lambda: listening.socket.received == 6)
    assert listening.posted.get(timeout=10) == TrainerReported(step=1)
    assert listening.socket.bad == 6


def test_the_socket_of_an_earlier_daemon_is_replaced(tmp_path):
    path = tmp_path / "trainer.sock"
    old = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    old.bind(str(path))
    made = Listening(path)
    made.say(b"STEP=1")
    assert made.posted.get(timeout=10).step == 1
    made.socket.close()
    assert not path.exists()
    old.close()
    made.trainer.close()


def test_only_the_trainers_user_may_write_to_it(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    made = TrainerSocket(tmp_path / "s", user="nobody", post=print, declare=print)
    made.open()
    found = (tmp_path / "s").stat()
    made.close()
    assert found.st_uid == pwd.getpwnam("nobody").pw_uid
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_a_socket_that_was_taken_away_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_socket, "_LOOK", 0.02)
    made = Listening(tmp_path / "trainer.sock")
    made.socket.path.unlink()
    wait_for(made.socket.path.exists)
    made.say(b"STEP=4")
    assert made.posted.get(timeout=10) == TrainerReported(step=4)
    made.socket.close()
    made.trainer.close()
    assert not made.socket.path.exists()
