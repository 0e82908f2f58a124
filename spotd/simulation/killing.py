"""One schedule again and again, the daemon killed at each moment in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spotd.simulation.disk import File
    from spotd.simulation.models import Schedule


def killed_anywhere(
    schedule: Schedule, *, fate: Callable[[File], str] | None = None
) -> Iterator[tuple[int, World]]:
    """Yields (moment, the world afterwards): see `World.kill_at`."""
    whole = World(schedule, fate=fate).run()
    for moment in range(whole.moments):
        yield moment, World(schedule, fate=fate, kill_at=moment).run()
