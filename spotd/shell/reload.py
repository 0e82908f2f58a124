"""A changed configuration, taken over while training goes on, or refused as a whole."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from spotd.config import load, permission_problem
from spotd.core import actions as do
from spotd.errors import ConfigError, SpotdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.config import Settings
    from spotd.shell.notify import Notifier

# What the parts that run were made from: another daemon has to make them anew.
FIXED = ("run", "store", "checkpoints", "paths", "imds", "cloud")


class Reloader:
    """Reads the configuration again when asked to, each time in a thread of its own.

    Args:
        settings: Returns those in force.
        take: Puts others in force.
        notifier: systemd's ear.
        announce: Says what was refused.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        take: Callable[[Settings], None],
        notifier: Notifier,
        announce: Callable[[do.Announce], None],
    ) -> None:
        self._settings = settings
        self._take = take
        self._notifier = notifier
        self._announce = announce
        self._lock = threading.Lock()  # one may come while another is carried out
        self.ready = threading.Event()  # set when the unit is up

    def ask(self, number: int = 0, reply: Callable[[do.Reply], None] = lambda _: None) -> None:
        """Begins a reload; returns at once.

        Args:
            number: Of the request at the control socket.
            reply: Takes the answer to it.
        """
        threading.Thread(
            target=self._answer, args=(number, reply), name="reload", daemon=True
        ).start()

    def _answer(self, number: int, reply: Callable[[do.Reply], None]) -> None:
        problem: SpotdError | None = SpotdError("a defect in spotd: see the journal")
        try:
            problem = self.reload()
        finally:
            data: dict[str, Any] = {}
            if problem is not None:
                data = {"hint": problem.hint, "exit_code": problem.exit_code}
            said = f"nothing was taken over: {problem.message}" if problem else "taken over"
            reply(do.Reply(number, problem is None, said, data))

    def reload(self) -> SpotdError | None:
        """Takes the configuration over, or returns why nothing of it was."""
        self.ready.wait()  # one that comes sooner must not say that the unit is up
        with self._lock:  # the second reads what was written meanwhile, and is the last
            self._notifier.reloading(done=False)
            try:
                self._take(self._read())
            except SpotdError as problem:
                line = do.Announce("reload_refused", f"nothing was taken over: {problem}", 3)
                self._announce(line)
                return problem
            finally:
                self._notifier.reloading(done=True)
        return None

    def _read(self) -> Settings:
        old = self._settings()
        fresh = load(str(old.source_path))
        if problem := permission_problem(fresh.source_path, fresh):
            raise ConfigError(problem)
        changed = [name for name in FIXED if getattr(fresh, name) != getattr(old, name)]
        if fresh.trainer.user != old.trainer.user:
            changed.append("trainer.user")  # who may use the sockets, and owns what is restored
        if changed:
            raise ConfigError(
                f"{', '.join(changed)} cannot change while spotd runs",
                hint="systemctl restart spotd; training is not interrupted by it",
            )
        return fresh
