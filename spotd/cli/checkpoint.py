"""`spotd checkpoint`: save now, and wait until it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, control_socket, print_json, print_outcome, settings_of
from spotd.errors import EXIT_DONE, EXIT_FAILED
from spotd.shell.control import ask

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("checkpoint", help="ask for a checkpoint now")
    add_options(p)
    p.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="seconds to wait (default: 600)"
    )


def run(options: argparse.Namespace) -> int:
    """Asks the trainer for a checkpoint."""
    settings = settings_of(options)
    answer: dict[str, Any] = {}
    for answer in ask(control_socket(settings), "checkpoint", options.timeout):  # noqa: B007
        pass
    if options.json:
        print_json({"ok": answer["ok"], "message": answer["message"], **answer.get("data", {})})
        return EXIT_DONE if answer["ok"] else EXIT_FAILED
    return print_outcome(answer)
