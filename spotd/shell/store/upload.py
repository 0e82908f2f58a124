"""One checkpoint on its way into the store.

Objects first, MANIFEST.json last. Big files go two at a time over all lanes (while S3 puts
the parts of one together the next is being sent), small ones beside them, one to a lane.
Every file must still be what it was when the upload began, and all of them together once
more at the end: a checkpoint that was written meanwhile never becomes visible.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spotd.core import manifest as schema
from spotd.core.checkpoint import parse_checkpoint_id
from spotd.core.manifest import Manifest, ManifestFile
from spotd.shell.store.checkpoints import CheckpointStore, manifest_key, object_key
from spotd.shell.store.large import LargeFile, finished
from spotd.shell.store.protocol import Cancelled, Part, StoreProblem
from spotd.shell.store.record import Done, UploadRecord, read_done
from spotd.shell.store.source import SourceFile, SourceGone, SourceTree, UploadSource
from spotd.shell.store.transfer import (
    TINY_LIMIT,
    WHOLE_LIMIT,
    Lanes,
    Transfer,
    send_small,
)
from spotd.shell.store.unchanged import Unchanged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spotd.shell.store.ahead import Ahead

_STORED_RECORD = "last.stored"
_LARGE_AT_ONCE = 2
_BATCH = 16  # tiny files in one job: handing a job to a thread costs as much as sending one


@dataclass(frozen=True, slots=True)
class UploadOrder:
    """What to store, and as what. `created` is seconds since the epoch."""

    id: str
    generation: int
    step: int | None
    created: float
    source: UploadSource


@dataclass(frozen=True, slots=True)
class Stored:
    """Figures of an upload. `sent` is what went over the wire, `copied` stayed inside.

    `ahead` bytes of those sent went up before it was whole; `seconds` do not count that time.
    """

    size: int
    sent: int
    copied: int
    seconds: float
    ahead: int = 0


@dataclass(slots=True)
class Upload:
    """Stores one checkpoint, going on where an earlier attempt was cut off.

    Attributes:
        checkpoints: Where to.
        transfer: Store, lanes and flow.
        order: What, and as what.
        report: Told (bytes in the store, size) now and then, from any thread.
        still_ours: Called before the manifest is written; raises when the lease is lost.
        ahead: What has been sending it while it was being written, or None.
    """

    checkpoints: CheckpointStore
    transfer: Transfer
    order: UploadOrder
    report: Callable[[int, int], None]
    still_ours: Callable[[], None]
    ahead: Ahead | None = None
    _there: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> Stored:
        """Does it.

        Raises:
            SourceGone: It was written or deleted meanwhile; nothing of it is visible.
            Cancelled: Stopped; what is needed to continue is kept.
            StoreProblem: The store does not take it.
        """
        started = time.monotonic()
        order, home = self.order, self.checkpoints
        identity = parse_checkpoint_id(order.id)
        if identity is None:
            raise SourceGone(f"{order.id!r} is not a checkpoint id")
        record, ahead = self._taken_over()
        try:
            with contextlib.ExitStack() as stack:
                if self.ahead is not None:
                    stack.callback(self.ahead.end)
                tree = stack.enter_context(SourceTree(order.source, identity[1]))
                unchanged = self._unchanged()
                parts = self._send_files(tree, record, unchanged)
                tree.check_unchanged()
                manifest = self._manifest(identity, tree, parts)
                data = schema.render_manifest(manifest)

                def publish() -> None:
                    self.still_ours()  # at each try: an outage may outlast the lease
                    home.store.put(manifest_key(order.id), data)

                self.transfer.again(publish)
        except SourceGone:
            self._take_back(record)
            raise
        finally:
            record.close()
        record.keep_as(home.uploads / _STORED_RECORD)
        try:
            home.sweep(identity[0])
        except StoreProblem as problem:
            self.transfer.on_trouble(problem)  # it is stored; the next one sweeps again
        seconds = time.monotonic() - started
        sent = self.transfer.flow.wire + ahead
        return Stored(manifest.size, sent, unchanged.copied, seconds, ahead)

    def _taken_over(self) -> tuple[UploadRecord, int]:
        """Returns the record to go on with, and the bytes that went up ahead of this upload."""
        home = self.checkpoints
        record = None if self.ahead is None else self.ahead.hand_over(self.transfer.flow)
        if record is None:
            self.ahead = None
        if self.ahead is None or record is None:
            return UploadRecord(home.uploads, self.order.id, home.store.location), 0
        return record, self.ahead.flow.wire

    def arrived(self, size: int, whole: int) -> None:
        """Counts bytes that are in the store."""
        with self._lock:
            self._there += size
            there = self._there
        self.report(there, whole)

    def _send_files(
        self, tree: SourceTree, record: UploadRecord, unchanged: Unchanged
    ) -> dict[str, Part]:
        parts = self._sent_before(tree, record)
        self.arrived(sum(part.size for part in parts.values()), tree.size)
        todo = [file for file in tree.files if file.path not in parts]
        large = [file for file in todo if file.entry.size > WHOLE_LIMIT]
        self._drop_strays(record, {file.path for file in large})
        small = [file for file in todo if TINY_LIMIT < file.entry.size <= WHOLE_LIMIT]
        tiny = [file for file in todo if file.entry.size <= TINY_LIMIT]
        lanes = self.transfer.lanes
        sender = _Files(self, tree, record, unchanged, parts)
        with (
            ThreadPoolExecutor(_LARGE_AT_ONCE, "large") as pool,
            ThreadPoolExecutor(2, "small") as others,
        ):
            running = [
                pool.submit(sender.send_large, file)
                for file in sorted(large, key=lambda each: -each.entry.size)
            ]
            running.append(others.submit(sender.send_small, small, lanes))
            running.append(others.submit(sender.send_small, tiny, lanes.tiny))
            errors = [error for error in (each.exception() for each in running) if error]
        # One that failed stopped the others: its reason is the one that counts.
        errors.sort(key=lambda error: isinstance(error, Cancelled))
        if errors:
            raise errors[0]
        return parts

    def _drop_strays(self, record: UploadRecord, wanted: set[str]) -> None:
        """Aborts what was begun of files that are not there any more, or too small for parts."""
        store = self.transfer.store
        strays = record.begun.keys() - wanted
        if strays and self.ahead is not None:
            self.ahead.end()  # a part that arrives behind the abort would stay, and cost
        for path in strays:
            abort = functools.partial(
                store.abort, object_key(self.order.id, path), record.begun[path].upload
            )
            self.transfer.again(abort)
            record.forget(path)

    def _sent_before(self, tree: SourceTree, record: UploadRecord) -> dict[str, Part]:
        """Returns the files an earlier attempt has stored, if they still are there and the same."""
        if not record.done:
            return {}
        folder, store = object_key(self.order.id, ""), self.transfer.store
        there = self.transfer.again(lambda: {each.key: each.size for each in store.list(folder)})
        found = {}
        for file in tree.files:
            done = record.done.get(file.path)
            size = there.get(object_key(self.order.id, file.path))
            if done is not None and done.stat == file.stat and size == file.entry.size:
                found[file.path] = done.part
        return found

    def _unchanged(self) -> Unchanged:
        checkpoint, files = "", dict[str, Done]()
        if self.order.source.kind == "directory":
            path = self.checkpoints.uploads / _STORED_RECORD
            checkpoint, files = read_done(path, self.transfer.store.location)
        if checkpoint == self.order.id:
            files = {}
        keys = {path: object_key(checkpoint, path) for path in files}
        return Unchanged(self.transfer, files, keys)

    def _manifest(
        self, identity: tuple[int, str], tree: SourceTree, parts: dict[str, Part]
    ) -> Manifest:
        order, home = self.order, self.checkpoints
        files = tuple(
            ManifestFile(
                path=file.path,
                size=file.entry.size,
                mode=tree.mode(file),
                mtime_ns=file.entry.mtime_ns,
                checksum=home.store.algorithm.label(parts[file.path].crc or 0),
            )
            for file in tree.files
        )
        return Manifest(
            run=home.run,
            id=order.id,
            sequence=identity[0],
            generation=order.generation,
            name=identity[1],
            kind=order.source.kind,
            step=order.step,
            created=order.created,
            instance_id=home.instance_id,
            size=tree.size,
            files=files,
            directories=tree.directories,
            node=home.node,
        )

    def _take_back(self, record: UploadRecord) -> None:
        """Removes what was sent of a checkpoint that can never be stored, if it can be now."""
        if self.transfer.flow.cancel.is_set():
            return
        try:
            self.checkpoints.drop(record)
            self.checkpoints.delete_objects(self.order.id)
        except StoreProblem as problem:
            # Nothing of it is visible; the record stays, and the sweep comes back to it.
            self.transfer.on_trouble(problem)


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of one upload, each sent by the thread that fits its size."""

    upload: Upload
    tree: SourceTree
    record: UploadRecord
    unchanged: Unchanged
    parts: dict[str, Part]

    def send_large(self, file: SourceFile) -> None:
        """Sends a file of many parts."""
        with self._stopping_others():
            transfer, key = self.upload.transfer, object_key(self.upload.order.id, file.path)
            with self.tree.opened(file) as fd:
                begun = file.path in self.record.begun
                part = None if begun else self.unchanged.copy(file, fd, key)
                if part is None:
                    ahead = self.upload.ahead
                    part = LargeFile(
                        transfer, key, file.path, fd, self.record, self._add, ahead
                    ).send()
                else:
                    self._add(part.size)
                self._finish(file, part, fd)

    def send_small(self, files: list[SourceFile], lanes: Lanes) -> None:
        """Sends files of one part; of many tiny ones several one after the other in a lane."""
        tiny = lanes is not self.upload.transfer.lanes
        batch = max(1, min(_BATCH, len(files) // (4 * lanes.count))) if tiny else 1
        batches = (files[start : start + batch] for start in range(0, len(files), batch))
        with self._stopping_others():
            for size in lanes.each(self._job(each) for each in batches):
                self._add(size)

    def _job(self, files: list[SourceFile]) -> Callable[[], int]:
        return lambda: sum(self._send_one(file) for file in files)

    def _send_one(self, file: SourceFile) -> int:
        transfer, key = self.upload.transfer, object_key(self.upload.order.id, file.path)
        with self.tree.opened(file) as fd:
            part = self.unchanged.copy(file, fd, key)
            if part is None:
                part = send_small(transfer, key, fd, file.entry.size)
            self._finish(file, part, fd)
        return part.size

    def _add(self, size: int) -> None:
        self.upload.arrived(size, self.tree.size)

    def _finish(self, file: SourceFile, part: Part, fd: int) -> None:
        algorithm = self.upload.transfer.store.algorithm
        self.record.finish(file.path, finished(part, file.stat, fd, algorithm))
        self.parts[file.path] = part

    @contextlib.contextmanager
    def _stopping_others(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.upload.transfer.flow.broken = True
            raise
