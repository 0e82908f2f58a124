"""Starts the trainer, signals it, kills it, and finds the one of an earlier daemon.

One trainer at a time. What takes time (a start, a preflight, following it to its end)
happens in threads of its own and comes back as events; `signal` and `kill` act at once,
in the caller's thread. At every moment at most one process tree trains this run: the
whole tree inherits a lock, and no start happens while anybody holds it.
"""

from __future__ import annotations

import contextlib
import os
import signal as signals
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from spotd.config import TrainerSettings, trainer_arguments
from spotd.core import actions, events
from spotd.core.targets import choose
from spotd.shell.trainer import proc
from spotd.shell.trainer.account import (
    Account,
    StartRefused,
    clean_environment,
    find_account,
    vouched_file,
)
from spotd.shell.trainer.finding import Remains, find_remains
from spotd.shell.trainer.output import Output, open_output
from spotd.shell.trainer.preflight import preflight
from spotd.shell.trainer.record import Record, RecordStore
from spotd.shell.trainer.scope import Placement, find_placement, unit_name
from spotd.shell.trainer.starting import Order, Prepared
from spotd.shell.trainer.subreaper import become_subreaper
from spotd.shell.trainer.tree import Tree
from spotd.shell.trainer.watching import LINGER, Running

if TYPE_CHECKING:
    from pathlib import Path

Post = Callable[[events.Event], None]


class TrainerHost:
    """The trainer of one run on this machine.

    Args:
        settings: `[trainer]` of the configuration.
        run: The run's name.
        checkpoint_directory: Absolute; the trainer gets it as SPOTD_CHECKPOINT_DIR.
        runtime_directory: `paths.runtime`.
        state_directory: `paths.state`; what is kept of the run is in `<run>/` below it.
        post: Called from several threads with what happened.
        socket: The trainer's datagram socket (`spotd.shell.trainer_socket`), or None.
        placement: Where the trainer's processes live; found out when None.
        linger: Seconds that the rest of the tree gets when the main process ends.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        run: str,
        checkpoint_directory: Path,
        runtime_directory: Path,
        state_directory: Path,
        post: Post,
        socket: Path | None = None,
        placement: Placement | None = None,
        linger: float = LINGER,
    ) -> None:
        self.settings = settings  # a reload replaces it: a start reads it once
        self._run = run
        self._checkpoints = checkpoint_directory
        self._directory = state_directory / run
        self._spare = runtime_directory
        self._post = post
        self._socket = socket
        self._placement = placement if placement is not None else find_placement()
        self._linger = linger
        self._store = RecordStore(self._directory, runtime_directory / f"{run}.trainer.json")
        self._running: Running | None = None
        self._starting = False
        self._kill_wanted = False
        self._mutex = threading.Lock()
        self._remains: Remains | None = None
        become_subreaper()

    # --- what is there ---------------------------------------------------------------

    @property
    def main_pid(self) -> int | None:
        """The pid of the command's own process, while any of its tree is there."""
        running = self._current()
        return running.record.pid if running else None

    def tree(self) -> tuple[int, ...]:
        """The pids of the trainer's living processes, the main one first."""
        running = self._current()
        if running is None:
            return ()
        running.tree.sweep(full=True)
        return tuple(stat.pid for stat in running.tree.living())

    def find(self) -> events.TrainerFound | None:
        """A trainer of an earlier daemon that still lives, or what is left of one.

        When only its descendants are left, `adopt` ends them and posts `TrainerExited`.
        """
        self._remains = find_remains(self._store)
        if self._remains is None:
            return None
        record = self._remains.record
        return events.TrainerFound(record.pid, record.attempt, proc.wall_clock(record.started))

    def adopt(self, found: events.TrainerFound) -> None:
        """Follows the trainer that `find` found, as if this daemon had started it."""
        remains = self._remains
        if remains is None or remains.record.pid != found.pid:
            remains = find_remains(self._store)
        if remains is None:
            self._post(events.TrainerExited())  # it ended in between; nobody saw how
            return
        pidfd = proc.open_pidfd(remains.record.main)
        running = self._make_running(remains.record, remains.tree, pidfd, None)
        with self._mutex:
            self._running = running
        running.follow()

    # --- what is done ----------------------------------------------------------------

    def start(self, action: actions.StartTrainer) -> None:
        """Posts `TrainerStarted` or `TrainerStartFailed` from a thread of its own."""
        with self._mutex:
            busy = self._starting or self._running_now() is not None
            self._starting = self._starting or not busy
            if not busy:
                self._kill_wanted = False
        if busy:
            self._post(events.TrainerStartFailed("a trainer is running already"))
            return
        threading.Thread(target=self._start, args=(action,), name="start", daemon=True).start()

    def signal(self, action: actions.SignalTrainer) -> None:
        """Sends it, once to each of the right processes, and posts `SignalSent`."""
        running = self._current()
        sent: list[int] = []
        if running is not None:
            number = signals.Signals[action.signal]
            snapshot = running.tree.snapshot()
            chosen = choose(
                snapshot, running.record.pid, number,
                target=self.settings.signal_target, purpose=action.purpose,
            )  # fmt: skip
            for pid in chosen:
                process = running.tree.identity(pid)
                if process is not None and proc.send(process, number):
                    sent.append(pid)
        self._post(events.SignalSent(action.purpose, tuple(sent)))

    def kill(self, action: actions.KillTrainer) -> None:  # noqa: ARG002
        """SIGKILL to the whole tree; `TrainerExited` follows once nothing of it is left."""
        with self._mutex:
            running = self._running_now()
            self._kill_wanted = self._starting
        if running is not None:
            running.kill()

    def measure_activity(self) -> None:
        """Posts how many bytes the tree has written so far, to anything."""
        running = self._current()
        counter = running.tree.written() if running is not None else 0
        self._post(events.ActivityMeasured(counter))

    def run_preflight(self) -> None:
        """Runs `trainer.preflight` once, bounded; posts the outcome from a thread of its own."""
        threading.Thread(target=self._preflight, name="preflight", daemon=True).start()

    # --- how -------------------------------------------------------------------------

    def _current(self) -> Running | None:
        with self._mutex:
            return self._running_now()

    def _running_now(self) -> Running | None:
        running = self._running
        return running if running is not None and not running.over.is_set() else None

    def _make_running(
        self, record: Record, tree: Tree, pidfd: int | None, child: Prepared | None
    ) -> Running:
        return Running(
            record=record, tree=tree, pidfd=pidfd, child=child.popen if child else None,
            store=self._store, post=self._post, linger=self._linger,
        )  # fmt: skip

    def _start(self, action: actions.StartTrainer) -> None:
        running = None
        outcome: events.Event
        try:
            running = self._launch(action)
            outcome = events.TrainerStarted(running.record.pid)
        except StartRefused as refused:
            outcome = events.TrainerStartFailed(refused.reason, refused.hint)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            outcome = events.TrainerStartFailed(f"cannot start it: {where}{error.strerror}")
        with self._mutex:
            self._starting = False
            self._running = running
            kill_wanted = self._kill_wanted
        self._post(outcome)
        if running is not None:
            if kill_wanted:
                running.kill()
            running.follow()

    def _launch(self, action: actions.StartTrainer) -> Running:
        settings = self.settings
        account = find_account(settings.user)
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if account.switch and self._socket is not None:
            with contextlib.suppress(FileNotFoundError):  # the user may have come after the socket
                os.chown(self._socket, account.uid, -1)
        marker = self._store.marker_prefix + os.urandom(16).hex()
        order = self._order(settings, action, account, marker)
        lock = self._take_lock()
        output: Output | None = None
        try:
            output = self._open_output(account)
            unit = unit_name(self._run, action.attempt, marker.rpartition(".")[2])
            prefix = self._placement.wrap(unit, [], stop_seconds=action.grace)
            prepared = Prepared(order, output.descriptor, prefix=prefix, inherit=(lock,))
        finally:
            os.close(lock)
            if output is not None:
                os.close(output.descriptor)
        return self._execute(prepared, action, marker, unit, output)

    def _execute(
        self, prepared: Prepared, action: actions.StartTrainer, marker: str, unit: str, to: Output
    ) -> Running:
        """Writes down who is about to train, then lets it."""
        main = prepared.identity
        cgroup = self._placement.cgroup(main.pid)
        record = Record(
            pid=main.pid, started=main.started, boot_id=proc.boot_id(), attempt=action.attempt,
            marker=marker, unit=unit if cgroup else "", cgroup=str(cgroup) if cgroup else "",
            output=to.name, output_from=to.begins,
        )  # fmt: skip
        try:
            self._store.write(record)
            pidfd = os.pidfd_open(main.pid)
        except OSError:
            prepared.give_up()
            raise
        try:
            prepared.execute()
        except StartRefused:
            os.close(pidfd)
            self._store.forget()
            raise
        tree = Tree(main, marker, cgroup)
        tree.sweep()
        return self._make_running(record, tree, pidfd, prepared)

    def _take_lock(self) -> int:
        lock = self._store.try_lock()
        if lock is not None:
            return lock
        holders = ", ".join(map(str, proc.holders(self._store.lock_path))) or "unknown"
        raise StartRefused(
            "processes of an earlier trainer are still there",
            f"their pids: {holders}; kill them if they do not end by themselves",
        )

    def _open_output(self, account: Account) -> Output:
        group = account.gid if account.switch else None
        identifier = f"spotd-trainer-{self._run}"
        try:
            return open_output(identifier, self._directory, group)
        except OSError:
            return open_output(identifier, self._spare, group)

    def _order(
        self, settings: TrainerSettings, action: actions.StartTrainer, account: Account, marker: str
    ) -> Order:
        resume = None
        if action.resume_from is not None:
            resume = str(self._checkpoints / action.resume_from)
        return self._order_for(
            settings, trainer_arguments(settings, resume), account, marker,
            self._told(action, resume),
        )  # fmt: skip

    def _told(self, action: actions.StartTrainer, resume: str | None) -> dict[str, str]:
        """The variables of contracts.md, section 3."""
        told = {
            "SPOTD_RUN": self._run,
            "SPOTD_ATTEMPT": str(action.attempt),
            "SPOTD_CHECKPOINT_DIR": str(self._checkpoints),
            "SPOTD_STOP_GRACE": f"{action.grace:g}",
            # torchrun kills its ranks 30 s after SIGTERM unless this says more.
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, int(action.grace))),
        }
        if resume is not None:
            told["SPOTD_RESUME_FROM"] = resume
        if self._socket is not None:
            told["SPOTD_SOCKET"] = str(self._socket)
        return told

    def _order_for(
        self,
        settings: TrainerSettings,
        command: tuple[str, ...],
        account: Account,
        marker: str,
        told: dict[str, str],
    ) -> Order:
        environment = clean_environment(account)
        path = settings.environment_file
        unread = None
        if path is not None:
            path = settings.directory / path
            vouched = vouched_file(path, account)
            if vouched is None:
                unread = str(path)
            else:
                environment |= vouched
        return Order(
            command=command, directory=str(settings.directory), account=account,
            environment=environment, environment_file=unread,
            last_word={**settings.environment, **told}, marker=marker,
        )  # fmt: skip

    def _preflight(self) -> None:
        settings = self.settings
        command = settings.preflight
        if not command:
            self._post(events.PreflightPassed())
            return
        try:
            account = find_account(settings.user)
            marker = f"preflight.{os.urandom(16).hex()}"
            told = {"SPOTD_RUN": self._run, "SPOTD_CHECKPOINT_DIR": str(self._checkpoints)}
            order = self._order_for(settings, command, account, marker, told)
            reason = preflight(order, settings.preflight_timeout)
        except StartRefused as refused:
            reason = f"{refused.reason}" + (f" ({refused.hint})" if refused.hint else "")
        except OSError as error:
            reason = f"trainer.preflight: {error.strerror}"
        self._post(events.PreflightFailed(reason) if reason else events.PreflightPassed())
