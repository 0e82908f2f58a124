"""Signals to real trainers: wrappers, exec chains, torchrun, DataLoader workers, accelerate."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hosting import Hosted, alive, wait_for

from spotd.core import events
from spotd.shell.trainer import proc

BIN = Path(sys.executable).parent

SAVES_ON_SIGNAL = r"""
import os, signal, sys, time
name = os.environ.get("RANK", "0")
received = []
def handler(number, frame):
    received.append(number)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, handler)
def say(what, text=""):
    with open(f"{what}.{name}.new", "w") as file:
        file.write(f"{text or os.getpid()}\n")
    os.rename(f"{what}.{name}.new", f"{what}.{name}")
say("ready")
while signal.SIGTERM not in received:
    time.sleep(0.01)
    if signal.SIGUSR1 in received:
        say("checkpoint")
time.sleep(0.2)  # a second signal would be seen
say("saved", " ".join(str(int(number)) for number in received))
"""

CATCHES_NOTHING = r"""
import os, time
with open("ready.0", "w") as file:
    file.write(f"{os.getpid()}\n")
time.sleep(600)
"""


@pytest.fixture
def hosted():
    with tempfile.TemporaryDirectory(prefix="spotd-test-") as directory:
        made = Hosted(Path(directory), environment={"OMP_NUM_THREADS": "1"})
        yield made
        made.clean_up()


def test_a_trainer_that_saves_on_the_signal_saves_once(hosted):
    hosted.python(SAVES_ON_SIGNAL)
    pid = hosted.start()
    hosted.file("ready.0")
    assert hosted.signal() == (pid,)
    assert hosted.exited().status == 0
    assert hosted.file("saved.0") == "15\n"


def test_a_trainer_that_does_not_catch_it_trains_on(hosted):
    hosted.python(CATCHES_NOTHING)
    pid = hosted.start()
    hosted.file("ready.0")
    assert hosted.signal() == ()
    assert alive(pid)
    assert hosted.posted.empty()


def test_a_signal_for_a_checkpoint_never_kills_who_does_not_catch_it(hosted):
    for target in ("auto", "main", "group"):
        hosted.python(CATCHES_NOTHING)
        hosted.use(*hosted.host.settings.command, signal_target=target)
        pid = hosted.start()
        hosted.file("ready.0")
        assert hosted.signal("SIGUSR1", "checkpoint") == ()
        assert alive(pid)
        hosted.kill()


def test_a_signal_for_a_checkpoint_reaches_who_saves_on_it(hosted):
    hosted.python(SAVES_ON_SIGNAL)
    pid = hosted.start()
    hosted.file("ready.0")
    assert hosted.signal("SIGUSR1", "checkpoint") == (pid,)
    hosted.file("checkpoint.0")
    assert alive(pid)


@pytest.mark.parametrize(
    "wrapper",
    [
        ("bash", "-c", "{python} train.py; status=$?; exit $status"),
        ("sh", "-c", "cd . && ( {python} train.py ; exit $? ) ; exit $?"),
        ("bash", "-c", "setsid --wait {python} train.py; exit $?"),
        ("sh", "-c", "nice bash -c '{python} train.py; exit $?'; exit $?"),
    ],
)
def test_below_a_wrapper_the_trainer_itself_is_signalled(hosted, wrapper):
    hosted.program("train.py", SAVES_ON_SIGNAL)
    hosted.use(*(word.replace("{python}", sys.executable) for word in wrapper))
    main = hosted.start()
    trainer = int(hosted.file("ready.0"))
    assert trainer != main
    assert hosted.signal() == (trainer,)
    assert hosted.exited().status == 0
    assert hosted.file("saved.0") == "15\n"


def test_through_a_chain_of_exec_it_stays_one_process(hosted):
    hosted.program("train.py", SAVES_ON_SIGNAL)
    hosted.use("sh", "-c", f"exec env A=1 bash -c 'exec {sys.executable} train.py'")
    main = hosted.start()
    assert int(hosted.file("ready.0")) == main
    assert hosted.signal() == (main,)
    assert hosted.exited().status == 0


def test_sigint_reaches_the_trainer_below_a_shell(hosted):
    hosted.program("train.py", SAVES_ON_SIGNAL.replace("SIGTERM", "SIGINT"))
    hosted.use("bash", "-c", f"{sys.executable} train.py; exit $?")
    hosted.start()
    trainer = int(hosted.file("ready.0"))
    assert hosted.signal("SIGINT") == (trainer,)
    assert hosted.exited().status == 0
    assert hosted.file("saved.0") == f"{int(signal.SIGINT)}\n"


def test_main_signals_only_the_commands_own_process(hosted):
    hosted.program("train.py", SAVES_ON_SIGNAL)
    hosted.use("bash", "-c", f"{sys.executable} train.py; exit $?", signal_target="main")
    hosted.start()
    hosted.file("ready.0")
    assert hosted.signal() == ()


def test_group_signals_everybody(hosted):
    hosted.program("train.py", SAVES_ON_SIGNAL)
    hosted.use("bash", "-c", f"{sys.executable} train.py; exit $?", signal_target="group")
    main = hosted.start()
    trainer = int(hosted.file("ready.0"))
    assert hosted.signal() == (main, trainer)
    hosted.exited()


def test_a_double_forked_trainer_is_found_by_its_marker(hosted):
    hosted.program("train.py", SAVES_ON_SIGNAL)
    hosted.use("sh", "-c", f"(setsid {sys.executable} train.py &); sleep 600")
    hosted.start()
    trainer = int(hosted.file("ready.0"))
    assert hosted.signal() == (trainer,)
    hosted.file("saved.0")


# --- real launchers -----------------------------------------------------------------------


RANKS = r"""
import os, signal, sys, time
import torch, torch.distributed as dist
from torch.utils.data import DataLoader
stop = []
signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
dist.init_process_group("gloo")
rank = dist.get_rank()
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 1 << 40
    def __getitem__(self, index):
        time.sleep(0.002)
        return index
flag = torch.zeros(1)
for step, batch in enumerate(DataLoader(Data(), batch_size=2, num_workers=1)):
    flag[0] = float(bool(stop))
    dist.all_reduce(flag)
    if step == 3:
        with open(f"ready.{rank}", "w") as file:
            file.write(f"{os.getpid()} {os.getppid()}\n")
    if flag[0]:
        with open(f"saved.{rank}", "w") as file:
            file.write(f"{len(stop)}\n")
        break
dist.destroy_process_group()
"""


def torchrun(hosted):
    program = hosted.program("train.py", RANKS)
    hosted.use(str(BIN / "torchrun"), "--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d",
               "--rdzv-endpoint=localhost:0", str(program))  # fmt: skip
    main = hosted.start()
    ranks = []
    for number in (0, 1):
        pid, parent = map(int, hosted.file(f"ready.{number}", seconds=90).split())
        assert parent == main
        ranks.append(pid)
    return main, ranks


def test_under_torchrun_the_ranks_save_and_it_ends_with_success(hosted):
    _, ranks = torchrun(hosted)
    workers = [pid for pid in hosted.host.tree() if proc.stat(pid).parent in ranks]
    assert len(workers) >= 2
    assert sorted(hosted.signal()) == sorted(ranks)
    assert hosted.exited(seconds=60).status == 0
    assert [hosted.file(f"saved.{number}") for number in (0, 1)] == ["1\n", "1\n"]


def test_when_torchrun_dies_its_orphaned_ranks_and_their_workers_go_too(hosted):
    main, ranks = torchrun(hosted)
    tree = hosted.host.tree()
    os.kill(main, signal.SIGKILL)
    exited = hosted.exited(seconds=60)
    assert exited.signal == signal.SIGKILL
    assert not any(alive(pid) for pid in [*ranks, *tree])
    assert hosted.marked() == []


def test_accelerate_launch_is_not_signalled_but_the_trainer_below_it_is(hosted):
    program = hosted.program("train.py", SAVES_ON_SIGNAL)
    hosted.use(str(BIN / "accelerate"), "launch", "--num_processes=1", "--num_machines=1",
               "--mixed_precision=no", "--dynamo_backend=no", "--cpu", str(program))  # fmt: skip
    main = hosted.start()
    name = wait_for(lambda: next((p.name for p in hosted.work.glob("ready.?")), None), seconds=90)
    trainer = int(hosted.file(name))
    assert trainer != main
    assert hosted.signal() == (trainer,)
    assert hosted.exited(seconds=60).status == 0
    assert hosted.file(name.replace("ready", "saved")) == "15\n"
    assert hosted.posted.empty() or isinstance(hosted.posted.get(), events.ActivityMeasured)
