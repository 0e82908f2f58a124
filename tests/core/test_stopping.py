"""Exit status 0 after STOPPING=1 is no completion: a peer rank was told to stop."""

from __future__ import annotations

import pytest

from spotd.core import events as on
from spotd.core.lifecycle import step
from spotd.core.state import Now, Phase, Policy, State


def running():
    state = State(policy=Policy(), run="r")
    now = Now(10.0, 1_000_010.0)
    for event in (
        on.Started(record=None, boot="first", boot_id="b", instance_id="i-1", booted=1_000_000.0),
        on.LocalInventory(),
        on.StoreOpened(generation=1, lease_in=900.0),
        on.TrainerStarted(pid=7),
    ):
        state, _ = step(state, event, now)
    assert state.phase is Phase.RUNNING
    return state


@pytest.mark.parametrize(
    ("stopping", "phase"), [(True, Phase.BACKING_OFF), (None, Phase.COMPLETED)]
)
def test_an_exit_0_completes_the_run_unless_the_trainer_said_it_was_stopping(stopping, phase):
    now = Now(20.0, 1_000_020.0)
    state, _ = step(running(), on.TrainerReported(step=5, stopping=stopping), now)
    state, _ = step(state, on.TrainerExited(status=0), Now(21.0, 1_000_021.0))
    assert state.phase is phase
