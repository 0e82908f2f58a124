"""docs/trainer.md says what the code does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import torch
from trainer_support import run

import spotd_trainer
from spotd_trainer import Session
from spotd_trainer.files import find_checkpoints

DOCUMENT = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text()


def section(title: str) -> str:
    return re.split(
        r"^## ", DOCUMENT.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE
    )[0]


def named_in(text: str) -> set[str]:
    return set(re.findall(r"`([a-zA-Z_]+)`", text))


def test_every_argument_of_a_session_is_documented():
    arguments = set(inspect.signature(Session).parameters)
    assert arguments <= named_in(section("Session"))


def test_every_public_name_is_documented():
    assert {name for name in spotd_trainer.__all__ if f"`{name}" not in DOCUMENT} == set()


def test_every_key_of_a_checkpoint_is_documented_and_no_other(tmp_path):
    run(tmp_path, 2)
    keys = set(torch.load(find_checkpoints(tmp_path)[0], weights_only=True))
    rows = re.findall(r"^\| (`.*?) \|", section("Checkpoint format"), flags=re.MULTILINE)
    assert named_in(" ".join(rows)) == keys
