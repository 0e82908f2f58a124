"""The way to the store: lease, uploads, fetches, in every mood the store can be in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.checkpoint import StoredCheckpoint, parse_checkpoint_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.simulation.bucket import Bucket
    from spotd.simulation.daemon import Daemon
    from spotd.simulation.disk import File
    from spotd.simulation.machine import Machine
    from spotd.simulation.world import World

PATIENCE = 60.0  # seconds until a transfer in peace says that it does not come on
SLOW = 30.0  # a slow store takes so many times as long


class Part:
    """Something a daemon does things with."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.machine: Machine = daemon.machine
        self.world: World = daemon.world

    def _answer(self, seconds: float, event: on.Event) -> None:
        self.daemon.later(seconds, self.daemon.post, event)


class Sending:
    """The upload under way."""

    __slots__ = ("action", "ahead", "began", "file", "since")

    def __init__(
        self, action: do.Upload, file: File, since: float, began: float, ahead: float = 0.0
    ) -> None:
        self.ahead = ahead  # bytes that had gone up while it was being written
        self.action = action
        self.file = file
        self.since = since
        self.began = began


class Remote(Part):
    """One method for each action on the store; one upload and one fetch at a time."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon)
        self.bucket: Bucket = daemon.world.bucket
        self.sending: Sending | None = None
        self.fetching: list[str] | None = None
        self.ahead: tuple[str, float] | None = None  # id, and since when it goes up while it grows

    def drop(self) -> None:
        """The daemon is gone: what was being sent stays as parts."""
        self._note_sent()
        self.sending = None
        self.fetching = None
        self.ahead = None

    def _remote(self, what: Callable[..., None], operation: str, *args: Any) -> None:
        mood = self.machine.store_mood()
        if mood == "down":
            seconds = self.bucket.model.down_seconds
            self._answer(seconds, on.StoreFailed(operation, "connection timed out"))
            return
        slow = SLOW if mood == "slow" else 1.0
        self.daemon.later(self.bucket.model.latency * slow, what, *args)

    def _warm_store(self, _: do.WarmStore) -> None:
        pass

    def _open_store(self, _: do.OpenStore) -> None:
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

    def _renew_lease(self, _: do.RenewLease) -> None:
        self._remote(self._renewed, "lease")

    def _renewed(self) -> None:
        now = self.daemon.clock.mono
        generation = self.daemon.state.store.generation
        if self.bucket.renew(self.machine.instance_id, generation, now):
            self.daemon.post(on.LeaseRenewed(self.bucket.model.lease_seconds))
        else:
            self._refused(now)

    def _release_lease(self, _: do.ReleaseLease) -> None:
        if self.machine.store_mood() != "down":
            self.bucket.release(self.machine.instance_id)

    def _upload(self, action: do.Upload) -> None:
        if self.sending is not None and self.sending.action.id == action.id and action.urgent:
            return  # the same one, at full speed from now on
        if self.sending is not None:
            same = self.sending.action.id == action.id
            if not (same and action.urgent):  # the same one, urgent by now, just goes on
                self._answer(0.01, on.UploadFailed(action.id, "another is being stored"))
            return
        if action.id not in self.daemon.hands.held:
            self.world.oracle.broken("held first", f"{action.id} is sent unseen")
        disk = self.machine.disk
        file = disk.holds.get(action.id)
        if file is None:
            file = disk.files.get(action.name)
            if file is None or file.fingerprint != action.fingerprint:
                self._answer(0.05, on.UploadFailed(action.id, "it changed", gone=True))
                return
        now = self.daemon.clock.mono
        self._send(Sending(action, file, now, now, self._take_over(action, file)))

    def _send(self, sending: Sending) -> None:
        self.sending = sending
        if self.machine.store_mood() == "down":
            if not sending.action.urgent:  # else it is tried until it is stopped
                self.daemon.later(PATIENCE, self._upload_fails, self.sending)
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
            now = self.daemon.clock.mono
            self._send(Sending(old.action, old.file, now, old.began, old.ahead))
        if self.fetching is not None:
            self._get(self.fetching[0])

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

    def _upload_fails(self, sending: Sending, why: str = "connection timed out") -> None:
        if self.sending is sending:
            self.sending = None
            self.daemon.post(on.UploadFailed(sending.action.id, why))

    def _sent(self, sending: Sending) -> None:
        if self.sending is not sending:
            return
        action, file = sending.action, sending.file
        if self.machine.store_mood() == "down":
            self._note_sent()
            self._upload_fails(sending)
            return
        lease = self.bucket.lease
        mine = (self.machine.instance_id, action.generation)
        if lease is None or (lease.holder, lease.generation) != mine:
            self._upload_fails(sending, "the lease of this run is not ours any more")
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
        rate = file.size / seconds if seconds > 0 and not sending.ahead else None
        ahead = int(sending.ahead)
        self.daemon.post(on.Uploaded(action.id, file.size, file.size, seconds, rate, ahead))

    def _upload_ahead(self, action: do.UploadAhead) -> None:
        self.ahead = (action.id, self.daemon.clock.mono)
        self.daemon.later(1.0, self._ahead_progress, self.ahead)

    def _ahead_progress(self, ahead: tuple[str, float]) -> None:
        if self.ahead is ahead and self.machine.store_mood() != "down":
            self.daemon.post(on.AheadProgressed(ahead[0], int(self.bandwidth())))

    def _stop_ahead(self, _: do.StopAhead) -> None:
        self.ahead = None

    def _take_over(self, action: do.Upload, file: File) -> float:
        """What has gone up ahead need not be sent again; returns how much that is."""
        ahead = self.ahead
        if ahead is None or ahead[0] != action.id or self.machine.store_mood() == "down":
            return 0.0
        self.ahead = None
        sent = min(file.size, (self.daemon.clock.mono - ahead[1]) * self.bandwidth())
        self.bucket.sent[action.id] = (file.content, sent)
        return sent

    def _stop_uploads(self, _: do.StopUploads) -> None:
        self._note_sent()
        self.sending = None
        self._answer(0.05, on.UploadsStopped())

    def _fetch(self, action: do.Fetch) -> None:
        self._get(action.id)

    def _get(self, checkpoint_id: str) -> None:
        self.fetching = fetching = [checkpoint_id]
        if self.machine.store_mood() == "down":
            self.daemon.later(PATIENCE, self._fetch_fails, fetching)
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

    def _stop_fetch(self, _: do.StopFetch) -> None:
        self.fetching = None

    def _delete_from_store(self, action: do.DeleteFromStore) -> None:
        self._remote(self._deleted, "delete", action.ids)

    def _deleted(self, ids: tuple[str, ...]) -> None:
        self.world.oracle.deleting(ids)
        for checkpoint_id in ids:
            self.bucket.delete(checkpoint_id)
        self.daemon.post(on.DeletedFromStore(ids))

    def _store_completion(self, _: do.StoreCompletion) -> None:
        self._remote(self._completed, "complete")

    def _completed(self) -> None:
        self.bucket.completed = True
        self.daemon.post(on.CompletionStored())
