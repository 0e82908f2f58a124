"""What every action does to the simulated machine, and which event answers it, when."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, get_args

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.journal_events import EVENTS
from spotd.simulation.remote import Part, Remote

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.simulation.daemon import Daemon

# `StartTrainer` is done by `_start_trainer`, here or in `Remote`.
METHODS = {
    action: "_" + re.sub(r"(?<!^)(?=[A-Z])", "_", action.__name__).lower()
    for action in get_args(do.Action)
}


class Hands(Part):
    """One method for each action; those on the store are `Remote`'s."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon)
        self.remote = Remote(daemon)
        self._act: dict[type, Callable[[do.Action], None]] = {
            action: getattr(self, name) if hasattr(self, name) else getattr(self.remote, name)
            for action, name in METHODS.items()
        }
        self.held: set[str] = set()  # what this daemon has found held, or has held

    def act(self, action: do.Action) -> None:
        """Carries one action out."""
        self._act[type(action)](action)

    # --- the daemon itself -----------------------------------------------------------

    def _persist(self, action: do.Persist) -> None:
        disk = self.machine.disk
        if disk.full:
            self.world.record_failures += 1
        else:
            disk.record = action.record

    def _announce(self, action: do.Announce) -> None:
        if action.name == "restore_gave_up":
            self.world.oracle.gave_up_at = self.daemon.clock.mono
        self.world.announced[action.name] = self.world.announced.get(action.name, 0) + 1
        if action.name not in EVENTS:
            self.world.oracle.broken("journal", f"{action.name} is not in the table of events")

    def _sync_journal(self, _: do.SyncJournal) -> None:
        pass

    def _reply(self, action: do.Reply) -> None:
        self.world.replies.append(action)

    def _exit(self, action: do.Exit) -> None:
        self.daemon.die()
        self.machine.daemon_exited(action.status)

    def _finish_instance(self, action: do.FinishInstance) -> None:
        self.world.oracle.finishing(self.daemon)
        self.machine.finish(action.action)

    # --- the trainer -----------------------------------------------------------------

    def _run_preflight(self, _: do.RunPreflight) -> None:
        ok = self.machine.preflight_ok
        self._answer(1.0, on.PreflightPassed() if ok else on.PreflightFailed("nvidia-smi failed"))

    def _start_trainer(self, action: do.StartTrainer) -> None:
        if self.machine.start_trouble:
            self._answer(0.05, on.TrainerStartFailed(self.machine.start_trouble, "mend it"))
            return
        self.world.oracle.starting(self.daemon, action)
        trainer = self.machine.spawn(action.attempt, action.resume_from)
        self._answer(0.05, on.TrainerStarted(trainer.pid))

    def _signal_trainer(self, action: do.SignalTrainer) -> None:
        trainer = self.machine.trainer
        targets = () if trainer is None else trainer.signal(action.purpose)
        self.world.oracle.signalled(self.machine, action, targets)
        self._answer(0.01, on.SignalSent(action.purpose, targets))

    def _kill_trainer(self, _: do.KillTrainer) -> None:
        if self.machine.trainer is not None:
            self.machine.trainer.end(signal=9)

    def _measure_activity(self, _: do.MeasureActivity) -> None:
        trainer = self.machine.trainer
        counter = 0 if trainer is None else trainer.step
        self._answer(0.01, on.ActivityMeasured(counter))

    # --- the checkpoint directory ----------------------------------------------------

    def _inspect(self, action: do.Inspect) -> None:
        self.daemon.later(0.2, self._inspected, action)

    def _inspected(self, action: do.Inspect) -> None:
        disk = self.machine.disk
        if disk.missing:
            self.daemon.post(on.DirectoryTrouble("the checkpoint directory is missing", "mount it"))
            return
        self.held |= set(disk.holds)
        self.daemon.post(
            disk.inventory(settled=action.settled, contents=action.contents, trusted=action.trusted)
        )

    def _hold(self, action: do.Hold) -> None:
        setup = self.world.setup
        file = self.machine.disk.files.get(action.name)
        mode = "none" if self.machine.disk.full else setup.hold
        seconds = 0.02
        if mode == "copy" and file is not None:
            seconds += file.size / setup.copy_bandwidth
        self.daemon.later(seconds, self._held, action, mode)

    def _held(self, action: do.Hold, mode: str) -> None:
        disk = self.machine.disk
        held = disk.holds.get(action.id)
        file = disk.files.get(action.name)
        if held is None or not held.whole:
            if file is None or file.torn or file.fingerprint != action.fingerprint:
                self.daemon.post(on.HoldFailed(action.id, "it changed"))
                return
            if mode == "copy":
                held = disk.holds[action.id] = file.copy(action.fingerprint)
            elif mode == "link":
                held = disk.holds[action.id] = file
        self.held.add(action.id)
        self.daemon.post(on.Held(action.id, mode))
        size = 0 if file is None else file.size
        self.daemon.later(0.05 + size / self.world.setup.copy_bandwidth, self._durable, action)

    def _durable(self, action: do.Hold) -> None:
        disk = self.machine.disk
        held = disk.holds.get(action.id)
        file = disk.files.get(action.name)
        if file is not None and file.fingerprint == action.fingerprint:
            disk.sync(action.name)
        elif held is None:
            return  # nothing of it is left that could be made durable
        if held is not None:
            held.durable = True
        self.world.oracle.durable(self.machine, action.id, held, file)
        self.daemon.post(on.Durable(action.id))

    def _release_hold(self, action: do.ReleaseHold) -> None:
        self.machine.disk.holds.pop(action.id, None)
        self.world.oracle.let_go(self.machine, f"ReleaseHold {action.id}")

    def _set_aside(self, action: do.SetAside) -> None:
        self.daemon.later(0.02, self._moved_aside, action.name)

    def _moved_aside(self, name: str) -> None:
        disk = self.machine.disk
        file = disk.files.pop(name, None)
        if file is not None:
            disk.aside[name] = file
        self.daemon.post(on.SetAsideDone(name, f".spotd-aside/{name}"))

    def _bring_back(self, action: do.BringBack) -> None:
        disk = self.machine.disk
        if action.name in disk.aside and action.name not in disk.files:
            disk.files[action.name] = disk.aside.pop(action.name)

    def _reinstate(self, action: do.Reinstate) -> None:
        self.daemon.later(0.1, self._reinstated, action.id)

    def _reinstated(self, checkpoint_id: str) -> None:
        disk = self.machine.disk
        held = disk.holds.get(checkpoint_id)
        if held is None or held.torn or disk.full:
            # What is garbled has the structure of a whole one: nobody looks deeper here.
            self.daemon.post(on.ReinstateFailed(checkpoint_id, "the hold is not whole"))
            return
        file = held.copy(disk.fingerprint())
        disk.files[file.name] = file
        disk.sync(file.name)
        self.machine.watch_whole(file)
        self.daemon.post(on.Reinstated(checkpoint_id, file.seen()))

    def _delete_local(self, action: do.DeleteLocal) -> None:
        disk = self.machine.disk
        file = disk.files.get(action.name)
        if file is not None and file.fingerprint == action.fingerprint:
            del disk.files[action.name]
            self.machine.watch(on.CheckpointVanished(action.name))
            self.world.oracle.let_go(self.machine, f"DeleteLocal {action.name}")
