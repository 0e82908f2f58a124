"""One queue, one deciding thread.

Shell threads put events on the queue; the loop takes one, asks the core, carries out the
actions in order, and sleeps until the next event or the core's next timer. Nothing else
touches the state, so a decision is never made on half of one. The watchdog is fed from
here and only from here: it vouches for the deciding, not for the process.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from typing import TYPE_CHECKING

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.lifecycle import step, wake_at
from spotd.core.state import Now
from spotd.core.status import status_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from spotd.core.state import State
    from spotd.shell.notify import Notifier

LONGEST_WAIT = 30.0  # seconds without an event after which the status line is looked at
TURN_PATIENCE = 1.0  # seconds for a turn to end; what hangs longer must not hide the state


def clock() -> Now:
    """Returns this moment. CLOCK_BOOTTIME never jumps and counts suspended time."""
    return Now(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


class Loop:
    """Runs the core.

    Args:
        state: To begin with.
        perform: What carries out each kind of action.
        notifier: systemd's ear.
    """

    def __init__(
        self,
        state: State,
        perform: Mapping[type, Callable[[Any], None]],
        notifier: Notifier,
        announce: Callable[[do.Announce], None],
    ) -> None:
        self.state = state
        self._perform = perform
        self._notifier = notifier
        self._announce = announce
        self._queue: queue.SimpleQueue[on.Event] = queue.SimpleQueue()
        self._exit: int | None = None
        self._defects: set[str] = set()
        self._turn = threading.Lock()
        self.observe: Callable[[State, Now], None] | None = None  # returns at once

    def post(self, event: on.Event) -> None:
        """Hands in an event; from any thread, and from a signal handler."""
        self._queue.put(event)

    def handle(self, event: on.Event) -> None:
        """Decides on one event and carries the decision out. The loop's thread only."""
        with self._turn:
            self._handle(event)

    def settled(self) -> State:
        """Returns the state when what was decided last is carried out too; any other thread.

        So nobody is told "drained" before that is in the journal, and in the record that a killed
        daemon leaves (what a power cut leaves is written a moment later, by `statestore`).
        """
        ended = self._turn.acquire(timeout=TURN_PATIENCE)
        try:
            return self.state
        finally:
            if ended:
                self._turn.release()

    def _handle(self, event: on.Event) -> None:
        now = clock()
        try:
            self.state, actions = step(self.state, event, now)
        except Exception as e:  # noqa: BLE001 - a defect must not take the training with it
            self._defect(f"{type(event).__name__}: {e!r}")
            return
        for action in actions:
            if isinstance(action, do.Exit):
                self._exit = action.status
                continue
            try:
                self._perform[type(action)](action)
            except Exception as e:  # noqa: BLE001 - as above; the other actions still count
                self._defect(f"{type(action).__name__}: {e!r}")
        if self.observe is not None:
            self.observe(self.state, now)

    def _defect(self, what: str) -> None:
        if what in self._defects:
            return  # said once: a defect that comes with every event must not fill the journal
        self._defects.add(what)
        where = traceback.format_exc(limit=-4)
        self._announce(do.Announce("defect", f"a defect in spotd: {what}\n{where}", 3))

    def run(self) -> int:
        """Runs until the core says `Exit`; returns the exit status."""
        while self._exit is None:
            self._tell()
            event = self._next()
            if event is not None:
                self.handle(event)
        return self._exit

    def _tell(self) -> None:
        """Tells systemd how things are; a defect in the telling must not end the deciding."""
        try:
            self._notifier.alive()
            self._notifier.status(status_line(self.state, clock()))
        except Exception as e:  # noqa: BLE001 - as in `handle`
            self._defect(f"status: {e!r}")

    def _next(self) -> on.Event | None:
        """Waits for an event, or for the core's next timer."""
        now = clock()
        due = wake_at(self.state, now)
        waits = [LONGEST_WAIT]
        if self._notifier.watchdog_interval is not None:
            waits.append(self._notifier.watchdog_interval)
        if due is not None:
            waits.append(max(0.0, due - now.mono))
        try:
            return self._queue.get(timeout=min(waits))
        except queue.Empty:
            return on.Tick()
