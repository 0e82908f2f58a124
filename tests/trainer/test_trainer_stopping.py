"""Signals: a flag, a save at the step boundary, the right exit status, and shielded workers."""

# ruff: noqa: PT012 - the session is entered inside what raises
from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from trainer_support import finish, lines_in, reference, start, wait_for

from spotd_trainer import Interrupted, Loader, Session
from spotd_trainer.archive import read_archive
from spotd_trainer.files import find_checkpoints
from spotd_trainer.report import Reporter


def begun(process, directory, steps: int = 20):
    wait_for(lambda: lines_in(directory / "losses.jsonl") > steps, process)


def last_step(directory) -> int:
    return json.loads((directory / "losses.jsonl").read_text().splitlines()[-1])["step"]


def saved_step(directory) -> int:
    return read_archive(find_checkpoints(directory / "checkpoints")[0])["step"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_signal_saves_the_very_last_step_and_exits_by_its_number(tmp_path, number, status):
    process = start(reference("--steps", 100_000, "--save-every", "never"), tmp_path)
    begun(process, tmp_path)
    process.send_signal(number)
    out = finish(process)
    assert process.returncode == status, out
    assert saved_step(tmp_path) == last_step(tmp_path)


def test_a_checkpoint_signal_saves_and_goes_on(tmp_path):
    with session_of(tmp_path, save_every=None) as session:
        session.advance()
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(3):
            session.advance()
            session._saver.wait()
        assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000002.pt"]
        assert not session.should_stop
    assert session.step == 4


def test_a_stop_signal_to_the_whole_group_spares_the_loaders_workers(tmp_path):
    options = ("--steps", 100_000, "--save-every", "never", "--workers", 2)
    process = start(reference(*options), tmp_path)
    begun(process, tmp_path)
    os.killpg(process.pid, signal.SIGTERM)
    out = finish(process)
    assert process.returncode == 143, out
    assert "exited unexpectedly" not in out
    assert saved_step(tmp_path) == last_step(tmp_path)


PLAIN_LOADER = """
import sys, torch
from pathlib import Path
from torch import nn
from torch.utils.data import DataLoader
from spotd_trainer import Session
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(torch.randn(4096, 4), 4, num_workers=2)
with Session(model, optimizer, loader=loader, directory="checkpoints", save_every=None) as session:
    for x in session:
        model(x).mean().backward()
        optimizer.step()
        session.advance()
        if session.step == 20:
            Path("begun").touch()
"""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_workers_of_a_plain_loader_are_shielded_too_and_end_with_their_trainer(tmp_path):
    process = start([sys.executable, "-c", PLAIN_LOADER], tmp_path)
    wait_for((tmp_path / "begun").exists, process)
    workers = children(process.pid)
    assert len(workers) == 2
    # As systemd does it: to every process of the unit, workers first.
    for pid in (*workers, process.pid):
        os.kill(pid, signal.SIGTERM)
    out = finish(process)
    assert process.returncode == 143, out
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert saved_step(tmp_path) >= 20


def test_a_shielded_worker_ends_when_its_trainer_is_killed(tmp_path):
    process = start([sys.executable, "-c", PLAIN_LOADER], tmp_path)
    wait_for((tmp_path / "begun").exists, process)
    workers = children(process.pid)
    process.kill()
    finish(process)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), timeout=30)


def test_under_torchrun_a_stopped_rank_exits_zero(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(SystemExit) as caught, session_of(tmp_path) as session:
        os.kill(os.getpid(), signal.SIGTERM)
        session.advance()
    assert caught.value.code == 0
    assert caught.value.checkpoint == tmp_path / "step-00000001.pt"


def session_of(directory, **more) -> Session:
    model = nn.Linear(2, 1)
    return Session(model, torch.optim.SGD(model.parameters(), 0.1), directory=directory, **more)


def test_the_way_out_is_a_system_exit_that_an_except_clause_does_not_swallow(tmp_path):
    with pytest.raises(SystemExit) as caught, session_of(tmp_path) as session:
        os.kill(os.getpid(), signal.SIGTERM)
        with contextlib.suppress(Exception):
            session.advance()
    assert isinstance(caught.value, Interrupted)
    assert caught.value.code == 143
    assert caught.value.checkpoint == tmp_path / "step-00000001.pt"


def test_ctrl_c_twice_does_not_wait(tmp_path):
    with pytest.raises(KeyboardInterrupt), session_of(tmp_path) as session:
        signal.raise_signal(signal.SIGINT)
        assert not session.should_stop
        signal.raise_signal(signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_saved_inside_the_handler(tmp_path):
    with session_of(tmp_path, on_stop="return") as session:
        signal.raise_signal(signal.SIGTERM)
        assert list(tmp_path.iterdir()) == []
        session.advance()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_handlers_are_given_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with session_of(tmp_path):
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_off_the_main_thread_it_says_that_it_hears_no_signals(tmp_path, caplog):
    def run() -> None:
        with session_of(tmp_path, on_stop="return") as session:
            session.request_stop()
            session.advance()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert "will not be seen" in caplog.text
    assert (tmp_path / "step-00000001.pt").exists()


def test_a_completed_run_that_is_started_again_does_nothing_and_exits_zero(tmp_path):
    twice = "import sys\nfrom spotd_trainer.reference import main\nfor _ in range(2): main()"
    options = reference("--steps", 5, "--save-every", "never")[3:]
    process = start([sys.executable, "-c", twice, *options], tmp_path)
    out = finish(process)
    assert process.returncode == 0, out
    assert "resumed at step 5" in out
    assert lines_in(tmp_path / "losses.jsonl") == 5


def test_a_loss_that_is_no_number_does_not_end_a_run_that_trains_without_spotd(
    tmp_path, spotd, monkeypatch, caplog
):
    monkeypatch.setenv("SPOTD_SOCKET", str(tmp_path / "s"))
    with session_of(tmp_path, save_every=None) as session:
        for loss in (torch.ones(3), "much", torch.tensor([2.5])):
            session._reporter._next = 0.0
            session.advance(loss)
    assert caplog.text.count("the loss is not reported") == 1
    lines = "\n".join(spotd.recv(65536).decode() for _ in range(3)).splitlines()
    assert [line for line in lines if "LOSS" in line] == ["LOSS=2.5"]


def test_an_epoch_that_is_left_early_is_no_end_of_the_run(tmp_path):
    with (
        pytest.raises(RuntimeError, match="epoch 0 were not used up"),
        session_of(tmp_path, save_every=None, loader=Loader(range(40), 4)) as session,
    ):
        for _ in session.epochs(5):
            for _ in session.batches():
                session.advance()
                break


@pytest.fixture
def spotd(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "s"))
        server.settimeout(30)
        yield server


def received(server) -> list[str]:
    """All lines that are there by now."""
    server.setblocking(False)
    lines = []
    with contextlib.suppress(BlockingIOError):
        while True:
            lines += server.recv(65536).decode().splitlines()
    return lines


def test_it_tells_spotd_steps_loss_and_complete_checkpoints(tmp_path, spotd, monkeypatch):
    monkeypatch.setenv("SPOTD_SOCKET", str(tmp_path / "s"))
    names = tmp_path / "checkpoints"
    with session_of(names, save_every=20, total_steps=40) as session:
        while not session.done:
            session.advance(torch.tensor(5.5))
            session._saver.wait()
    lines = received(spotd)
    assert f"CHECKPOINT={names / 'step-00000020.pt'}" in lines
    assert f"CHECKPOINT={names / 'step-00000040.pt'}" in lines
    assert {"STEP=40", "TOTAL_STEPS=40", "EPOCH=0", "LOSS=5.5"} <= set(lines)


def test_it_tells_spotd_that_it_stops_because_it_was_asked(tmp_path, spotd, monkeypatch):
    monkeypatch.setenv("SPOTD_SOCKET", str(tmp_path / "s"))
    with pytest.raises(SystemExit), session_of(tmp_path / "c") as session:
        os.kill(os.getpid(), signal.SIGTERM)
        session.advance()
    lines = received(spotd)
    assert lines.index(f"CHECKPOINT={tmp_path / 'c' / 'step-00000001.pt'}") < lines.index(
        "STOPPING=1"
    )


def test_a_full_socket_neither_blocks_nor_loses_a_checkpoint(tmp_path, spotd):
    reporter = Reporter(str(tmp_path / "s"))
    while reporter.dropped == 0:
        reporter.status("x")
    reporter.checkpoint(tmp_path / "step-00000001.pt")
    assert reporter.dropped == 2
    received = b""
    spotd.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            received += spotd.recv(65536)
    assert b"CHECKPOINT" not in received
    reporter.progress(2)
    assert f"CHECKPOINT={tmp_path}/step-00000001.pt\nSTEP=2".encode() == spotd.recv(65536)


@pytest.mark.parametrize("address", ["/nowhere/at/all", "@spotd-no-such-socket", "x" * 200])
def test_a_socket_that_is_not_there_changes_nothing(tmp_path, address, monkeypatch):
    monkeypatch.setenv("SPOTD_SOCKET", address)
    with session_of(tmp_path, save_every=1, total_steps=3) as session:
        for _ in range(3):
            session.advance(1.0)
    assert session.last_checkpoint == tmp_path / "step-00000003.pt"
