"""Every example really runs: interrupted and started again, it ends as if it had not been."""

from __future__ import annotations

import re
import signal
import socket
import sys

import pytest
from trainer_support import EXAMPLES, finish, start

# Enough to be interrupted in the midst of; the minimal example makes its samples slowly.
STEPS = {"minimal": "500", "nanogpt_style": "1500", "lightning_run": "1500", "hf_run": "1500"}


def result(name: str, out: str) -> str:
    found = re.findall(rf"^step {STEPS[name]}, sum of weights .*$", out, re.MULTILINE)
    assert len(found) == 1, out
    return found[0]


@pytest.mark.parametrize("name", ["minimal", "nanogpt_style", "lightning_run", "hf_run"])
def test_the_example_is_interrupted_resumes_and_ends_the_same(tmp_path, name):
    command = [sys.executable, EXAMPLES / f"{name}.py", STEPS[name]]
    variables = {"MAX_ITERS": STEPS[name], "MAX_STEPS": STEPS[name], "HF_HUB_OFFLINE": "1"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    undisturbed = start(command, whole, **variables)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as spotd:
        spotd.bind(str(tmp_path / "s"))
        spotd.settimeout(60)
        process = start(command, cut, SPOTD_SOCKET=str(tmp_path / "s"), **variables)
        # It trains: that is when a notice comes.
        assert b"STEP=" in spotd.recv(65536)
        process.send_signal(signal.SIGTERM)
        out = finish(process)
        assert process.returncode == 143, out
        received = b""
        while b"STOPPING=1" not in received:
            received += spotd.recv(65536) + b"\n"
    saved = re.search(rb"CHECKPOINT=(\S+)", received)
    assert saved, received
    resumed = start(command, cut, SPOTD_RESUME_FROM=saved.group(1).decode(), **variables)
    out = finish(resumed)
    assert resumed.returncode == 0, out
    assert result(name, out) == result(name, finish(undisturbed))


LIMITED = """
import resource, runpy, sys
from spotd_trainer.lightning import SpotdCallback
real = SpotdCallback._save
free = resource.getrlimit(resource.RLIMIT_FSIZE)
def save(callback, trainer):
    full = trainer.global_step == 200
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, free[1]) if full else free)
    return real(callback, trainer)
SpotdCallback._save = save
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_lightning_goes_on_without_space_clears_up_and_sets_aside_what_it_does_not_resume(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / ".tmp-step-00000070.ckpt-123").write_bytes(b"half")
    (checkpoints / "step-00000900.ckpt").write_bytes(b"torn")
    command = [sys.executable, "-c", LIMITED, EXAMPLES / "lightning_run.py"]
    process = start(command, tmp_path, MAX_STEPS="300")
    out = finish(process)
    assert process.returncode == 0, out
    assert "the checkpoint of step 200 was not saved: [Errno 27]" in out
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == [".aside", "step-00000100.ckpt", "step-00000300.ckpt"]
    assert [path.name for path in (checkpoints / ".aside").iterdir()] == ["step-00000900.ckpt"]


@pytest.mark.parametrize("name", ["minimal", "nanogpt_style", "lightning_run", "hf_run"])
def test_the_example_shows_what_is_new_in_it(name):
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len([line for line in lines if "<---" in line]) in range(3, 9)
