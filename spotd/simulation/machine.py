"""One EC2 instance: power, metadata, disk, trainer, and systemd keeping spotd alive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.core import events as on
from spotd.core.state import Phase
from spotd.simulation.daemon import Daemon, classify_boot, read_record
from spotd.simulation.disk import Disk
from spotd.simulation.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.simulation.disk import File
    from spotd.simulation.world import World


class Imds:
    """The instance metadata service, in every mood: "ok", "failing" or "silent"."""

    def __init__(self) -> None:
        self.mood = "ok"
        self.action: str | None = None
        self.time: float | None = None
        self.slides = False
        self.rebalance: str | None = None
        self.events: tuple[tuple[str, str, str], ...] = ()

    def answer(self, wall: float) -> on.MetadataAnswered | on.MetadataFailed | None:
        """Answers one poll."""
        if self.mood == "silent":
            return None
        if self.mood != "ok":
            return on.MetadataFailed("503 Service Unavailable")
        time = wall + 120.0 if self.slides and self.action is not None else self.time
        return on.MetadataAnswered(self.action, time, self.rebalance, self.events)

    def clear(self) -> None:
        """There is nothing to say."""
        self.action = self.time = self.rebalance = None
        self.slides = False
        self.events = ()


class Machine:
    """An instance; terminated, it is replaced by another with an empty disk."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.clock = world.clock
        self.name = name
        self.instance_id = f"i-{name}"
        self.replacements = 0
        self.disk = Disk(self.instance_id)
        self.imds = Imds()
        self.trainer: Trainer | None = None
        self.daemon: Daemon | None = None
        self.up = False
        self.finished = ""
        self.boots = 0
        self.booted = 0.0
        self.ended_in_boot = 0  # the boot in which a spotd last ended in good order
        self.start_trouble = ""
        self.preflight_ok = True
        self.network = "ok"  # of this machine alone; the bucket has a mood of its own
        self.wanted = True  # whether systemd is to keep spotd running
        self.asked_to_stop = False
        self.alive_since = 0.0
        self.unsaved = 0  # steps the last trainer had not saved when it ended
        self.left_at = 0.0  # when the last trainer ended
        self.ready_at = 0.0  # when the last trainer had started up
        self._pids = 100

    # --- power -----------------------------------------------------------------------

    def boot(self) -> None:
        """Power on: spotd starts once systemd has come so far."""
        if self.up or self.finished:
            return
        self.up = True
        self.boots += 1
        self.booted = self.clock.wall
        self.wanted = True
        self.world.trace.world(f"{self.instance_id} boots")
        self.clock.after(
            self.world.setup.boot_seconds, self._in_this_boot, self.boots, self.start_daemon
        )

    def _in_this_boot(self, boot: int, what: Callable[[], None]) -> None:
        if self.up and boot == self.boots:
            what()

    def off(self, *, orderly: bool) -> None:
        """Power off, after a shutdown in good order or not."""
        if not self.up:
            return
        self.world.oracle.powering_off(self, orderly=orderly)
        if self.trainer is not None:
            self.world.oracle.ended(self, self.trainer)
            self.unsaved = self.trainer.step - self.trainer.saved_step
            self.trainer.alive = False
            self.trainer = None
        if self.daemon is not None:
            self.daemon.die()
        if orderly:
            self.disk.sync_all()
        else:
            self.disk.power_cut(self.clock.wall, self.world.random, pick=self.world.fate)
        self.up = False
        self.world.trace.world(f"{self.instance_id} is off" + ("" if orderly else ": a power cut"))

    def cut(self, down: float | None = 60.0) -> None:
        """A power cut, and back after so many seconds (None: not by itself)."""
        self.off(orderly=False)
        if self.world.setup.clears_notice:
            self.imds.clear()
        if down is not None:
            self.clock.after(down, self.boot)

    def shut_down(self, seconds: float = 90.0, down: float | None = 60.0) -> None:
        """An orderly shutdown: spotd is stopped first, then all the rest."""
        if not self.up:
            return
        self.wanted = False
        self.world.trace.world(f"{self.instance_id} is shutting down")
        if self.daemon is not None:
            self.daemon.post(on.StopRequested(seconds))
        self._finish_shutdown(self.clock.mono + seconds, down)

    def _finish_shutdown(self, by: float, down: float | None) -> None:
        if not self.up:
            return
        if self.daemon is not None and self.clock.mono < by:
            self.clock.after(1.0, self._finish_shutdown, by, down)
            return
        if self.trainer is not None:
            self.trainer.end(signal=15)
        self.off(orderly=True)
        if self.world.setup.clears_notice:
            self.imds.clear()
        if down is not None:
            self.clock.after(down, self.boot)

    def replace(self, down: float = 60.0, *, keep_disk: bool = False) -> None:
        """Terminated: another instance takes its place, its disk empty (or the old one)."""
        self.off(orderly=False)
        self.replacements += 1
        self.instance_id = f"i-{self.name}{self.replacements}"
        if not keep_disk:
            self.world.oracle.disk_lost(self)
            self.disk = Disk(self.instance_id)
        self.imds.clear()
        self.clock.after(down, self.boot)

    def finish(self, action: str) -> None:
        """`completion.action`: this instance is stopped or terminated for good."""
        self.finished = action
        self.wanted = False
        self.clock.after(5.0, self.off_for_good)

    def off_for_good(self) -> None:
        """EC2 has done as it was told."""
        self.off(orderly=True)

    # --- spotd -----------------------------------------------------------------------

    def start_daemon(self) -> None:
        """Has systemd start spotd, once."""
        if not self.up or self.daemon is not None:
            return
        daemon = self.daemon = Daemon(self)
        self.alive_since = self.clock.mono
        self.asked_to_stop = False
        record = read_record(self.disk.record)
        found = None
        if self.trainer is not None:
            found = on.TrainerFound(self.trainer.pid, self.trainer.attempt, self.trainer.started)
        boot_id = f"boot-{self.boots}"
        orderly = self.ended_in_boot == self.boots - 1
        boot = classify_boot(record, boot_id, self.instance_id, orderly=orderly)
        daemon.begin(on.Started(record, boot, boot_id, self.instance_id, found, self.booted))

    def kill_daemon(self) -> None:
        """Kills it with -9; systemd starts it again."""
        if self.daemon is None:
            return
        self.world.trace.world("spotd is killed")
        self.daemon.die()
        self._start_again()

    def _start_again(self) -> None:
        if self.wanted:
            self.clock.after(
                self.world.setup.restart_seconds, self._in_this_boot, self.boots, self.start_daemon
            )

    def daemon_exited(self, _status: int) -> None:
        """It ended by itself, as it was asked to."""
        self.world.trace.world("spotd has ended")
        self.ended_in_boot = self.boots
        self._start_again()

    def hang_daemon(self, seconds: float) -> None:
        """The deciding loop stands still; the watchdog kills it if that lasts too long."""
        daemon = self.daemon
        if daemon is None:
            return
        daemon.hang()
        limit = self.world.setup.watchdog_seconds
        if seconds > limit:
            daemon.later(limit, self._watchdog, daemon)
        else:
            daemon.later(seconds, daemon.wake)

    def _watchdog(self, daemon: Daemon) -> None:
        if daemon.alive and daemon.hung_since is not None:
            self.kill_daemon()

    # --- between trainer, directory and spotd ----------------------------------------

    def spawn(self, attempt: int, resume_from: str | None) -> Trainer:
        """Starts the trainer's command."""
        self._pids += 1
        trainer = self.trainer = Trainer(self, self._pids, attempt, resume_from)
        return trainer

    def tell(self, event: on.Event) -> None:
        """A datagram, or an exit: lost if no spotd is there."""
        if self.daemon is not None:
            self.daemon.post(event)

    def watch(self, event: on.Event, seconds: float | None = None) -> None:
        """The watcher reports, after a moment, if it lives by then."""
        if self.daemon is not None:
            delay = self.world.setup.watch_seconds if seconds is None else seconds
            self.daemon.later(delay, self.daemon.post, event)

    def watch_whole(self, file: File) -> None:
        """The watcher finds a file whole, if it still is in a moment."""
        daemon = self.daemon
        if daemon is not None:
            daemon.later(self.world.setup.watch_seconds, self._seen, daemon, file)

    def _seen(self, daemon: Daemon, file: File) -> None:
        if self.disk.files.get(file.name) is file and not file.torn:
            daemon.post(on.CheckpointSeen(file.seen()))

    def at_rest(self) -> bool:
        """Whether nothing more will happen here: the run is complete, on both sides."""
        if self.finished:
            return not self.up
        if self.daemon is None or self.trainer is not None or not self.daemon.alive:
            return False
        state = self.daemon.state
        return state.phase is Phase.COMPLETED and state.finished

    def store_mood(self) -> str:
        """Returns how well the store answers this machine."""
        return self.network if self.network != "ok" else self.world.bucket.mood
