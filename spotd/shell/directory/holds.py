"""Keeping the content of a checkpoint whatever the trainer does to the original.

`.spotd-hold/<id>/<name>` is the content, `.spotd-hold/<id>/.hold.json` says what it is.
A hard link costs nothing and survives deletion and replacement, but not writing in
place. So what is written over in place (or may be, having a name without a number) is
copied, by reflink where the filesystem shares blocks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spotd.core.checkpoint import LocalCheckpoint, parse_checkpoint_id
from spotd.shell.directory.clone import (
    COPY,
    LINK,
    REFLINK,
    can_reflink,
    clone,
    sync_tree,
)
from spotd.shell.directory.fingerprint import fingerprint_of
from spotd.shell.directory.private import (
    HOLD,
    opened_private,
    read_note,
    rename_to_free_name,
    write_note,
)
from spotd.shell.directory.tree import Snapshot, opened_directory, remove_tree, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

NONE = "none"
NOTE = ".hold.json"
RESERVE = 256 << 20  # bytes a copy must leave free, beside room for the trainer's next save
_MODE = 0o700
_MAX_SLOT = 200  # bytes of a slot's name
_TRASH, _NEW = ".trash-", ".new-"


class ChangedError(Exception):
    """What stands under the name is not the content that was meant."""


@dataclass(frozen=True, slots=True)
class Hold:
    """One held checkpoint.

    Attributes:
        id: Its checkpoint id.
        name: Its name.
        kind: "file" or "directory".
        mode: "reflink", "copy", "link" or "none".
        original: The fingerprint of the original when it was held.
        held: The fingerprint of what is in the slot; "" for mode "none".
        step: What is known of its step.
        declared: The trainer said that it was complete.
    """

    id: str
    name: str
    kind: str
    mode: str
    original: str
    held: str
    step: int | None = None
    declared: bool = False


def slot_of(checkpoint_id: str) -> str:
    """Returns the directory name for an id; ids longer than a name may be are shortened."""
    raw = checkpoint_id.encode()
    if len(raw) <= _MAX_SLOT:
        return checkpoint_id
    digest = hashlib.blake2b(raw, digest_size=8).hexdigest()
    return raw[:_MAX_SLOT].decode("utf-8", "ignore") + "~" + digest


def needs_copy(name: str, *, overwritten: bool) -> bool:
    """Whether a hard link would not do: the trainer may write over this one in place."""
    return overwritten or not any(character.isdigit() for character in name)


class Holds:
    """The `.spotd-hold` directory. Methods that copy may take long; all are safe to repeat.

    Args:
        owner: The trainer's uid, for `spotd.shell.directory.tree.snapshot`.
    """

    def __init__(self, owner: int | None = None) -> None:
        self._owner = owner
        # Tells our own unfinished work from that of a daemon that was killed.
        self._token = os.urandom(4).hex()
        self._count = itertools.count(1)
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
        with opened_private(root, HOLD, _MODE) as hold:
            seen = snapshot(root, checkpoint.name, owner=self._owner)
            sharing = can_reflink(root, checkpoint.name, seen, hold)
        if sharing:
            return self._hold(root, checkpoint_id, checkpoint, REFLINK, stop)
        if free_bytes(root) >= 2 * checkpoint.size + RESERVE:
            return self._hold(root, checkpoint_id, checkpoint, COPY, stop)
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
        with opened_private(root, HOLD, _MODE) as hold:
            new = f"{_NEW}{self._token}-{next(self._count)}"
            os.mkdir(new, _MODE, dir_fd=hold)
            try:
                with opened_directory(hold, new) as slot:
                    clone(root, name, seen, slot, mode=mode, stop=stop)
                    made = snapshot(slot, name)
                    self._verify(root, checkpoint, seen, made, mode)
                    result = Hold(
                        checkpoint_id, name, checkpoint.kind, mode, checkpoint.fingerprint,
                        fingerprint_of(made), checkpoint.step, checkpoint.declared,
                    )  # fmt: skip
                    write_note(slot, NOTE, _as_note(result))
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
            with opened_private(root, HOLD, _MODE, create=False) as directory:
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
            opened_private(root, HOLD, _MODE, create=False) as directory,
            opened_directory(directory, slot_of(hold.id)) as slot,
        ):
            seen = snapshot(slot, hold.name)
            mode = hold.mode
            if mode == COPY and free_bytes(root) < seen.size + RESERVE:
                rename_to_free_name(slot, hold.name, root, hold.name)
                self.forget(hold.id)
                self._keep(replace(hold, mode=NONE, original=hold.held, held=""))
                return
            new = f"{_NEW}{self._token}-{next(self._count)}"
            os.mkdir(new, _MODE, dir_fd=directory)
            try:
                with opened_directory(directory, new) as made:
                    clone(slot, hold.name, seen, made, mode=mode, stop=stop)
                    rename_to_free_name(made, hold.name, root, hold.name)
            finally:
                with contextlib.suppress(OSError):
                    remove_tree(directory, new)

    # --- letting go ------------------------------------------------------------------

    def release(self, root: int, checkpoint_id: str) -> bool:
        """Moves a hold out of sight; `empty_trash` deletes it. False when there is none.

        Raises:
            OSError: It cannot be moved.
        """
        with self._lock:
            self._holds.pop(checkpoint_id, None)
        try:
            with opened_private(root, HOLD, _MODE, create=False) as hold:
                os.rename(slot_of(checkpoint_id), self._trash(), src_dir_fd=hold, dst_dir_fd=hold)
        except FileNotFoundError:
            return False
        return True

    def take_to_trash(self, root: int, name: str, meant: str) -> None:
        """Moves an entry of the checkpoint directory out of sight, if it is what was meant.

        Raises:
            ChangedError: It is something else; it stands where it stood.
            OSError: It cannot be moved.
        """
        with opened_private(root, HOLD, _MODE) as hold:
            trash = self._trash()
            os.mkdir(trash, _MODE, dir_fd=hold)
            with opened_directory(hold, trash) as target:
                rename_to_free_name(root, name, target, name)
                if fingerprint_of(snapshot(target, name)) == meant:
                    return
                rename_to_free_name(target, name, root, name)
            os.rmdir(trash, dir_fd=hold)
        raise ChangedError("it has changed")

    def _trash(self) -> str:
        return f"{_TRASH}{self._token}-{next(self._count)}"

    def empty_trash(self, root: int) -> None:
        """Deletes what was released, and the leftovers of a daemon that was killed.

        Raises:
            OSError: Something cannot be deleted.
        """
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            opened_private(root, HOLD, _MODE, create=False) as hold,
        ):
            for name in os.listdir(hold):  # noqa: PTH208 - a descriptor
                own = name.startswith(f"{_NEW}{self._token}-")
                if name.startswith((_TRASH, _NEW)) and not own:
                    remove_tree(hold, name)

    # --- what is there ---------------------------------------------------------------

    def slots(self, root: int) -> Iterator[tuple[str, Hold | None]]:
        """Yields (slot name, what its note says) of everything held.

        The note of a slot left by a killed daemon may be missing: None.
        """
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            opened_private(root, HOLD, _MODE, create=False) as hold,
        ):
            for name in sorted(os.listdir(hold)):  # noqa: PTH208 - a descriptor
                if name.startswith("."):
                    continue
                try:
                    with opened_directory(hold, name) as slot:
                        note = read_note(slot, NOTE)
                except OSError:
                    continue
                yield name, _from_note(note) or _guess(name)

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


def _guess(slot: str) -> Hold | None:
    parsed = parse_checkpoint_id(slot)
    if parsed is None:
        return None
    return Hold(slot, parsed[1], "", LINK, "", "")


def _as_note(hold: Hold) -> dict[str, object]:
    return {
        "format": 1,
        "id": hold.id,
        "name": hold.name,
        "kind": hold.kind,
        "mode": hold.mode,
        "original": hold.original,
        "held": hold.held,
        "step": hold.step,
        "declared": hold.declared,
    }


def _from_note(note: dict[str, object] | None) -> Hold | None:
    if note is None:
        return None
    texts = [note.get(key) for key in ("id", "name", "kind", "mode", "original", "held")]
    step, declared = note.get("step"), note.get("declared")
    words = [text for text in texts if isinstance(text, str)]
    if len(words) != len(texts) or "/" in words[1] or words[1] in ("", ".", ".."):
        return None
    return Hold(
        words[0], words[1], words[2], words[3], words[4], words[5],
        step if isinstance(step, int) else None, declared is True,
    )  # fmt: skip


def free_bytes(descriptor: int) -> int:
    """Returns the bytes an ordinary user may still write on this filesystem."""
    status = os.fstatvfs(descriptor)
    return status.f_bavail * status.f_frsize
