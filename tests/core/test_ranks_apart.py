"""Files that ranks save side by side are no whole checkpoints, and spotd says so."""

from __future__ import annotations

import pytest

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.checkpoint import LocalCheckpoint
from spotd.core.lifecycle import step
from spotd.core.names import without_rank
from spotd.core.state import Now, Phase, Policy, State, Trainer
from spotd.core.turn import changed


@pytest.mark.parametrize(
    ("name", "common"),
    [
        ("ep1-ba20-rank0.pt", "ep1-ba20-rank.pt"),
        ("ep1-ba20-rank13.pt", "ep1-ba20-rank.pt"),
        ("mp_rank_00_model_states.pt", "mp_rank_model_states.pt"),
        ("step-5.Rank-1.ckpt", "step-5.rank.ckpt"),
        ("frank1.pt", None),
        ("step-5.pt", None),
    ],
)
def test_the_rank_in_a_name_is_told_from_the_rest(name, common):
    assert without_rank(name) == common


def said_of(*names):
    event = on.Started(record=None, boot="first", boot_id="b", instance_id="i-1", booted=0.0)
    state, said = step(State(policy=Policy(), run="r"), event, Now(0.0, 0.0))[0], []
    state = changed(
        state, {"resuming": None, "phase": Phase.RUNNING, "trainer": Trainer(1, 0.0, 0.0, pid=1)}
    )
    for number, name in enumerate(names, 1):
        seen = on.CheckpointSeen(LocalCheckpoint(name, "file", 10, number, f"print {number}"))
        state, actions = step(state, seen, Now(float(number), float(number)))
        said += [
            a.message for a in actions if isinstance(a, do.Announce) and a.name == "ranks_apart"
        ]
    return said


def test_two_ranks_files_of_one_save_are_said_once():
    names = [f"ep{epoch}-ba20-rank{rank}.pt" for epoch in (1, 2) for rank in (0, 1)]
    (said,) = said_of(*names)
    assert said.startswith("ep1-ba20-rank0.pt and ep1-ba20-rank1.pt look like parts")


def test_the_files_of_one_rank_alone_are_ordinary_checkpoints():
    assert said_of(*(f"ep{epoch}-ba20-rank0.pt" for epoch in (1, 2, 3))) == []
