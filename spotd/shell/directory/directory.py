"""The checkpoint directory as the daemon's loop sees it: actions in, events out.

One thread watches, judges, links and renames; nothing of that takes long. Copies and
deletions, and fsyncs and the reading of contents, have a thread each, so that a long
fsync never delays the hold of a newer checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from spotd.core.completeness import AUTO
from spotd.core.events import DirectoryTrouble, Event
from spotd.shell.directory.answers import Answers
from spotd.shell.directory.candidates import Candidates
from spotd.shell.directory.handling import Handling, Source
from spotd.shell.directory.holds import Holds
from spotd.shell.directory.inspecting import Inspecting
from spotd.shell.directory.judge import Judge
from spotd.shell.directory.parts import Parts
from spotd.shell.directory.place import (
    FREE_SOME_SPACE,
    PlaceError,
    is_same,
    no_room,
    open_place,
    volatile,
)
from spotd.shell.directory.trash import Trash
from spotd.shell.directory.tree import SwappedError
from spotd.shell.directory.watch import Ears, is_blind, rescan_interval
from spotd.shell.directory.workers import Worker
from spotd.shell.wake import Wake

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spotd.core.actions import Hold as HoldAction
    from spotd.core.actions import Inspect
    from spotd.core.actions import SetAside as SetAsideAction
    from spotd.shell.owner import Owner

MISSING_RETRY = 0.5  # seconds between looks for a directory that is missing
JOIN = 5.0  # seconds `stop` waits for each thread


class CheckpointDirectory:
    """Watches and handles one checkpoint directory.

    All methods return at once; what they lead to is posted. May be called from any thread.

    Args:
        path: The configured directory, absolute. Links in it are resolved once, by `start`.
        pattern: `checkpoints.pattern`.
        complete: `checkpoints.complete`.
        owner: The trainer's user.
        post: Takes events, from any thread.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        pattern: tuple[str, ...] = ("*",),
        complete: str = AUTO,
        owner: Owner,
        post: Callable[[Event], None],
    ) -> None:
        self._configured = os.path.normpath(str(path))
        self._path = self._configured
        self._owner = owner
        self._answers = Answers(post)
        self._post = self._answers.post
        self._stop = threading.Event()
        self._wake = Wake()
        self._commands: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._run, name="directory", daemon=True)
        self._root: int | None = None
        self._ears: Ears | None = None
        self._blind = False
        self._rescan_at = 0.0
        self._trouble: DirectoryTrouble | None = None
        self._scanned_once = False
        self._scanned = -1  # mtime of the directory when all of it was last looked at
        self._files = Worker("directory-files", self._stop, self._job_failed)
        self._disk = Worker("directory-disk", self._stop, self._job_failed)
        judge = Judge(complete=complete, default_pattern=pattern == ("*",), owner=owner.uid)
        self._candidates = Candidates(judge, pattern, self._post, self._listen_below)
        trash = Trash()
        parts = Parts(
            candidates=self._candidates,
            holds=Holds(trash, owner.uid),
            trash=trash,
            judge=judge,
            post=self._post,
            answer=self._answers.answer,
            files=self._files,
            disk=self._disk,
            stop=self._stop,
            call=self._call,
        )
        self._handling = Handling(parts)
        self._inspecting = Inspecting(parts)

    # --- life ------------------------------------------------------------------------

    def start(self) -> None:
        """Resolves the path and starts watching. Never fails: trouble is posted."""
        self._path = os.path.realpath(self._configured)
        self._thread.start()

    def stop(self) -> None:
        """Ends all threads; a copy or a fsync at hand is given up or waited for a moment."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN)
        ended = [worker.join(JOIN) for worker in (self._files, self._disk)]
        if all(ended) and not self._thread.is_alive():
            self._close()
            self._wake.close()

    # --- actions ---------------------------------------------------------------------

    def inspect(self, action: Inspect) -> None:
        """-> LocalInventory | DirectoryTrouble."""
        self._answers.asked()
        self._call(lambda: self._inspect(action))

    def hold(self, action: HoldAction) -> None:
        """-> Held, later Durable | HoldFailed."""
        self._call(lambda: self._handling.hold(self._root, action))

    def release_hold(self, checkpoint_id: str) -> None:
        """Deletes what is held under an id."""
        self._call(lambda: self._handling.release(self._root, checkpoint_id))

    def set_aside(self, action: SetAsideAction) -> None:
        """-> SetAsideDone | DirectoryTrouble."""
        self._call(lambda: self._handling.set_aside(self._root, action))

    def bring_back(self, name: str) -> None:
        """Undoes `set_aside`; CheckpointSeen follows when it is whole."""
        self._call(lambda: self._handling.bring_back(self._root, name))

    def reinstate(self, checkpoint_id: str) -> None:
        """-> Reinstated | ReinstateFailed. What stands in the way is set aside."""
        self._call(lambda: self._handling.reinstate(self._root, checkpoint_id))

    def delete_local(self, name: str, fingerprint: str) -> None:
        """Deletes a checkpoint if it still is what the fingerprint says."""
        self._call(lambda: self._handling.delete_local(self._root, name, fingerprint))

    def arriving(self, name: str) -> None:
        """The store's fetcher is about to put this entry here: not a save of the trainer's."""
        self._candidates.muted.add(name)  # now, not when the thread comes round to it

    def arrived(self, name: str) -> None:
        """The fetcher is done with it, well or badly: known now if whole, and not posted."""
        self._call(lambda: self._arrived(name))

    # --- what the trainer says -------------------------------------------------------

    def declare(self, path: str) -> bool:
        """The trainer says that this checkpoint is complete. Untrusted.

        Args:
            path: Absolute; it must name an entry directly in the directory.

        Returns:
            Whether it does; if not, nothing is done and the caller counts it.
        """
        parent, _, name = path.rstrip("/").rpartition("/")
        if "\0" in path or not path.startswith("/") or name in ("", ".", ".."):
            return False
        if os.path.normpath(parent) not in (self._configured, self._path):
            return False
        self._call(lambda: self._declare(name))
        return True

    def expect(self, step: int) -> None:
        """The trainer is at this step: the step of what it saves under a name without one."""
        self._candidates.step = step

    # --- answers ---------------------------------------------------------------------

    def source_of(self, checkpoint_id: str) -> Source | None:
        """Returns where the content of a held id stands, or None when it is not held."""
        return self._handling.source_of(self._path, checkpoint_id)

    def free_space(self) -> int | None:
        """Returns the bytes free for the trainer, or None while there is no directory."""
        try:
            status = os.statvfs(self._path)
        except OSError:
            return None
        return status.f_bavail * status.f_frsize

    @property
    def path(self) -> str:
        """The directory without links, as the trainer is told it."""
        return self._path

    # --- the thread ------------------------------------------------------------------

    def _call(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._wake.set()

    def _run(self) -> None:
        self._open(create=True)
        while not self._stop.is_set():
            self._wait()
            if self._stop.is_set():
                return
            try:
                self._turn()
            except OSError as error:
                self._lost(error)
            except Exception as error:  # noqa: BLE001 - said, and the watch goes on
                self._job_failed(error)
                self._rescan_at = time.monotonic() + MISSING_RETRY

    def _turn(self) -> None:
        """One round: the root, what was heard, what was asked, what is due."""
        if self._root is None:
            self._open(create=False)
        if self._ears is not None and self._root is not None:
            changes = self._ears.hear()
            if changes.gone and not is_same(self._root, self._path):
                self._forget_root()
                self._open(create=False)
            now = time.monotonic()
            for name in changes.names:
                self._candidates.touch(name, now, finished=name in changes.finished)
            if changes.lost:
                self._scanned, self._rescan_at = -1, now
        while self._commands:
            self._commands.popleft()()
        now = time.monotonic()
        if self._root is not None:
            self._candidates.look_at_due(self._root, now)
            if now >= self._rescan_at:
                self._rescan()

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._wake.fileno(), select.POLLIN)
        if self._ears is not None:
            poller.register(self._ears.fileno(), select.POLLIN)
        poller.poll(self._timeout())
        self._wake.clear()

    def _timeout(self) -> float:
        """Milliseconds until something is due."""
        if self._commands:
            return 0
        if self._root is None:
            return MISSING_RETRY * 1000
        due = min(self._candidates.next_due(), self._rescan_at)
        return max(0.0, due - time.monotonic()) * 1000

    def _rescan(self) -> None:
        """The safety net: what the ears missed, and whether the directory is the same."""
        root = self._root
        if root is None:
            return
        if not is_same(root, self._path):
            self._forget_root()
            self._open(create=False)
            return
        before = time.thread_time()
        changed = os.fstat(root).st_mtime_ns
        if self._blind or changed != self._scanned:
            self._candidates.scan(root, quietly=not self._scanned_once)
        else:
            self._candidates.glance(root)
        self._rescanned(changed, before)

    def _rescanned(self, changed: int, before: float) -> None:
        """Everything was looked at; `changed` is the directory's mtime before that."""
        self._check_room()
        self._scanned_once = True
        self._scanned = changed
        cost = time.thread_time() - before
        self._rescan_at = time.monotonic() + rescan_interval(cost, blind=self._blind)

    def _check_room(self) -> None:
        """Says once that the next checkpoint will not fit, and forgets it when it does."""
        root = self._root
        if root is None:
            return
        problem = no_room(root, self._path, self._candidates.newest())
        if problem is not None:
            self._report(problem.reason, problem.hint)
        elif self._trouble is not None and self._trouble.hint == FREE_SOME_SPACE:
            self._trouble = None

    # --- the root --------------------------------------------------------------------

    def _open(self, *, create: bool, quietly: bool = False) -> None:
        try:
            root = open_place(self._path, self._owner, create=create)
        except PlaceError as error:
            self._scanned_once = True  # whatever is there when it comes, is news
            if quietly:
                self._trouble = DirectoryTrouble(error.reason, error.hint)
            else:
                self._report(error.reason, error.hint)
            return
        self._root = root
        self._blind = is_blind(root)
        with contextlib.suppress(OSError):  # no watches to be had: scanning has to do
            self._ears = None if self._blind else Ears(root, self._path)
        self._blind = self._ears is None
        self._trouble = None
        self._scanned = -1
        self._rescan_at = 0.0
        lost = volatile(root)
        if lost:
            self._report(
                f"{self._path} does not survive a stop of the instance: {lost}",
                "put it on an EBS volume; until then only what is in the store can be resumed",
            )

    def _report(self, reason: str, hint: str) -> None:
        trouble = DirectoryTrouble(reason, hint)
        if trouble != self._trouble:
            self._trouble = trouble
            self._post(trouble)

    def _lost(self, error: OSError) -> None:
        if self._root is not None and not is_same(self._root, self._path):
            self._forget_root()
            return
        detail = str(error) if isinstance(error, SwappedError) else error.strerror or str(error)
        self._report(f"{self._path}: {detail}", "")
        self._rescan_at = time.monotonic() + MISSING_RETRY

    def _forget_root(self) -> None:
        self._candidates.lose_all()
        self._close()
        # What appears in a new directory of this name was saved there: nothing is old news.
        self._scanned_once = True

    def _close(self) -> None:
        ears, self._ears = self._ears, None
        root, self._root = self._root, None
        if ears is not None:
            ears.close()
        if root is not None:
            os.close(root)

    # --- commands that need more than one part ------------------------------------------

    def _listen_below(self, name: str, directories: tuple[str, ...]) -> None:
        if self._ears is not None:
            self._ears.watch_below(name, directories)

    def _inspect(self, action: Inspect) -> None:
        if self._root is None or not is_same(self._root, self._path):
            self._forget_root()
            self._trouble = None
            self._open(create=action.settled, quietly=True)
        if self._root is None:
            # Each inspection gets an answer, the same trouble or not.
            self._answers.answer(self._trouble or DirectoryTrouble(f"{self._path} does not exist"))
            return
        before = time.thread_time()
        changed = os.fstat(self._root).st_mtime_ns
        try:
            self._inspecting.inspect(self._root, action)
            self._rescanned(changed, before)
        except OSError as error:
            self._answers.answer(DirectoryTrouble(f"{self._path}: {error.strerror or error}"))

    def _arrived(self, name: str) -> None:
        self._candidates.muted.discard(name)
        if self._root is not None:
            self._candidates.examine(self._root, name, quietly=True, settled=True)

    def _declare(self, name: str) -> None:
        if self._root is not None:
            self._candidates.declare(self._root, name)
            self._candidates.report_saves()

    def _job_failed(self, error: BaseException) -> None:
        self._post(DirectoryTrouble(f"{self._path}: {type(error).__name__}: {error}"))
