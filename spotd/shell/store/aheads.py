"""What goes up ahead of being whole, as the worker keeps it: one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spotd.shell.store.ahead import LANES, Ahead, AheadOrder
from spotd.shell.store.priority import disk_and_cores_last
from spotd.shell.store.protocol import StoreProblem
from spotd.shell.store.telling import Troubles, complain
from spotd.shell.store.transfer import PATIENCE, Lanes, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.core import events
    from spotd.shell.store.checkpoints import CheckpointStore
    from spotd.shell.store.protocol import Flow

Command = dict[str, Any]


class Aheads:
    """Takes the worker's commands `ahead` and `stop_ahead`.

    Args:
        checkpoints: Where to.
        directory: The checkpoint directory, absolute, without links.
        owner: The trainer's uid, or None.
        lanes: How many requests an upload keeps going.
        report: Told (id, bytes in the store) now and then.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore,
        directory: str,
        owner: int | None,
        lanes: int,
        report: Callable[[str, int], None],
    ) -> None:
        self._report = report
        self._checkpoints = checkpoints
        self._directory = directory
        self._owner = owner
        self._lanes = min(LANES, lanes)
        self._current: Ahead | None = None
        self._claimed: Ahead | None = None

    def begin(self, command: Command, flow: Flow) -> None:
        """Prepares what `run` will do in the lane; what went before makes room."""
        self.stop(keep=False)
        # The trainer is writing: it has the cores first, at a notice too.
        lanes = Lanes(self._lanes, disk_and_cores_last)
        transfer = Transfer(
            self._checkpoints.store, lanes, flow, None if command["urgent"] else PATIENCE,
            Troubles(f"sending {command['id']} while it is written"),
        )  # fmt: skip
        order = AheadOrder(
            command["id"], self._directory, command["name"], command["limit"], command["expected"]
        )
        self._current = Ahead(
            self._checkpoints,
            transfer,
            order,
            lambda sent: self._report(order.id, sent),
            self._owner,
        )
        command["ahead"], command["lanes"] = self._current, lanes

    def stop(self, *, keep: bool) -> None:
        """Ends what is under way, if it is: dropped, or kept on record."""
        if self._current is not None:
            self._current.stop(keep=keep)

    def claim(self, checkpoint: str) -> Ahead | None:
        """Returns what sends this checkpoint ahead, for an upload that will begin in a moment.

        The next to be sent ahead may be asked for before it has begun.
        """
        for each in (self._current, self._claimed):
            if each is not None and each.id == checkpoint:
                each.claim()
                self._claimed = each
                return each
        return None

    def run(self, command: Command) -> list[events.Event]:
        """Sends until it is taken over or stopped; nothing comes of it that must be known."""
        try:
            command["ahead"].run()
        except (StoreProblem, OSError) as problem:
            # Nothing is lost by it: the checkpoint goes up when it is whole, as ever.
            complain(f"{command['id']} goes up when it is whole: {problem}")
        finally:
            command["lanes"].close()
        return []
