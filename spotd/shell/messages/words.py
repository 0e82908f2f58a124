"""Which announcements people are told of, and in which words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spotd.core.status import age

if TYPE_CHECKING:
    from spotd.core.actions import Announce
    from spotd.shell.clouds import InstanceIdentity

_AWAY = frozenset({"interrupted", "power-loss", "reboot", "new-instance"})
_TEXTS = {
    "completed": "complete, on {where}",
    "not_carried_out": "the notice on {where} was not carried out; training goes on",
    "gave_up": "spotd has given up on the trainer on {where}: it crashes without progress. "
    "`spotd status` has its last lines. The machine goes on costing money",
    "finish_failed": "complete, but {where} could not be ended. It goes on costing money",
    "lease_lost": "another machine has taken this run over; {where} trains on and stores nothing",
}
_LONGEST = 500  # characters of a message


@dataclass
class Teller:
    """Decides what is told; remembers what it must across restarts of the daemon.

    `returning`: how this boot came about, until training goes on. `gone`: when the last
    notice was seen, or the last sign of life before this boot, wall clock seconds.
    """

    run: str
    returning: str = ""
    gone: float | None = None
    completed: bool = False

    def remember(self, value: object, *, alive: float) -> None:
        """Takes over what an earlier daemon's teller knew; `alive`: its last sign of life."""
        told = value if isinstance(value, dict) else {}
        self.returning = told["returning"] if told.get("returning") in _AWAY else ""
        self.completed = told.get("completed") is True and told.get("run") == self.run
        gone = told.get("gone")
        self.gone = float(gone) if isinstance(gone, (int, float)) else alive or None

    def words_for(
        self, line: Announce, wall: float, told: InstanceIdentity, instance_id: str
    ) -> str | None:
        """Returns the text of a message, None when this is nothing to tell of.

        What a trainer printed is left out: it may hold anything.
        """
        said, where = line.fields, _where(told, instance_id)
        if line.name == "boot_classified":
            kind = str(said.get("boot", ""))
            self.returning = kind if kind in _AWAY else self.returning
            return None
        text = self._text(line.name, said, wall, where)
        return None if text is None else f"{self.run}: {text}"[:_LONGEST]

    def _text(self, name: str, said: dict[str, Any], wall: float, where: str) -> str | None:
        if name == "interruption_notice":
            self.gone = wall
            at = f" at step {said['step']}" if "step" in said else ""
            left = said.get("seconds_left")
            return f"{said.get('action', 'stop')} notice on {where}{at}, {left} s left; saving"
        if name == "trainer_started":
            return self._returned(said, wall, where) if self.returning else None
        if name == "completed":
            if self.completed:
                return None  # said at each later start of the daemon too
            self.completed = True
        return _TEXTS[name].format(where=where) if name in _TEXTS else None

    def _returned(self, said: dict[str, Any], wall: float, where: str) -> str:
        how, self.returning = self.returning, ""
        away = f" after {age(wall - self.gone)}" if self.gone is not None else ""
        self.gone = None
        origin = f" from {said['checkpoint']}" if "checkpoint" in said else " from scratch"
        step = f" (step {said['step']})" if "step" in said and "checkpoint" in said else ""
        reason = {
            "interrupted": "the interruption", "power-loss": "going down without warning",
            "reboot": "a reboot", "new-instance": "a move to a new instance",
        }[how]  # fmt: skip
        return f"training goes on{away} on {where}, after {reason},{origin}{step}"


def _where(told: InstanceIdentity, instance_id: str) -> str:
    details = ", ".join(x for x in (told.instance_type, told.az) if x)
    return f"{instance_id} ({details})" if details else instance_id
