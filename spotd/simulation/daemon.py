"""One life of spotd: an inbox, the core, its actions in order; it can be killed between any two.

Nothing here decides. A simulated daemon differs from the real one in its hands only.
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.lifecycle import decide, wake_at
from spotd.core.noticing import SILENCE, STEADY
from spotd.core.state import Now, State
from spotd.core.turn import changed
from spotd.simulation.hands import Hands

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.simulation.machine import Machine
    from spotd.simulation.world import World

# Killed before one of these, the world is as it is when killed before what comes after it.
WORDS = frozenset({do.Announce, do.SyncJournal, do.Reply, do.WarmStore})
AT_ONCE = 400  # decisions at one instant; more is a livelock


class Daemon:
    """`machine.daemon` while it lives."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.clock = machine.clock
        self.world: World = machine.world
        self.state = State(policy=machine.world.setup.policy, run="run")
        self.alive = True
        self.hung_since: float | None = None
        self.stood_at = self.woke_at = -1e9  # when it last hung, and went on
        self.hands = Hands(self)
        self._inbox: deque[on.Event] = deque()
        self._deciding = False
        self._tick_at: float | None = None
        self._instant = (-1.0, 0)
        self._last_answer: object = None
        self._repeats = 0
        self._poll_origin = 0.0
        self.dormant = False

    # --- life and death --------------------------------------------------------------

    def begin(self, event: on.Started) -> None:
        """Started by systemd."""
        self.post(event)
        self._poll_origin = self.clock.mono + 0.1
        self.later(0.1, self._poll)

    def later(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        """One of its threads does something in so many seconds, if it lives then."""
        self.clock.after(seconds * self.world.noise(), self._if_alive, what, args)

    def _if_alive(self, what: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.alive:
            what(*args)

    def die(self) -> None:
        """Ends, by kill -9 or by itself: its threads stop where they are, the trainer lives on."""
        self.alive = False
        self.hands.remote.drop()
        if self.machine.daemon is self:
            self.machine.daemon = None

    def hang(self) -> None:
        """The deciding loop stands still, until the watchdog has had enough."""
        self.hung_since = self.stood_at = self.clock.mono

    def wake(self) -> None:
        """The loop goes on where it stood."""
        if self.alive and self.hung_since is not None:
            self.hung_since = None
            self.woke_at = self.clock.mono
            self._decide()

    # --- deciding --------------------------------------------------------------------

    def post(self, event: on.Event) -> None:
        """Puts an event on the queue of the deciding thread."""
        if self.alive:
            self._inbox.append(event)
            self._decide()

    def _decide(self) -> None:
        if self._deciding:
            return
        self._deciding = True
        while self._inbox and self.alive and self.hung_since is None:
            self._handle(self._inbox.popleft())
        self._deciding = False

    def _handle(self, event: on.Event) -> None:
        if self.dormant:
            self._catch_up()
        now = self.clock.now()
        if self.world.killed_here(self):
            return
        before = self.state
        self._count(now)
        self.world.trace.event(self, event)
        turn = decide(before, event, now)
        self.state = after = turn.state
        self.world.phases.update(turn.transitions)
        if after.phase is not before.phase:
            self.world.trace.phase(before.phase, after.phase, after.reason)
        self.world.oracle.decided(self.machine, event, before, after)
        touched = False
        for action in turn.actions:
            if type(action) not in WORDS:
                if touched and self.world.killed_here(self):
                    return
                touched = True
            self.world.trace.action(action)
            self.hands.act(action)
            if not self.alive:
                return
        if self.dormant and not self._unmoved():
            self.metadata_changed()  # what was a notice is one no longer: polls count again
        self._set_alarm(now)

    def _count(self, now: Now) -> None:
        self.world.steps += 1
        when, count = self._instant
        self._instant = (now.mono, count + 1) if when == now.mono else (now.mono, 1)
        if self._instant[1] > AT_ONCE:
            self.world.oracle.broken("livelock", f"{AT_ONCE} decisions at one instant")
            self.die()

    def _set_alarm(self, now: Now) -> None:
        due = wake_at(self.state, now)
        m = self.state.metadata
        if due is not None and self.dormant and m.last_ok is not None:
            silence = m.last_ok + SILENCE * max(self.state.policy.poll_interval, 5.0)
            if due >= silence:  # polls that are not played keep this from ever being due
                quiet = changed(self.state, {"metadata": changed(m, {"last_ok": None})})
                due = wake_at(quiet, now)
        if due is None or (self._tick_at is not None and now.mono < self._tick_at <= due):
            return
        self._tick_at = due
        self.clock.at(due, self._if_alive, self._tick, (due,))

    def _tick(self, due: float) -> None:
        if self._tick_at == due:
            self._tick_at = None
            self.post(on.Tick())

    # --- the metadata poller ---------------------------------------------------------

    def _poll(self) -> None:
        answer = self.machine.imds.answer(self.clock.wall)
        self._repeats = self._repeats + 1 if answer == self._last_answer else 0
        self._last_answer = answer
        if answer is not None:
            self.post(answer)
        if self.world.setup.lazy and self._repeats >= 4 and self._unmoved():  # noqa: PLR2004
            self.dormant = True
            return
        self.later(self.state.policy.poll_interval, self._poll)

    def _unmoved(self) -> bool:
        """Whether more polls with this answer change nothing."""
        notice = self.state.metadata.notice
        return notice is None or notice.steady_polls > STEADY

    def metadata_changed(self) -> None:
        """Polls are worth playing again."""
        if self.dormant:
            self._catch_up()
            self.dormant = False
            interval = self.state.policy.poll_interval
            since = self.clock.mono - self._poll_origin
            self.later(interval - since % interval, self._poll)

    def _catch_up(self) -> None:
        """The polls that were not played: each would have said what the last one said."""
        m = self.state.metadata
        if isinstance(self._last_answer, on.MetadataAnswered) and m.last_ok is not None:
            behind = self.clock.mono - m.last_ok
            if behind > 3 * self.state.policy.poll_interval:
                now = self.clock.now()
                fresh = changed(m, {"last_ok": now.mono, "last_ok_wall": now.wall})
                self.state = changed(self.state, {"metadata": fresh})


def read_record(disk_record: dict[str, object] | None) -> dict[str, object] | None:
    """What the next daemon reads: the record has been through JSON."""
    return None if disk_record is None else json.loads(json.dumps(disk_record))


def classify_boot(
    record: dict[str, object] | None, boot_id: str, instance_id: str, *, orderly: bool
) -> str:
    """Says what kind of start this is, as the shell does."""
    if record is None:
        return "first"
    if record.get("instance_id") != instance_id:
        return "new-instance"
    if record.get("boot_id") == boot_id:
        return "same-boot"
    interruption = record.get("interruption")
    if isinstance(interruption, dict) and interruption.get("source") == "notice":
        return "interrupted"
    return "reboot" if orderly else "power-loss"
