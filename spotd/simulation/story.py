"""A run of the world as text that reads like a story; golden scenarios are such texts."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.checkpoint import LocalCheckpoint
from spotd.simulation.clock import EPOCH

if TYPE_CHECKING:
    from spotd.core.state import Phase
    from spotd.simulation.clock import Clock
    from spotd.simulation.daemon import Daemon


class Silence:
    """Writes nothing: for a hundred thousand worlds."""

    def event(self, daemon: Daemon, event: on.Event) -> None:
        """An event is about to be decided on."""

    def action(self, action: do.Action) -> None:
        """An action is about to be carried out."""

    def phase(self, before: Phase, after: Phase, reason: str) -> None:
        """The phase has changed."""

    def world(self, text: str) -> None:
        """Something happened outside of spotd."""


class Story(Silence):
    """Writes every event and action, but for polls that change nothing."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stamp = ""
        self._held: str | None = None
        self._answers: dict[str, on.Event] = {}
        self.lines: list[str] = []

    def event(self, daemon: Daemon, event: on.Event) -> None:
        """An event; a poll or tick is written only when something comes of it."""
        name = daemon.machine.name
        who = "" if name == "1" else f" [{daemon.machine.instance_id}]"
        line = f"> {describe(event)}{who}"
        quiet = isinstance(event, (on.Tick, on.LeaseRenewed))
        if isinstance(event, (on.MetadataAnswered, on.MetadataFailed)):
            quiet = self._answers.get(name) == event
            self._answers[name] = event
        if isinstance(event, on.Started):
            self._answers.pop(name, None)
        self._held = self._at(line) if quiet else None
        if not quiet:
            self.lines.append(self._at(line))

    def action(self, action: do.Action) -> None:
        """An action, under the event it belongs to."""
        if isinstance(action, do.RenewLease):
            return
        self._unhold()
        self.lines.append(f"{'':12}    {describe(action)}")

    def phase(self, before: Phase, after: Phase, reason: str) -> None:
        """A change of phase."""
        self._unhold()
        why = f" ({reason})" if reason else ""
        self.lines.append(f"{'':12}  = {before.value} -> {after.value}{why}")

    def world(self, text: str) -> None:
        """What the weather does."""
        self._held = None
        self.lines.append(self._at(f"* {text}"))

    def text(self) -> str:
        """Returns the whole of it."""
        return "\n".join(self.lines) + "\n"

    def _unhold(self) -> None:
        if self._held is not None:
            self.lines.append(self._held)
            self._held = None

    def _at(self, line: str) -> str:
        t = self._clock.mono
        return f"{int(t // 3600)}:{int(t % 3600 // 60):02d}:{t % 60:06.3f}  {line}"


SHORT = {"record", "boot_id", "booted", "created", "mtime_ns", "trusted", "fields", "priority",
         "started", "generation", "data", "kind", "final"}  # fmt: skip


def describe(thing: Any) -> str:
    """Returns an event or action in a few words."""
    if isinstance(thing, do.Announce):
        return f'"{thing.message}"'
    words = [type(thing).__name__]
    for f in fields(thing):
        value = getattr(thing, f.name)
        if f.name in SHORT or value is None or value is False or value in ((), ""):
            continue
        if f.name == "fingerprint" and len(str(value)) > 0:
            continue
        words.append(_value(f.name, value))
    return " ".join(words)


def _value(name: str, value: Any) -> str:
    if value is True:
        return name
    if isinstance(value, LocalCheckpoint):
        return value.name
    if isinstance(value, on.TrainerFound):
        return f"trainer={value.pid}"
    if isinstance(value, float):
        # Wall clock times are written as time within the world.
        return f"{name}={value - EPOCH:.1f}" if value > EPOCH / 2 else f"{name}={value:g}"
    if isinstance(value, tuple):
        return f"{name}=[{', '.join(_item(x) for x in value)}]"
    return str(value) if name in ("id", "name", "reason", "purpose", "boot") else f"{name}={value}"


def _item(item: Any) -> str:
    if isinstance(item, on.HeldCheckpoint):
        return item.id
    if isinstance(item, LocalCheckpoint):
        return item.name
    if isinstance(item, tuple):
        return " ".join(map(str, item))
    return str(getattr(item, "id", item))
