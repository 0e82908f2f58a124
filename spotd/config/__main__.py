"""`python -m spotd.config --markdown | --reasons | --default-file | [PATH]`: document or check."""

from __future__ import annotations

import argparse
import sys

from spotd.config import load
from spotd.config.documents import default_file, markdown, reasons
from spotd.errors import SpotdError


def main(arguments: list[str] | None = None) -> int:
    """Print a generated document, or say what is wrong with a file, all of it."""
    parser = argparse.ArgumentParser(prog="python -m spotd.config", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="docs/configuration.md")
    parser.add_argument("--reasons", action="store_true", help="docs/defaults.md")
    parser.add_argument("--default-file", action="store_true", help="packaging/spotd.toml")
    parser.add_argument("path", nargs="?", help="a configuration to check")
    chosen = parser.parse_args(arguments)
    wanted = {
        markdown: chosen.markdown, reasons: chosen.reasons, default_file: chosen.default_file
    }  # fmt: skip
    for document in (d for d, asked in wanted.items() if asked):
        sys.stdout.write(document())
    if any(wanted.values()):
        return 0
    try:
        settings = load(chosen.path)
    except SpotdError as error:
        for problem in getattr(error, "problems", ()):
            print(problem, file=sys.stderr)  # noqa: T201 - a command
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(f"{settings.source_path}: valid")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
