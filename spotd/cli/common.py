"""What every verb shares: --config, --json, and how an answer is shown."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from spotd.core.words import readable
from spotd.errors import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from spotd.config import Settings


def add_options(parser: argparse.ArgumentParser, *, as_json: bool = True) -> None:
    """Adds --config and, for a verb that reports, --json."""
    parser.add_argument(
        "--config",
        metavar="PATH",
        help="configuration file (default: $SPOTD_CONFIG, else /etc/spotd/spotd.toml)",
    )
    if as_json:
        parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def settings_of(options: argparse.Namespace) -> Settings:
    """Reads the configuration.

    Raises:
        ConfigError: It cannot be used.
    """
    from spotd.config import load  # noqa: PLC0415 - `spotd run` starts a process first

    return load(options.config)


def control_socket(settings: Settings) -> Path:
    """Returns where the daemon of this configuration listens."""
    return settings.paths.runtime / "control.sock"


def print_json(value: Any) -> None:
    """Prints one JSON value."""
    print(json.dumps(value, indent=2, default=str))


def print_outcome(answer: dict[str, Any]) -> int:
    """Prints what the daemon did, and what to do about it; returns the exit status."""
    print(readable(answer["message"]), file=sys.stdout if answer["ok"] else sys.stderr)
    hint = answer.get("data", {}).get("hint")
    if hint:
        print(f"       {readable(hint)}", file=sys.stderr)
    return EXIT_DONE if answer["ok"] else EXIT_FAILED


def table(rows: list[tuple[str, ...]]) -> str:
    """Returns rows as aligned columns, the first row a heading; whoever chose what they say."""
    rows = [tuple(map(readable, row)) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)
