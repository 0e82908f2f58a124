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


@pytest.mark.parametrize("name", ["minimal", "nanogpt_style", "lightning_run", "hf_run"])
def test_the_example_shows_what_is_new_in_it(name):
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len([line for line in lines if "<---" in line]) in range(3, 9)
