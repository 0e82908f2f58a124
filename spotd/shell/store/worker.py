"""The process that talks to the store: `python -m spotd.shell.store.worker FD`.

boto3 and its connections cost 30 MiB, so they live only while there is something to send
(`spotd.shell.store.client` starts this process and lets it go). Three threads at most do the
work, each for itself: the lease is never kept waiting by an upload. The main thread only
listens. When the daemon dies, or has had enough, the connection ends, and so does the
process, at once: everything needed to go on is on the disk already.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.core import events
from spotd.core.ledger import FOLDER, is_record_name
from spotd.core.manifest import ManifestError
from spotd.errors import SpotdError
from spotd.shell.directory.tree import open_without_links
from spotd.shell.owner import Owner
from spotd.shell.store.aheads import Aheads
from spotd.shell.store.checkpoints import CheckpointStore
from spotd.shell.store.lease import TTL, TTL_BY_OUR_CLOCKS, Lease, LeaseHeld, LeaseKeeper
from spotd.shell.store.peace import Allowance
from spotd.shell.store.priority import disk_last
from spotd.shell.store.protocol import Cancelled, Damaged, Flow, NotFound, StoreProblem
from spotd.shell.store.restore import Restore
from spotd.shell.store.settings import StoreSettings, access_to, acquaint, open_store, s3_place
from spotd.shell.store.source import SourceGone, UploadSource
from spotd.shell.store.telling import Pace, Troubles, complain
from spotd.shell.store.transfer import PATIENCE, TINY_LANES, Lanes, Transfer, lane_count
from spotd.shell.store.upload import Upload, UploadOrder
from spotd.shell.store.wire import Channel, encode_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spotd.shell.store.protocol import ObjectStore

Command = dict[str, Any]
_PEACE_LANES = 4  # 85 MB/s each at S3: ahead of any disk a trainer writes to meanwhile
_LEASE_SLACK = 15.0  # seconds a manifest may take to be written: the time-outs of one request
_SOON = 5.0  # seconds for which small things are tried again before they have failed


class Worker:
    """Carries out commands; answers each once.

    Args:
        channel: To the daemon.
        settings: What its first message says of the store.
        store: That store.
        config: Its second message.
    """

    def __init__(
        self, channel: Channel, settings: StoreSettings, store: ObjectStore, config: dict[str, Any]
    ) -> None:
        self._channel = channel
        self._settings = settings
        self._state = Path(config["state"])
        self._directory = str(config["directory"])
        owner = config["owner"]
        self._owner = Owner(*owner) if owner else None
        self._lanes_wanted = lane_count()
        self._checkpoints = CheckpointStore(
            store, config["run"], config["instance_id"], config["node"], self._state
        )
        ttl = TTL if s3_place(settings, config["run"]) else TTL_BY_OUR_CLOCKS
        self._keeper = LeaseKeeper(
            store, config["run"], config["instance_id"], config["node"], ttl=ttl
        )
        self._lease: Lease | None = Lease(**config["lease"]) if config["lease"] else None
        self._lease_lock = threading.Lock()  # its own lane, and the upload's before a manifest
        self._aheads = Aheads(
            self._checkpoints,
            self._directory,
            self._owner.uid if self._owner else None,
            self._lanes_wanted,
            lambda id_, sent: self._say(
                {"events": [encode_event(events.AheadProgressed(id_, sent))]}
            ),
        )
        self._kept: dict[str, str] = {}
        self._allowance = Allowance(os.cpu_count() or 1)  # of all its uploads together
        self._upload_flow = Flow()
        self._fetch_flow = Flow()
        self._queues: dict[str, queue.SimpleQueue[Command]] = {}
        self._queues_lock = threading.Lock()  # a lane gives commands to another
        self._doings: dict[str, tuple[str, Callable[[Command], list[events.Event]]]] = {
            "warm": ("upload", self._warm),
            "open": ("lease", self._open),
            "renew": ("lease", self._renew),
            "release": ("lease", self._release),
            "upload": ("upload", self._upload),
            "ahead": ("ahead", self._aheads.run),
            "stop_ahead": ("ahead", lambda _command: []),
            "stop": ("upload", lambda _command: [events.UploadsStopped()]),
            "unneeded": ("upload", lambda _command: []),
            "fetch": ("fetch", self._fetch),
            "stop_fetch": ("fetch", lambda _command: []),
            "delete": ("other", self._delete),
            "complete": ("other", self._complete),
            "keep": ("ledger", self._keep),
        }

    def take(self, command: Command) -> None:
        """Gives a command to its thread; returns at once."""
        if command["do"] in {"stop", "unneeded", "upload"}:
            self._upload_flow.stop()  # an upload that is under way makes room
        if command["do"] == "upload":
            command["flow"] = self._upload_flow = self._flow(urgent=command["urgent"])
            command["ahead"] = self._aheads.claim(command["id"])
        if command["do"] == "ahead":
            self._aheads.begin(command, self._flow(urgent=command["urgent"]))
        if command["do"] == "stop_ahead":
            self._aheads.stop(keep=command["keep"])
        if command["do"] in {"stop_fetch", "fetch"}:
            self._fetch_flow.stop()
        if command["do"] == "fetch":
            command["flow"] = self._fetch_flow = Flow()
        lane = self._doings[command["do"]][0]
        with self._queues_lock:
            commands = self._queues.get(lane)
            if commands is None:
                commands = self._queues[lane] = queue.SimpleQueue()
                threading.Thread(
                    target=self._work, args=(commands,), name=lane, daemon=True
                ).start()
        commands.put(command)

    def _flow(self, *, urgent: bool) -> Flow:
        if urgent:
            return Flow()
        return Flow(
            bytes_per_second=self._settings.bandwidth_limit,
            hold_back=self._allowance.wait,
        )

    def _work(self, commands: queue.SimpleQueue[Command]) -> None:
        while True:
            command = commands.get()
            try:
                found = self._doings[command["do"]][1](command)
            except Cancelled:
                found = []
            except SpotdError as error:
                found = [_failure(command, error.message, error.hint)]
            except Exception as error:  # noqa: BLE001 - whatever it is, the daemon must hear of it
                traceback.print_exc()
                found = [_failure(command, f"internal error: {error!r}", "please report it")]
            self._say({"reply": command["number"], "events": [encode_event(e) for e in found]})
            if command["do"] in {"open", "renew"}:
                self._share_access()  # after the answer: a start waits for that
            if command.get("ledger"):
                # In a lane of its own, after the answer: nobody waits for it.
                self.take({"number": 0, "do": "keep", "files": command["ledger"]})

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(message)
        except OSError:
            os._exit(0)  # the daemon is gone; the main thread is about to say the same

    # --- the lease -------------------------------------------------------------------

    def _hold(self, lease: Lease | None) -> None:
        self._lease = lease
        self._say({"lease": asdict(lease) if lease else None})

    def _warm(self, _command: Command) -> list[events.Event]:
        try:
            self._checkpoints.store.warm()
        except StoreProblem as problem:
            complain(f"not ready to send yet: {problem}")  # what is sent next will say it
        return []

    def _open(self, _command: Command) -> list[events.Event]:
        try:
            with self._lease_lock:
                lease = self._keeper.acquire(self._lease)
                self._hold(lease)
        except LeaseHeld as held:
            return [events.LeaseRefused(held.holder, held.expires_in)]
        lanes = Lanes(8)
        try:
            found = self._soon(lanes).again(lambda: self._checkpoints.listing(lanes))
        finally:
            lanes.close()
        return [
            events.StoreOpened(
                generation=lease.generation,
                lease_in=lease.seconds_left(),
                stored=found.stored,
                completed=found.completed,
                top_sequence=found.top_sequence,
                damaged=found.damaged,
            )
        ]

    def _renew(self, _command: Command) -> list[events.Event]:
        try:
            lease = self._renew_now()
        except LeaseHeld as held:
            return [events.LeaseRefused(held.holder, held.expires_in)]
        return [events.LeaseRenewed(lease.seconds_left())]

    def _share_access(self) -> None:
        """Tells the daemon how to renew the lease without us."""
        with contextlib.suppress(StoreProblem):  # the lease is ours: it is only not as cheap
            access = access_to(self._checkpoints.store)
            self._say({"access": asdict(access) if access else None})

    def _renew_now(self) -> Lease:
        with self._lease_lock:
            lease = self._lease
            if lease is None:
                raise StoreProblem("there is no lease to renew")
            try:
                renewed = self._keeper.renew(lease)
            except LeaseHeld:
                self._hold(None)
                raise
            self._hold(renewed)
            return renewed

    def _release(self, _command: Command) -> list[events.Event]:
        with self._lease_lock:
            if self._lease is not None:
                try:
                    self._keeper.release(self._lease)
                except StoreProblem as problem:
                    # It runs out by itself; whoever asked is on the way out.
                    complain(f"the lease was not given back: {problem}")
                self._hold(None)
        return []

    def _soon(self, lanes: Lanes | None = None) -> Transfer:
        """Returns what tries small things again for a moment: one 503 is no failure yet."""
        return Transfer(self._checkpoints.store, lanes or Lanes(1), Flow(), _SOON)

    def _still_ours(self, generation: int) -> None:
        """Raises StoreProblem unless the lease under which this was begun still holds."""
        lease = self._lease
        if lease is not None and lease.seconds_left() < _LEASE_SLACK:
            lease = self._renew_now()
        if lease is None or lease.generation != generation:
            raise StoreProblem("the lease of this run is not ours any more: nothing is stored")

    # --- checkpoints -----------------------------------------------------------------

    def _upload(self, command: Command) -> list[events.Event]:
        checkpoint, urgent = command["id"], command["urgent"]
        flow: Flow = command["flow"]
        flow.check()
        order = UploadOrder(
            id=checkpoint,
            generation=command["generation"],
            step=command["step"],
            created=command["created"],
            source=UploadSource(**command["source"]),
        )
        if urgent:
            lanes = Lanes(self._lanes_wanted, tiny=TINY_LANES)
        else:
            lanes = Lanes(_PEACE_LANES, disk_last, tiny=2 * _PEACE_LANES)
        transfer = Transfer(
            self._checkpoints.store, lanes, flow, None if urgent else PATIENCE,
            Troubles(f"storing {checkpoint}"),
        )  # fmt: skip
        told = Pace(
            lambda sent, size: self._say(
                {"events": [encode_event(events.UploadProgressed(checkpoint, sent, size))]}
            )
        )
        try:
            stored = Upload(
                self._checkpoints, transfer, order, told,
                lambda: self._still_ours(order.generation), command["ahead"],
            ).run()  # fmt: skip
        except SourceGone as error:
            return [events.UploadFailed(checkpoint, error.message, error.hint, gone=True)]
        except LeaseHeld as held:
            failed = events.UploadFailed(checkpoint, held.message, held.hint)
            return [failed, events.LeaseRefused(held.holder, held.expires_in)]
        finally:
            lanes.close()
        rate = None if stored.ahead else flow.rate()
        return [
            events.Uploaded(
                checkpoint, stored.size, stored.sent, stored.seconds, rate, ahead=stored.ahead
            )
        ]

    def _fetch(self, command: Command) -> list[events.Event]:
        checkpoint = command["id"]
        flow: Flow = command["flow"]
        lanes = Lanes(self._lanes_wanted, tiny=TINY_LANES)
        told = Pace(
            lambda got, size: self._say(
                {"events": [encode_event(events.FetchProgressed(checkpoint, got, size))]}
            )
        )
        root = -1
        try:
            root = open_without_links(self._directory)
            transfer = Transfer(self._checkpoints.store, lanes, flow)
            manifest = transfer.again(lambda: self._checkpoints.manifest(checkpoint))
            restore = Restore(
                self._checkpoints.store, lanes, flow, self._state, self._owner, told, PATIENCE
            )
            found = restore.into(root, manifest)
        except (Damaged, NotFound, ManifestError) as error:
            return [events.FetchFailed(checkpoint, error.message, error.hint, damaged=True)]
        except OSError as error:
            raise SpotdError(f"cannot open {self._directory}: {error.strerror}") from error
        finally:
            lanes.close()
            if root >= 0:
                os.close(root)
        return [events.Fetched(checkpoint, found)]

    def _delete(self, command: Command) -> list[events.Event]:
        ids = list(command["ids"])
        self._soon().again(lambda: self._checkpoints.delete(ids))
        try:
            self._checkpoints.clear(ids)
        except StoreProblem as problem:
            complain(f"what was never whole is not deleted yet: {problem}")
        return [events.DeletedFromStore(tuple(command["ids"]))]

    def _keep(self, command: Command) -> list[events.Event]:
        """The ledger's small files: of use to people, so that failing is only told."""
        try:
            for name, text in command["files"].items():
                if is_record_name(name) and self._kept.get(name) != text:
                    self._checkpoints.store.put(FOLDER + name, text.encode())
                    self._kept[name] = text
        except StoreProblem as problem:
            complain(f"the ledger is not in the store: {problem}")
        return []

    def _complete(self, _command: Command) -> list[events.Event]:
        self._soon().again(self._checkpoints.complete)
        return [events.CompletionStored()]


def _failure(command: Command, reason: str, hint: str) -> events.Event:
    """Returns the event that says that a command failed."""
    if command["do"] == "upload":
        return events.UploadFailed(command["id"], reason, hint)
    if command["do"] == "fetch":
        return events.FetchFailed(command["id"], reason, hint)
    name = {"renew": "lease", "release": "lease", "warm": "open"}.get(command["do"])
    return events.StoreFailed(name or str(command["do"]), reason, hint)


def main(arguments: list[str] | None = None) -> None:
    """Serves one daemon until the connection ends."""
    number = int((sys.argv[1:] if arguments is None else arguments)[0])
    channel = Channel(socket.socket(fileno=number))
    messages = channel.messages()
    begin = next(messages, None)
    if begin is not None:
        settings = StoreSettings(**begin["settings"])
        store = open_store(settings, begin["run"], connections=lane_count() + 4)
        if begin["early"]:  # the daemon is not ready itself: time to get ready meanwhile
            threading.Thread(target=_warm_early, args=(store,), name="early", daemon=True).start()
        _serve(channel, settings, store, messages)
    # Threads may be in the middle of a request; nothing of theirs is worth waiting for.
    os._exit(0)


def _warm_early(store: ObjectStore) -> None:
    with contextlib.suppress(SpotdError):  # whoever needs the store will hear it
        acquaint(store)


def _serve(
    channel: Channel, settings: StoreSettings, store: ObjectStore, messages: Iterator[Command]
) -> None:
    config = next(messages, None)
    if config is not None:
        worker = Worker(channel, settings, store, config)
        for command in messages:
            worker.take(command)


if __name__ == "__main__":
    main()
