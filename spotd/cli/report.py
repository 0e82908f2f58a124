"""`spotd report`: one HTML file about the run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, settings_of
from spotd.errors import EXIT_DONE, SpotdError

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("report", help="write one HTML page about the run")
    add_options(p, as_json=False)
    p.add_argument(
        "--output", type=Path, metavar="FILE",
        help="where to (default: RUN.html in this directory); - is standard output",
    )  # fmt: skip
    p.add_argument(
        "--offline", action="store_true", help="ask no API for prices: the configuration's only"
    )


def run(options: argparse.Namespace) -> int:
    """Writes the page.

    Raises:
        SpotdError: The file cannot be written.
    """
    from spotd.report.gather import gather  # noqa: PLC0415 - boto3, perhaps
    from spotd.report.page import page  # noqa: PLC0415

    settings = settings_of(options)
    text = page(gather(settings, offline=options.offline))
    if options.output == Path("-"):
        sys.stdout.write(text)
        return EXIT_DONE
    path = options.output or Path(f"{settings.run}.html")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise SpotdError(f"cannot write {path}: {error.strerror}") from error
    print(path)
    return EXIT_DONE
