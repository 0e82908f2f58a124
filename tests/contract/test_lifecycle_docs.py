"""docs/lifecycle.md is drawn from the code, and says what the code says."""

from __future__ import annotations

from pathlib import Path

from spotd.core.state import TRANSITIONS, Phase
from spotd.simulation.diagram import MEANS, rewritten

DOCUMENT = Path(__file__).parents[2] / "docs" / "lifecycle.md"


def test_the_lifecycle_document_is_as_the_code_draws_it():
    text = DOCUMENT.read_text()
    assert rewritten(text) == text, "python -m spotd.simulation.diagram docs/lifecycle.md"


def test_every_state_is_explained_and_can_be_reached():
    assert set(MEANS) == set(Phase) == set(TRANSITIONS)
    reached = {Phase.STARTING}.union(*TRANSITIONS.values())
    assert reached == set(Phase)


def test_the_story_in_the_document_is_one_that_is_told():
    story = DOCUMENT.read_text().split("```text\n")[1].split("```")[0]
    golden = DOCUMENT.parents[1] / "tests" / "core" / "golden" / "notice-with-emergency-save.txt"
    assert story in golden.read_text()
