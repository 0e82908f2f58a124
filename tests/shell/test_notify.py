"""What reaches systemd: everything that must, in its order, whoever speaks."""

import socket
import threading
from typing import get_args

import pytest

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.state import Policy, State
from spotd.shell.loop import Loop
from spotd.shell.notify import Notifier


@pytest.fixture
def ear(tmp_path, monkeypatch):
    """The other end of NOTIFY_SOCKET."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(path)
        heard.settimeout(10.0)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        yield heard


def _hear(ear, until):
    """Everything said up to and with `until`."""
    heard = []
    while not heard or heard[-1] != until:
        heard.append(ear.recv(4096).decode())
    return heard


def test_a_reload_speaks_while_the_loop_does(ear):
    """A reload has a thread of its own: once, what one had sent the other took off the list."""
    notifier = Notifier()
    failed = []
    over = threading.Event()

    def vouch():
        try:
            while not over.is_set():
                notifier.alive()
        except Exception as e:  # noqa: BLE001 - reported below
            failed.append(e)

    threads = [threading.Thread(target=vouch) for _ in range(3)]
    for thread in threads:
        thread.start()
    words = []
    try:
        for _ in range(2000):
            for done in (False, True):
                notifier.reloading(done=done)
                wanted = "READY=1" if done else "RELOADING=1"
                words += [(word, wanted) for word in _hear(ear, wanted)]
    finally:
        over.set()
        for thread in threads:
            thread.join(10.0)
    assert failed == []
    assert len(words) == 4000
    assert all(said == wanted for said, wanted in words)


def test_what_must_arrive_waits_for_a_full_queue_in_its_order(ear):
    notifier = Notifier()
    said = 0
    while said < 10_000:
        notifier.reloading(done=said % 2 == 1)
        said += 1
        if notifier._owed:
            break
    assert notifier._owed, "the queue never filled"
    notifier.stopping()
    heard = []
    while not heard or heard[-1] != "STOPPING=1":
        heard.append(ear.recv(4096).decode())
        notifier.alive()
    assert heard[:said] == [("RELOADING=1", "READY=1")[n % 2] for n in range(said)]
    assert len(heard) == said + 1


def test_a_defect_in_the_telling_does_not_end_the_deciding(monkeypatch):
    def broken(*_):
        raise IndexError("a defect")

    announced = []
    notifier = Notifier()
    monkeypatch.setattr(notifier, "alive", broken)
    loop = Loop(State(Policy(), run="r"), {}, notifier, announced.append)
    loop._tell()
    loop._tell()
    assert [a.name for a in announced] == ["defect"]
    assert "IndexError" in announced[0].message


def test_nobody_is_told_what_is_not_carried_out_yet():
    inspecting, may_go_on = threading.Event(), threading.Event()

    def inspect(_):
        inspecting.set()
        assert may_go_on.wait(20)

    perform = dict.fromkeys(get_args(do.Action), lambda _: None) | {do.Inspect: inspect}
    before = State(Policy(), run="r")
    loop = Loop(before, perform, Notifier(), lambda _: None)
    told = []
    deciding = threading.Thread(target=loop.handle, args=(on.Started(None, "first", "b", "i-1"),))
    asking = threading.Thread(target=lambda: told.append(loop.settled()))
    deciding.start()
    assert inspecting.wait(20)
    asking.start()
    may_go_on.set()
    deciding.join()
    asking.join()
    assert told == [loop.state]
    assert told != [before]


def test_a_turn_that_hangs_does_not_hide_the_state(monkeypatch):
    monkeypatch.setattr("spotd.shell.loop.TURN_PATIENCE", 0.01)
    loop = Loop(State(Policy(), run="r"), {}, Notifier(), lambda _: None)
    with loop._turn:
        assert loop.settled() == loop.state
