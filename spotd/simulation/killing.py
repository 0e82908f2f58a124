"""One schedule again and again, the daemon killed before each of its actions and events in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spotd.simulation.disk import File
    from spotd.simulation.models import Schedule


def killed_anywhere(
    schedule: Schedule, *, fate: Callable[[File], str] | None = None
) -> Iterator[tuple[str, World]]:
    """Yields (where it was killed, the world afterwards), one kill in each world."""
    whole = World(schedule, fate=fate).run()
    for n in range(whole.actions):
        yield f"before action {n}", World(schedule, fate=fate, kill_at=n).run()
    for n in range(whole.events):
        yield f"at event {n}", World(schedule, fate=fate, kill_at_event=n).run()
