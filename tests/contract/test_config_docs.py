"""The reference and the default file are what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spotd.config import parse
from spotd.config.documents import default_file, markdown, reasons, smallest
from spotd.config.reasons import REASONS
from spotd.config.schema import KEYS, SECTIONS
from spotd.config.settings import Settings

ROOT = Path(__file__).parents[2]


def test_the_reference_is_the_generated_one():
    stored = (ROOT / "docs/configuration.md").read_text()
    assert stored == markdown(), "python -m spotd.config --markdown > docs/configuration.md"


def test_every_default_has_its_reason_and_nothing_else_has_one():
    wanted = {name for name, key in KEYS.items() if not key.required}
    assert set(REASONS) == wanted, "spotd/config/reasons.py has one for each key with a default"
    assert not [name for name, why in REASONS.items() if not why.endswith(".")]


def test_the_page_of_reasons_is_the_generated_one():
    stored = (ROOT / "docs/defaults.md").read_text()
    assert stored == reasons(), "python -m spotd.config --reasons > docs/defaults.md"


def test_the_default_file_is_the_generated_one():
    stored = (ROOT / "packaging/spotd.toml").read_text()
    assert stored == default_file(), "python -m spotd.config --default-file > packaging/spotd.toml"


def test_the_default_file_is_valid_and_changes_no_default():
    assert parse(default_file(), "spotd.toml") == parse(smallest(), "spotd.toml")


def test_every_default_shown_in_the_default_file_is_the_default():
    shown = re.sub(r"(?m)^# (\w+ = )", r"\1", default_file())
    everything = parse_ignoring_contradictions(shown)
    assert set(everything) == set(KEYS)
    for name, key in KEYS.items():
        if key.default is not None:
            assert everything[name] == key.kind.parse(key.default), name


@pytest.mark.parametrize("name", sorted(KEYS))
def test_every_key_is_explained_and_its_example_and_default_are_valid(name):
    key = KEYS[name]
    assert key.doc.endswith(".")
    assert key.required or key.default is not None or key.example is not None
    for value in (key.default, key.example):
        if value is not None:
            key.kind.parse(value)


def test_a_default_of_the_class_is_the_default_of_the_file():
    settings = parse(smallest(), "spotd.toml")
    assert isinstance(settings, Settings)
    for section in SECTIONS.values():
        holder = getattr(settings, section.name) if section.name else settings
        for name, key in section.keys.items():
            if not key.required and section.dotted(name) != "trainer.user":
                expected = None if key.default is None else key.kind.parse(key.default)
                assert getattr(holder, name) == expected, section.dotted(name)


def parse_ignoring_contradictions(text: str) -> dict[str, object]:
    from spotd.config import reader

    document = reader._toml(text, "spotd.toml")
    values: dict[str, object] = {}
    problems: list[reader.Problem] = []
    for section in SECTIONS.values():
        reader._read_section(
            section, document[section.name] if section.name else document, values, problems
        )
    assert problems == []
    return values
