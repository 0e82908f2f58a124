"""Reads a file of `NAME=value` lines, as systemd's EnvironmentFile= does in its common cases.

Source: systemd.exec(5). Blank lines and lines that begin with `#` or `;` are skipped, an
`export ` in front is allowed, and a value may stand in single or double quotes. Nothing is
expanded. Imports nothing of spotd: the trainer's launcher reads it without the package.
"""

from __future__ import annotations

import re

LARGEST = 1024 * 1024
_LINE = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<value>.*)", re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\$`])')


class BadLine(Exception):  # noqa: N818
    """A line is no assignment; says which, and never what is in it: it may be a secret."""


def read(path: str) -> dict[str, str]:
    """The variables in the file; a later line wins.

    Raises:
        OSError: It cannot be read.
        BadLine: It is no such file.
    """
    with open(path, "rb") as file:  # noqa: PTH123
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise BadLine("is larger than 1 MiB")
    if b"\0" in content:
        raise BadLine("holds a zero byte")
    return parse(content.decode(errors="surrogateescape"))


def parse(text: str) -> dict[str, str]:
    """The variables in the text. Raises BadLine."""
    found = {}
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        match = _LINE.fullmatch(stripped)
        if match is None:
            raise BadLine(f"line {number} is not NAME=value")
        found[match["name"]] = _unquoted(match["value"], number)
    return found


def _unquoted(value: str, number: int) -> str:
    if not value or value[0] not in "\"'":
        return value
    if len(value) == 1 or value[-1] != value[0]:
        raise BadLine(f"line {number} opens a quote and does not close it")
    inner = value[1:-1]
    return _ESCAPED.sub(r"\1", inner) if value[0] == '"' else inner
