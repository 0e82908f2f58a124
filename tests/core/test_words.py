"""Names that somebody chose to deceive whoever reads about them."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest

from spotd import cli
from spotd.cli import common, status
from spotd.core.state import Now, Policy, State
from spotd.core.status import status_line, status_of
from spotd.core.turn import Turn
from spotd.core.words import readable, readable_lines
from spotd.report.escaping import escape

EVIL = "step-1\x1b[2J\n\rgone\u202e\x9b\udc80.pt"


@pytest.mark.parametrize("text", ["step-1.pt", "Prüfpunkt 3.pt", "チェック.pt", ""])
def test_an_ordinary_name_is_as_it_was(text):
    assert readable(text) == text


def test_nothing_that_steers_a_terminal_is_left_of_a_name():
    assert readable(EVIL).isprintable()
    assert readable(EVIL) == r"step-1\x1b[2J\n\rgone\u202e\x9b\udc80.pt"
    assert readable_lines(f"a\n{EVIL}").split("\n")[0] == "a"


def test_a_journal_line_is_one_line_whatever_the_name():
    turn = Turn(State(policy=Policy(), run="r"), Now(0.0, 0.0))
    turn.announce("checkpoint_seen", f"checkpoint {EVIL} was found whole", checkpoint=EVIL)
    assert turn.actions[0].message.isprintable()
    assert turn.actions[0].fields["checkpoint"] == EVIL  # a field is for programs: exact


def test_the_status_line_and_the_status_are_fit_for_a_terminal():
    state = State(policy=Policy(), run="r", reason=f"fetching {EVIL}", last_lines=(EVIL,))
    assert status_line(state, Now(0.0, 0.0)).isprintable()
    shown = status.render(status_of(state, Now(0.0, 0.0)))
    assert all(line.isprintable() for line in shown.split("\n"))


def test_a_table_of_names_is_fit_for_a_terminal_and_for_a_page():
    assert all(map(str.isprintable, common.table([("NAME",), (EVIL,)]).split("\n")))
    assert escape(f"<b>{EVIL}").startswith("&lt;b&gt;")
    assert escape(EVIL).isprintable()


def test_the_history_shows_no_line_that_was_smuggled_into_another(tmp_path):
    book = tmp_path / "state" / "r" / "history.jsonl"
    book.parent.mkdir(parents=True)
    book.write_text('{"time":1,"event":"drained","message":"kept \\u001b[2Jstep-1.pt"}\n')
    configuration = tmp_path / "spotd.toml"
    configuration.write_text(
        f'run = "r"\n[trainer]\ncommand = ["true"]\ndirectory = "{tmp_path}"\n'
        f'[checkpoints]\ndirectory = "{tmp_path}/c"\n[store]\nurl = "file://{tmp_path}/s"\n'
        f'[paths]\nstate = "{tmp_path}/state"\nruntime = "{tmp_path}/run"\n'
    )
    with redirect_stdout(io.StringIO()) as shown:
        assert cli.main(["history", "--config", str(configuration)]) == 0
    assert "\x1b" not in shown.getvalue()
    assert r"\x1b[2Jstep-1.pt" in shown.getvalue()
