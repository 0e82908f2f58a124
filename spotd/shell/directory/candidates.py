"""What stands in the checkpoint directory, as far as spotd knows, and what to look at next.

Used by one thread only. A checkpoint known whole is not read again until what stat says
of it changes; one that is not whole yet is looked at again soon while somebody writes it,
and ever more rarely while nothing happens.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from spotd.core.checkpoint import name_family
from spotd.core.completeness import State, matches
from spotd.core.events import CheckpointSeen, CheckpointVanished, Event, SavesInProgress
from spotd.core.names import has_checkpoint_extension, is_checkpoint_name, is_temporary
from spotd.shell.directory.fingerprint import fingerprint_of
from spotd.shell.directory.judge import History, Judge, Judgement
from spotd.shell.directory.tree import Snapshot, is_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.core.checkpoint import LocalCheckpoint

DEBOUNCE = 0.05  # seconds between two looks at one entry
FIRST_RECHECK, SLOWEST_RECHECK, IDLE_RECHECK = 0.05, 2.0, 60.0  # seconds
_GROWTH = 1.6
_ACTIVE = 3.0  # seconds after a change during which a save counts as going on
_MAX_TEMPORARY = 64
_MAX_DECLARED = 1000
_GLANCE = 32  # checkpoints
# What loggers leave in output directories; some hold files with a checkpoint's extension.
_NOT_CHECKPOINTS = frozenset(
    {"wandb", "mlruns", "runs", "logs", "log", "tensorboard", "lightning_logs", "tb_logs",
     "__pycache__", "lost+found", "cache"}
)  # fmt: skip


@dataclass(slots=True)
class Known:
    """A whole checkpoint; its largest file: written over? All of a directory's: being deleted?"""

    checkpoint: LocalCheckpoint
    main: tuple[int, int, int]
    files: frozenset[int] = frozenset()


@dataclass(slots=True)
class Pending:
    """An entry that is not whole yet; times are monotonic seconds."""

    history: History = field(default_factory=History)
    due: float = 0.0
    looked: float = float("-inf")
    delay: float = FIRST_RECHECK
    writing: bool = False
    temporary: bool = False

    def active(self, now: float) -> bool:
        """Whether a save into it is going on."""
        changed = self.history.changed
        return self.writing or (
            not self.temporary and changed is not None and now - changed < _ACTIVE
        )


class Candidates:
    """Keeps the candidates of one directory, and posts what becomes of them.

    Args:
        judge: Judges one entry.
        patterns: `checkpoints.pattern`.
        post: Takes events.
        on_directory: Called with the name and inner directories of an entry to listen in.
    """

    def __init__(
        self,
        judge: Judge,
        patterns: tuple[str, ...],
        post: Callable[[Event], None],
        on_directory: Callable[[str, tuple[str, ...]], None],
    ) -> None:
        self._judge = judge
        self._patterns = patterns
        self._default = patterns == ("*",)
        self._post = post
        self._on_directory = on_directory
        self.known: dict[str, Known] = {}
        self.pending: dict[str, Pending] = {}
        self.overwritten: set[str] = set()
        self.muted: set[str] = set()  # being put back by us: nobody's save
        self._dismissed: dict[str, str] = {}
        self._shrunk: dict[str, frozenset[int]] = {}  # directories that are being deleted
        self._declared: dict[str, str] = {}
        self._saving: tuple[str, ...] = ()
        self.step: int | None = None

    # --- what has been heard ---------------------------------------------------------

    def touch(self, name: str, now: float, *, finished: bool = False) -> None:
        """Something about an entry changed: look at it soon; at once when a file is `finished`."""
        if not self._interesting(name):
            return
        pending = self.pending.get(name)
        if pending is None:
            pending = self.pending[name] = Pending(temporary=self._is_temporary(name))
            pending.history.note("touched", now, new=True)
        pending.delay = FIRST_RECHECK
        pending.due = now if finished else max(now, pending.looked + DEBOUNCE)

    def declare(self, root: int, name: str) -> None:
        """The trainer says that what stands under this name now is complete."""
        if name.startswith(".") or is_temporary(name) or not is_text(name):
            return
        try:
            seen = fingerprint_of(self._judge.look(root, name))
        except OSError:
            return
        if len(self._declared) >= _MAX_DECLARED:
            self._declared.pop(next(iter(self._declared)))
        self._declared[name] = seen
        self._dismissed.pop(name, None)
        known = self.known.get(name)
        if known is not None and known.checkpoint.fingerprint == seen:
            known.checkpoint = replace(known.checkpoint, declared=True)
            return
        self.pending.setdefault(name, Pending())
        self.examine(root, name)

    # --- looking ---------------------------------------------------------------------

    def next_due(self) -> float:
        """Monotonic time of the next look; infinity when nothing is pending."""
        return min((pending.due for pending in self.pending.values()), default=float("inf"))

    def look_at_due(self, root: int, now: float) -> None:
        """Looks at every entry whose time has come."""
        for name in [name for name, pending in self.pending.items() if pending.due <= now]:
            self.examine(root, name)
        self.report_saves()

    def scan(self, root: int, *, quietly: bool = False) -> None:
        """Looks at all entries that are not known to be as they were.

        `quietly`: what is whole has stood there before: post nothing about it.
        """
        for name in self._listed(root):
            self.examine(root, name, quietly=quietly)
        self.report_saves()

    def glance(self, root: int) -> None:
        """Looks at the newest checkpoints only: events told of all others."""
        for name in [*self.known][-_GLANCE:]:
            self.examine(root, name)
        self.report_saves()

    def newest(self) -> LocalCheckpoint | None:
        """Returns the newest whole checkpoint."""
        whole = (known.checkpoint for known in self.known.values())
        return max(whole, key=lambda checkpoint: checkpoint.mtime_ns, default=None)

    def has_siblings(self, name: str) -> bool:
        """Whether another whole checkpoint has this name but for its numbers."""
        family = name_family(name)
        return any(other != name and name_family(other) == family for other in self.known)

    def inventory(
        self, root: int, *, settled: bool
    ) -> tuple[list[LocalCheckpoint], list[tuple[str, str]]]:
        """Returns what is whole, oldest first, and (name, reason) of what is torn."""
        torn: list[tuple[str, str]] = []
        for name in self._listed(root):
            found = self.examine(root, name, quietly=True, settled=settled)
            if found is not None and found.verdict.state is State.TORN:
                torn.append((name, found.verdict.reason))
        self.report_saves()
        whole = [known.checkpoint for known in self.known.values()]
        return sorted(whole, key=lambda checkpoint: checkpoint.mtime_ns), torn

    def _listed(self, root: int) -> list[str]:
        """Names to look at; what is no longer listed has vanished."""
        with os.scandir(root) as entries:
            found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        for name in (self.known.keys() | self.pending.keys()) - found.keys():
            self._vanished(name)
        for gone in (self._dismissed, self._shrunk):
            for name in gone.keys() - found.keys():
                del gone[name]
        return [
            name
            for name, directory in found.items()
            if not self._is_temporary(name)
            and (directory or not self._default or self._is_checkpoint_file(name))
            and self._interesting(name)
        ]

    def _is_checkpoint_file(self, name: str) -> bool:
        return is_checkpoint_name(name) or name in self._declared

    def examine(
        self, root: int, name: str, *, quietly: bool = False, settled: bool = False
    ) -> Judgement | None:
        """Looks at one entry and keeps what it is; None when nothing stands there."""
        now = time.monotonic()
        try:
            seen = self._judge.look(root, name)
        except OSError:
            self._vanished(name)
            return None
        if seen.kind == "other":
            self._vanished(name)
            return None
        print_ = fingerprint_of(seen)
        known = self.known.get(name)
        if known is not None and known.checkpoint.fingerprint == print_:
            self.pending.pop(name, None)
            return None
        if not settled and self._dismissed.get(name) == print_:
            self.pending.pop(name, None)
            return None
        declared = self._declared.get(name) == print_
        deleting = not declared and self._is_being_deleted(name, seen)
        pending = self.pending.get(name) or Pending(temporary=self._is_temporary(name))
        changed = pending.history.note(print_, now)
        if changed and seen.kind == "directory" and not pending.temporary:
            # What appears between a look and the watch would not be heard of: look again.
            self._on_directory(name, seen.directories)
            pending.due = now + DEBOUNCE
            if not self._unchanged(root, name, print_):
                self.pending[name] = pending
                return None
        found = self._judge.judge(
            root, name, seen, pending.history, settled=settled, declared=declared
        )
        if deleting and found.verdict.state is State.WHOLE:
            self._gone(name)
        else:
            self._keep(
                root, found, pending, now, changed=changed, quietly=quietly, declared=declared
            )
        return found

    def _keep(
        self,
        root: int,
        found: Judgement,
        pending: Pending,
        now: float,
        *,
        changed: bool,
        quietly: bool,
        declared: bool,
    ) -> None:
        name, verdict = found.name, found.verdict
        known = self.known.get(name)
        if known is not None and _overwritten(known, found.snapshot):
            self.overwritten.add(name)
        whole = verdict.state is State.WHOLE and not pending.temporary
        # What was judged must be what stands there still, after it was read.
        if whole and self._unchanged(root, name, found.fingerprint):
            checkpoint = found.checkpoint(self.step, declared=declared)
            files = _all_files(found.snapshot)
            self.known[name] = Known(checkpoint, _main_file(found.snapshot), files)
            self.pending.pop(name, None)
            if not quietly:
                self._post(CheckpointSeen(checkpoint))
            return
        if known is not None:
            del self.known[name]
            if not quietly:
                self._post(CheckpointVanished(name))
        if verdict.state in (State.NOT_A_CHECKPOINT, State.TORN) and not pending.temporary:
            self._dismissed[name] = found.fingerprint
            self.pending.pop(name, None)
            return
        if pending.temporary and not found.writing and not changed:
            self.pending.pop(name, None)
            return
        pending.writing = found.writing
        pending.looked = now
        pending.due = now + self._delay(pending, verdict.wait, now)
        self.pending[name] = pending

    def _unchanged(self, root: int, name: str, fingerprint: str) -> bool:
        try:
            return fingerprint_of(self._judge.look(root, name)) == fingerprint
        except OSError:
            return False

    @staticmethod
    def _delay(pending: Pending, wait: float, now: float) -> float:
        busy = pending.active(now) or wait > 0
        delay = pending.delay
        pending.delay = min(delay * _GROWTH, SLOWEST_RECHECK if busy else IDLE_RECHECK)
        return min(delay, wait) if wait > FIRST_RECHECK else delay

    # --- reporting -------------------------------------------------------------------

    def report_saves(self) -> None:
        """Posts which saves are going on, when that has changed."""
        now = time.monotonic()
        saving = tuple(sorted(n for n, pending in self.pending.items() if pending.active(now)))
        if saving != self._saving:
            self._saving = saving
            self._post(SavesInProgress(saving))

    def forget(self, name: str) -> None:
        """We moved it ourselves: nothing to post."""
        self.known.pop(name, None)
        self.pending.pop(name, None)
        self._dismissed.pop(name, None)

    def dismiss(self, name: str) -> None:
        """Its content was read and is damaged: not whole, whatever its structure says."""
        known = self.known.pop(name, None)
        if known is not None:
            self._dismissed[name] = known.checkpoint.fingerprint

    def adopt(self, root: int, checkpoint: LocalCheckpoint) -> None:
        """We put it there ourselves, and it is whole: nothing to post."""
        seen = self._judge.look(root, checkpoint.name)
        self.known[checkpoint.name] = Known(checkpoint, _main_file(seen), _all_files(seen))
        self.pending.pop(checkpoint.name, None)

    def lose_all(self) -> None:
        """The directory is gone, and all in it."""
        for name in [*self.known, *self.pending]:
            self._vanished(name)
        self._dismissed.clear()
        self.report_saves()

    def _is_being_deleted(self, name: str, seen: Snapshot) -> bool:
        """Whether a directory that was whole has only lost files since: its marker may be left."""
        known = self.known.get(name)
        full = known.files if known is not None else self._shrunk.get(name, frozenset())
        if _all_files(seen) < full:
            self._shrunk[name] = full
            return True
        self._shrunk.pop(name, None)
        return False

    def _vanished(self, name: str) -> None:
        self._shrunk.pop(name, None)
        self._gone(name)

    def _gone(self, name: str) -> None:
        self.pending.pop(name, None)
        self._dismissed.pop(name, None)
        if self.known.pop(name, None) is not None:
            self._post(CheckpointVanished(name))

    # --- which entries matter --------------------------------------------------------

    def _is_temporary(self, name: str) -> bool:
        return name.startswith(".") or is_temporary(name)

    def _interesting(self, name: str) -> bool:
        """Whether to look at an entry at all; decided by the name alone, for 10,000 of them."""
        if name in self.muted or not is_text(name) or name.startswith(".spotd"):
            return False
        if name in self._declared:
            return True
        if self._is_temporary(name):
            return sum(p.temporary for p in self.pending.values()) < _MAX_TEMPORARY
        return matches(name, self._patterns) and (not self._default or self._may_be_one(name))

    @staticmethod
    def _may_be_one(name: str) -> bool:
        """Whether a name under the pattern `*` may be a checkpoint's, a directory's included."""
        if has_checkpoint_extension(name):
            return is_checkpoint_name(name)
        return name not in _NOT_CHECKPOINTS and not _is_plain_file_name(name)


def _is_plain_file_name(name: str) -> bool:
    """Names that directories of checkpoints do not have."""
    return name.lower().endswith(
        (".log", ".txt", ".csv", ".yaml", ".yml", ".json", ".jsonl", ".md", ".py", ".png", ".out",
         ".err", ".sh", ".toml", ".ini", ".svg", ".html", ".jpg", ".tsv")
    )  # fmt: skip


def _main_file(seen: Snapshot) -> tuple[int, int, int]:
    return max(seen.files, key=lambda file: file.size).identity if seen.files else (0, 0, 0)


def _all_files(seen: Snapshot) -> frozenset[int]:
    """Stands for the files of a directory; nothing for a file, which cannot lose any."""
    files = seen.files if seen.kind == "directory" else ()
    return frozenset(hash((file.path, file.identity)) for file in files)


def _overwritten(known: Known, seen: Snapshot) -> bool:
    """Same inode, other content: written over in place."""
    inode = known.main[0]
    return any(file.inode == inode and file.identity != known.main for file in seen.files)
