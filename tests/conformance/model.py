"""The scenes in the simulated world."""

from __future__ import annotations

from typing import Any

from scene import SAVE_EVERY, STEPS, Cast, Scene, Seen

from spotd.config import load
from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.status import status_of
from spotd.shell.daemon import policy_of
from spotd.shell.store.lease import TTL
from spotd.simulation.disk import Disk
from spotd.simulation.machine import Machine
from spotd.simulation.models import Schedule, Setup, StoreModel, TrainerModel
from spotd.simulation.story import Silence
from spotd.simulation.trainer import Trainer
from spotd.simulation.world import World
from spotd.testing.stage import Stage

WITHIN = 3600.0  # simulated seconds for anything


class GatedTrainer(Trainer):
    """The model's trainer, standing at a gate: the twin of `gated_trainer.py`."""

    machine: GatedMachine

    @property
    def step(self) -> int:
        return min(super().step, max(self._step, self.machine.gate))

    def _load(self) -> None:
        if self.machine.crashes_at_start:
            self.end(status=3, last="no module named apex")
            return
        file = self.machine.disk.files.get(self.resume_from or "")
        if file is not None and file.poisoned:
            self._step = self.saved_step = file.step
            self.end(status=3, last=f"loss is nan after {file.name}")
            return
        super()._load()
        self.machine.loaded.append((self.attempt, self._step))

    def _go_on(self) -> None:
        self._since = self.machine.clock.mono
        model = self.model
        target = (self._step // model.save_every + 1) * model.save_every
        target = min(target, self.machine.gate, model.total_steps)
        if target > self._step or self._step >= model.total_steps:
            self._after((target - self._step) * model.step_seconds, self._arrive, target)

    def _arrive(self, step: int) -> None:
        self._step = step
        self._since = self.machine.clock.mono
        if step > self.saved_step:
            self._report(step)
        if step % self.model.save_every == 0 or step >= self.model.total_steps:
            super()._arrive(step)

    def _saved(self, step: int) -> None:
        self.machine.in_save = self.machine.holds_saves and self.saving
        if not self.machine.in_save:
            super()._saved(step)

    def gate_opened(self) -> None:
        if self.ready and not (self.saving or self.stopping):
            self._go_on()

    def let_go(self) -> None:
        if self.machine.in_save:
            self._saved(self._step)


class GatedMachine(Machine):
    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.gate = 0
        self.loaded: list[tuple[int, int]] = []
        self.crashes_at_start = self.holds_saves = self.in_save = False

    def spawn(self, attempt: int, resume_from: str | None) -> Trainer:
        self._pids += 1
        self.trainer = GatedTrainer(self, self._pids, attempt, resume_from)
        return self.trainer


class Ear(Silence):
    """Notes what each machine's spotd announces."""

    def __init__(self) -> None:
        self.heard: dict[str, list[dict[str, Any]]] = {"1": [], "2": []}
        self._speaks = "1"

    def event(self, daemon: Any, event: on.Event) -> None:
        self._speaks = daemon.machine.name

    def action(self, action: do.Action) -> None:
        if isinstance(action, do.Announce):
            entry = {"event": action.name, "message": action.message, **action.fields}
            self.heard[self._speaks].append(entry)


class ModelScene(Scene):
    def __init__(self, cast: Cast, directory: Any) -> None:
        super().__init__(cast)
        stage = Stage(
            directory=directory, command=["true"], store_url=f"file://{directory}",
            imds_url="http://127.0.0.1:1", run="run",
            trainer=cast.trainer_keys(), sections=cast.sections(),
        )  # fmt: skip
        stage.configure()
        trainer = TrainerModel(
            step_seconds=0.002, save_every=SAVE_EVERY, save_seconds=0.002, size=20_000,
            total_steps=STEPS, writes="in-place" if cast.in_place else "atomic",
            catches=cast.catches, saves=cast.saves, catches_request=cast.catches,
            import_seconds=0.05,
        )  # fmt: skip
        setup = Setup(
            policy=policy_of(load(str(stage.config))), trainer=trainer,
            store=StoreModel(latency=0.02, lease_seconds=TTL, down_seconds=0.2),
            hold="link",  # as they are made of names with a number
            boot_seconds=0.3, watch_seconds=0.06, watchdog_seconds=1e9,
        )  # fmt: skip
        self.world = World(Schedule(setup), fate=lambda _: "kept")
        self.world.trace = self.ear = Ear()
        self.world.machines = [GatedMachine(self.world, "1"), GatedMachine(self.world, "2")]
        self.events_lost = 0

    def _machine(self, machine: int = 0) -> GatedMachine:
        found = self.world.machines[machine]
        assert isinstance(found, GatedMachine)
        return found

    def until(self, condition: Any, what: str) -> None:
        clock = self.world.clock
        if condition():
            return
        clock.run(clock.mono + WITHIN, condition)
        if not condition():
            raise AssertionError(f"in the model: never {what}\n{self.story()}")

    def story(self) -> str:
        return "\n".join(f"{e['event']}: {e['message']}" for e in self.events())

    # --- the machine -----------------------------------------------------------------

    def boot(self, machine: int = 0) -> None:
        self._machine(machine).boot()

    def cut(self, machine: int = 0) -> None:
        self._machine(machine).off(orderly=False)

    def new_instance(self) -> None:
        m = self._machine()
        m.replacements += 1
        m.instance_id = f"i-1{m.replacements}"
        self.world.oracle.disk_lost(m)
        m.disk = Disk(m.instance_id)
        m.imds.clear()
        m.gate = 0

    def full(self, is_full: bool) -> None:
        self._machine().disk.full = is_full

    # --- spotd -----------------------------------------------------------------------

    def stop(self, machine: int = 0) -> None:
        m = self._machine(machine)
        m.wanted = False
        assert m.daemon is not None
        m.daemon.post(on.StopRequested(self.world.setup.policy.stop_timeout))
        self.until(lambda: m.daemon is None, "the end of spotd")

    def kill(self) -> None:
        m = self._machine()
        m.wanted = False
        m.kill_daemon()

    def start(self) -> None:
        self._machine().wanted = True
        self._machine().start_daemon()

    def drill(self) -> None:
        self.world.do_drill()

    # --- the trainer -----------------------------------------------------------------

    def _open_gate(self, step: int, machine: int = 0) -> GatedMachine:
        m = self._machine(machine)
        assert step >= m.gate, "a real trainer may have gone further already"
        m.gate = step
        if isinstance(m.trainer, GatedTrainer):
            m.trainer.gate_opened()
        return m

    def train(self, step: int, machine: int = 0) -> None:
        m = self._open_gate(step, machine)
        trained: list[Any] = []

        def there() -> bool:
            if m.trainer is not None:
                trained[:] = [m.trainer]
            last = trained[0] if trained else None
            return last is not None and last.step >= step and not last.saving

        self.until(there, f"step {step}")
        self.wait_told(step, machine)

    def train_into_crash(self, step: int) -> None:
        self._open_gate(step)
        self.wait("trainer_exited")

    def trainer_lives(self) -> bool:
        return self._machine().trainer is not None

    def crash(self) -> None:
        self.world.do_crash(status=3)

    def crash_at_start(self, does: bool) -> None:
        self._machine().crashes_at_start = does

    def poison(self, name: str) -> None:
        disk, bucket = self._machine().disk, self.world.bucket
        for file in (*disk.files.values(), *disk.holds.values(), *bucket.objects.values()):
            file.poisoned = file.poisoned or file.name == name

    def hold_saves(self, holds: bool) -> None:
        m = self._machine()
        m.holds_saves = holds
        if not holds and isinstance(m.trainer, GatedTrainer):
            m.trainer.let_go()

    def wait_in_save(self) -> None:
        self.until(lambda: self._machine().in_save, "a save under way")

    # --- the disk --------------------------------------------------------------------

    def tear(self, name: str) -> None:
        disk = self._machine().disk
        torn = disk.files[name]  # a link to it is held: the same bytes
        torn.torn = torn.durable = True
        torn.fingerprint = disk.fingerprint()
        self.world.oracle.disk_lost(self._machine())  # what it called durable was, until now

    def delete(self, name: str) -> None:
        del self._machine().disk.files[name]
        self._machine().watch(on.CheckpointVanished(name))

    # --- EC2 -------------------------------------------------------------------------

    def notice(self, action: str = "stop", seconds: float = 120.0) -> None:
        self.world.do_notice(action=action, seconds=seconds, stop="none")

    def withdraw(self) -> None:
        self._machine().imds.clear()
        self.world.do_withdraw()

    def rebalance(self) -> None:
        self.world.do_rebalance()

    def imds(self, works: bool) -> None:
        self.world.do_imds("ok" if works else "failing")

    # --- the store -------------------------------------------------------------------

    def store(self, works: bool) -> None:
        self.world.do_store("ok" if works else "down", None)

    def damage(self, checkpoint_id: str) -> None:
        self.world.bucket.objects[checkpoint_id].garbled = True

    def lease_runs_out(self) -> None:
        lease = self.world.bucket.lease
        if lease is not None:
            lease.until = self.world.clock.mono

    # --- looking ---------------------------------------------------------------------

    def events(self, machine: int = 0) -> list[dict[str, Any]]:
        return self.ear.heard[self._machine(machine).name]

    def status(self, machine: int = 0) -> dict[str, Any]:
        daemon = self._machine(machine).daemon
        if daemon is None or not daemon.state.boot:
            return {}
        return status_of(daemon.state, self.world.clock.now())

    def seen(self) -> list[Seen]:
        assert self.world.oracle.violations == []
        bucket = self.world.bucket
        stored = {i: (s.manifest.step, s.manifest.generation) for i, s in bucket.manifests.items()}
        found = []
        for m in self.world.machines:
            left = {
                "checkpoints": sorted(m.disk.files),
                "put aside": sorted(m.disk.aside),
                "held": max(m.disk.holds, default=""),
                "in the store": stored,
                "complete in the store": bucket.completed,
                "leased": bucket.lease is not None and bucket.lease.until > self.world.clock.mono,
            }
            found.append(Seen(self.ear.heard[m.name], m.loaded, left))
        return found
