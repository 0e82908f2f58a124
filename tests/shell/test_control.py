from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from directory_kit import eventually

from spotd.core.actions import Reply
from spotd.shell.control import LONGEST, ControlServer, ask


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
