"""Saving: whole or not at all, beside the loop, and no error is lost."""

# ruff: noqa: PT012 - the session is entered inside what raises
from __future__ import annotations

import errno
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile

import pytest
import torch
from torch import nn
from trainer_support import finish, reference, start, wait_for

from spotd_trainer import CheckpointError, Session
from spotd_trainer import archive as archive_module
from spotd_trainer.archive import Pace, read_archive, write_archive
from spotd_trainer.files import find_checkpoints
from spotd_trainer.interval import AutoInterval, Cost
from spotd_trainer.snapshot import Snapshot, Stager


def make(size: int = 64):
    model = nn.Linear(size, size)
    return model, torch.optim.AdamW(model.parameters())


def step(model, optimizer) -> None:
    model(torch.ones(2, model.in_features)).pow(2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


class Gate:
    """Holds every write of a checkpoint until it is opened."""

    def __init__(self, monkeypatch) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()
        real = archive_module.DurableFile.write

        def write(file, data):
            self.reached.set()
            if threading.current_thread().name == "spotd-save":
                while not self.opened.wait(0.01):
                    if file._pace.cancelled:
                        break
            return real(file, data)

        monkeypatch.setattr(archive_module.DurableFile, "write", write)


def test_the_loop_goes_on_while_the_checkpoint_is_written(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    model, optimizer = make()
    with Session(model, optimizer, directory=tmp_path, save_every=2, total_steps=5) as session:
        for _ in range(2):
            step(model, optimizer)
            session.advance()
        assert gate.reached.wait(30)
        for _ in range(2):
            step(model, optimizer)
            session.advance()
        assert find_checkpoints(tmp_path) == []
        gate.opened.set()
        wait_for(lambda: find_checkpoints(tmp_path))
        step(model, optimizer)
        session.advance()
    assert find_checkpoints(tmp_path)[0].name == "step-00000005.pt"


def test_a_checkpoint_holds_the_step_it_was_asked_at_and_not_a_later_one(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    model, optimizer = make()
    with Session(model, optimizer, directory=tmp_path, save_every=3) as session:
        for _ in range(3):
            step(model, optimizer)
            session.advance()
        weight, moment = model.weight.clone(), optimizer.state[model.weight]["exp_avg"].clone()
        for _ in range(3):
            step(model, optimizer)
        gate.opened.set()
        found = wait_for(lambda: find_checkpoints(tmp_path))[0]
        state = read_archive(found)
    assert torch.equal(state["model"]["weight"], weight)
    assert torch.equal(state["optimizers"][0]["state"][0]["exp_avg"], moment)
    assert not torch.equal(model.weight, weight)


def test_the_optimizer_waits_for_what_is_not_yet_copied():
    model, optimizer = make()
    step(model, optimizer)
    before = model.weight.clone()
    snapshot = Stager().take({"w": model.weight.detach()}, [model.weight])
    waited = threading.Event()

    def next_step() -> None:
        snapshot.wait()
        step(model, optimizer)
        waited.set()

    thread = threading.Thread(target=next_step)
    thread.start()
    assert not waited.wait(0.1)
    snapshot.finish()
    thread.join(30)
    assert torch.equal(snapshot.state["w"], before)


def test_the_first_save_finds_its_buffers_mapped_already():
    model, optimizer = make()
    step(model, optimizer)
    state = {"w": model.weight.detach(), "more": [optimizer.state[model.weight]]}
    stager = Stager()
    stager.prepare(state)
    stager._preparing.join()
    prepared = {buffer.data_ptr() for buffer in stager._buffers.values()}
    taken = stager.take(state).state
    assert taken["w"].data_ptr() in prepared
    assert taken["more"][0]["exp_avg"].data_ptr() in prepared
    assert len(prepared) == 4


def test_parameters_changed_behind_the_optimizers_back_are_found_out(tmp_path, caplog):
    model, optimizer = make()
    with Session(model, optimizer, directory=tmp_path, save_every=None) as session:
        step(model, optimizer)
        session.advance()
        state = session._layout.capture(session._about())
        snapshot = session._stager.take(state, session._parts.written_by_optimizers())
        with torch.no_grad():
            model.weight.mul_(2)
        saving = session._saver.start(session.step, snapshot)
        saving.thread.join()
        assert "written to outside optimizer.step" in caplog.text
        step(model, optimizer)
        session.advance()
        session.save()
        session._saver.wait()
        assert session._saver.copy_at_once
        assert session.last_checkpoint.name == "step-00000002.pt"


@pytest.mark.parametrize("swap", ["weights of another kind", "not a number"])
def test_weights_swapped_through_data_while_they_are_copied_are_found_out(
    tmp_path, monkeypatch, caplog, swap
):
    """As averaged weights are, for an evaluation: torch counts no version there."""
    swapped = threading.Event()
    real = Snapshot._copy_all

    def copy_all(snapshot) -> None:
        assert swapped.wait(30)
        real(snapshot)

    monkeypatch.setattr(Snapshot, "_copy_all", copy_all)
    model, optimizer = make()
    with Session(model, optimizer, directory=tmp_path, save_every=2) as session:
        for _ in range(2):
            step(model, optimizer)
            session.advance()
        kept = model.weight.detach().clone()
        model.weight.data.fill_(0.5 if swap != "not a number" else float("nan"))
        swapped.set()
        session._saver.wait()
        model.weight.data.copy_(kept)
        assert find_checkpoints(tmp_path) == []
        assert "weight was written to outside optimizer.step" in caplog.text
        step(model, optimizer)
        # Tried again at once, not at its next turn, and by a copy that the loop waits for.
        session.advance()
        session._saver.wait()
        kept = model.weight.detach().clone()
        assert torch.equal(read_archive(session.last_checkpoint)["model"]["weight"], kept)
        assert session.last_checkpoint.name == "step-00000003.pt"


def test_a_snapshot_of_weights_that_are_not_numbers_is_no_change_of_them():
    weight = nn.Parameter(torch.full((3, 5), float("nan")).t())
    snapshot = Stager().take({"w": weight.detach()}, [weight])
    snapshot.finish()
    assert snapshot.state["w"].isnan().all()


NICE = """
import os, sys, torch
from torch import nn
from spotd_trainer import Session
from spotd_trainer import snapshot
model = nn.Linear(64, 64)
optimizer = torch.optim.AdamW(model.parameters())
def refused(*_):
    raise PermissionError(13, "Permission denied")
if sys.argv[2] == "refused":
    snapshot.os.setpriority = refused
os.nice(10)
lowest = []
real = snapshot.Snapshot.finish
def finish(taken):
    lowest.append(os.getpriority(os.PRIO_PROCESS, 0))
    real(taken)
snapshot.Snapshot.finish = finish
with Session(model, optimizer, directory=sys.argv[1], save_every=2, total_steps=6) as session:
    while not session.done:
        model(torch.ones(1, 64)).sum().backward()
        optimizer.step()
        session.advance()
print("priorities", set(lowest))
"""


@pytest.mark.parametrize(("how", "priority"), [("allowed", 15), ("refused", 10)])
def test_a_trainer_of_low_priority_saves_at_a_lower_one_and_never_hangs(tmp_path, how, priority):
    """An ordinary user may not raise a priority: once, the saving thread died of it in silence."""
    process = start([sys.executable, "-c", NICE, tmp_path / "c", how], tmp_path)
    out = finish(process)
    assert process.returncode == 0, out
    assert f"priorities {{{priority}}}" in out


def test_a_saving_thread_that_cannot_begin_fails_its_save_and_does_not_hold_the_loop(
    tmp_path, monkeypatch
):
    def broken() -> None:
        raise RuntimeError("no thread today")

    model, optimizer = make()
    with (
        pytest.raises(RuntimeError, match="no thread today"),
        Session(model, optimizer, directory=tmp_path, save_every=1) as session,
    ):
        step(model, optimizer)
        session.advance()
        session._saver.wait()
        monkeypatch.setattr("spotd_trainer.saver.step_back", broken)
        for _ in range(2):
            step(model, optimizer)
            session.advance()
            session._saver.wait()


def test_an_error_beside_the_loop_is_not_lost_when_the_program_saves_by_itself(
    tmp_path, monkeypatch
):
    def broken(*_):
        raise RuntimeError("the disk caught fire")

    model, optimizer = make()
    with (
        pytest.raises(RuntimeError, match="caught fire"),
        Session(model, optimizer, directory=tmp_path, save_every=None) as session,
    ):
        step(model, optimizer)
        session.advance()
        with monkeypatch.context() as patch:
            patch.setattr(archive_module.DurableFile, "write", broken)
            session.save()
            session._saver.wait()
        session._started_step = 0
        session.save()


def test_ctrl_c_twice_in_mid_save_is_a_keyboard_interrupt_and_leaves_nothing(tmp_path, monkeypatch):
    real = archive_module.DurableFile.write

    def write(file, data):
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        return real(file, data)

    model, optimizer = make()
    with (
        pytest.raises(KeyboardInterrupt),
        Session(model, optimizer, directory=tmp_path, save_every=None) as session,
    ):
        step(model, optimizer)
        monkeypatch.setattr(archive_module.DurableFile, "write", write)
        signal.raise_signal(signal.SIGINT)
        session.advance()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_twice_does_not_wait_for_a_save_that_is_under_way(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    model, optimizer = make()
    with (
        pytest.raises(KeyboardInterrupt),
        Session(model, optimizer, directory=tmp_path, save_every=1) as session,
    ):
        step(model, optimizer)
        session.advance()
        assert gate.reached.wait(30)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert not gate.opened.is_set()
    assert list(tmp_path.iterdir()) == []


def test_a_loop_that_fails_while_a_save_is_under_way_leaves_it_whole(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    model, optimizer = make()
    with (
        pytest.raises(ZeroDivisionError),
        Session(model, optimizer, directory=tmp_path, save_every=1) as session,
    ):
        step(model, optimizer)
        session.advance()
        assert gate.reached.wait(30)
        threading.Timer(0.1, gate.opened.set).start()
        raise ZeroDivisionError
    assert read_archive(find_checkpoints(tmp_path)[0])["step"] == 1


def test_a_second_save_waits_for_the_first_and_is_not_lost(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    model, optimizer = make()
    with Session(model, optimizer, directory=tmp_path, save_every=2, keep=9) as session:
        for _ in range(5):
            step(model, optimizer)
            session.advance()
        gate.opened.set()
        session._saver.wait()
        step(model, optimizer)
        session.advance()
        session._saver.wait()
        names = [path.name for path in find_checkpoints(tmp_path)]
    assert names == ["step-00000006.pt", "step-00000002.pt"]


def test_a_stop_overtakes_a_save_that_is_under_way(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    model, optimizer = make()
    session = Session(model, optimizer, directory=tmp_path, save_every=2, on_stop="return")
    with session:
        for _ in range(3):
            step(model, optimizer)
            if session.step == 2:
                assert gate.reached.wait(30)
                session.request_stop()
            session.advance()
    assert session.should_stop
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003.pt"]


def test_a_stop_waits_for_a_save_of_the_very_same_step(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    model, optimizer = make()
    session = Session(model, optimizer, directory=tmp_path, save_every=None, on_stop="return")
    with session:
        step(model, optimizer)
        session.advance()
        session.save()
        assert gate.reached.wait(30)
        threading.Timer(0.1, gate.opened.set).start()
        session.save(wait=True)
        assert session.last_checkpoint is not None
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_an_error_beside_the_loop_is_raised_in_the_loop(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("the disk caught fire")

    model, optimizer = make()
    with (
        pytest.raises(RuntimeError, match="caught fire"),
        Session(model, optimizer, directory=tmp_path, save_every=1) as session,
    ):
        monkeypatch.setattr(archive_module.DurableFile, "write", broken)
        step(model, optimizer)
        session.advance()
        session._saver.wait()
        step(model, optimizer)
        session.advance()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_loaded_back_is_said_at_save_time_by_its_key(tmp_path):
    class Odd:
        def state_dict(self):
            return {"inner": [lambda: 1]}

        def load_state_dict(self, state):
            raise AssertionError

    model, optimizer = make()
    with (
        pytest.raises(TypeError, match=r"extra\.odd\.inner\[0\]: a function cannot be saved"),
        Session(
            model, optimizer, directory=tmp_path, save_every=1, extra={"odd": Odd()}
        ) as session,
    ):
        session.advance()


def test_a_schedule_the_session_does_not_know_is_said_at_save_time(tmp_path, caplog):
    model, optimizer = make()
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    with Session(model, optimizer, directory=tmp_path, save_every=1) as session:
        step(model, optimizer)
        session.advance()
        session._saver.wait()
        state = read_archive(session.last_checkpoint)
    assert "the session was given no scheduler" in caplog.text
    assert len(state["inexact"]) == 1


def test_it_keeps_the_newest_few_and_clears_away_what_a_killed_process_left(tmp_path):
    leftover = tmp_path / ".tmp-step-00000009.pt-123"
    leftover.write_bytes(b"half")
    (tmp_path / "mine.txt").write_text("not a checkpoint")
    model, optimizer = make()
    with Session(model, optimizer, directory=tmp_path, save_every=1, keep=2) as session:
        for _ in range(5):
            step(model, optimizer)
            session.advance()
            session._saver.wait()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["mine.txt", "step-00000004.pt", "step-00000005.pt"]


def test_an_archive_is_readable_by_torch_and_carries_checksums(tmp_path):
    path = tmp_path / "step-00000001.pt"
    tied = torch.randn(10)
    write_archive(path, {"a": tied, "b": tied})
    assert path.stat().st_mode & 0o777 == 0o644 & ~_umask()
    with zipfile.ZipFile(path) as zipped:
        assert zipped.testzip() is None
    loaded = torch.load(path, weights_only=True)
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()


def test_a_save_that_gives_way_leaves_nothing_behind(tmp_path):
    pace = Pace(cancelled=True)
    with pytest.raises(archive_module.Cancelled):
        write_archive(tmp_path / "step-00000001.pt", {"a": torch.ones(9)}, pace)
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys, torch
from torch import nn
from spotd_trainer import Session
model = nn.Linear(256, 256)
optimizer = torch.optim.AdamW(model.parameters())
with Session(model, optimizer, directory=sys.argv[1], save_every=2, total_steps=8) as session:
    while not session.done:
        model(torch.ones(1, 256)).sum().backward()
        optimizer.step()
        if session.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        if session.step == 6:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
        session.advance()
        session._saver.wait()
print("failures", session.save_failures)
"""


def test_when_a_file_may_grow_no_further_training_goes_on_and_it_is_reported(tmp_path):
    process = start([sys.executable, "-c", LIMITED, tmp_path / "c"], tmp_path)
    out = finish(process)
    assert process.returncode == 0, out
    assert "failures 2" in out
    assert "step-00000004.pt was not saved: [Errno 27]" in out
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == ["step-00000002.pt", "step-00000008.pt"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_when_the_disk_is_full_the_old_checkpoint_stays_and_training_goes_on(tmp_path, caplog):
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {made.stderr.decode().strip()}")
    try:
        model, optimizer = make(256)  # 0.8 MB of state
        with Session(model, optimizer, directory=mount, save_every=2, keep=3) as session:
            for number in range(1, 7):
                step(model, optimizer)
                session.advance()
                session._saver.wait()
                if number == 2:
                    (mount / "filler").write_bytes(b"x" * 900_000)
            assert session.save_failures == 2
            assert [p.name for p in find_checkpoints(mount)] == ["step-00000002.pt"]
            assert not list(mount.glob(".tmp*"))
            assert read_archive(mount / "step-00000002.pt")["step"] == 2
            (mount / "filler").unlink()
            step(model, optimizer)
            session.advance()
            session.save(wait=True)
            assert session.last_checkpoint.name == "step-00000007.pt"
            # Both fit, a third does not: the older one makes room, not the newest.
            step(model, optimizer)
            session.advance()
            session.save(wait=True)
            assert session.last_checkpoint.name == "step-00000008.pt"
            assert "older ones are deleted to make room" in caplog.text
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_stop_that_cannot_save_says_so_and_does_not_pretend(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    model, optimizer = make()
    with (
        pytest.raises(CheckpointError, match=r"step-00000001\.pt: not saved: .*No space left"),
        Session(model, optimizer, directory=tmp_path) as session,
    ):
        monkeypatch.setattr(archive_module.DurableFile, "write", full)
        step(model, optimizer)
        session.request_stop()
        session.advance()


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from spotd_trainer import reference, archive, files
directory, log, rounds = Path("checkpoints"), Path("losses.jsonl"), int(sys.argv[1])
choose, newest = random.Random(3), 0
for number in range(rounds):
    lines = lambda: log.read_bytes().count(10) if log.exists() else 0
    begun = lines()
    child = os.fork()  # torch is imported once, and has started no thread yet
    if not child:
        reference.main(sys.argv[2:])
        os._exit(1)
    while lines() < begun + 15 or not files.find_checkpoints(directory):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
        time.sleep(0.002)
    time.sleep(choose.random() / 20)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = files.find_checkpoints(directory)
    steps = [archive.read_archive(path)["step"] for path in found]
    assert steps == [files.step_of(path.name) for path in found], (steps, found)
    assert max(steps, default=0) >= newest, (steps, newest)
    newest = max(steps, default=0)
    assert len(list(directory.iterdir())) <= 5, list(directory.iterdir())
print("whole after every kill, newest", newest)
"""


def test_killed_at_any_moment_the_last_whole_checkpoint_is_found(tmp_path):
    options = reference("--steps", 4000, "--save-every", 1, "--width", 64)[3:]
    process = start([sys.executable, "-c", KILLED, 6, *options], tmp_path)
    out = finish(process)
    assert process.returncode == 0, out
    assert int(re.findall(r"whole after every kill, newest (\d+)", out)[0]) > 0


@pytest.mark.parametrize(
    ("cost", "expected", "why"),
    [
        (None, 10, "to measure"),
        (Cost(0.1, 0.0, 2.0), 131, "sqrt"),
        (Cost(0.001, 0.0, 30.0), 60, "the disk rests"),
        (Cost(0.0001, 0.0, 0.01), 5, "the shortest"),
        (Cost(10.0, 5.0, 20.0), 1606, "sqrt"),
        (Cost(100.0, 0.0, 20.0), 3600, "the longest"),
    ],
)
def test_the_automatic_interval_is_young_and_dalys_within_its_bounds(cost, expected, why):
    rule = AutoInterval()
    assert rule.seconds(cost) == pytest.approx(expected, rel=0.01)
    assert why in rule.reasoning(cost)


def test_the_automatic_interval_saves_less_often_when_nothing_is_interrupted():
    cost = Cost(0.5, 0.0, 1.0)
    rare, often = AutoInterval(0.1), AutoInterval(24.0)
    assert rare.seconds(cost) > 3 * often.seconds(cost)
    assert often.seconds(cost) >= 0.5 / 0.01


def test_the_reasoning_of_the_automatic_interval_is_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model, optimizer = make()
    with Session(model, optimizer, directory=tmp_path) as session:
        session._schedule.interval = AutoInterval(first=0.0)
        for _ in range(3):
            step(model, optimizer)
            session.advance()
            session._saver.wait()
    assert re.search(r"saving every \d+ s: a save costs the loop", caplog.text)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
