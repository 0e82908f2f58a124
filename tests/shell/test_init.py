"""As pid 1 of a container: played with a pid namespace, which needs root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spotd.testing.stage import wait_until

PROGRAM = """
import os, signal, subprocess, sys, time
from spotd.shell.init import become_init
status = become_init()
if status is not None:
    sys.exit(status)
def end(*_):
    print("told to end", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
subprocess.run(["sh", "-c", "(sleep 0.05 & echo orphan; exec true)"])
print("ready", os.getpid(), flush=True)
while True:
    time.sleep(0.05)
    states = []
    for p in filter(str.isdigit, os.listdir("/proc")):
        try:
            states.append(open(f"/proc/{p}/stat").read().rpartition(")")[2].split()[0])
        except OSError:
            pass  # it has just been buried
    if "Z" not in states and not os.path.exists("seen"):
        open("seen", "w").close()
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root")
def test_pid_1_buries_orphans_passes_the_signal_on_and_ends_with_the_daemons_status(tmp_path):
    probe = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], check=False)
    if probe.returncode != 0:
        pytest.skip("no pid namespace can be made here")
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", PROGRAM],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    try:
        wait_until((tmp_path / "seen").exists, within=30, what="no zombie is left")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "told to end" in output
    assert process.returncode == 7
