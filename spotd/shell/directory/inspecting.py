"""The answer to `Inspect`: what is whole, what is torn, what is held."""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from spotd.core.completeness import State, Structure
from spotd.core.events import DirectoryTrouble, HeldCheckpoint, LocalInventory
from spotd.shell.directory.aside import set_aside
from spotd.shell.directory.fingerprint import fingerprint_of
from spotd.shell.directory.judge import History
from spotd.shell.directory.private import HOLD
from spotd.shell.directory.reader import read_contents
from spotd.shell.directory.tree import (
    Snapshot,
    SwappedError,
    opened_directory,
    opened_file,
    remove_tree,
    snapshot,
)

if TYPE_CHECKING:
    from spotd.core.actions import Inspect
    from spotd.core.checkpoint import LocalCheckpoint
    from spotd.shell.directory.held import Hold
    from spotd.shell.directory.parts import Parts

_MAX_REMEMBERED = 1000
# The kernel writes what is dirty within a minute (vm.dirty_expire_centisecs: 30 s), so that a
# power cut tears what was written just before it, which is not long before the newest.
ON_THE_PLATTER = 900.0  # seconds


class Inspecting:
    """Takes inventory of one checkpoint directory."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._cleaned = False
        # Contents read before: fingerprint -> why it is damaged, "" when it is not.
        self._read: OrderedDict[str, str] = OrderedDict()

    def inspect(self, root: int, action: Inspect) -> None:
        """Posts the inventory, after a worker has read contents where that was asked for."""
        whole, torn = self._parts.candidates.inventory(root, settled=action.settled)
        held = self._held(root)
        if not action.contents:
            self._parts.answer(LocalInventory(tuple(whole), tuple(torn), tuple(held)))
            return
        own = os.dup(root)

        def read() -> None:
            try:
                answer = self._with_contents(own, whole, torn, held, frozenset(action.trusted))
            except OSError as error:
                self._parts.answer(
                    DirectoryTrouble(f"contents cannot be read: {error.strerror or error}")
                )
                return
            finally:
                os.close(own)
            bad = {name for name, _ in answer.torn}
            self._parts.call(lambda: self._have_read(answer, bad))

        self._parts.disk.do(read)

    def _have_read(self, answer: LocalInventory, bad: set[str]) -> None:
        for name in bad:
            self._parts.candidates.dismiss(name)
        self._parts.answer(answer)

    # --- contents --------------------------------------------------------------------

    def _with_contents(
        self,
        root: int,
        whole: list[LocalCheckpoint],
        torn: list[tuple[str, str]],
        held: list[HeldCheckpoint],
        trusted: frozenset[str],
    ) -> LocalInventory:
        """In the worker for the disk: what a power cut can have torn, newest first."""
        good, bad = [], list(torn)
        written = {checkpoint.name: _written(root, checkpoint.name) for checkpoint in whole}
        now = time.time()  # a clock that was ahead once must not make all the others old
        since = max((at for at in written.values() if at <= now), default=0.0) - ON_THE_PLATTER
        for checkpoint in sorted(whole, key=lambda c: c.mtime_ns, reverse=True):
            reason = ""
            if checkpoint.fingerprint not in trusted and written[checkpoint.name] >= since:
                reason = self._damage(root, checkpoint.name)
            if reason:
                bad.append((checkpoint.name, reason))
            else:
                good.append(checkpoint)
        kept = []
        for one in held:
            if self._damage_of_hold(root, one, trusted):
                self._discard_damaged(root, one.id)
            else:
                kept.append(one)
        return LocalInventory(tuple(reversed(good)), tuple(bad), tuple(kept))

    def _discard_damaged(self, root: int, checkpoint_id: str) -> None:
        """Contents are read once in a boot: what they prove damaged must not be found again."""
        if self._parts.stop.is_set():
            return  # reading was broken off: nothing is proved
        with contextlib.suppress(OSError), opened_directory(root, HOLD) as hold:
            for slot_name, note in self._parts.holds.slots(root):
                if note is not None and note.id == checkpoint_id:
                    self._discard(root, hold, slot_name, note)

    def _damage_of_hold(self, root: int, one: HeldCheckpoint, trusted: frozenset[str]) -> str:
        if one.checkpoint.fingerprint in trusted:
            return ""
        with contextlib.suppress(OSError), opened_directory(root, HOLD) as hold:
            for name, note in self._parts.holds.slots(root):
                if note is not None and note.id == one.id:
                    with opened_directory(hold, name) as slot:
                        return self._damage(slot, one.checkpoint.name)
        return "it is gone"

    def _damage(self, root: int, name: str) -> str:
        """Why the content of an entry is damaged, or ""."""
        try:
            seen = snapshot(root, name)
        except OSError as error:
            return error.strerror or str(error)
        meant = fingerprint_of(seen)
        reason = self._read.get(meant)
        if reason is None:
            reason = self._read_all(root, name, seen)
            if not self._parts.stop.is_set():
                self._read[meant] = reason
                if len(self._read) > _MAX_REMEMBERED:
                    self._read.popitem(last=False)
        return reason

    def _read_all(self, root: int, name: str, seen: Snapshot) -> str:
        for file in seen.files:
            where = file.path or name
            try:
                with opened_file(root, name, file.path) as descriptor:
                    reading = read_contents(descriptor, where, self._parts.stop)
            except SwappedError as error:
                return str(error)
            except OSError as error:
                return f"{where}: {error.strerror or error}"
            if reading.structure is Structure.TORN:
                return f"{file.path}: {reading.reason}" if file.path else reading.reason
        return ""

    # --- what is held ----------------------------------------------------------------

    def _held(self, root: int) -> list[HeldCheckpoint]:
        """Judges what stands in `.spotd-hold`; leftovers without anything whole are removed."""
        found = []
        for slot_name, note in self._parts.holds.slots(root):
            if note is None:
                continue
            with contextlib.suppress(OSError), opened_directory(root, HOLD) as hold:
                checkpoint = self._held_checkpoint(hold, slot_name, note)
                if checkpoint is None:
                    self._discard(root, hold, slot_name, note)
                else:
                    found.append(HeldCheckpoint(note.id, checkpoint))
        if not self._cleaned:
            self._cleaned = True
            own = os.dup(root)
            self._parts.disk.do(lambda: self._clean(own))
        return found

    def _held_checkpoint(self, hold: int, slot_name: str, note: Hold) -> LocalCheckpoint | None:
        """Checks one slot; registers it for sending and reinstating when it is good."""
        with opened_directory(hold, slot_name) as slot:
            try:
                seen = snapshot(slot, note.name)
            except OSError:
                return None
            print_ = fingerprint_of(seen)
            if note.held and print_ != note.held:
                return None  # a link that was written over: not what the id means
            # With a note it was found whole before, and is unchanged: only its structure,
            # which a power cut can have torn, is looked at again.
            judged = self._parts.judge.judge(
                slot, note.name, seen, History(), settled=True,
                declared=note.declared or bool(note.held), check_writers=False,
            )  # fmt: skip
        if judged.verdict.state is not State.WHOLE:
            return None
        original = note.original or print_
        self._parts.holds.register(replace(note, kind=seen.kind, held=print_, original=original))
        checkpoint = judged.checkpoint(note.step, declared=note.declared)
        return replace(checkpoint, fingerprint=original)

    def _discard(self, root: int, hold: int, slot_name: str, note: Hold) -> None:
        """Removes what is not whole; what was, and has no other name now, is only moved."""
        self._parts.holds.forget(note.id)
        with opened_directory(hold, slot_name) as slot:
            try:
                seen = snapshot(slot, note.name)
            except FileNotFoundError:
                seen = Snapshot("other")
            if note.held and any(file.links == 1 for file in seen.files):
                set_aside(root, note.name, "held, and no longer what was held", source=slot)
        remove_tree(hold, slot_name)

    def _clean(self, root: int) -> None:
        try:
            self._parts.trash.empty(root)
        finally:
            os.close(root)


def _written(root: int, name: str) -> float:
    """When an entry was last changed (wall clock); ctime, which nobody can set back."""
    try:
        return max((file.ctime for file in snapshot(root, name).files), default=0.0)
    except OSError:
        return float("inf")  # looked at again, and then it is said what is wrong
