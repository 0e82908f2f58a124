"""Documents, names and code hold each other: what drifts fails here."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from spotd import cli
from spotd.core import actions, events, lifecycle
from spotd.core.journal_events import EVENTS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("trainer/*.md")])


def announced(path: Path) -> set[str]:
    """Names of journal events that a source file announces."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        function = node.func
        called = getattr(function, "attr", getattr(function, "id", ""))
        first = node.args[0]
        text = isinstance(first, ast.Constant) and isinstance(first.value, str)
        if called in ("announce", "Announce") and text:
            names.add(first.value)
    return names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_inside_the_project_leads_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_event_that_is_announced_is_explained_in_the_journal_catalog():
    announcements = {n for p in (ROOT / "spotd").rglob("*.py") for n in announced(p)}
    assert len(announcements) > 30, "the search for announcements finds too few"
    assert announcements <= set(EVENTS)


def test_the_events_that_users_were_promised_exist():
    promised = """daemon_started boot_classified restore_started restore_finished
        checkpoint_rejected trainer_started trainer_adopted trainer_exited checkpoint_seen
        checkpoint_stored store_failed interruption_notice rebalance_recommended scheduled_event
        stop_signal_sent trainer_killed drained not_carried_out imds_blind imds_back completed
        gave_up"""
    assert set(promised.split()) <= set(EVENTS)


def test_message_ids_are_fixed_for_ever():
    assert EVENTS["interruption_notice"].message_id == "d89bb3eabd0a5861af375c0d559a6a6c"
    assert len({e.message_id for e in EVENTS.values()}) == len(EVENTS)


def test_every_verb_of_the_readme_exists_and_every_verb_says_what_it_does():
    verbs = set(re.findall(r"`spotd ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"status", "drill", "restore"} <= verbs
    assert verbs <= set(cli.available())
    for verb in cli.available():
        module = importlib.util.find_spec(cli.module_of(verb))
        assert module is not None
        assert ast.get_docstring(ast.parse(Path(module.origin).read_text()))


def test_every_verb_that_reports_can_say_it_in_json():
    of_another_kind = {"run": "a daemon", "demo": "a show", "user-data": "YAML", "report": "HTML"}
    for verb in cli.available():
        words = cli.parser(verb)._subparsers._group_actions[0].choices[verb]._option_string_actions
        assert ("--json" in words) is (verb not in of_another_kind), verb


@pytest.mark.parametrize(
    ("verb", "said"), [("termniate", "did you mean terminate?"), ("xyz", "there are run, ")]
)
def test_a_verb_that_there_is_not_is_answered_with_the_nearest(verb, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([verb])
    assert said in capsys.readouterr().err


def test_the_help_of_every_verb_says_what_it_does_and_how_it_ends():
    for verb, text in cli.available().items():
        shown = cli.parser(verb)._subparsers._group_actions[0].choices[verb].format_help()
        assert text[1:] in " ".join(shown.split()), verb
        assert "exit status: 0 done" in shown or verb == "simulate"


def test_every_option_of_every_verb_is_explained():
    for verb in cli.available():
        for action in cli.parser(verb)._subparsers._group_actions[0].choices[verb]._actions:
            assert action.help, (verb, action.option_strings or action.dest)


def test_every_kind_of_event_has_a_handler_and_every_action_somebody_who_does_it():
    assert set(lifecycle.HANDLERS) == set(events.Event.__args__)
    source = (ROOT / "spotd/shell/daemon.py").read_text()
    carried_out_by_the_loop = {"Exit"}
    for action in actions.Action.__args__:
        known = f"do.{action.__name__}:" in source or action.__name__ in carried_out_by_the_loop
        assert known, f"nobody carries out {action.__name__}"


def test_nothing_in_the_project_names_a_path_of_a_developers_machine():
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False
    )
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"/work/(?:main|shared)|/root/\.pyenv|/opt/(?:wheels|pypi)\b")
    for name in tracked.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and path != Path(__file__):
            found = pattern.search(path.read_bytes().decode(errors="replace"))
            assert found is None, f"{name} names {found[0]}"
