from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")

SMALL = ("--layers", "1", "--heads", "1", "--width", "16", "--context", "16", "--batch", "2")


def reference(*options: object) -> list[str]:
    return [sys.executable, "-m", "spotd_trainer.reference", *SMALL, "--steps", "1000000",
            "--save-every", "never", "--seed", "7", "--eval-every", "0", "--log-every", "1000000",
            "--log-jsonl", "losses.jsonl", *map(str, options)]  # fmt: skip


def steps(machine) -> list[int]:
    try:
        lines = (machine.work / "losses.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [e["step"] for e in map(json.loads, lines) if "step" in e]


@pytest.mark.slow
def test_the_reference_trainer_loses_no_step_to_a_drill_and_a_notice(build, imds):
    machine = build(command=reference(), trainer={"environment": {"OMP_NUM_THREADS": "1"}})
    machine.boot()
    machine.wait(lambda: len(steps(machine)) > 20, "twenty steps", within=90)
    drill = machine.spotd("drill")
    assert drill.returncode == 0, drill.stderr
    drilled = len(steps(machine))
    machine.wait(lambda: len(steps(machine)) > drilled + 20, "training after the drill", within=90)
    imds.give_notice()
    newest = machine.wait_for_state("drained")["checkpoint"]["newest"]
    assert newest["stored"]
    last = steps(machine)[-1]
    machine.power_cut()
    imds.withdraw()
    machine.lose_disk()
    machine.boot()
    machine.wait(lambda: len(steps(machine)) > 5, "training on a new disk", within=90)
    assert steps(machine)[0] == last + 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_demo_ends_with_the_same_weights(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "spotd", "demo", "--output", str(tmp_path / "demo"),
         "--steps", "500"],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "the same weights, byte for byte" in done.stdout
    for chapter in ("notice, stop, start", "power cut", "newest torn", "disk lost"):
        assert chapter in done.stdout
