"""docs/moving.md: its programs, trained by spotd with its configurations, as they stand there."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spotd.config import parse

pytest.importorskip("torch")

PAGE = (Path(__file__).parents[2] / "docs/moving.md").read_text()
QUICK = {"interruption": {"margin": 1}}
OWN, SAGEMAKER, SKYPILOT = (f"From {title}" for title in re.findall(r"\n## From (.*)\n", PAGE))


def block(section: str, language: str) -> str:
    text = PAGE.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    (found,) = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return found


def moved(build, section, **more):
    """A machine with the section's program and its configuration, on paths that exist here."""
    settings = parse(block(section, "toml"), section)
    program, *arguments = settings.trainer.command
    assert (program, arguments[0]) == ("python", "train.py")
    machine = build(
        command=[sys.executable, *arguments],
        trainer={"environment": {"OMP_NUM_THREADS": "1", **settings.trainer.environment}},
        sections={**QUICK, "checkpoints": {"pattern": list(settings.checkpoints.pattern)}},
        **more,
    )
    machine.work.mkdir(parents=True)
    (machine.work / "train.py").write_text(block(section, "python"))
    return machine, settings


def resumed(machine) -> list[int]:
    return [int(n) for n in re.findall(r"^resumed at (\d+)$", machine.trainer_log(), re.MULTILINE)]


@pytest.mark.slow
def test_a_handler_of_ones_own_stays_and_its_checkpoints_are_taken_over(build, imds):
    machine, _ = moved(build, OWN)
    # As it was: started by hand, ended by a signal.
    before = subprocess.Popen([sys.executable, "train.py"], cwd=machine.work)
    saved = machine.checkpoints
    machine.wait(lambda: saved.exists() and list(saved.glob("step-*.pt")), "its own save", 90)
    before.send_signal(signal.SIGTERM)
    assert before.wait(30) == 0
    last = max(int(p.stem.partition("-")[2]) for p in saved.glob("step-*.pt"))
    machine.boot()
    machine.wait(lambda: resumed(machine) == [last], "training from its checkpoint", 90)
    machine.wait_stored()
    imds.give_notice("stop", in_seconds=60)
    newest = machine.wait_for_state("drained")["checkpoint"]["newest"]
    assert newest["stored"]
    assert newest["step"] > last
    assert machine.named("completed") == []
    machine.power_cut()
    imds.withdraw()
    machine.lose_disk()
    machine.work.mkdir(parents=True)
    (machine.work / "train.py").write_text(block(OWN, "python"))
    machine.boot()
    machine.wait(lambda: newest["step"] in resumed(machine), "training from the store", 90)


@pytest.mark.slow
def test_a_script_for_sagemaker_stays_too_and_loses_only_what_it_had_not_saved(build, imds):
    machine, settings = moved(build, SAGEMAKER)
    assert str(settings.checkpoints.directory) == "/opt/ml/checkpoints"
    machine.command = [*machine.command, "--checkpoint-dir", str(machine.checkpoints),
                       "--epochs", "1000000"]  # fmt: skip
    machine.checkpoints.mkdir()
    machine.boot()
    machine.wait_stored()
    imds.give_notice("stop", in_seconds=8)
    machine.wait_for_event("stop_signal_uncaught")
    machine.wait_for_state("drained")
    machine.power_cut()
    imds.withdraw()
    machine.lose_disk()
    machine.checkpoints.mkdir(parents=True)
    (machine.work / "train.py").write_text(block(SAGEMAKER, "python"))
    machine.boot()
    machine.wait(lambda: resumed(machine), "training from the store", 90)
    assert resumed(machine)[-1] >= 1


def test_what_a_skypilot_task_becomes_is_valid():
    settings = parse(block(SKYPILOT, "toml"), "skypilot")
    assert settings.launch.on_demand_fallback
    assert settings.trainer.command[0] == "bash"
