"""A simulated trainer: it trains, saves, and knows nothing of spotd but signal and socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.core import events as on

if TYPE_CHECKING:
    from spotd.simulation.disk import File
    from spotd.simulation.machine import Machine
    from spotd.simulation.models import TrainerModel

EXIT_SECONDS = 0.5  # from the last line of the program to the last process gone
REAP_SECONDS = 0.02  # until spotd hears of it


class Trainer:
    """One process tree. Every callback carries the plan it belongs to, so that a plan can end."""

    def __init__(self, machine: Machine, pid: int, attempt: int, resume_from: str | None) -> None:
        self.machine = machine
        self.model: TrainerModel = machine.world.setup.trainer
        self.pid = pid
        self.attempt = attempt
        self.resume_from = resume_from
        self.started = machine.clock.wall
        self.parent = machine.daemon
        self.alive = True
        self.ready = False
        self.hung = False
        self.saving = False
        self.saved_step = -1
        self.stopping = False
        self.ending = False
        self.writing: File | None = None
        self._step = 0
        self._since = 0.0
        self._plan = 0
        self._after(self.model.import_seconds, self._load)

    def _after(self, seconds: float, what: object, *args: object) -> None:
        self._plan += 1
        self.machine.clock.after(seconds, self._if_current, self._plan, what, args)

    def _if_current(self, plan: int, what: object, args: tuple[object, ...]) -> None:
        if self.alive and plan == self._plan and not self.hung:
            what(*args)  # type: ignore[operator]

    def _tell(self, event: on.Event) -> None:
        self.machine.tell(event)

    @property
    def step(self) -> int:
        """The step it has finished."""
        if not self.ready or self.saving or self.hung or self.stopping or self.ending:
            return self._step
        return self._step + int(
            (self.machine.clock.mono - self._since) / self.model.step_seconds + 1e-9
        )

    # --- training --------------------------------------------------------------------

    def _load(self) -> None:
        disk = self.machine.disk
        name = self.resume_from
        if self.model.searches:
            found = max(disk.files.values(), key=lambda f: (f.step, f.mtime), default=None)
            name = None if found is None else found.name
        file = None if name is None else disk.files.get(name)
        if name is not None and (file is None or not file.whole):
            self.end(status=1, last=f"cannot read {name}")
            return
        self._step = 0 if file is None else file.step
        self.saved_step = self._step
        self.ready = True
        self.machine.ready_at = self.machine.clock.mono
        self.machine.world.oracle.loaded(self.machine, self, file)
        if file is not None and file.poisoned:
            self._since = self.machine.clock.mono
            self._after(2.0, self.end, 1, None, f"loss is nan after {name}")
            return
        self.machine.clock.after(self.model.step_seconds, self._first_step)
        self._go_on()

    def _report(self, step: int) -> None:
        """Says on SPOTD_SOCKET how far it is; between two saves nobody needs to hear it."""
        if self.model.reports:
            self._tell(on.TrainerReported(step=step, total_steps=self.model.total_steps))

    def _first_step(self) -> None:
        if self.alive and self.step > self.saved_step and not self.hung:
            self._report(self.step)

    def _go_on(self) -> None:
        model = self.model
        self._since = self.machine.clock.mono
        target = (self._step // model.save_every + 1) * model.save_every
        skipped = self._skipped(target)
        if skipped:
            cycle = model.save_every * model.step_seconds + model.save_seconds
            self._after(skipped * cycle, self._skip, skipped * model.save_every)
            return
        if model.total_steps is not None:
            target = min(target, model.total_steps)
        self._after(max(0, target - self._step) * model.step_seconds, self._arrive, target)

    def _skipped(self, target: int) -> int:
        """Returns how many whole cycles of training and saving nothing can depend on."""
        calm, model, setup = self.machine.world.calm_until, self.model, self.machine.world.setup
        if calm is None or model.total_steps is not None or target != self._step + model.save_every:
            return 0
        cycle = model.save_every * model.step_seconds + model.save_seconds
        sent = setup.store.latency + model.size / setup.store.bandwidth
        settled = 2 * sent + 2 * model.size / setup.copy_bandwidth + 10.0 + 3 * cycle
        skipped = int((calm - settled - self.machine.clock.mono) / cycle)
        return skipped if skipped > 1 else 0

    def _skip(self, steps: int) -> None:
        self._step += steps
        self.saved_step = self._step
        self._report(self._step)
        self._go_on()

    def _arrive(self, step: int) -> None:
        self._step = step
        if step == self.saved_step:
            self._saved(step)
            return
        self._save(step)

    def _save(self, step: int) -> None:
        model = self.model
        self._step = step
        self._report(step)
        self.saving = True
        disk = self.machine.disk
        name = model.name(step)
        self.writing = None
        if model.writes != "atomic":
            if name in disk.files:
                self.machine.watch(on.CheckpointVanished(name))
            self.writing = disk.begin(name, step, model.size, self.machine.clock.wall)
        self.machine.watch(on.SavesInProgress((name,)), 0.0)
        self._after(model.save_seconds, self._saved, step)

    def _saved(self, step: int) -> None:
        model, disk, wall = self.model, self.machine.disk, self.machine.clock.wall
        if self.saving:
            if disk.full or disk.missing:
                self.end(status=1, last="OSError: [Errno 28] No space left on device")
                return
            if self.writing is not None:
                disk.end(self.writing, wall)
                file = self.writing
            else:
                if model.name(step) in disk.files:
                    self.machine.watch(on.CheckpointVanished(model.name(step)))
                file = disk.put(model.name(step), step, model.size, wall)
            self.saving = False
            self.writing = None
            self._since = self.machine.clock.mono
            self.saved_step = step
            self.machine.world.oracle.saved(self.machine, file)
            self.machine.watch(on.SavesInProgress(()), 0.0)
            self.machine.watch_whole(file)
            self._rotate()
        finished = model.total_steps is not None and step >= model.total_steps
        if self.stopping or finished:
            # Long enough for the watcher to have seen the checkpoint first, or not.
            seconds = EXIT_SECONDS * self.machine.world.noise()
            self.ending = True
            self._after(seconds, self.end, model.exit_status if self.stopping else 0)
        else:
            self._go_on()

    def _rotate(self) -> None:
        if self.model.keeps is None or self.model.writes == "in-place":
            return
        files = sorted(self.machine.disk.files.values(), key=lambda f: f.step)
        for file in files[: -self.model.keeps]:
            del self.machine.disk.files[file.name]
            self.machine.watch(on.CheckpointVanished(file.name))

    # --- what others do to it --------------------------------------------------------

    def signal(self, purpose: str) -> tuple[int, ...]:
        """Gets a signal; returns the processes that catch it."""
        caught = self.model.catches if purpose == "stop" else self.model.catches_request
        if not (self.alive and self.ready and caught):
            return ()
        if self.hung or self.stopping or self.ending:
            return (self.pid,)
        step = self.step
        if purpose == "stop":
            self._step = step
            self.stopping = True
        if self.saving:
            return (self.pid,)
        if purpose == "stop" and not self.model.saves:
            self._after(EXIT_SECONDS, self.end, self.model.exit_status)
        elif step == self.saved_step:
            self._step = step
            self._after(0.0, self._saved, step)
        else:
            self._save(step)
        return (self.pid,)

    def hang(self) -> None:
        """It will never do anything again by itself."""
        self._step = self.step
        self.hung = True

    def end(self, status: int | None = None, signal: int | None = None, last: str = "") -> None:
        """All of its tree is gone; what it was writing in place stays torn."""
        if not self.alive:
            return
        self.machine.world.oracle.ended(self.machine, self)
        if self.ready and self.step > self.saved_step:
            self._report(self.step)  # the last step it said counts, and it said that before
        self.alive = False
        self.machine.unsaved = self.step - self.saved_step
        self.machine.trainer = None
        known = self.parent is self.machine.daemon
        event = on.TrainerExited(
            status if known else None, signal if known else None, (last,) if last else ()
        )
        daemon = self.machine.daemon
        if daemon is not None:
            daemon.later(REAP_SECONDS, daemon.post, event)
