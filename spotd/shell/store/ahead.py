"""A checkpoint that is sent while it is still being written.

torch.save only appends. So from the first full part on, what lies behind the growing end
goes into a multipart upload under the id the checkpoint will get, if it is whole in the end.
Whether it is whole is judged elsewhere and as ever, and nothing sent here is believed: the
upload proper (`spotd.shell.store.large`) takes over, reads every part once more, and sends
again those that are not what the file holds by then (a header that was written last, a
file that was replaced). What is never taken over is aborted. Nothing of it is ever visible
before the manifest is.

The trainer's user may do anything to the file meanwhile: no name is believed, no link
followed, nothing but a regular file opened; a file that shrinks or goes ends the upload, a
hole in it is waited for, and what grows past the limit is not sent.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.core.checkpoint import parse_checkpoint_id
from spotd.core.manifest import ManifestError, check_path
from spotd.core.names import is_temporary
from spotd.shell.directory.tree import SwappedError, open_without_links, opened_file, snapshot
from spotd.shell.store.checkpoints import CheckpointStore, object_key
from spotd.shell.store.protocol import Cancelled, Damaged, Flow, Part, Piece, StoreProblem
from spotd.shell.store.record import GROWING, Begun, UploadRecord
from spotd.shell.store.transfer import BACKOFF, MAX_PARTS, MIB, Transfer, part_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spotd.shell.directory.tree import FileEntry

LANES = 16  # at most: 85 MB/s each at S3, ahead of any disk, and the memory is needed twice
MARGIN = 4 * MIB  # behind the end: writers buffer, and go back to a header just written
_TICK = 0.02  # seconds between two looks at a file that has not grown enough
_LOOK = 0.25  # seconds between two looks into a directory
_LOOK_SHARE = 20  # times what a look took, until the next
_TELL_EVERY = 0.5
_MOST_FILES = 64  # of a directory


@dataclass(frozen=True, slots=True)
class AheadOrder:
    """What to send as what.

    Attributes:
        id: Of the checkpoint it will be.
        root: Absolute path of the checkpoint directory; no component may be a link.
        name: What grows there, a file or a directory.
        limit: Bytes; what grows past them is no checkpoint.
        expected: Bytes it will probably have.
    """

    id: str
    root: str
    name: str
    limit: int
    expected: int


@dataclass(slots=True)
class _Growing:
    """One file that grows."""

    path: str  # in the store, and in the record
    fd: int
    begun: Begun | None = None
    next: int = 1  # part
    over: bool = False
    solid: int = 0  # no hole before that, when it was last looked for
    not_before: float = 0.0

    def has(self, part: int) -> bool:
        """Whether its next part, of this size, lies far enough behind the end."""
        start = (self.next - 1) * part
        status = os.fstat(self.fd)
        if status.st_nlink == 0 or status.st_size < start:
            self.over = True
            return False
        end = start + part + MARGIN
        if status.st_size < end:
            return False
        if self.solid < end:  # a file may have its size long before it has its content
            self.solid = os.lseek(self.fd, start, os.SEEK_HOLE)
        return self.solid >= end


class Ahead:
    """Sends one checkpoint while it grows. `run` in a thread of its own, the rest from any.

    Args:
        checkpoints: Where to.
        transfer: Store, lanes and flow; the lanes are the caller's to close, after `run`.
        order: What.
        report: Told the bytes that are in the store, twice a second at most.
        owner: The trainer's uid, for `spotd.shell.directory.tree.snapshot`.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore,
        transfer: Transfer,
        order: AheadOrder,
        report: Callable[[int], None] = lambda _sent: None,
        owner: int | None = None,
    ) -> None:
        self._report = report
        self.id = order.id
        self._home = checkpoints
        self._transfer = transfer
        self._order = order
        self._owner = owner
        self._part = part_size(order.expected)
        self._files: dict[str, _Growing] = {}
        self._begun_bytes = 0
        self._arrived = 0
        self._told = 0
        self._tell_at = 0.0
        self._closing = threading.Event()  # no further part is begun
        self._state = threading.Condition()  # of all that follows
        self._stage = "new"  # then "sending", "ending", "over"
        self._record: UploadRecord | None = None
        self._claimed = False
        self._taken = False
        self._keep = False
        self._flying: set[tuple[str, int]] = set()

    # --- from other threads ----------------------------------------------------------

    @property
    def flow(self) -> Flow:
        """Stops it, and counts what went over the wire."""
        return self._transfer.flow

    def claim(self) -> None:
        """An upload of it has been asked for and will come: nothing of it is dropped any more."""
        with self._state:
            self._claimed = True

    def hand_over(self, flow: Flow) -> UploadRecord | None:
        """The checkpoint is whole: begins nothing more, and returns the record of what went up.

        The record is the caller's from then on, who ends with `end`. None: there is nothing
        that is not in the record on the disk. `flow` is the caller's: where it has no limit,
        nothing waits for what has one.
        """
        with self._state:
            self._closing.set()
            while self._stage == "ending":
                self._state.wait()
            self._taken = self._stage == "sending"
            if self._taken and self.flow.limited and not flow.limited:
                self.flow.stop()
            return self._record if self._taken else None

    def stop(self, *, keep: bool) -> None:
        """Ends it now; what went up is dropped, or left on record (`keep`, or handed over)."""
        with self._state:
            self._keep = self._keep or keep
            self._closing.set()
            if not (self._taken or self._claimed):
                self.flow.stop()

    def end(self) -> None:
        """Ends what is under way still, and returns when it has ended."""
        self._closing.set()
        self.flow.stop()
        with self._state:
            while self._stage not in {"new", "over"}:
                self._state.wait()

    def flying(self, path: str) -> frozenset[int]:
        """Returns the parts of a file that are under way."""
        with self._state:
            return frozenset(number for each, number in self._flying if each == path)

    def wait_for(self, path: str, number: int, flow: Flow) -> None:
        """Waits until a part is under way no more, arrived or not."""
        with self._state:
            while (path, number) in self._flying:
                flow.check()
                self._state.wait(_TICK)

    # --- the sending thread ----------------------------------------------------------

    def run(self) -> None:
        """Sends until it is handed over or stopped, or the file goes.

        Raises:
            StoreProblem: The store does not take it; what it took is on record.
        """
        if not self._begin_record():
            return
        try:
            self._send()
        except Cancelled:
            pass
        except OSError:
            self._keep = False  # gone, or not what may be read: never to be stored
        except StoreProblem as problem:
            # What the store took is worth having when it is back; of a file that became
            # shorter in mid-part nothing is.
            self._keep = not isinstance(problem, Damaged)
            raise
        finally:
            self._finish()

    def _begin_record(self) -> bool:
        with self._state:
            record = UploadRecord(self._home.uploads, self.id, self._home.store.location)
            # Of an earlier boot under the same id: the upload proper knows what to do with it.
            if self._closing.is_set() or record.begun or record.done:
                self._stage = "over"
                return False
            self._record = record
            self._stage = "sending"
            return True

    def _finish(self) -> None:
        with self._state:
            self._stage = "over" if self._taken else "ending"
            record, taken, keep = self._record, self._taken, self._keep or self._claimed
            self._state.notify_all()
        try:
            if record is not None and not taken:
                record.close()
                if not keep:
                    self._home.drop(record)
        finally:
            with self._state:
                self._stage = "over"
                self._state.notify_all()

    def _send(self) -> None:
        root = open_without_links(self._order.root)
        try:
            single = self._look(root)
            for _ in self._transfer.lanes.each(self._jobs(root, single=single)):
                pass
        finally:
            self._closing.set()
            os.close(root)
            for growing in self._files.values():
                os.close(growing.fd)

    def _look(self, root: int) -> bool:
        """Opens what is worth sending by now; returns whether it is a single file."""
        seen = snapshot(root, self._order.name, owner=self._owner)
        if seen.kind == "other" or seen.unusable:
            raise SwappedError(seen.unusable)
        identity = parse_checkpoint_id(self.id)
        for entry in seen.files:
            path = entry.path or (identity or (0, ""))[1]
            if path not in self._files and self._worth_it(path, entry):
                with contextlib.suppress(FileNotFoundError):
                    self._open(root, path, entry)
        return seen.kind == "file"

    def _look_again(self, root: int) -> None:
        try:
            self._look(root)
        except FileNotFoundError:
            # Whole, and under its final name by now? Then what is open still has a name.
            if all(growing.over for growing in self._files.values()):
                raise

    def _worth_it(self, path: str, entry: FileEntry) -> bool:
        name = path.rpartition("/")[2]
        if entry.path and (is_temporary(name) or name.startswith(".")):
            return False  # its name in the store is not known yet
        try:
            check_path(path)
        except ManifestError:
            return False
        return not entry.path or (
            entry.size >= self._part + MARGIN and len(self._files) < _MOST_FILES
        )

    def _open(self, root: int, path: str, entry: FileEntry) -> None:
        with opened_file(root, self._order.name, entry.path) as descriptor:
            if os.fstat(descriptor).st_ino == entry.inode:
                self._files[path] = _Growing(path, os.dup(descriptor))

    def _jobs(self, root: int, *, single: bool) -> Iterator[Callable[[], None]]:
        """The parts, as the files grow; waits for the next."""
        look_at = 0.0
        while not self._closing.is_set():
            self._tell()
            job = self._next_job()
            if job is not None:
                yield job
                continue
            if single and all(growing.over for growing in self._files.values()):
                raise SwappedError("it has gone")
            began = time.monotonic()
            if not single and began >= look_at:
                self._look_again(root)
                now = time.monotonic()
                look_at = now + max(_LOOK, _LOOK_SHARE * (now - began))
            self._closing.wait(_TICK)

    def _tell(self) -> None:
        now = time.monotonic()
        if self._arrived != self._told and now >= self._tell_at:
            self._told, self._tell_at = self._arrived, now + _TELL_EVERY
            self._report(self._told)

    def _next_job(self) -> Callable[[], None] | None:
        if self._begun_bytes + self._part > self._order.limit:
            return None
        # The one that is furthest behind: files of one checkpoint grow side by side.
        for growing in sorted(self._files.values(), key=lambda each: each.next):
            ready = not growing.over and growing.next <= MAX_PARTS and growing.has(self._part)
            begun = self._begun(growing) if ready else None
            if begun is not None:
                piece = Piece(growing.fd, (growing.next - 1) * self._part, self._part)
                job = self._job(growing.path, begun, growing.next, piece)
                growing.next += 1
                self._begun_bytes += self._part
                return job
        return None

    def _begun(self, growing: _Growing) -> Begun | None:
        if growing.begun is not None or time.monotonic() < growing.not_before:
            return growing.begun
        store, key = self._transfer.store, object_key(self.id, growing.path)
        try:
            upload = store.begin(key)
        except StoreProblem as problem:
            if not problem.retriable:
                raise
            self._transfer.on_trouble(problem)
            growing.not_before = time.monotonic() + BACKOFF
            return None
        with self._state:
            if self._record is not None and not self._closing.is_set():
                growing.begun = Begun(upload, self._part, GROWING)
                self._record.begin(growing.path, growing.begun)
                return growing.begun
        store.abort(key, upload)  # too late: whoever took over has begun one, or will
        return None

    def _job(self, path: str, begun: Begun, number: int, piece: Piece) -> Callable[[], None]:
        store, flow, key = self._transfer.store, self._transfer.flow, object_key(self.id, path)

        def attempt() -> Part:
            if self._closing.is_set():
                raise Cancelled  # whoever took over sends it
            return store.send_part(key, begun.upload, number, piece, flow)

        def send() -> None:
            with self._state:
                self._flying.add((path, number))
            try:
                part = self._transfer.again(attempt)
                if self._record is not None:
                    self._record.part(path, number, part)
                with self._state:
                    self._arrived += part.size
            except BaseException:
                self._closing.set()
                raise
            finally:
                with self._state:
                    self._flying.discard((path, number))
                    self._state.notify_all()

        return send
