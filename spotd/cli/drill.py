"""`spotd drill`: the whole path of an interruption, short of the stop."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, control_socket, print_json, print_outcome, settings_of
from spotd.errors import EXIT_DONE, EXIT_FAILED
from spotd.shell.control import ask

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    add_options(verbs.add_parser("drill", help="rehearse an interruption"))


def run(options: argparse.Namespace) -> int:
    """Has the daemon go through an interruption; training goes on afterwards."""
    settings = settings_of(options)
    if not options.json:
        print("drill: signal, save, upload; training goes on afterwards ...", file=sys.stderr)
    answer: dict[str, Any] = {}
    for answer in ask(control_socket(settings), "drill", timeout=200.0):  # noqa: B007 - the last
        pass
    if options.json:
        print_json({"ok": answer["ok"], "message": answer["message"], **answer.get("data", {})})
        return EXIT_DONE if answer["ok"] else EXIT_FAILED
    before = 0.0
    for what, at in answer.get("data", {}).get("timeline", []):
        print(f"{at:8.2f} s  {'+' + format(at - before, '.2f'):>8} s  {what}")
        before = at
    return print_outcome(answer)
