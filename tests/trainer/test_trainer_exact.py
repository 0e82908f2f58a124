"""However often it is interrupted, the final weights are those of the uninterrupted run."""

from __future__ import annotations

import functools
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainer_support import EXAMPLES, finish, lines_in, reference, run, start, torchrun, wait_for

from spotd_trainer.files import find_checkpoints

STEPS = 27  # two epochs of ten batches, and most of a third


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def uninterrupted(kind: str, workers: int) -> str:
    with tempfile.TemporaryDirectory() as directory:
        found = run(directory, STEPS, kind=kind, workers=workers)
    assert found is not None
    return found


def interrupted(kind: str, workers: int, cuts: list[tuple[int, str]]) -> str | None:
    with tempfile.TemporaryDirectory() as directory:
        for step, how in cuts:
            run(directory, STEPS, kind=kind, workers=workers, until=step, how=how)
        return run(directory, STEPS, kind=kind, workers=workers)


CUTS = st.lists(
    st.tuples(st.integers(1, STEPS - 1), st.sampled_from(["stop", "die"])), min_size=1, max_size=4
)
PROPERTY = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@pytest.mark.parametrize("kind", ["ours", "played back", "stateful", "none"])
@settings(max_examples=12, **PROPERTY)
@given(cuts=CUTS)
def test_cut_off_anywhere_any_number_of_times_it_ends_the_same(kind, cuts):
    assert interrupted(kind, 0, cuts) == uninterrupted(kind, 0)


@pytest.mark.parametrize("kind", ["ours", "played back", "stateful"])
@settings(max_examples=2, **PROPERTY)
@given(cuts=CUTS)
def test_with_two_workers_it_ends_the_same(kind, cuts):
    assert interrupted(kind, 2, cuts) == uninterrupted(kind, 2)


@pytest.mark.parametrize("kind", ["ours", "played back", "stateful"])
@pytest.mark.parametrize("step", [9, 10, 11])
def test_at_the_end_of_an_epoch_it_ends_the_same(kind, step):
    assert interrupted(kind, 0, [(step, "stop")]) == uninterrupted(kind, 0)


def test_our_loader_gives_the_same_run_with_and_without_workers():
    assert uninterrupted("ours", 0) == uninterrupted("ours", 2)


def test_a_run_that_is_not_the_same_is_told_apart():
    assert uninterrupted("ours", 0) != uninterrupted("played back", 0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_real_process_that_is_signalled_and_started_again_ends_the_same(
    tmp_path, workers, number
):
    options = ("--steps", 300, "--save-every", 20, "--workers", workers, "--out-weights", "w")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    undisturbed = start(reference(*options), whole)
    process = start(reference(*options), cut)
    wait_for(lambda: lines_in(cut / "losses.jsonl") > 45, process)
    wait_for(lambda: find_checkpoints(cut / "checkpoints"), process)
    process.send_signal(number)
    out = finish(process)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL), out
    again = start(reference(*options), cut)
    out = finish(again)
    assert again.returncode == 0, out
    assert re.search(r"resumed at step [1-9]", out), out
    assert finish(undisturbed) is not None
    assert (cut / "w").read_bytes() == (whole / "w").read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_cut_off_anywhere_end_the_same(tmp_path, workers):
    script = Path(__file__).parent / "ranks_exact.py"
    process = start(torchrun(2, script, tmp_path, workers), tmp_path)
    out = finish(process)
    assert process.returncode == 0, out
    assert out.count("the same") == (8 if workers == 0 else 2), out


def test_the_minimal_example_has_sixty_lines_at_most():
    assert len((EXAMPLES / "minimal.py").read_text().splitlines()) <= 60


def test_it_needs_nothing_but_torch(tmp_path):
    code = (
        "import sys\n"
        "sys.modules['numpy'] = None\n"
        "import spotd_trainer, spotd_trainer.reference, spotd_trainer.sharded\n"
        "assert not {'spotd', 'torchdata', 'lightning', 'transformers', 'boto3'} & set(sys.modules)"
    )
    process = start([sys.executable, "-W", "ignore", "-c", code], tmp_path)
    out = finish(process)
    assert process.returncode == 0, out
    assert list(tmp_path.iterdir()) == []
