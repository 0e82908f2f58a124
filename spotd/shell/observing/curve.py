"""The steps and losses a trainer reported, thinned so that a month is as small as an hour.

A file of lines `[time, attempt, step, loss]`, oldest first. When it holds `MOST` points every
second one is dropped and the pause between two is doubled, so the whole run is there at an
even density. The pause is told by the points themselves: nothing else has to be remembered.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

from spotd.core.curve import Point, plain, point_from

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST = 2000  # points; some 80 kB
SHORTEST = 1.0  # seconds between two points


def pause_for(points: list[Point]) -> float:
    """Returns the seconds between two points: twice as many each time the file was full."""
    seconds = SHORTEST
    if len(points) < MOST // 4:
        return seconds
    pairs = itertools.pairwise(points)
    gaps = sorted(b.time - a.time for a, b in pairs if b.attempt == a.attempt)
    middle = gaps[len(gaps) // 2] if gaps else 0.0
    while seconds * 1.5 < middle:
        seconds *= 2
    return seconds


class Curve:
    """Collects points; not for use by two threads at once.

    Args:
        path: Of the file; what is there is continued.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        self._unsaved: list[Point] = []
        self._due = 0.0
        points = list(read(path))
        self._count = len(points)
        self._pause = pause_for(points)

    def add(self, point: Point) -> None:
        """Takes a point unless the last one is too recent. Nothing is written yet."""
        if self._due - self._pause <= point.time < self._due:
            return
        self._due = point.time + self._pause
        self._unsaved.append(point)

    def save(self) -> None:
        """Writes what is new.

        Raises:
            OSError: It cannot be written; it is kept for the next time, up to the limit.
        """
        if not self._unsaved:
            return
        if self._count + len(self._unsaved) > MOST:
            self._thin()
            return
        with self._path.open("a", encoding="ascii") as file:
            file.write("".join(map(_line, self._unsaved)))
        self._count += len(self._unsaved)
        self._unsaved = []

    def _thin(self) -> None:
        points = [*read(self._path), *self._unsaved]
        while len(points) > MOST // 2:
            points = points[::2]
            self._pause *= 2
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(map(_line, points)), encoding="ascii")
        temporary.replace(self._path)
        self._count, self._unsaved = len(points), []


def read(path: Path) -> Iterator[Point]:
    """Yields the points of a file; a torn or foreign line is passed over."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            for line in file:
                point = _point(line)
                if point is not None:
                    yield point
    except FileNotFoundError:
        return


def _line(point: Point) -> str:
    return json.dumps(plain(point), separators=(",", ":")) + "\n"


def _point(line: str) -> Point | None:
    try:
        return point_from(json.loads(line))
    except (ValueError, RecursionError):
        return None
