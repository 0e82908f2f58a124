from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import threading

import pytest
from directory_kit import eventually

from spotd.core.actions import Reply
from spotd.shell import control as control_module
from spotd.shell.control import LONGEST, MOST, ControlServer, ask


@pytest.fixture
def server(tmp_path):
    """A control server whose status fills a socket's buffer in a few answers."""
    posted = []
    control = ControlServer(
        tmp_path / "control.sock", status=lambda: {"much": "x" * 100_000}, post=posted.append
    )
    control.posted = posted
    control.path = tmp_path / "control.sock"
    control.start()
    yield control
    control.close()


def request(verb):
    """A request as long as the server reads at once."""
    return f'{{"verb": "{verb}"}}'.ljust(LONGEST - 1).encode() + b"\n"


def connected(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection


def test_who_asks_and_does_not_read_keeps_nobody_waiting(server):
    with connected(server.path) as deaf:
        deaf.setblocking(False)
        with contextlib.suppress(OSError):  # the buffer is full, or the server has had enough
            for _ in range(30):
                deaf.send(request("status"))
        answer = next(ask(server.path, "status", timeout=15))
    assert answer["ok"]


def test_an_answer_that_nobody_reads_does_not_hold_up_the_decision(server):
    with connected(server.path) as deaf:
        deaf.send(request("checkpoint"))
        eventually(lambda: server.posted)
        number = server.posted[0].request

        def answer():
            for _ in range(40):
                server.reply(Reply(number, ok=True, message="y" * 50_000, final=False))

        deciding = threading.Thread(target=answer, daemon=True)
        deciding.start()
        deciding.join(20)
        assert not deciding.is_alive()


def test_an_answer_comes_whole(server):
    assert next(ask(server.path, "status"))["data"] == {"much": "x" * 100_000}


def test_requests_that_come_in_one_piece_are_all_answered(server):
    with connected(server.path) as hasty:
        hasty.sendall(b'{"verb": "nothing"}\n' * 3)
        lines = hasty.makefile("rb")
        assert [b"no such verb" in lines.readline() for _ in range(3)] == [True] * 3


def test_a_crowd_of_lookers_does_not_drive_out_who_waits_for_an_answer(server):
    with connected(server.path) as waiting, contextlib.ExitStack() as crowd:
        waiting.sendall(b'{"verb": "drill"}\n')
        eventually(lambda: server.posted)
        for _ in range(2 * MOST):
            crowd.enter_context(socket.socket(socket.AF_UNIX)).connect(str(server.path))
        assert next(ask(server.path, "status"))["ok"]
        server.reply(Reply(server.posted[0].request, ok=True, message="it fits"))
        assert b"it fits" in waiting.makefile("rb").readline()


def test_a_defect_in_the_status_is_an_answer_and_not_the_end_of_answering(tmp_path):
    def status():
        raise RuntimeError("torn")

    control = ControlServer(tmp_path / "control.sock", status=status, post=print)
    control.start()
    for _ in range(2):
        assert "torn" in next(ask(tmp_path / "control.sock", "status"))["message"]
    control.close()


def test_a_socket_that_was_taken_away_is_made_anew_and_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr(control_module, "LOOK", 0.02)
    told = []
    path = tmp_path / "run" / "control.sock"
    path.parent.mkdir()
    control = ControlServer(path, status=dict, post=print, lost=told.append)
    control.start()
    before = os.umask(0o077)  # the unit's
    try:
        shutil.rmtree(path.parent)
        eventually(path.exists)
        eventually(lambda: told)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert next(ask(path, "status"))["ok"]
    assert told == [""]
    control.close()
    assert not path.exists()


def test_what_root_alone_may_ask_for_is_refused_to_everybody_else(tmp_path, monkeypatch):
    asked = []
    control = ControlServer(
        tmp_path / "control.sock", status=dict, post=asked.append,
        tasks={"reload": lambda number: control.reply(Reply(number, ok=True, message="done"))},
        users=frozenset({12345}),
    )  # fmt: skip
    control.start()
    path = tmp_path / "control.sock"
    assert next(ask(path, "reload", 15))["ok"]
    monkeypatch.setattr(control, "_peer", lambda _: 12345)  # the trainer's user
    refused = next(ask(path, "reload", 15))
    assert not refused["ok"]
    assert refused["message"] == "`spotd reload` is for root: use sudo"
    control.close()
