from __future__ import annotations

import subprocess
import sys

import pytest

from spotd.rehearsal.soak_census import Sample, growth
from spotd.rehearsal.soak_trail import read_trail


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_short_soak_ends_with_the_same_weights_and_leaves_nothing(tmp_path):
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-m", "spotd.rehearsal.soak", "--minutes", "0.3", "--seed", "3",
         "--width", "2000", "--directory", str(tmp_path / "soak")],
        capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "verdict: the same weights, and nothing piled up" in done.stdout


def trail(tmp_path, *lines):
    path = tmp_path / "trail"
    path.write_text("".join(f"{line}\n" for line in lines))
    return read_trail(path)


def test_a_trail_tells_who_trained_from_where_to_where(tmp_path):
    told = trail(tmp_path, "a 1", "a 2", "a 3", "b 3", "b 4")
    assert told.lives == (("a", 1, 3), ("b", 3, 4))
    assert (told.steps, told.last, told.wrong) == (5, 4, ())


def test_two_trainers_at_once_are_found_out(tmp_path):
    assert "while another one trained" in trail(tmp_path, "a 1", "b 1", "a 2").wrong[0]


def test_a_step_that_nobody_trained_is_found_out(tmp_path):
    assert "nobody had trained 3" in trail(tmp_path, "a 1", "a 2", "b 4").wrong[0]
    assert "trained step 3 after 1" in trail(tmp_path, "a 1", "a 3").wrong[0]


def test_what_grows_is_named_and_what_stays_is_not():
    flat = [Sample(20 << 20, 15, 8)] * 9
    assert growth(flat) == []
    leaking = [Sample(20 << 20, 15 + n, 8) for n in range(9)]
    assert growth(leaking[:5]) == [], "too few to tell"
    assert growth(leaking) == ["descriptors grew from 16 to 22"]
