"""What every action does to the simulated world, and which event answers it, when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.checkpoint import StoredCheckpoint, parse_checkpoint_id
from spotd.core.journal_events import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.simulation.daemon import Daemon
    from spotd.simulation.disk import File

DOWN_SECONDS = 3.0  # until a store that does not answer counts as failed
SLOW = 30.0  # a slow store takes so many times as long


class Sending:
    """The upload under way."""

    __slots__ = ("action", "began", "file", "since")

    def __init__(self, action: do.Upload, file: File, since: float, began: float) -> None:
        self.action = action
        self.file = file
        self.since = since
        self.began = began


class Hands:
    """One method for each action."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.machine = daemon.machine
        self.world = daemon.world
        self.bucket = daemon.world.bucket
        self.sending: Sending | None = None
        self.fetching: list[str] | None = None

    def act(self, action: do.Action) -> None:
        """Carries one action out."""
        getattr(self, type(action).__name__)(action)

    def drop(self) -> None:
        """The daemon is gone: what was being sent stays as parts."""
        self._note_sent()
        self.sending = None
        self.fetching = None

    def _answer(self, seconds: float, event: on.Event) -> None:
        self.daemon.later(seconds, self.daemon.post, event)

    # --- the daemon itself -----------------------------------------------------------

    def Persist(self, action: do.Persist) -> None:  # noqa: N802 - named like the action
        disk = self.machine.disk
        if disk.full:
            self.world.record_failures += 1
        else:
            disk.record = action.record

    def Announce(self, action: do.Announce) -> None:  # noqa: N802
        if action.name == "restore_gave_up":
            self.world.oracle.gave_up_at = self.daemon.clock.mono
        self.world.announced[action.name] = self.world.announced.get(action.name, 0) + 1
        if action.name not in EVENTS:
            self.world.oracle.broken("journal", f"{action.name} is not in the table of events")

    def SyncJournal(self, _: do.SyncJournal) -> None:  # noqa: N802
        pass

    def Reply(self, action: do.Reply) -> None:  # noqa: N802
        self.world.replies.append(action)

    def Exit(self, action: do.Exit) -> None:  # noqa: N802
        self.daemon.die()
        self.machine.daemon_exited(action.status)

    # --- the trainer -----------------------------------------------------------------

    def RunPreflight(self, _: do.RunPreflight) -> None:  # noqa: N802
        ok = self.machine.preflight_ok
        self._answer(1.0, on.PreflightPassed() if ok else on.PreflightFailed("nvidia-smi failed"))

    def StartTrainer(self, action: do.StartTrainer) -> None:  # noqa: N802
        if self.machine.start_trouble:
            self._answer(0.05, on.TrainerStartFailed(self.machine.start_trouble, "mend it"))
            return
        self.world.oracle.starting(self.daemon, action)
        trainer = self.machine.spawn(action.attempt, action.resume_from)
        self._answer(0.05, on.TrainerStarted(trainer.pid))

    def SignalTrainer(self, action: do.SignalTrainer) -> None:  # noqa: N802
        trainer = self.machine.trainer
        targets = () if trainer is None else trainer.signal(action.purpose)
        self.world.oracle.signalled(self.machine, action, targets)
        self._answer(0.01, on.SignalSent(action.purpose, targets))

    def KillTrainer(self, _: do.KillTrainer) -> None:  # noqa: N802
        if self.machine.trainer is not None:
            self.machine.trainer.end(signal=9)

    def MeasureActivity(self, _: do.MeasureActivity) -> None:  # noqa: N802
        trainer = self.machine.trainer
        counter = 0 if trainer is None else trainer.step
        self._answer(0.01, on.ActivityMeasured(counter))

    # --- the checkpoint directory ----------------------------------------------------

    def Inspect(self, action: do.Inspect) -> None:  # noqa: N802
        self.daemon.later(0.2, self._inspected, action)

    def _inspected(self, action: do.Inspect) -> None:
        disk = self.machine.disk
        if disk.missing:
            self.daemon.post(on.DirectoryTrouble("the checkpoint directory is missing", "mount it"))
            return
        self.daemon.post(
            disk.inventory(settled=action.settled, contents=action.contents, trusted=action.trusted)
        )

    def Hold(self, action: do.Hold) -> None:  # noqa: N802
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
        if held is None:
            if file is None or file.torn or file.fingerprint != action.fingerprint:
                self.daemon.post(on.HoldFailed(action.id, "it changed"))
                return
            if mode == "copy":
                held = disk.holds[action.id] = file.copy(action.fingerprint)
            elif mode == "link":
                held = disk.holds[action.id] = file
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

    def ReleaseHold(self, action: do.ReleaseHold) -> None:  # noqa: N802
        self.machine.disk.holds.pop(action.id, None)
        self.world.oracle.let_go(self.machine, f"ReleaseHold {action.id}")

    def SetAside(self, action: do.SetAside) -> None:  # noqa: N802
        self.daemon.later(0.02, self._set_aside, action.name)

    def _set_aside(self, name: str) -> None:
        disk = self.machine.disk
        file = disk.files.pop(name, None)
        if file is not None:
            disk.aside[name] = file
        self.daemon.post(on.SetAsideDone(name, f".spotd-aside/{name}"))

    def BringBack(self, action: do.BringBack) -> None:  # noqa: N802
        disk = self.machine.disk
        if action.name in disk.aside and action.name not in disk.files:
            disk.files[action.name] = disk.aside.pop(action.name)

    def Reinstate(self, action: do.Reinstate) -> None:  # noqa: N802
        self.daemon.later(0.1, self._reinstated, action.id)

    def _reinstated(self, checkpoint_id: str) -> None:
        disk = self.machine.disk
        held = disk.holds.get(checkpoint_id)
        if held is None or not held.whole or disk.full:
            self.daemon.post(on.ReinstateFailed(checkpoint_id, "the hold is not whole"))
            return
        file = held.copy(disk.fingerprint())
        disk.files[file.name] = file
        disk.sync(file.name)
        self.machine.watch_whole(file)
        self.daemon.post(on.Reinstated(checkpoint_id, file.seen()))

    def DeleteLocal(self, action: do.DeleteLocal) -> None:  # noqa: N802
        disk = self.machine.disk
        file = disk.files.get(action.name)
        if file is not None and file.fingerprint == action.fingerprint:
            del disk.files[action.name]
            self.machine.watch(on.CheckpointVanished(action.name))
            self.world.oracle.let_go(self.machine, f"DeleteLocal {action.name}")

    # --- the store -------------------------------------------------------------------

    def _remote(self, what: Callable[..., None], operation: str, *args: Any) -> None:
        mood = self.machine.store_mood()
        if mood == "down":
            self._answer(DOWN_SECONDS, on.StoreFailed(operation, "connection timed out"))
            return
        slow = SLOW if mood == "slow" else 1.0
        self.daemon.later(self.bucket.model.latency * slow, what, *args)

    def WarmStore(self, _: do.WarmStore) -> None:  # noqa: N802
        pass

    def OpenStore(self, _: do.OpenStore) -> None:  # noqa: N802
        self._remote(self._opened, "open")

    def _opened(self) -> None:
        now = self.daemon.clock.mono
        lease = self.bucket.acquire(self.machine.instance_id, now)
        if lease is None:
            self._refused(now)
            return
        self.world.oracle.opened(self.machine)
        self.daemon.post(
            on.StoreOpened(
                lease.generation, lease.until - now, self.bucket.listing(),
                self.bucket.completed, self.bucket.top_sequence(),
            )
        )  # fmt: skip

    def _refused(self, now: float) -> None:
        lease = self.bucket.lease
        if lease is not None:
            self.daemon.post(on.LeaseRefused(lease.holder, max(0.0, lease.until - now)))

    def RenewLease(self, _: do.RenewLease) -> None:  # noqa: N802
        self._remote(self._renewed, "lease")

    def _renewed(self) -> None:
        now = self.daemon.clock.mono
        if self.bucket.renew(self.machine.instance_id, now):
            self.daemon.post(on.LeaseRenewed(self.bucket.model.lease_seconds))
        elif self.bucket.acquire(self.machine.instance_id, now) is not None:
            self.daemon.post(on.LeaseRenewed(self.bucket.model.lease_seconds))
        else:
            self._refused(now)

    def ReleaseLease(self, _: do.ReleaseLease) -> None:  # noqa: N802
        if self.machine.store_mood() != "down":
            self.bucket.release(self.machine.instance_id)

    def Upload(self, action: do.Upload) -> None:  # noqa: N802
        if self.sending is not None and self.sending.action.id == action.id and action.urgent:
            return  # the same one, at full speed from now on
        if self.sending is not None:
            same = self.sending.action.id == action.id
            if not (same and action.urgent):  # the same one, urgent by now, just goes on
                self._answer(0.01, on.UploadFailed(action.id, "another is being stored"))
            return
        disk = self.machine.disk
        file = disk.holds.get(action.id)
        if file is None:
            file = disk.files.get(action.name)
            if file is None or file.fingerprint != action.fingerprint:
                self._answer(0.05, on.UploadFailed(action.id, "it changed", gone=True))
                return
        now = self.daemon.clock.mono
        self._send(Sending(action, file, now, now))

    def _send(self, sending: Sending) -> None:
        self.sending = sending
        if self.machine.store_mood() == "down":
            self.daemon.later(DOWN_SECONDS, self._upload_fails, self.sending)
            return
        seconds = self.bucket.model.latency + self._missing(self.sending) / self.bandwidth()
        if seconds > 10.0:  # noqa: PLR2004 - progress is worth a line
            self.daemon.later(seconds / 2, self._progress, self.sending)
        self.daemon.later(seconds, self._sent, self.sending)

    def pause(self) -> None:
        """The link is about to change: what has been sent so far was sent at its old speed."""
        self._note_sent()

    def go_on(self) -> None:
        """The link has changed: the rest takes as long as it takes now."""
        if self.sending is not None:
            old = self.sending
            self._send(Sending(old.action, old.file, self.daemon.clock.mono, old.began))
        if self.fetching is not None:
            self._fetch(self.fetching[0])

    def bandwidth(self) -> float:
        """Bytes per second at this moment."""
        slow = SLOW if self.machine.store_mood() == "slow" else 1.0
        return self.bucket.model.bandwidth / slow

    def _missing(self, sending: Sending) -> float:
        content, sent = self.bucket.sent.get(sending.action.id, ("", 0.0))
        return sending.file.size - (sent if content == sending.file.content else 0.0)

    def _note_sent(self) -> None:
        sending = self.sending
        if sending is None or self.machine.store_mood() == "down":
            return
        seconds = self.daemon.clock.mono - sending.since
        missing = self._missing(sending)
        sent = sending.file.size - missing + min(missing, seconds * self.bandwidth())
        self.bucket.sent[sending.action.id] = (sending.file.content, sent)

    def _progress(self, sending: Sending) -> None:
        if self.sending is sending:
            size = sending.file.size
            self.daemon.post(on.UploadProgressed(sending.action.id, size // 2, size))

    def _upload_fails(self, sending: Sending) -> None:
        if self.sending is sending:
            self.sending = None
            self.daemon.post(on.UploadFailed(sending.action.id, "connection timed out"))

    def _sent(self, sending: Sending) -> None:
        if self.sending is not sending:
            return
        action, file = sending.action, sending.file
        if self.machine.store_mood() == "down":
            self._note_sent()
            self._upload_fails(sending)
            return
        disk = self.machine.disk
        held = disk.holds.get(action.id)
        original = disk.files.get(action.name)
        unchanged = original is file and file.fingerprint == action.fingerprint
        if file.torn or (held is not file and not unchanged):
            self.sending = None
            self.daemon.post(on.UploadFailed(action.id, "it changed", gone=True))
            return
        manifest = StoredCheckpoint(
            action.id, (parse_checkpoint_id(action.id) or (0, ""))[0], action.generation,
            action.name, "file", file.size, action.step, action.created, int(file.mtime * 1e9),
            self.machine.instance_id,
        )  # fmt: skip
        said = self.bucket.put(manifest, file.copy(file.fingerprint))
        self.sending = None
        if said != "stored":
            self.daemon.post(on.UploadFailed(action.id, said, gone=True))
            return
        self.world.oracle.stored(self.machine, action, file)
        seconds = self.daemon.clock.mono - sending.began
        self.daemon.post(on.Uploaded(action.id, file.size, file.size, seconds))

    def StopUploads(self, _: do.StopUploads) -> None:  # noqa: N802
        self._note_sent()
        self.sending = None
        self._answer(0.05, on.UploadsStopped())

    def Fetch(self, action: do.Fetch) -> None:  # noqa: N802
        self._fetch(action.id)

    def _fetch(self, checkpoint_id: str) -> None:
        self.fetching = fetching = [checkpoint_id]
        if self.machine.store_mood() == "down":
            self.daemon.later(DOWN_SECONDS, self._fetch_fails, fetching)
            return
        stored = self.bucket.manifests.get(checkpoint_id)
        size = 0 if stored is None else stored.manifest.size
        seconds = self.bucket.model.latency + size / self.bandwidth()
        if seconds > 10.0:  # noqa: PLR2004 - progress is worth a line
            self.daemon.later(seconds / 2, self._fetch_progress, fetching, size)
        self.daemon.later(seconds, self._fetched, fetching)

    def _fetch_progress(self, fetching: list[str], size: int) -> None:
        if self.fetching is fetching:
            self.daemon.post(on.FetchProgressed(fetching[0], size // 2, size))

    def _fetch_fails(self, fetching: list[str]) -> None:
        if self.fetching is fetching:
            self.fetching = None
            self.daemon.post(on.FetchFailed(fetching[0], "connection timed out"))

    def _fetched(self, fetching: list[str]) -> None:
        if self.fetching is not fetching:
            return
        checkpoint_id = fetching[0]
        if self.machine.store_mood() == "down":
            self._fetch_fails(fetching)
            return
        self.fetching = None
        disk = self.machine.disk
        if disk.full:
            self.daemon.post(on.FetchFailed(checkpoint_id, "no space left on device"))
            return
        if not self.bucket.restorable(checkpoint_id):
            self.world.oracle.rotten_seen.add(checkpoint_id)
            self.daemon.post(on.FetchFailed(checkpoint_id, "wrong checksum", damaged=True))
            return
        file = self.bucket.objects[checkpoint_id].copy(disk.fingerprint())
        disk.files[file.name] = file
        disk.sync(file.name)
        self.machine.watch_whole(file)
        self.daemon.post(on.Fetched(checkpoint_id, file.seen()))

    def StopFetch(self, _: do.StopFetch) -> None:  # noqa: N802
        self.fetching = None

    def DeleteFromStore(self, action: do.DeleteFromStore) -> None:  # noqa: N802
        self._remote(self._deleted, "delete", action.ids)

    def _deleted(self, ids: tuple[str, ...]) -> None:
        self.world.oracle.deleting(ids)
        for checkpoint_id in ids:
            self.bucket.delete(checkpoint_id)
        self.daemon.post(on.DeletedFromStore(ids))

    def StoreCompletion(self, _: do.StoreCompletion) -> None:  # noqa: N802
        self._remote(self._completed, "complete")

    def _completed(self) -> None:
        self.bucket.completed = True
        self.daemon.post(on.CompletionStored())

    def FinishInstance(self, action: do.FinishInstance) -> None:  # noqa: N802
        self.world.oracle.finishing(self.daemon)
        self.machine.finish(action.action)
