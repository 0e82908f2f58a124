"""The daemon's side of the store: never waits, never imports boto3.

Each method hands one action to the worker process and returns at once; what comes of it is
posted as an event, whatever happens, the worker's death included. The worker is started
when there is something to do and let go after 20 s of nothing to do. Only the lease is
renewed without it, where that is one small request: it comes round every minute.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.core import actions, events
from spotd.errors import SpotdError
from spotd.shell.store.early import Spawned, ending, reap, spawn
from spotd.shell.store.lease import Lease
from spotd.shell.store.renewal import Renewal
from spotd.shell.store.settings import StoreConfig, StoreSettings
from spotd.shell.store.wire import decode_event

if TYPE_CHECKING:
    import socket
    import subprocess
    from collections.abc import Callable

    from spotd.shell.store.source import UploadSource
    from spotd.shell.store.wire import Channel

IDLE = 20.0  # seconds: a save every few minutes should not keep 60 MiB alive in between
_BRIEF_IDLE = 2.0  # the same after what only comes every few minutes
_BRIEF = frozenset({"open", "renew", "release"})
_TICK_MS = 500
# How long an answer may take before the worker counts as hung (a dead network file system
# hangs a process beyond all time-outs) and is killed. None: it reports progress itself.
_PATIENCE: dict[str, float | None] = {
    "warm": 60.0,
    "open": 120.0,
    "renew": 60.0,
    "release": 30.0,
    "stop": 2.0,
    "unneeded": 5.0,
    "stop_fetch": 5.0,
    "delete": 600.0,
    "complete": 60.0,
    "upload": None,
    "ahead": None,
    "stop_ahead": 60.0,
    "fetch": None,
}


@dataclass(slots=True)
class _Pending:
    number: int
    do: str
    command: dict[str, Any]
    deadline: float | None


@dataclass(slots=True)
class _Process:
    """One life of the worker."""

    popen: subprocess.Popen[bytes]
    channel: Channel
    connection: socket.socket
    pending: dict[int, _Pending]
    idle_since: float
    idle_limit: float = IDLE
    brief: bool = True  # nothing was asked of it yet that more of the same may follow
    over: bool = False


class StoreClient:
    """Carries out the core's actions on the store.

    Args:
        settings: `[store]` of the configuration.
        run: The run's name.
        instance_id: Of this machine: the lease's holder.
        node: This machine's number in the run.
        checkpoint_directory: Where fetched checkpoints go.
        owner: (uid, gid) of the trainer, who owns what is fetched; None: as it comes.
        state_directory: For what must survive (`<paths.state>/store`, say).
        post: Takes the events; called from threads of this class, must not block.
        spare: A worker that has been started already (`spotd.shell.store.early`).
    """

    def __init__(  # noqa: PLR0917 - the daemon gives them by name
        self,
        settings: StoreConfig,
        run: str,
        instance_id: str,
        node: int,
        checkpoint_directory: str | os.PathLike[str],
        owner: tuple[int, int] | None,
        state_directory: str | os.PathLike[str],
        post: Callable[[events.Event], None],
        spare: Spawned | None = None,
    ) -> None:
        self._spare = spare
        self._settings, self._run = StoreSettings.of(settings), run
        self._config = {
            "run": run,
            "instance_id": instance_id,
            "node": node,
            "directory": os.path.realpath(checkpoint_directory),
            "owner": owner,
            "state": str(Path(state_directory).absolute()),
        }
        self._post = post
        # Small files, name to text, that are stored when something else is.
        self.ledger: Callable[[], dict[str, str]] = dict
        self._lock = threading.RLock()
        self._process: _Process | None = None
        self._lease: dict[str, Any] | None = None
        self._renewal = Renewal(self._settings, run, instance_id, node)
        self._renewing = False
        self._numbers = 0
        self._closed = False
        self._answered = threading.Condition(self._lock)
        if spare is not None:
            # Let go again, like any other, when there is nothing to do. Dead already: the
            # first action starts another.
            with self._lock, contextlib.suppress(OSError):
                self._start()

    # --- the core's actions ------------------------------------------------------------

    def warm(self) -> None:
        """Starts the worker and has it make its connections: it will be wanted in a moment."""
        self._do("warm")

    def open(self) -> None:
        """-> StoreOpened | LeaseRefused | StoreFailed("open")"""  # noqa: D415
        self._do("open")

    def renew_lease(self) -> None:
        """-> LeaseRenewed | LeaseRefused | StoreFailed("lease")"""  # noqa: D415
        with self._lock:
            lease = self._lease
            alone = self._process is None and not self._renewing
            if lease is None or not alone or not self._renewal.possible:
                self._do("renew")
                return
            self._renewing = True
        threading.Thread(
            target=self._renew_here, args=(Lease(**lease),), name="lease", daemon=True
        ).start()

    def _renew_here(self, lease: Lease) -> None:
        try:
            held, event = self._renewal.renew(lease)
        except SpotdError:
            with self._lock:
                self._renewing = False
                self._do("renew")
                self._answered.notify_all()
            return
        with self._lock:
            self._renewing = False
            # A worker may have taken it anew meanwhile: then this was about the one before.
            same = self._lease is not None and self._lease["generation"] == lease.generation
            if same:
                self._lease = asdict(held) if held else None
            self._answered.notify_all()
        if same:
            self._post(event)

    def release_lease(self, wait_seconds: float = 0.0) -> None:
        """Gives the lease back, waiting for at most that long; nothing comes back."""
        with self._lock:
            deadline = time.monotonic() + wait_seconds
            # A renewal that is under way would take it back.
            self._wait_while(lambda: self._renewing, deadline)
            if self._lease is None:
                return
            number = self._do("release")
            self._wait_while(lambda: self._waiting_for(number), deadline)

    def _wait_while(self, condition: Callable[[], bool], deadline: float) -> None:
        while condition() and (left := deadline - time.monotonic()) > 0:
            self._answered.wait(left)

    def upload(self, action: actions.Upload, source: UploadSource) -> None:
        """-> UploadProgressed..., Uploaded | UploadFailed.

        One at a time: a second is refused, unless it is the same one, urgent by now.
        Asked twice, it is answered once.
        """
        with self._lock:
            current = self._current("upload")
            if current is not None:
                same = current.command["id"] == action.id
                if not same or not action.urgent or current.command["urgent"]:
                    reason = "it is being stored already" if same else "another is being stored"
                    self._post(events.UploadFailed(action.id, reason))
                    return
            self._do(
                "upload",
                id=action.id,
                generation=action.generation,
                step=action.step,
                created=action.created,
                urgent=action.urgent,
                source=asdict(source),
                ledger=self.ledger(),
            )

    def upload_ahead(self, action: actions.UploadAhead) -> None:
        """Nothing comes back: the upload to come takes over what is there by then."""
        self._do(
            "ahead", id=action.id, name=action.name, urgent=action.urgent,
            limit=action.limit, expected=action.expected,
        )  # fmt: skip

    def stop_ahead(self, action: actions.StopAhead) -> None:
        """Nothing comes back. Without a worker nothing is under way."""
        with self._lock:
            if self._current("ahead") is not None:
                self._do("stop_ahead", keep=action.keep)

    def stop_uploads(self) -> None:
        """-> UploadsStopped"""  # noqa: D415
        with self._lock:
            if self._current("upload") is not None:
                self._do("stop")
                return
        self._post(events.UploadsStopped())

    def fetch(self, checkpoint: str) -> None:
        """-> FetchProgressed..., Fetched | FetchFailed"""  # noqa: D415
        self._do("fetch", id=checkpoint)

    def stop_fetch(self) -> None:
        """Ends a fetch; what has arrived is kept, nothing comes back."""
        with self._lock:
            if self._current("fetch") is not None:
                self._do("stop_fetch")

    def delete(self, ids: tuple[str, ...]) -> None:
        """-> DeletedFromStore | StoreFailed("delete")"""  # noqa: D415
        self._do("delete", ids=list(ids))

    def store_completion(self) -> None:
        """-> CompletionStored | StoreFailed("complete")"""  # noqa: D415
        self._do("complete", ledger=self.ledger())

    def close(self) -> None:
        """Lets the worker go, whatever it does; what is needed to continue is on the disk."""
        with self._lock:
            self._closed = True
            process = self._process
            if process is None:
                return
            self._let_go(process)
        reap(process.popen)

    @property
    def worker_pid(self) -> int | None:
        """The worker's pid while it lives; for tests and the benchmarks."""
        with self._lock:
            return self._process.popen.pid if self._process else None

    # --- the worker --------------------------------------------------------------------

    def _do(self, do: str, **arguments: Any) -> int:
        with self._lock:
            self._numbers += 1
            number = self._numbers
            if self._closed:
                return number
            limit = _PATIENCE[do]
            deadline = None if limit is None else time.monotonic() + limit
            pending = _Pending(number, do, arguments, deadline)
            try:
                process = self._process or self._start()
                process.pending[number] = pending
                process.brief = process.brief and do in _BRIEF
                process.idle_limit = _BRIEF_IDLE if process.brief else IDLE
                process.channel.send({"number": number, "do": do, **arguments})
            except OSError as error:
                process_now = self._process
                if process_now is None or number not in process_now.pending:
                    # It could not even be started: no memory, no processes left.
                    self._fail(pending, f"the store's worker cannot be started: {error}")
                else:
                    self._lost(process_now, f"the store's worker does not listen: {error}")
            return number

    def _start(self) -> _Process:
        popen, ours, channel = self._spare or spawn(self._settings, self._run, early=False)
        self._spare = None
        # A worker that does not read is hung; the deciding loop must not wait for it.
        ours.settimeout(1.0)
        process = _Process(popen, channel, ours, {}, time.monotonic())
        process.channel.send({**self._config, "lease": self._lease})
        self._process = process
        threading.Thread(
            target=self._listen, args=(process,), name="store-client", daemon=True
        ).start()
        return process

    def _listen(self, process: _Process) -> None:
        """Posts what the worker says until it is gone; one thread for each life of it."""
        with process.connection:
            messages = process.channel.messages(wait=lambda: self._wait(process))
            for message in messages:
                self._hear(process, message)
        status = reap(process.popen)
        with self._lock:
            if not process.over:
                self._lost(process, f"the store's worker died ({ending(status)})")

    def _wait(self, process: _Process) -> bool:
        """Waits until there is something to read; False when it is over."""
        poll = select.poll()  # select(2) ends at descriptor 1023
        poll.register(process.connection, select.POLLIN)
        while True:
            with self._lock:
                if process.over:
                    return False
                late = self._late(process)
                if late is not None:
                    self._lost(process, f"the store's worker hangs ({late.do})")
                    return False
                idle = time.monotonic() - process.idle_since
                if not process.pending and idle > process.idle_limit:
                    self._let_go(process)
                    return False
            if poll.poll(_TICK_MS):
                return True

    def _late(self, process: _Process) -> _Pending | None:
        now = time.monotonic()
        for pending in process.pending.values():
            if pending.deadline is not None and now > pending.deadline:
                return pending
        return None

    def _hear(self, process: _Process, message: dict[str, Any]) -> None:
        with self._lock:
            if process.over:
                return
            if "lease" in message:
                self._lease = message["lease"]
            if "access" in message:
                self._renewal.told(message["access"])
            asked = None
            if "reply" in message:
                asked = process.pending.pop(message["reply"], None)
                process.idle_since = time.monotonic()
            for line in message.get("events", ()):
                event = decode_event(line)
                if self._is_news(process, asked, event):
                    self._post(event)
            self._answered.notify_all()

    def _is_news(self, process: _Process, asked: _Pending | None, event: events.Event) -> bool:
        """Whether to pass it on: not how an upload ended, where that is said once already.

        An upload that becomes urgent is asked for a second time, and may end just before
        the worker reads that: one checkpoint, one answer. What the other request is still
        doing is ended here.
        """
        if not isinstance(event, (events.Uploaded, events.UploadFailed)):
            return True
        if asked is None:
            return False
        repeats = [
            each.number
            for each in process.pending.values()
            if each.do == "upload" and each.command["id"] == event.id
        ]
        if repeats and isinstance(event, events.Uploaded):
            for number in repeats:
                del process.pending[number]
            self._do("unneeded")
            return True
        return not repeats  # one that failed is tried by the second, which answers

    def _let_go(self, process: _Process) -> None:
        """Ends the conversation; the worker ends with it."""
        process.over = True
        process.channel.end()
        if self._process is process:
            self._process = None
        self._answered.notify_all()

    def _lost(self, process: _Process, reason: str) -> None:
        """The worker is gone or as good as gone: whatever it was doing has failed."""
        process.popen.kill()
        self._let_go(process)
        pending, process.pending = process.pending, {}
        stopping = any(each.do == "stop" for each in pending.values())
        for each in pending.values():
            if each.do == "upload" and stopping:
                continue  # it has stopped, as asked
            self._fail(each, reason)

    def _fail(self, pending: _Pending, reason: str) -> None:
        hint = "what was sent is kept, and the next try continues it"
        if pending.do == "upload":
            self._post(events.UploadFailed(pending.command["id"], reason, hint))
        elif pending.do == "fetch":
            self._post(events.FetchFailed(pending.command["id"], reason, hint))
        elif pending.do == "stop":
            self._post(events.UploadsStopped())
        elif pending.do in {"open", "delete", "complete"}:
            self._post(events.StoreFailed(pending.do, reason))
        elif pending.do == "renew":
            self._post(events.StoreFailed("lease", reason))

    def _current(self, do: str) -> _Pending | None:
        if self._process is None:
            return None
        found = [each for each in self._process.pending.values() if each.do == do]
        return found[-1] if found else None

    def _waiting_for(self, number: int) -> bool:
        return self._process is not None and number in self._process.pending
