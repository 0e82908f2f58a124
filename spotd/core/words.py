"""Words for people: sizes."""

from __future__ import annotations


def megabytes(size: int) -> str:
    """Returns a size people read: 512 kB, 205 MB, 3.2 GB."""
    if size >= 10**9:
        return f"{size / 10**9:.1f} GB"
    return f"{size / 10**6:.1f} MB" if size >= 10**6 else f"{size / 1000:.0f} kB"
