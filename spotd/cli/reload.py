"""`spotd reload`: the running daemon takes a changed configuration over, or says why not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, control_socket, print_json, settings_of
from spotd.config import PathSettings
from spotd.errors import EXIT_DONE, EXIT_FAILED, ConfigError, UnavailableError
from spotd.shell.control import ask

if TYPE_CHECKING:
    import argparse

PATIENCE = 60.0  # seconds: a user's name may have to be looked up over the network


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    add_options(verbs.add_parser("reload", help="take a changed configuration over"))


def run(options: argparse.Namespace) -> int:
    """Asks the daemon to read its configuration again; training goes on either way."""
    answer = _ask(options)
    hint = answer.get("data", {}).get("hint")
    if options.json:
        print_json({"ok": answer["ok"], "message": answer["message"], "hint": hint or ""})
    else:
        print(answer["message"], file=sys.stdout if answer["ok"] else sys.stderr)
        if hint:
            print(f"       {hint}", file=sys.stderr)
    if answer["ok"]:
        return EXIT_DONE
    return int(answer.get("data", {}).get("exit_code", EXIT_FAILED))


def _ask(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the daemon's answer, also where the file no longer says where it listens."""
    usual = Path(PathSettings().runtime) / "control.sock"
    try:
        place = control_socket(settings_of(options))
    except ConfigError:
        try:
            return _last(usual)
        except UnavailableError:
            pass  # then what is wrong with the file is all there is to say
        raise
    return _last(place)


def _last(place: Path) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for answer in ask(place, "reload", PATIENCE):  # noqa: B007 - the last
        pass
    return answer
