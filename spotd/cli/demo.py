"""`spotd demo`: the whole story on this machine, on loopback, without root."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.errors import EXIT_DONE, EXIT_FAILED, SpotdError

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("demo", help="the whole story on this machine")
    p.add_argument(
        "--output", type=Path, default=Path("demo-output"), metavar="DIR",
        help="where logs and the picture go (default: demo-output); what is there is replaced",
    )  # fmt: skip
    p.add_argument("--steps", type=int, default=2400, help="steps of training (default: 2400)")


def run(options: argparse.Namespace) -> int:
    """Runs the demo; fails when the weights differ."""
    from spotd.rehearsal.demo import Demo  # noqa: PLC0415 - only this verb needs it

    output: Path = options.output
    marker = output / "spotd-demo"
    if output.exists() and any(output.iterdir()) and not marker.exists():
        raise SpotdError(f"{output} is not a directory of an earlier demo", hint="--output DIR")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    marker.touch()

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        same = Demo(output, steps=options.steps, say=say).run()
    except TimeoutError as e:
        print(f"spotd: the demo broke off: {e}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE if same else EXIT_FAILED
