"""The world: machines, bucket, clock, and the weather that happens to them.

A `Schedule` in, an `Oracle` with what was broken out; the same schedule always gives the
same run, action for action.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from spotd.core import events as on
from spotd.simulation.bucket import Bucket
from spotd.simulation.clock import Clock
from spotd.simulation.machine import Machine
from spotd.simulation.oracle import Oracle
from spotd.simulation.story import Silence, Story

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.core import actions as do
    from spotd.core.state import Phase
    from spotd.simulation.daemon import Daemon
    from spotd.simulation.disk import File
    from spotd.simulation.models import Schedule

TOO_MANY = 60_000  # decisions in one world; more is a livelock


class World:
    """One run of a schedule.

    Args:
        schedule: The world and its weather.
        story: Whether to write the story (`World.trace`).
        kill_at: The daemon is killed at the n-th moment at which that makes a difference:
            instead of deciding on an event, or before an action that does something to the
            world and is not the first of its decision.
        fate: What a power cut does to a file that is not durable; random where None.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        story: bool = False,
        kill_at: int | None = None,
        fate: Callable[[File], str] | None = None,
    ) -> None:
        self.schedule = schedule
        self.setup = schedule.setup
        self.clock = Clock()
        self.random = Random(schedule.setup.jitter or 0)  # noqa: S311 - weather, not secrets
        self.trace: Silence = Story(self.clock) if story else Silence()
        self.bucket = Bucket(schedule.setup.store)
        self.oracle = Oracle(self)
        self.fate = fate
        self.kill_at = kill_at
        self.moments = 0
        self.steps = 0
        self.phases: set[tuple[Phase, Phase]] = set()
        self.announced: dict[str, int] = {}
        self.replies: list[do.Reply] = []
        self.record_failures = 0
        self.rough_until = -1e9
        self.calm_until: float | None = None  # up to here saves need not be played one by one
        self.last_weather = -1e9
        self._calm = False
        self.machines = [Machine(self, "1")]

    @property
    def machine(self) -> Machine:
        """The first machine."""
        return self.machines[0]

    def run(self) -> World:
        """Plays the schedule to its end, and has the oracle look at what is left."""
        self.machine.boot()
        for weather in self.schedule.weather:
            self.clock.at(weather.at, self.happen, weather.what, weather.how)
        self.clock.run(self.schedule.until, self._over)
        if self.schedule.settle:
            self.calm()
            self.clock.run(self.schedule.until + self.schedule.settle, self._over)
            self.oracle.at_rest()
        return self

    def _over(self) -> bool:
        if self._calm and all(m.at_rest() for m in self.machines):
            return True
        if self.steps > TOO_MANY:
            self.oracle.broken("rest", f"{self.steps} decisions and no end")
            return True
        return False

    def noise(self) -> float:
        """Returns a factor for a delay."""
        return 1.0 if self.setup.jitter is None else 0.5 + self.random.random()

    def killed_here(self, daemon: Daemon) -> bool:
        """Counts the moments at which the daemon could be killed; kills it at one of them."""
        n = self.moments
        self.moments += 1
        if n == self.kill_at:
            daemon.machine.kill_daemon()
            return True
        return False

    # --- weather -----------------------------------------------------------------------

    def happen(self, what: str, how: dict[str, Any]) -> None:
        """Has something happen: the name of a method below."""
        words = ", ".join(f"{k}={v}" for k, v in how.items())
        self.trace.world(what.replace("_", " ") + (f" ({words})" if words else ""))
        self.last_weather = self.clock.mono
        self.rough_until = max(self.rough_until, self.clock.mono + float(how.get("seconds") or 0))
        getattr(self, f"do_{what}")(**how)

    def calm(self) -> None:
        """All troubles end: what is left is spotd's own doing."""
        self._calm = True
        self._set_mood(self.bucket, "mood", "ok")
        for machine in self.machines:
            self._set_mood(machine, "network", "ok")
            machine.start_trouble = ""
            machine.preflight_ok = True
            machine.disk.full = machine.disk.missing = False
            machine.imds.mood = "ok"
            self._metadata_changed(machine)
            if not machine.up and not machine.finished:
                machine.boot()
            elif machine.daemon is None and not machine.finished and not machine.wanted:
                machine.wanted = True
                machine.start_daemon()
            if machine.trainer is not None and machine.trainer.hung:
                machine.trainer.end(signal=9)

    def _metadata_changed(self, machine: Machine) -> None:
        if machine.daemon is not None:
            machine.daemon.metadata_changed()

    def _machine(self, machine: int) -> Machine:
        return self.machines[min(machine, len(self.machines) - 1)]

    def do_notice(
        self,
        *,
        action: str = "stop",
        seconds: float = 120.0,
        stop: str = "cut",
        down: float = 120.0,
        late: float = 0.0,
        time: bool = True,
        slides: bool = False,
        machine: int = 0,
    ) -> None:
        """EC2 gives notice; `stop` is what follows: "cut", "orderly", "replace", "none".

        `late`: seconds by which the stop comes later (earlier if negative) than `seconds`.
        """
        m = self._machine(machine)
        if not m.up:
            return
        m.imds.action = action
        m.imds.time = self.clock.wall + seconds if time else None
        m.imds.slides = slides
        self._metadata_changed(m)
        self.clock.after(
            max(0.0, seconds + late), self._carry_out, m, m.boots, stop, down, self.clock.mono
        )

    def _carry_out(self, m: Machine, boot: int, stop: str, down: float, since: float) -> None:
        if not m.up or m.boots != boot or m.finished:
            return
        if stop != "none" and self.last_weather <= since and self.rough_until < since:
            self.oracle.check_notice(m, self.clock.mono - since)
        if stop == "cut":
            m.cut(down)
        elif stop == "orderly":
            m.shut_down(60.0, down)
        elif stop == "replace":
            m.replace(down)

    def do_withdraw(self, machine: int = 0) -> None:
        """The notice is no longer in the metadata."""
        m = self._machine(machine)
        m.imds.action = m.imds.time = None
        self._metadata_changed(m)

    def do_rebalance(self, machine: int = 0) -> None:
        """EC2 recommends rebalancing."""
        m = self._machine(machine)
        m.imds.rebalance = f"at {self.clock.mono:.0f} s"
        self._metadata_changed(m)

    def do_scheduled(self, code: str = "system-reboot", machine: int = 0) -> None:
        """EC2 schedules maintenance."""
        m = self._machine(machine)
        m.imds.events = ((f"event-{self.clock.mono:.0f}", code, "21 Jan 2027 09:00:43 GMT"),)
        self._metadata_changed(m)

    def do_imds(
        self, mood: str = "failing", seconds: float | None = None, machine: int = 0
    ) -> None:
        """The metadata service is in another mood."""
        m = self._machine(machine)
        m.imds.mood = mood
        self._metadata_changed(m)
        if seconds is not None:
            self.clock.after(seconds, self.do_imds, "ok", None, machine)

    def do_cut(self, down: float = 60.0, machine: int = 0) -> None:
        """A power cut without a word."""
        m = self._machine(machine)
        if m.up:
            m.cut(down)

    def do_reboot(self, seconds: float = 90.0, machine: int = 0) -> None:
        """Somebody reboots the machine in good order."""
        self._machine(machine).shut_down(seconds, 15.0)

    def do_replace(self, down: float = 60.0, keep_disk: bool = False, machine: int = 0) -> None:
        """The instance is lost, with its disk unless `keep_disk`."""
        m = self._machine(machine)
        if m.up and not m.finished:
            m.replace(down, keep_disk=keep_disk)

    def do_kill_daemon(self, machine: int = 0) -> None:
        """Kills spotd with -9."""
        self._machine(machine).kill_daemon()

    def do_hang_daemon(self, seconds: float = 10.0, machine: int = 0) -> None:
        """The deciding loop stands still."""
        self._machine(machine).hang_daemon(seconds)

    def do_restart_daemon(self, machine: int = 0) -> None:
        """`systemctl restart spotd`, or an upgrade of the package."""
        self._post(machine, on.StopRequested(120.0, restart=True))

    def do_stop(self, seconds: float = 120.0, machine: int = 0) -> None:
        """`systemctl stop spotd`."""
        self._machine(machine).wanted = False
        self._post(machine, on.StopRequested(seconds))

    def do_start(self, machine: int = 0) -> None:
        """`systemctl start spotd`."""
        m = self._machine(machine)
        m.wanted = True
        m.start_daemon()

    def do_reload(self, machine: int = 0, **changes: Any) -> None:
        """SIGHUP, with some of the policy changed."""
        from dataclasses import replace  # noqa: PLC0415 - hides the method of that name nowhere else

        self._post(machine, on.Reloaded(replace(self.setup.policy, **changes)))

    def do_drill(self, request: int = 1, machine: int = 0) -> None:
        """`spotd drill`."""
        self._post(machine, on.DrillRequested(request))

    def do_checkpoint(self, request: int = 1, machine: int = 0) -> None:
        """`spotd checkpoint`."""
        self._post(machine, on.CheckpointRequested(request))

    def _post(self, machine: int, event: on.Event) -> None:
        daemon = self._machine(machine).daemon
        if daemon is not None:
            daemon.post(event)

    def do_crash(self, status: int = 1, machine: int = 0) -> None:
        """The trainer crashes."""
        trainer = self._machine(machine).trainer
        if trainer is not None:
            trainer.end(status=status, last="RuntimeError: CUDA error")

    def do_oom(self, machine: int = 0) -> None:
        """The kernel kills the trainer."""
        trainer = self._machine(machine).trainer
        if trainer is not None:
            trainer.end(signal=9)

    def do_hang(self, machine: int = 0) -> None:
        """The trainer stands still."""
        trainer = self._machine(machine).trainer
        if trainer is not None:
            trainer.hang()

    def do_poison(self, machine: int = 0) -> None:
        """The newest checkpoint is whole, and training from it always crashes."""
        newest = self._newest(machine)
        if newest is not None:
            newest.poisoned = True
            m = self._machine(machine)
            for file in [*m.disk.holds.values(), *self.bucket.objects.values()]:
                file.poisoned = file.poisoned or file.content == newest.content

    def do_tear(self, machine: int = 0) -> None:
        """The newest checkpoint in the directory is torn (by a copy cut off, say)."""
        newest = self._newest(machine)
        self.oracle.meddled_at = self.clock.mono
        if newest is not None:
            disk = self._machine(machine).disk
            name = newest.name
            torn = disk.files[name] = newest.copy(disk.fingerprint())
            torn.torn = True
            self._machine(machine).watch(on.CheckpointVanished(name))

    def do_vanish(self, machine: int = 0) -> None:
        """Somebody deletes the newest checkpoint."""
        newest = self._newest(machine)
        self.oracle.meddled_at = self.clock.mono
        if newest is not None:
            m = self._machine(machine)
            del m.disk.files[newest.name]
            m.watch(on.CheckpointVanished(newest.name))

    def _newest(self, machine: int) -> File | None:
        files = self._machine(machine).disk.files.values()
        return max(files, key=lambda f: (f.mtime, f.step), default=None)

    def do_disk_full(self, seconds: float = 120.0, machine: int = 0) -> None:
        """No space is left for a while."""
        disk = self._machine(machine).disk
        disk.full = True
        self.clock.after(seconds, setattr, disk, "full", False)

    def do_directory(self, seconds: float = 60.0, machine: int = 0) -> None:
        """The checkpoint directory is not there for a while (a mount that comes late)."""
        disk = self._machine(machine).disk
        disk.missing = True
        self.clock.after(seconds, setattr, disk, "missing", False)

    def do_start_trouble(self, seconds: float = 60.0, machine: int = 0) -> None:
        """The command cannot be started for a while."""
        m = self._machine(machine)
        m.start_trouble = "trainer.user 'ubuntu' does not exist"
        self.clock.after(seconds, setattr, m, "start_trouble", "")

    def do_preflight(self, seconds: float = 60.0, machine: int = 0) -> None:
        """The preflight command fails for a while."""
        m = self._machine(machine)
        m.preflight_ok = False
        self.clock.after(seconds, setattr, m, "preflight_ok", True)

    def do_store(self, mood: str = "down", seconds: float | None = 300.0) -> None:
        """The store is "down", "slow", "lying" or "ok"."""
        self._set_mood(self.bucket, "mood", mood)
        if seconds is not None:
            self.clock.after(seconds, self.do_store, "ok", None)

    def do_network(self, mood: str = "down", seconds: float = 300.0, machine: int = 0) -> None:
        """One machine does not reach the store."""
        m = self._machine(machine)
        self._set_mood(m, "network", mood)
        self.clock.after(seconds, self._set_mood, m, "network", "ok")

    def _set_mood(self, whose: object, name: str, mood: str) -> None:
        links = [m.daemon.hands.remote for m in self.machines if m.daemon is not None]
        for one in links:
            one.pause()
        setattr(whose, name, mood)
        for one in links:
            one.go_on()

    def do_damage(self) -> None:
        """The newest object in the store rots."""
        whole = [i for i in self.bucket.manifests if self.bucket.restorable(i)]
        if whole:
            self.bucket.objects[max(whole)].garbled = True

    def do_second_machine(self) -> None:
        """Another instance is started with the same run."""
        if len(self.machines) == 1:
            machine = Machine(self, "2")
            self.machines.append(machine)
            machine.boot()

    def do_clock_jump(self, seconds: float = 3600.0) -> None:
        """The wall clock is set."""
        self.clock.shift += seconds

    def do_complete_elsewhere(self) -> None:
        """Another machine has completed the run."""
        self.bucket.completed = True
