"""Words for people: sizes, and names that anybody may have chosen."""

from __future__ import annotations


def megabytes(size: int) -> str:
    """Returns a size people read: 512 kB, 205 MB, 3.2 GB."""
    if size >= 10**9:
        return f"{size / 10**9:.1f} GB"
    return f"{size / 10**6:.1f} MB" if size >= 10**6 else f"{size / 1000:.0f} kB"


def readable(text: str) -> str:
    """Returns text fit for one line of a terminal or a log, whoever chose it.

    Names of checkpoints are their user's: line ends, escape sequences, surrogates and what
    turns the direction of writing round are shown as Python would write them.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def readable_lines(text: str) -> str:
    """Returns text of several lines, each of them `readable`."""
    return "\n".join(map(readable, text.split("\n")))
