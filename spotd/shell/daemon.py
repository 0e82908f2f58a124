"""`spotd run`: puts the parts together and starts them in the order that loses least time."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.checkpoint import parse_checkpoint_id
from spotd.core.state import State
from spotd.core.status import status_of
from spotd.errors import SpotdError
from spotd.shell import unit
from spotd.shell.boot import classify, machine_name, this_boot
from spotd.shell.claims import claim, own_directory
from spotd.shell.control import ControlServer
from spotd.shell.directory.directory import CheckpointDirectory
from spotd.shell.history import History
from spotd.shell.imds import MetadataWatcher
from spotd.shell.journal import Journal
from spotd.shell.loop import Loop, clock
from spotd.shell.notify import Notifier
from spotd.shell.observing.observer import Observer
from spotd.shell.owner import owner_named
from spotd.shell.policy import policy_of
from spotd.shell.reload import Reloader
from spotd.shell.statestore import StateStore
from spotd.shell.store.client import StoreClient
from spotd.shell.store.source import UploadSource
from spotd.shell.trainer.first_word import FirstWord
from spotd.shell.trainer.host import TrainerHost
from spotd.shell.trainer_socket import TrainerSocket

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spotd.config import Settings
    from spotd.core.events import Event
    from spotd.shell.store.early import Spawned

IDENTITY_PATIENCE = 2.5  # seconds a start waits for the instance id where nothing else tells it
TELLING = 20.0  # seconds people may take to be told before the instance is ended
LAST_WORDS = 3.0  # seconds the lease's release may take at the end


class Daemon:
    """One run on one machine.

    Args:
        settings: The configuration.
        worker: The store's worker, when it has been started already.

    Raises:
        SpotdError: Another spotd runs here, or a directory cannot be made.
    """

    def __init__(self, settings: Settings, worker: Spawned | None = None) -> None:
        self.settings = settings
        self._worker = worker
        self.boot = this_boot()
        self.journal = Journal()
        self.notifier = Notifier()
        self.reloader = Reloader(
            lambda: self.settings, self._take_over, self.notifier, self._announce
        )
        self._own = own_directory(settings.paths.state / settings.run)
        own_directory(settings.paths.runtime, public=True)
        # Two spotd never run one trainer, whatever paths they were given: the checkpoint
        # directory itself is claimed by who opens it, and it may have to be made first.
        self._locks = [
            *claim(settings.paths.runtime / "lock"),
            *claim(self._own / "lock"),
        ]
        self.history = History(self._own / "history.jsonl")
        self.watcher: MetadataWatcher
        self.observer: Observer | None = None
        self.records = StateStore(
            self._own / "state.json",
            settings.paths.runtime / f"{settings.run}.state.json",
            self._state_trouble,
        )
        self._perform: dict[type, Callable[[Any], None]] = {}  # filled when the parts are there
        self.loop = Loop(
            State(policy=policy_of(settings), run=settings.run),
            self._perform,
            self.notifier,
            self._announce,
        )
        self.watcher = MetadataWatcher(settings.imds, self.loop.post, cloud=settings.cloud)

    def run(self) -> int:
        """Runs until asked to stop; returns the exit status."""
        self._listen_to_signals()
        self.watcher.start()  # first of all: a notice may be waiting
        record = self.records.load(self.boot.id)
        instance_id = self._instance_id(record)
        self._make_parts(instance_id)
        self._have_observer(instance_id)
        found = self.host.find()
        self.loop.handle(
            on.Started(
                record=record,
                boot=classify(
                    record, boot=self.boot, instance_id=instance_id, clean_boot_id=self._clean()
                ),
                boot_id=self.boot.id,
                instance_id=instance_id,
                trainer=found,
                booted=self.boot.began,
            )
        )
        if found is not None:
            self.host.adopt(found)
        self.directory.start()
        self.control.start()
        self.notifier.ready()
        self.reloader.ready.set()
        try:
            status = self.loop.run()
        finally:
            self.notifier.stopping()
        self._end(status)
        return status

    def _have_observer(self, instance_id: str) -> None:
        """Figures, ledger and messages: who looks on, and decides nothing."""
        self.observer = Observer(
            lambda: self.settings,
            self._own,
            instance_id=instance_id,
            boot=self.boot,
            identity=self.watcher.identity,
            clock=clock,
            announce=self._announce,
        )
        self.loop.observe = self.observer.saw
        self.store.ledger = self.observer.ledger
        self.observer.start()

    def _make_parts(self, instance_id: str) -> None:
        self._arriving = ""  # id of the checkpoint that is being fetched
        self._first_word = FirstWord(self.loop.post)
        s = self.settings
        post = self.loop.post
        owner = owner_named(s.trainer.user)
        self.directory = CheckpointDirectory(
            s.checkpoints.directory,
            pattern=s.checkpoints.pattern,
            complete=s.checkpoints.complete,
            owner=owner,
            post=post,
        )
        self.socket = TrainerSocket(
            s.paths.runtime / "trainer.sock",
            user=s.trainer.user,
            post=self._heard,
            declare=self._declared,
        )
        self.socket.open()
        self.host = TrainerHost(
            s.trainer,
            run=s.run,
            checkpoint_directory=s.checkpoints.directory,
            runtime_directory=s.paths.runtime,
            state_directory=s.paths.state,
            post=self._from_trainer,
            socket=self.socket.path,
        )
        self.store = StoreClient(
            s.store,
            run=s.run,
            instance_id=instance_id,
            node=0,
            checkpoint_directory=s.checkpoints.directory,
            owner=(owner.uid, owner.gid),
            state_directory=self._own / "store",
            post=self._from_store,
            spare=self._worker,
        )
        self.control = ControlServer(
            s.paths.runtime / "control.sock",
            status=self._status,
            post=post,
            users=frozenset({owner.uid}),
            lost=self._runtime_lost,
            tasks={"reload": lambda number: self.reloader.ask(number, self.control.reply)},
        )
        self._perform.update(self._performers())

    def _status(self) -> dict[str, object]:
        status = status_of(self.loop.settled(), clock())
        trainer = status["trainer"]
        if isinstance(trainer, dict):
            trainer["datagrams"] = {"received": self.socket.received, "dropped": self.socket.bad}
        return status

    def _from_trainer(self, event: Event) -> None:
        if isinstance(event, on.TrainerExited):
            self.socket.flush()  # the last step it said counts, and it said that before
        self._first_word.of_host(event)

    def _start(self, action: do.StartTrainer) -> None:
        self._first_word.starting()
        self.host.start(action)

    def _heard(self, event: Event) -> None:
        if isinstance(event, on.TrainerReported) and event.step is not None:
            self.directory.expect(event.step)  # the step of what it saves under a bare name
        self._first_word.of_trainer(event)

    def _declared(self, path: str) -> None:
        if not self.directory.declare(path):
            self.socket.bad += 1

    def _runtime_lost(self, reason: str) -> None:
        """Somebody has emptied the runtime directory; the sockets are there again, or not."""
        with contextlib.suppress(SpotdError):  # the other locks hold
            self._locks += claim(self.settings.paths.runtime / "lock")
        text = reason or f"{self.settings.paths.runtime} was emptied: spotd has made its own anew"
        self._announce(do.Announce("runtime_lost", f"{text}. Training is untouched", 4))

    # --- actions ---------------------------------------------------------------------

    def _performers(self) -> dict[type, Callable[[Any], None]]:
        return {
            do.Persist: lambda a: self.records.save(a.record),
            do.Announce: self._announce,
            do.SyncJournal: lambda _: self.journal.sync(),
            do.Reply: self.control.reply,
            do.RunPreflight: lambda _: self.host.run_preflight(),
            do.StartTrainer: self._start,
            do.SignalTrainer: self.host.signal,
            do.KillTrainer: self.host.kill,
            do.MeasureActivity: lambda _: self.host.measure_activity(),
            do.Inspect: self.directory.inspect,
            do.Hold: self.directory.hold,
            do.ReleaseHold: lambda a: self.directory.release_hold(a.id),
            do.SetAside: self.directory.set_aside,
            do.BringBack: lambda a: self.directory.bring_back(a.name),
            do.Reinstate: lambda a: self.directory.reinstate(a.id),
            do.DeleteLocal: lambda a: self.directory.delete_local(a.name, a.fingerprint),
            do.WarmStore: lambda _: self.store.warm(),
            do.OpenStore: lambda _: self.store.open(),
            do.RenewLease: lambda _: self.store.renew_lease(),
            do.ReleaseLease: lambda _: self.store.release_lease(LAST_WORDS),
            do.Upload: self._upload,
            do.UploadAhead: self.store.upload_ahead,
            do.StopAhead: self.store.stop_ahead,
            do.StopUploads: lambda _: self.store.stop_uploads(),
            do.Fetch: self._fetch,
            do.StopFetch: lambda _: self._stop_fetch(),
            do.DeleteFromStore: lambda a: self.store.delete(a.ids),
            do.StoreCompletion: lambda _: self.store.store_completion(),
            do.FinishInstance: self._finish_instance,
        }

    def _announce(self, line: do.Announce) -> None:
        self.journal.write(line)
        wall = time.time()
        self.history.append(line, wall)
        if self.observer is not None:
            self.observer.announced(line, wall)

    def _fetch(self, action: do.Fetch) -> None:
        parsed = parse_checkpoint_id(action.id)
        if parsed is not None:
            self._arriving = action.id
            self.directory.arriving(parsed[1])
        self.store.fetch(action.id)

    def _stop_fetch(self) -> None:
        self.store.stop_fetch()
        self._arrived(self._arriving)

    def _arrived(self, checkpoint_id: str) -> None:
        """What was said of an earlier fetch must not end the muting of the present one."""
        parsed = parse_checkpoint_id(checkpoint_id)
        if parsed is not None and checkpoint_id == self._arriving:
            self._arriving = ""
            self.directory.arrived(parsed[1])

    def _from_store(self, event: Event) -> None:
        if isinstance(event, (on.Fetched, on.FetchFailed)):
            self._arrived(event.id)
        self.loop.post(event)

    def _upload(self, action: do.Upload) -> None:
        source = self.directory.source_of(action.id)
        if source is None:
            # Before the first inventory nothing of it is known here, and nothing is given up.
            gone = self.loop.state.disk_seen
            self.loop.post(on.UploadFailed(action.id, "it is no longer on the disk", gone=gone))
            return
        self.store.upload(action, UploadSource(*source))

    def _finish_instance(self, action: do.FinishInstance) -> None:
        from spotd.shell.finish import finish_instance  # noqa: PLC0415 - once in a run's life

        told = self.watcher.identity()
        instance_id = told.instance_id or self.loop.state.instance_id
        finish_instance(
            action.action, instance_id, told.region or None, self._announce, before=self._tell_all
        )

    def _tell_all(self) -> None:
        """A machine that is about to end takes its messages with it."""
        if self.observer is not None:
            self.observer.settle(TELLING)

    # --- signals ---------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self._asked_to_stop())
        signal.signal(signal.SIGINT, lambda *_: self._asked_to_stop())
        signal.signal(signal.SIGHUP, lambda *_: self.reloader.ask())
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def _asked_to_stop(self) -> None:
        threading.Thread(target=self._post_stop, name="stop", daemon=True).start()

    def _post_stop(self) -> None:
        seconds = self.settings.interruption.stop_timeout
        restart = False
        name = unit.own_unit()
        if name is not None:
            restart = unit.being_restarted(name)
            seconds = unit.stop_timeout(name, seconds)
        self.loop.post(on.StopRequested(seconds, restart=restart))

    def _take_over(self, fresh: Settings) -> None:
        self.settings = fresh
        self.host.settings = fresh.trainer
        self.loop.post(on.Reloaded(policy_of(fresh)))

    # --- the ends --------------------------------------------------------------------

    def _instance_id(self, record: dict[str, Any] | None) -> str:
        """From the firmware or the metadata; a silent IMDS must not make us a stranger."""
        known = record.get("instance_id") if record is not None else None
        patience = 0.5 if isinstance(known, str) and known else IDENTITY_PATIENCE
        told = self.watcher.wait_for_identity(patience).instance_id
        if told:
            return told
        if isinstance(known, str) and known:
            return known
        return machine_name()

    def _clean_path(self) -> Path:
        return self._own / "ended-in-order"

    def _clean(self) -> str:
        with contextlib.suppress(OSError):
            text = self._clean_path().read_text()
            self._clean_path().unlink()
            return text
        return ""

    def _end(self, status: int) -> None:
        with contextlib.suppress(OSError):
            self._clean_path().write_text(self.boot.id)
        self.records.close()
        self.watcher.stop()
        self.control.close()
        self.store.close()
        self.directory.stop()
        self.socket.close()
        if self.observer is not None:
            self.observer.close()
        self.history.close()
        if status == 0:
            self.journal.sync()

    def _state_trouble(self, reason: str) -> None:
        if reason:
            hint = "free some space; training goes on"
            self._announce(do.Announce("state_unwritable", f"{reason}. {hint}", 3))
