"""Carries out what the core wants done to single checkpoints of the directory.

Called in the directory's own thread, which links and renames; copies, deletions and
fsyncs are handed to workers, each with a descriptor of its own, since the directory may
be lost and found again meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from spotd.core.checkpoint import LocalCheckpoint
from spotd.core.completeness import State
from spotd.core.events import (
    DirectoryTrouble,
    Durable,
    Held,
    HoldFailed,
    Reinstated,
    ReinstateFailed,
    SetAsideDone,
)
from spotd.core.words import readable
from spotd.shell.directory.aside import bring_back, set_aside
from spotd.shell.directory.clone import sync_tree
from spotd.shell.directory.fingerprint import fingerprint_of
from spotd.shell.directory.held import LINK, NONE, Hold, needs_copy, slot_of
from spotd.shell.directory.judge import History
from spotd.shell.directory.private import HOLD
from spotd.shell.directory.trash import ChangedError
from spotd.shell.directory.tree import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.core.actions import Hold as HoldAction
    from spotd.core.actions import SetAside as SetAsideAction
    from spotd.shell.directory.parts import Parts
    from spotd.shell.directory.workers import Worker

_GONE = "the checkpoint directory is gone"


class Source(NamedTuple):
    """Where the content of a held id stands; the fields of `store.source.UploadSource`."""

    root: str
    name: str
    kind: str
    fingerprint: str


class Handling:
    """The actions on single checkpoints; every method posts what came of it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    # --- holding ---------------------------------------------------------------------

    def hold(self, root: int | None, action: HoldAction) -> None:
        """By link at once where that is safe, by copy in a worker where it is not."""
        if root is None:
            self._parts.post(HoldFailed(action.id, _GONE))
            return
        have = self._parts.holds.get(action.id)
        if have is not None and have.mode != NONE and have.original == action.fingerprint:
            # Asked again after a restart, to know it durable: what became of the original
            # since then does not matter.
            self._held(root, have)
            return
        try:
            checkpoint = self._meant(root, action)
            overwritten = action.name in self._parts.candidates.overwritten
            counted = self._parts.candidates.has_siblings(action.name)
            if not needs_copy(action.name, overwritten=overwritten, counted=counted):
                self._link(root, action.id, checkpoint)
                return
        except (ChangedError, OSError) as error:
            self._parts.post(HoldFailed(action.id, _say(error)))
            return
        self._later(self._parts.files, root, lambda own: self._copy(own, action.id, checkpoint))

    def _meant(self, root: int, action: HoldAction) -> LocalCheckpoint:
        known = self._parts.candidates.known.get(action.name)
        if known is not None and known.checkpoint.fingerprint == action.fingerprint:
            return known.checkpoint
        seen = self._parts.judge.look(root, action.name)
        if fingerprint_of(seen) != action.fingerprint:
            raise ChangedError("it has changed since it was found whole")
        return LocalCheckpoint(action.name, seen.kind, seen.size, seen.mtime_ns, action.fingerprint)

    def _link(self, root: int, checkpoint_id: str, checkpoint: LocalCheckpoint) -> None:
        try:
            hold = self._parts.holds.hold_by_link(root, checkpoint_id, checkpoint)
        except ChangedError:
            raise
        except OSError:  # a filesystem without hard links
            self._later(
                self._parts.files, root, lambda own: self._copy(own, checkpoint_id, checkpoint)
            )
            return
        self._held(root, hold)

    def _copy(self, root: int, checkpoint_id: str, checkpoint: LocalCheckpoint) -> None:
        """In the worker for files."""
        if self._parts.stop.is_set():
            return
        try:
            hold = self._parts.holds.hold_by_copy(root, checkpoint_id, checkpoint, self._parts.stop)
        except ChangedError as error:
            self._parts.post(HoldFailed(checkpoint_id, _say(error)))
            return
        except OSError as error:
            if self._parts.stop.is_set():
                return
            self._hold_nothing(root, checkpoint_id, checkpoint, error)
            return
        self._held(root, hold)

    def _hold_nothing(
        self, root: int, checkpoint_id: str, checkpoint: LocalCheckpoint, error: OSError
    ) -> None:
        """No way to keep it: it is sent from where it stands, if it still does."""
        with contextlib.suppress(OSError):
            if (
                fingerprint_of(self._parts.judge.look(root, checkpoint.name))
                == checkpoint.fingerprint
            ):
                self._held(root, self._parts.holds.hold_nothing(checkpoint_id, checkpoint))
                return
        self._parts.post(HoldFailed(checkpoint_id, _say(error)))

    def _held(self, root: int, hold: Hold) -> None:
        self._parts.post(Held(hold.id, hold.mode))
        self._later(self._parts.disk, root, lambda own: self._sync(own, hold.id))

    def _sync(self, root: int, checkpoint_id: str) -> None:
        """In the worker for the disk."""
        try:
            self._parts.holds.sync(root, checkpoint_id, self._parts.stop)
        except (ChangedError, OSError) as error:
            hold = self._parts.holds.get(checkpoint_id)
            if hold is not None and not self._parts.stop.is_set():
                reason = f"{readable(hold.name)} could not be made durable: {_say(error)}"
                self._parts.post(DirectoryTrouble(reason, "look at the kernel log for disk errors"))
            return
        self._parts.post(Durable(checkpoint_id))

    def release(self, root: int | None, checkpoint_id: str) -> None:
        """Lets go of a hold; its blocks are freed in a worker."""
        if root is None:
            return
        try:
            if self._parts.holds.release(root, checkpoint_id):
                self._later(self._parts.files, root, self._parts.trash.empty)
        except OSError as error:
            self._parts.post(DirectoryTrouble(f"{HOLD}/{readable(checkpoint_id)}: {_say(error)}"))

    def source_of(self, path: str, checkpoint_id: str) -> Source | None:
        """Where the content of an id stands; any thread."""
        hold = self._parts.holds.get(checkpoint_id)
        if hold is None:
            return None
        if hold.mode == NONE:
            return Source(path, hold.name, hold.kind, hold.original)
        return Source(f"{path}/{HOLD}/{slot_of(hold.id)}", hold.name, hold.kind, hold.held)

    # --- aside -----------------------------------------------------------------------

    def set_aside(self, root: int | None, action: SetAsideAction) -> None:
        """Out of the trainer's sight; gone already is as good."""
        if root is None:
            self._parts.post(SetAsideDone(action.name, ""))
            return
        to = ""
        try:
            to = set_aside(root, action.name, action.reason)
        except FileNotFoundError:
            pass
        except OSError as error:
            reason = f"{readable(action.name)} cannot be put aside: {_say(error)}"
            self._parts.post(DirectoryTrouble(reason))
            return
        self._parts.candidates.forget(action.name)
        self._parts.post(SetAsideDone(action.name, to))

    def bring_back(self, root: int | None, name: str) -> None:
        """Undoes it; the watch then finds it."""
        if root is None:
            return
        try:
            bring_back(root, name)
        except OSError as error:
            reason = f"{readable(name)} cannot be brought back: {_say(error)}"
            self._parts.post(DirectoryTrouble(reason))

    # --- putting back ----------------------------------------------------------------

    def reinstate(self, root: int | None, checkpoint_id: str) -> None:
        """By links where the hold is links, else by copy in a worker."""
        hold = self._parts.holds.get(checkpoint_id)
        if root is None or hold is None or hold.mode == NONE:
            reason = _GONE if root is None else "it is not held"
            self._parts.post(ReinstateFailed(checkpoint_id, reason))
            return
        self._parts.candidates.muted.add(hold.name)
        if hold.mode == LINK:
            self._put_back(root, hold)
        else:
            self._later(self._parts.files, root, lambda own: self._put_back(own, hold))

    def _put_back(self, root: int, hold: Hold) -> None:
        try:
            if not self._stands(root, hold):
                with contextlib.suppress(FileNotFoundError):
                    set_aside(root, hold.name, f"in the way of {hold.id}, which was whole")
                self._parts.holds.put_back(root, hold, self._parts.stop)
            checkpoint = self._look_again(root, hold)
        except (ChangedError, OSError) as error:
            self._parts.call(lambda: self._parts.candidates.muted.discard(hold.name))
            self._parts.post(ReinstateFailed(hold.id, _say(error)))
            return
        own = os.dup(root)
        self._parts.call(lambda: self._reinstated(own, hold.id, checkpoint))

    def _stands(self, root: int, hold: Hold) -> bool:
        try:
            return fingerprint_of(snapshot(root, hold.name)) in (hold.original, hold.held)
        except OSError:
            return False

    def _look_again(self, root: int, hold: Hold) -> LocalCheckpoint:
        """What stands there now, judged like anything else; durable before it is resumed from."""
        seen = self._parts.judge.look(root, hold.name)
        found = self._parts.judge.judge(
            root, hold.name, seen, History(), settled=True, declared=hold.declared,
            check_writers=False,
        )  # fmt: skip
        if found.verdict.state is not State.WHOLE and not hold.declared:
            raise ChangedError(found.verdict.reason)
        if hold.mode != LINK:
            sync_tree(root, hold.name, seen, self._parts.stop)
        os.fsync(root)
        return found.checkpoint(hold.step, declared=hold.declared)

    def _reinstated(self, root: int, checkpoint_id: str, checkpoint: LocalCheckpoint) -> None:
        self._parts.candidates.muted.discard(checkpoint.name)
        try:
            self._parts.candidates.adopt(root, checkpoint)
        except OSError as error:
            self._parts.post(ReinstateFailed(checkpoint_id, _say(error)))
            return
        finally:
            os.close(root)
        self._parts.post(Reinstated(checkpoint_id, checkpoint))

    # --- deleting --------------------------------------------------------------------

    def delete_local(self, root: int | None, name: str, fingerprint: str) -> None:
        """Moves it out of sight if it is what was meant; a worker deletes it."""
        if root is None:
            return
        try:
            self._parts.trash.take(root, name, fingerprint)
        except (FileNotFoundError, ChangedError):
            return  # the trainer was faster, or has saved anew: nothing is superfluous
        except OSError as error:
            self._parts.post(DirectoryTrouble(f"{readable(name)} cannot be deleted: {_say(error)}"))
            return
        self._later(self._parts.files, root, self._parts.trash.empty)

    # --- helpers ---------------------------------------------------------------------

    @staticmethod
    def _later(worker: Worker, root: int, job: Callable[[int], None]) -> None:
        """Gives a job to a worker with a descriptor of its own."""
        own = os.dup(root)

        def run() -> None:
            try:
                job(own)
            finally:
                os.close(own)

        worker.do(run)


def _say(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
