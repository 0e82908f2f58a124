"""`spotd check`: before trusting it."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from spotd.checks import FAILED, OK, WARNING, Finding
from spotd.cli.common import add_options, print_json, settings_of
from spotd.errors import EXIT_CONFIG, EXIT_DONE, EXIT_FAILED, ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

_COLOURS = {OK: "\x1b[32m", WARNING: "\x1b[33m", FAILED: "\x1b[1;31m"}
_WIDTH = 16  # of the column of subjects


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    add_options(verbs.add_parser("check", help="find what would go wrong before it costs money"))


def run(options: argparse.Namespace) -> int:
    """Looks at everything; nothing is changed but probe objects in the store."""
    from spotd.checks import configuration, everything  # noqa: PLC0415 - only when asked

    try:
        settings = settings_of(options)
    except ConfigError as error:
        show(configuration.judge_invalid(error), as_json=options.json)
        return EXIT_CONFIG
    found = show(everything.check(settings), as_json=options.json)
    return EXIT_FAILED if any(f.level == FAILED for f in found) else EXIT_DONE


def show(findings: Iterable[Finding], *, as_json: bool) -> list[Finding]:
    """Prints findings as they come; returns them all."""
    found = []
    colour = sys.stdout.isatty() and not as_json
    for finding in findings:
        found.append(finding)
        if not as_json:
            print(render(finding, colour=colour), flush=True)
    counts = Counter(f.level for f in found)
    if as_json:
        rows = [
            {"level": f.level, "subject": f.subject, "found": f.found, "advice": f.advice}
            for f in found
        ]
        print_json({"ok": not counts[FAILED], "findings": rows})
    else:
        print(f"\n{counts[OK]} ok, {counts[WARNING]} warnings, {counts[FAILED]} failed")
    return found


def render(finding: Finding, *, colour: bool = False) -> str:
    """Returns one finding as a line, and a second one that says what to do."""
    level = f"{finding.level:<7}"
    if colour:
        level = f"{_COLOURS[finding.level]}{level}\x1b[0m"
    line = f"{level}  {finding.subject:<{_WIDTH}}  {finding.found}"
    return f"{line}\n{'':7}  {'':{_WIDTH}}  -> {finding.advice}" if finding.advice else line
