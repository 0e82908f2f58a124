"""Reading exact byte ranges of files that others may cut short meanwhile."""

from __future__ import annotations

import os


class ShortReadError(Exception):
    """The file ends before the range that was to be read."""


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """Returns exactly `length` bytes from `offset`.

    Raises:
        ShortReadError: There are fewer.
        OSError: The disk cannot read them.
    """
    if length <= 0:
        return b""
    data = os.pread(descriptor, length, offset)
    if len(data) == length:
        return data
    parts = [data]
    missing = length - len(data)
    while missing and parts[-1]:
        parts.append(os.pread(descriptor, missing, offset + length - missing))
        missing -= len(parts[-1])
    if missing:
        raise ShortReadError
    return b"".join(parts)
