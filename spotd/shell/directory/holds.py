"""Keeping the content of a checkpoint whatever the trainer does to the original.

`.spotd-hold/<id>/<name>` is the content, `.spotd-hold/<id>/.hold.json` says what it is.
A hard link costs nothing and survives deletion and replacement, but not writing in
place. So what is written over in place (or may be, having a name without a number) is
copied, by reflink where the filesystem shares blocks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from spotd.shell.directory.clone import can_reflink, clone, sync_tree
from spotd.shell.directory.fingerprint import fingerprint_of
from spotd.shell.directory.held import (
    COPY,
    LINK,
    NONE,
    NOTE,
    REFLINK,
    Hold,
    as_note,
    from_note,
    guess,
    slot_of,
)
from spotd.shell.directory.private import (
    HOLD,
    opened_private,
    read_note,
    rename_to_free_name,
    write_note,
)
from spotd.shell.directory.trash import MODE, NEW, TRASH, ChangedError, Trash
from spotd.shell.directory.tree import Snapshot, opened_directory, remove_tree, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spotd.core.checkpoint import LocalCheckpoint

RESERVE = 256 << 20  # bytes a copy must leave free, beside room for the trainer's next save


class Holds:
    """The `.spotd-hold` directory. Methods that copy may take long; all are safe to repeat.

    Args:
        trash: Names for what is being made and for what is to be deleted.
        owner: The trainer's uid, for `spotd.shell.directory.tree.snapshot`.
    """

    def __init__(self, trash: Trash, owner: int | None = None) -> None:
        self._owner = owner
        self._trash = trash
        self._lock = threading.Lock()
        self._holds: dict[str, Hold] = {}

    def get(self, checkpoint_id: str) -> Hold | None:
        """Returns what is held under an id. Any thread."""
        with self._lock:
            return self._holds.get(checkpoint_id)

    def _keep(self, hold: Hold) -> None:
        with self._lock:
            self._holds[hold.id] = hold

    # --- holding ---------------------------------------------------------------------

    def hold_by_link(self, root: int, checkpoint_id: str, checkpoint: LocalCheckpoint) -> Hold:
        """Holds by hard links: at once, whatever the size.

        Raises:
            ChangedError: The original is not what was meant any more.
            OSError: The filesystem or the kernel refuses links.
        """
        return self._hold(root, checkpoint_id, checkpoint, LINK, threading.Event())

    def hold_by_copy(
        self, root: int, checkpoint_id: str, checkpoint: LocalCheckpoint, stop: threading.Event
    ) -> Hold:
        """Holds by reflinks or copies, by links where there is no room for copies.

        Raises:
            ChangedError: The original changed while it was copied.
            OSError: It cannot be held in any way.
        """
        with opened_private(root, HOLD, MODE) as hold:
            seen = snapshot(root, checkpoint.name, owner=self._owner)
            sharing = can_reflink(root, checkpoint.name, seen, hold)
        if sharing:
            return self._hold(root, checkpoint_id, checkpoint, REFLINK, stop)
        if free_bytes(root) >= 2 * checkpoint.size + RESERVE:
            try:
                return self._hold(root, checkpoint_id, checkpoint, COPY, stop)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
        return self._hold(root, checkpoint_id, checkpoint, LINK, stop)

    def hold_nothing(self, checkpoint_id: str, checkpoint: LocalCheckpoint) -> Hold:
        """Only remembers which original an id means: there is no way to keep it."""
        hold = Hold(
            checkpoint_id, checkpoint.name, checkpoint.kind, NONE, checkpoint.fingerprint, ""
        )
        self._keep(hold)
        return hold

    def _hold(
        self,
        root: int,
        checkpoint_id: str,
        checkpoint: LocalCheckpoint,
        mode: str,
        stop: threading.Event,
    ) -> Hold:
        name = checkpoint.name
        seen = snapshot(root, name, owner=self._owner)
        if fingerprint_of(seen) != checkpoint.fingerprint:
            raise ChangedError("it has changed since it was found whole")
        with opened_private(root, HOLD, MODE) as hold:
            new = self._trash.fresh(NEW)
            os.mkdir(new, MODE, dir_fd=hold)
            try:
                with opened_directory(hold, new) as slot:
                    clone(root, name, seen, slot, mode=mode, stop=stop)
                    made = snapshot(slot, name)
                    self._verify(root, checkpoint, seen, made, mode)
                    result = Hold(
                        checkpoint_id, name, checkpoint.kind, mode, checkpoint.fingerprint,
                        fingerprint_of(made), checkpoint.step, checkpoint.declared,
                    )  # fmt: skip
                    write_note(slot, NOTE, as_note(result))
                self._put_in_place(hold, new, slot_of(checkpoint_id))
            except BaseException:
                with contextlib.suppress(OSError):
                    remove_tree(hold, new)
                raise
        self._keep(result)
        return result

    def _verify(
        self, root: int, checkpoint: LocalCheckpoint, seen: Snapshot, made: Snapshot, mode: str
    ) -> None:
        """A linked tree must be the very files; a copy, of an original unchanged meanwhile."""
        meant = checkpoint.fingerprint
        same = fingerprint_of(made) == meant
        if mode != LINK:
            shapes = [
                [(file.path, file.size, file.mtime_ns) for file in tree.files]
                for tree in (seen, made)
            ]
            now = snapshot(root, checkpoint.name, owner=self._owner)
            same = shapes[0] == shapes[1] and fingerprint_of(now) == meant
        if not same:
            raise ChangedError("it changed while it was being held")

    @staticmethod
    def _put_in_place(hold: int, new: str, slot: str) -> None:
        try:
            rename_to_free_name(hold, new, hold, slot)
        except FileExistsError:  # of a daemon that was killed: ours is the verified one
            remove_tree(hold, slot)
            rename_to_free_name(hold, new, hold, slot)

    def sync(self, root: int, checkpoint_id: str, stop: threading.Event) -> None:
        """Makes a hold durable: its files, the original's where it still stands, all directories.

        Raises:
            OSError: The disk refused, or the hold is gone.
            ChangedError: There was only the original, and that has changed.
        """
        hold = self.get(checkpoint_id)
        if hold is None:
            raise FileNotFoundError(errno.ENOENT, "it is not held any more")
        original = self._original(root, hold)
        if hold.mode == NONE and original is None:
            raise ChangedError("it has changed and could not be held")
        if original is not None:
            # The original too: it is what the trainer resumes from after a power cut.
            with contextlib.suppress(FileNotFoundError):
                sync_tree(root, hold.name, original, stop)
        if hold.mode != NONE:
            with opened_private(root, HOLD, MODE, create=False) as directory:
                with opened_directory(directory, slot_of(hold.id)) as slot:
                    sync_tree(slot, hold.name, snapshot(slot, hold.name), stop)
                    os.fsync(slot)
                os.fsync(directory)
        os.fsync(root)

    def _original(self, root: int, hold: Hold) -> Snapshot | None:
        try:
            seen = snapshot(root, hold.name, owner=self._owner)
        except OSError:
            return None
        return seen if fingerprint_of(seen) == hold.original else None

    # --- putting back ----------------------------------------------------------------

    def put_back(self, root: int, hold: Hold, stop: threading.Event) -> None:
        """Makes `root/<name>` out of what is held; the hold stays, unless there is no room.

        Raises:
            FileExistsError: Something stands under the name.
            OSError: It cannot be done.
        """
        with (
            opened_private(root, HOLD, MODE, create=False) as directory,
            opened_directory(directory, slot_of(hold.id)) as slot,
        ):
            seen = snapshot(slot, hold.name)
            mode = hold.mode
            if mode == COPY and free_bytes(root) < seen.size + RESERVE:
                rename_to_free_name(slot, hold.name, root, hold.name)
                self.forget(hold.id)
                self._keep(replace(hold, mode=NONE, original=hold.held, held=""))
                return
            new = self._trash.fresh(NEW)
            os.mkdir(new, MODE, dir_fd=directory)
            try:
                with opened_directory(directory, new) as made:
                    clone(slot, hold.name, seen, made, mode=mode, stop=stop)
                    rename_to_free_name(made, hold.name, root, hold.name)
            finally:
                with contextlib.suppress(OSError):
                    remove_tree(directory, new)

    # --- letting go ------------------------------------------------------------------

    def release(self, root: int, checkpoint_id: str) -> bool:
        """Moves a hold out of sight; `Trash.empty` deletes it. False when there is none.

        Raises:
            OSError: It cannot be moved.
        """
        with self._lock:
            self._holds.pop(checkpoint_id, None)
        try:
            with opened_private(root, HOLD, MODE, create=False) as hold:
                trash = self._trash.fresh(TRASH)
                os.rename(slot_of(checkpoint_id), trash, src_dir_fd=hold, dst_dir_fd=hold)
        except FileNotFoundError:
            return False
        return True

    # --- what is there ---------------------------------------------------------------

    def slots(self, root: int) -> Iterator[tuple[str, Hold | None]]:
        """Yields (slot name, what its note says) of everything held.

        The note of a slot left by a killed daemon may be missing: None.
        """
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            opened_private(root, HOLD, MODE, create=False) as hold,
        ):
            for name in sorted(os.listdir(hold)):  # noqa: PTH208 - a descriptor
                if name.startswith("."):
                    continue
                try:
                    with opened_directory(hold, name) as slot:
                        note = read_note(slot, NOTE)
                except OSError:
                    continue
                yield name, from_note(note) or guess(name)

    def register(self, hold: Hold) -> None:
        """A hold of an earlier daemon was found whole: it can be sent and reinstated."""
        self._keep(hold)

    def forget(self, checkpoint_id: str) -> None:
        """Nothing is held under this id."""
        with self._lock:
            self._holds.pop(checkpoint_id, None)

    def ids(self) -> tuple[str, ...]:
        """Returns the ids of all holds. Any thread."""
        with self._lock:
            return tuple(self._holds)


def free_bytes(descriptor: int) -> int:
    """Returns the bytes an ordinary user may still write on this filesystem."""
    status = os.fstatvfs(descriptor)
    return status.f_bavail * status.f_frsize
