"""What must hold whatever the weather: told the truth about the world, it judges spotd.

The oracle sees what spotd cannot see (which bytes are really whole) and speaks up when
what spotd did was not the best that could be done with what there was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.core import events as on
from spotd.core.state import Phase

if TYPE_CHECKING:
    from spotd.core import actions as do
    from spotd.core.state import State
    from spotd.simulation.daemon import Daemon
    from spotd.simulation.disk import File
    from spotd.simulation.machine import Machine
    from spotd.simulation.trainer import Trainer
    from spotd.simulation.world import World

PROMPT = 20.0  # seconds in which a whole checkpoint must be safe from a power cut, all being well


@dataclass(frozen=True, slots=True)
class Resume:
    """One start of the trainer: what it resumed from and what had been reached before."""

    at: float
    machine: str
    step: int
    reached: int
    name: str | None

    @property
    def lost(self) -> int:
        """Steps that are trained again."""
        return max(0, self.reached - self.step)


class Oracle:
    """Collects what was broken, by the name of the invariant."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: list[str] = []
        self.resumes: list[Resume] = []
        self.completed_by_trainer = False
        self._order: dict[str, int] = {}  # content -> when it was written, as a rank
        self._reached: dict[str, int] = {}
        self._written: dict[str, tuple[float, File]] = {}  # machine -> its last finished save
        self._synced: dict[str, int] = {}  # the same, held or not
        self._durable: dict[str, tuple[int, str]] = {}  # machine -> newest content called durable
        self._stored: tuple[int, str] = (-1, "")  # newest content called stored
        self._signals: dict[int, int] = {}  # pid -> stop signals that reached it
        self._lives: dict[int, set[int]] = {}
        self.meddled_at = -1e9
        self.last_step = 0  # of the newest attempt, when it ended
        self.gave_up_at = -1e9  # when spotd last said that it takes an older one
        self._void: dict[str, dict[float, float]] = {}  # machine -> attempts not wanted: from, to
        self.rotten_seen: set[str] = set()  # found damaged when they were fetched
        self.useful = 0
        self.alive = 0.0

    def broken(self, invariant: str, how: str) -> None:
        """Notes that an invariant does not hold."""
        self.violations.append(f"{invariant} at {self.world.clock.mono:.1f} s: {how}")
        self.world.trace.world(f"BROKEN {invariant}: {how}")

    # --- what the trainer does -------------------------------------------------------

    def saved(self, machine: Machine, file: File) -> None:
        """A checkpoint was written, whole."""
        self._order[file.content] = len(self._order)
        self._written[machine.name] = (self.world.clock.mono, file)

    def loaded(self, machine: Machine, trainer: Trainer, file: File | None) -> None:
        """The trainer has read what it resumes from."""
        step = 0 if file is None else file.step
        reached = self._reached.get(machine.name, 0)
        name = None if file is None else file.name
        self.check_safe(machine)
        self.resumes.append(Resume(self.world.clock.mono, machine.name, step, reached, name))
        if trainer.model.searches and file is not None and not file.whole:
            self.broken("torn aside", f"the trainer found {file.name} by itself, and it is torn")

    def ended(self, machine: Machine, trainer: Trainer) -> None:
        """The trainer is gone; how far had it come?"""
        step = trainer.step
        name = machine.name
        self._reached[name] = max(step, self._reached.get(name, 0))
        self.alive += self.world.clock.wall - trainer.started
        self.last_step = step
        machine.left_at = self.world.clock.mono

    # --- what spotd does -------------------------------------------------------------

    def starting(self, daemon: Daemon, action: do.StartTrainer) -> None:
        """The trainer is about to be started: one at most, from the newest that is whole."""
        machine = daemon.machine
        if machine.trainer is not None:
            self.broken("one trainer", f"attempt {action.attempt} while another one lives")
            return
        known = daemon.state.completed or self.world.bucket.completed
        told = machine.store_mood() == "ok" and daemon.state.store.status == "open"
        if self.completed_by_trainer and known and told:
            self.broken("completed", "a complete run is trained again")
        if daemon.state.store.status == "refused":
            self.broken("lease", "a trainer is started while another machine has the run")
        disk = machine.disk
        file = None if action.resume_from is None else disk.files.get(action.resume_from)
        since = max(self.meddled_at, daemon.woke_at if self.meddled_at > daemon.stood_at else 0.0)
        if self.world.clock.mono - since < 1.0:
            return  # somebody tore or deleted a file this very moment
        if action.resume_from is not None and (file is None or not file.whole):
            what = "is not there" if file is None else "is torn"
            self.broken("never from what is not whole", f"{action.resume_from} {what}")
            return
        self._judge_lease(daemon)
        self._judge_choice(daemon, file)

    def _judge_lease(self, daemon: Daemon) -> None:
        machine = daemon.machine
        lease, store = self.world.bucket.lease, daemon.state.store
        others = lease is not None and lease.holder != machine.instance_id
        if lease is None or not others or store.status != "open":
            return
        if lease.until > self.world.clock.mono:
            self.broken("one machine", f"started while {lease.holder} has the lease")

    def _judge_choice(self, daemon: Daemon, file: File | None) -> None:
        machine, state = daemon.machine, daemon.state
        rejected = state.rejected
        if self.gave_up_at >= machine.left_at:
            return  # said, and why
        candidates = [f for f in machine.disk.files.values() if f.fingerprint not in rejected]
        candidates += [f for i, f in machine.disk.holds.items() if i not in rejected]
        listed = state.store.status == "open" and state.store.lease_until is not None
        if listed:
            bucket = self.world.bucket
            candidates += [
                bucket.objects[i]
                for i in bucket.manifests
                if bucket.restorable(i) and i not in rejected
            ]
        mine = (-1, -1) if file is None else (file.step, self._order.get(file.content, -1))
        for other in candidates:
            if not other.whole or other.poisoned or self._spoilt(other, rejected, state):
                continue
            theirs = (other.step, self._order.get(other.content, -1))
            if theirs[0] > mine[0] and theirs[1] > mine[1]:
                taken = "scratch" if file is None else f"step {file.step}"
                self.broken("the newest whole one", f"{taken} although {other.name} is whole")
                return

    def _spoilt(self, other: File, rejected: frozenset[str], state: State) -> bool:
        contents = {k.id for k in state.known if k.fingerprint in rejected or k.id in rejected}
        if other.fingerprint in rejected or other.content in rejected:
            return True
        return any(other.name == k.name for k in state.known if k.id in contents)

    def signalled(
        self, machine: Machine, action: do.SignalTrainer, targets: tuple[int, ...]
    ) -> None:
        """The stop signal reaches a trainer once in the life of a daemon."""
        if action.purpose != "stop" or not targets or machine.daemon is None:
            return
        told = self._lives.setdefault(targets[0], set())
        if id(machine.daemon) in told:
            self.broken("signalled once", f"process {targets[0]} was signalled twice")
        told.add(id(machine.daemon))

    def durable(
        self, machine: Machine, checkpoint_id: str, held: File | None, file: File | None
    ) -> None:
        """Hears spotd being told that this one survives a power cut."""
        for one in (held, file):
            if one is not None:
                order = self._order.get(one.content, -1)
                self._synced[machine.name] = max(order, self._synced.get(machine.name, -1))
        file = held  # what is not held, the trainer may overwrite at any time
        if file is not None and file.whole:
            order = self._order.get(file.content, -1)
            if order > self._durable.get(machine.name, (-1, ""))[0]:
                self._durable[machine.name] = (order, checkpoint_id)

    def stored(self, machine: Machine, action: do.Upload, file: File) -> None:
        """Hears spotd being told that this one is in the store."""
        if self.world.bucket.mood == "lying":
            return
        if not self.world.bucket.restorable(action.id):
            self.broken("stored means restorable", f"{action.id} is not")
            return
        lease = self.world.bucket.lease
        if lease is not None and lease.holder != machine.instance_id:
            late = self.world.clock.mono < lease.until
            if (
                late
                and machine.daemon is not None
                and machine.daemon.state.store.status == "refused"
            ):
                self.broken("no lease, no storing", f"{action.id} by {machine.instance_id}")
        self._stored = max(self._stored, (self._order.get(file.content, -1), action.id))

    def opened(self, machine: Machine) -> None:
        """The store was listed."""

    def deleting(self, ids: tuple[str, ...]) -> None:
        """Retention: the newest whole one is never among them."""
        bucket = self.world.bucket
        whole = [i for i in bucket.manifests if bucket.restorable(i)]
        left = [i for i in whole if i not in ids]
        newest = max(bucket.manifests, default="")
        if newest in ids or (whole and not left and newest in self.rotten_seen):
            self.broken("the last one stays", f"{max(ids)} is deleted from the store")

    def let_go(self, machine: Machine, what: str) -> None:
        """Something on the disk was deleted: is the newest safe one still somewhere?"""
        order, checkpoint_id = self._durable.get(machine.name, (-1, ""))
        daemon = machine.daemon
        if daemon is not None and checkpoint_id in daemon.state.rejected:
            self._durable.pop(machine.name, None)  # of a trainer that had started in the dark
            return
        if order >= 0 and not self._anywhere(machine, order):
            self.broken("the last one stays", f"{checkpoint_id} was the newest whole one: {what}")

    def _anywhere(self, machine: Machine, order: int) -> bool:
        disk, bucket = machine.disk, self.world.bucket
        files = [*disk.files.values(), *disk.holds.values(), *disk.aside.values()]
        files += [bucket.objects[i] for i in bucket.manifests if bucket.restorable(i)]
        return any(f.whole and self._order.get(f.content, -1) >= order for f in files)

    def finishing(self, daemon: Daemon) -> None:
        """The instance is ended by spotd only when the run is complete and stored."""
        if not (daemon.state.completed and self.world.bucket.completed):
            self.broken("never powered off", "the instance is ended before the run is complete")

    def decided(self, machine: Machine, event: on.Event, before: State, after: State) -> None:
        """One decision was made."""
        for trainer in (before.trainer, after.trainer):
            if trainer is not None and trainer.superseded:
                void = self._void.setdefault(machine.name, {})
                void[trainer.started_mono] = self.world.clock.mono
        self._rejected(event, before, after)
        if after.completed and not before.completed and after.phase is not Phase.COMPLETED:
            self.completed_by_trainer = True

    def _rejected(self, event: on.Event, before: State, after: State) -> None:
        """Nothing is given up without a reason: damaged, blamed, or another machine's run."""
        if after.rejected <= before.rejected or after.blamed != before.blamed:
            return
        for state in (before, after):
            if state.trainer is not None and state.trainer.superseded:
                return
            if state.void_since is not None:
                return
        if isinstance(event, on.Started) or (isinstance(event, on.FetchFailed) and event.damaged):
            return
        self.broken("given up for a reason", f"{sorted(after.rejected - before.rejected)}")

    # --- what the weather does -------------------------------------------------------

    def powering_off(self, machine: Machine, *, orderly: bool) -> None:
        """Is what was saved long enough ago safe by now?"""
        written = self._written.get(machine.name)
        if orderly or written is None or machine.daemon is None or self.world.bucket.completed:
            return
        at, file = written
        world = self.world
        size = file.size / world.setup.copy_bandwidth
        state = machine.daemon.state
        if self.meddled_at >= at or state.store.status == "refused":
            return  # or the run is another machine's, and what was trained here is not wanted
        if any(begun <= at <= end for begun, end in self._void.get(machine.name, {}).items()):
            return  # it was: its trainer was superseded
        bucket = world.bucket
        if any(bucket.objects[i].step > file.step for i in bucket.manifests if i in bucket.objects):
            return  # trained blindly, behind what the store turned out to have
        since = max(at, machine.alive_since)
        calm = world.clock.mono - max(since, world.rough_until) > PROMPT + 3 * size
        if not calm or machine.daemon.hung_since is not None:
            return
        order = self._order[file.content]
        if machine.disk.files.get(file.name) is file and file.whole:
            safe = self._synced.get(machine.name, -1)
            if safe < order and self._stored[0] < order and not file.poisoned:
                self.broken("promptly safe", f"{file.name} is {world.clock.mono - at:.0f} s old")

    def check_notice(self, machine: Machine, left: float) -> None:
        """EC2 stops the instance, after a notice in fair weather: nothing is lost."""
        world, model = self.world, self.world.setup.trainer
        policy = world.setup.policy
        need = 6.0 + 2 * model.save_seconds + policy.margin
        since = world.clock.mono - left
        if not (model.catches and model.saves and left >= need) or left > 120.0:  # noqa: PLR2004
            return
        calm = machine.alive_since < since - 10.0 and machine.ready_at < since
        if not calm or machine.boots == 0 or self._written.get(machine.name) is None:
            return
        if machine.trainer is not None or machine.unsaved:
            self.broken("no step lost", f"{machine.unsaved} steps, with {left:.0f} s of notice")
            return
        file = self._written[machine.name][1]
        mood = machine.store_mood()
        rate = world.setup.store.bandwidth
        send = 20.0 + 3 * file.size / rate + 3 * file.size / world.setup.copy_bandwidth
        if mood == "ok" and left - policy.margin > need + send and world.bucket.lease is not None:
            if world.bucket.lease.holder != machine.instance_id:
                return
            if self._order[file.content] > self._stored[0]:
                self.broken("stored in time", f"{file.name} was not, with {left:.0f} s of notice")

    def disk_lost(self, machine: Machine) -> None:
        """What was only on the disk is gone, and that is nobody's fault."""
        self._durable.pop(machine.name, None)

    def check_safe(self, machine: Machine) -> None:
        """After a power cut: what was called durable is still somewhere."""
        order, checkpoint_id = self._durable.get(machine.name, (-1, ""))
        if order >= 0 and not self._anywhere(machine, order):
            self.broken("durable", f"{checkpoint_id} did not survive")

    def at_rest(self) -> None:
        """The weather is over: everything has come to an end, or says what it waits for."""
        ends = {m.daemon.state.phase for m in self.world.machines if m.daemon is not None}
        good = bool(ends & {Phase.COMPLETED, Phase.FAILED}) or not ends
        if not good and self.world.setup.trainer.total_steps is not None:
            self.broken("rest", f"hours of quiet and still {ends.pop().value}")
        for machine in self.world.machines:
            if not machine.up or machine.daemon is None:
                if machine.wanted and not machine.finished:
                    self.broken("rest", f"{machine.instance_id}: no spotd is running")
                continue
            self._check_rest(machine, machine.daemon.state)

    def _check_rest(self, machine: Machine, state: State) -> None:
        if state.phase in (Phase.STARTING, Phase.STOPPING, Phase.DRAINING):
            self.broken("rest", f"{machine.instance_id} is still {state.phase.value}")
        elif state.phase is Phase.RESTORING and not state.reason:
            self.broken("rest", f"{machine.instance_id} is restoring and does not say why")
        elif state.phase is Phase.RUNNING and machine.trainer is None:
            self.broken("rest", f"{machine.instance_id} says running, and nothing runs")
        untold = not self.world.bucket.completed and state.store.status != "refused"
        if untold and state.disk_empty and "no longer on the disk" in state.reason:
            return  # all of it was deleted: it says so, and waits for a person
        if state.phase is Phase.COMPLETED and machine.store_mood() == "ok" and untold:
            self.broken("rest", "the run is complete and the store does not know")
        held = set(machine.disk.holds)
        settling = any(k.hold is not None and not k.durable for k in state.known)
        if len(held) > 3 + bool(state.store.upload) + settling:
            self.broken("holds", f"{len(held)} holds are left on the disk")
