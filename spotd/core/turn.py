"""The workbench a decision is made on: the state so far, and the actions so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from spotd.core import actions as do
from spotd.core.record import to_record
from spotd.core.state import TRANSITIONS
from spotd.core.words import readable

if TYPE_CHECKING:
    from spotd.core.actions import Action
    from spotd.core.state import Now, Phase, Policy, State

T = TypeVar("T")


def changed(value: T, changes: dict[str, Any]) -> T:
    """Returns a copy of a frozen dataclass without slots, with some fields changed.

    What `dataclasses.replace` does, in a tenth of its time: a simulated month makes a
    hundred thousand decisions, and most of a decision is copying the state. That is why
    the larger classes here have no slots: one dictionary is copied faster than fifty of them.
    """
    copy = object.__new__(type(value))
    fields = copy.__dict__
    fields.update(value.__dict__)
    fields.update(changes)
    return copy


class Turn:
    """One decision being made: the state so far, and the actions so far, in order."""

    def __init__(self, state: State, now: Now) -> None:
        self.state = state
        self.now = now
        self.actions: list[Action] = []
        self.transitions: list[tuple[Phase, Phase]] = []  # a decision may take more than one

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.state.policy

    def do(self, action: Action) -> None:
        """Appends an action."""
        self.actions.append(action)

    def set(self, **changes: Any) -> None:
        """Changes fields of the state."""
        self.state = changed(self.state, changes)

    def set_store(self, **changes: Any) -> None:
        """Changes fields of `state.store`."""
        self.set(store=changed(self.state.store, changes))

    def set_trainer(self, **changes: Any) -> None:
        """Changes fields of the running trainer."""
        if self.state.trainer is not None:
            self.set(trainer=changed(self.state.trainer, changes))

    def set_resuming(self, **changes: Any) -> None:
        """Changes fields of the resume under way."""
        if self.state.resuming is not None:
            self.set(resuming=changed(self.state.resuming, changes))

    def set_interruption(self, **changes: Any) -> None:
        """Changes fields of the interruption under way."""
        if self.state.interruption is not None:
            self.set(interruption=changed(self.state.interruption, changes))

    def set_metadata(self, **changes: Any) -> None:
        """Changes fields of `state.metadata`."""
        self.set(metadata=changed(self.state.metadata, changes))

    def set_known(self, checkpoint_id: str, **changes: Any) -> None:
        """Changes fields of the known checkpoint with this id, if there is one."""
        known = tuple(changed(k, changes) if k.id == checkpoint_id else k for k in self.state.known)
        self.set(known=known)

    def enter(self, phase: Phase, reason: str = "") -> None:
        """Enters a phase; the table of transitions says which may follow which."""
        if phase is self.state.phase:
            self.set(reason=reason)
            return
        if phase not in TRANSITIONS[self.state.phase]:
            raise AssertionError(f"no way from {self.state.phase.value} to {phase.value}")
        self.transitions.append((self.state.phase, phase))
        self.set(phase=phase, since=self.now.wall, reason=reason)

    def announce(self, name: str, message: str, priority: int = 6, **fields: object) -> None:
        """Adds a journal line; what every line carries is filled in here."""
        state = self.state
        every: dict[str, object] = {"run": state.run}
        if state.trainer is not None:
            every["attempt"] = state.trainer.attempt
            if state.trainer.step is not None:
                every["step"] = state.trainer.step
        elif state.attempt:
            every["attempt"] = state.attempt
        if state.interruption is not None:
            every["seconds_left"] = max(0, round(state.interruption.deadline - self.now.mono))
        self.do(do.Announce(name, readable(message), priority, {**every, **fields}))

    def persist(self) -> None:
        """Adds a durable write of the record as it is at this point of the turn."""
        self.set(persisted_at=self.now.mono)
        if self.actions and isinstance(self.actions[-1], do.Persist):
            self.actions.pop()  # nothing has been done since: one write says it all
        self.do(do.Persist(to_record(self.state)))

    def mark(self, what: str) -> None:
        """Notes a moment on the timeline of the interruption under way, the first time."""
        i = self.state.interruption
        if i is not None and what not in dict(i.marks):
            self.set_interruption(marks=(*i.marks, (what, self.now.mono - i.seen)))
