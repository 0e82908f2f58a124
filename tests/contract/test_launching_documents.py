"""Every command in the documents parses; every configuration that begins with a run is valid."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from spotd import cli
from spotd.config import parse
from spotd.config.documents import smallest

ROOT = Path(__file__).parents[2]
PAGES = [
    "docs/getting-started.md",
    "docs/launching.md",
    "docs/moving.md",
    "docs/operations.md",
    "docs/costs.md",
    "docs/monitoring.md",
    "docs/configuration.md",
    "README.md",
    "packaging/aws/iam-policy.md",
    "packaging/aws/operator-policy.md",
]


def commands(page: str) -> list[str]:
    """The indented lines: one command each."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def spotd_commands() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for line in commands(page):
            words = shlex.split(line, comments=True)
            words = words[1:] if words[0] == "sudo" else words
            if words[0] == "spotd":
                end = next((i for i, w in enumerate(words) if w in (">", "|", "<")), len(words))
                found.append((page, words[1:end]))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_line_is_a_command_that_the_shell_understands(page):
    if not (lines := commands(page)):
        assert page.startswith("packaging/") or page == "docs/configuration.md"
    done = subprocess.run(
        ["bash", "-n"], input="\n".join(lines), text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    known = {
        "spotd",
        "sudo",
        "aws",
        "pip",
        "systemctl",
        "journalctl",
        "make",
        "sed",
        "ssh",
        "rsync",
    }
    known.add(".venv/bin/python")
    assert {line.split()[0] for line in lines} <= known


@pytest.mark.parametrize(("page", "words"), spotd_commands(), ids=lambda v: str(v)[:60])
def test_every_spotd_command_parses(page, words):
    assert words[0] in cli.available(), page
    options = cli.parser(words[0]).parse_args(words)
    assert options.verb == words[0]


def test_the_pages_show_every_verb_of_the_operator():
    shown = {words[0] for _, words in spotd_commands()}
    assert {"launch", "instances", "terminate", "prices", "user-data", "check"} <= shown


@pytest.mark.parametrize("page", [page for page in PAGES if "```toml" in (ROOT / page).read_text()])
def test_the_configurations_shown_are_valid(page):
    for block in re.findall(r"```toml\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
        parse(block if block.startswith("run") else smallest() + block, page)


def test_what_is_said_to_be_launched_names_instance_types():
    for page in PAGES[:3]:
        text = (ROOT / page).read_text()
        for block in re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL):
            assert "[launch]" not in block or "instance_types" in block


def test_every_key_of_launch_has_an_option():
    from spotd.cli.launch import _OPTIONS
    from spotd.config.schema import SECTIONS

    named = {name for _, name, _, _ in _OPTIONS} | {"tags", "on_demand_fallback"}
    assert named == set(SECTIONS["launch"].keys)
