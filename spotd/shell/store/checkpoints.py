"""Whole checkpoints in an object store: list, store, delete; never half of one.

Objects first, MANIFEST.json last, and on the way out the manifest first: at no moment
does a manifest speak of an object that is not there. Before the manifest is written the
lease must still be ours, so that a machine that lost its run adds nothing to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from spotd.core import manifest as schema
from spotd.core.checkpoint import StoredCheckpoint, parse_checkpoint_id
from spotd.core.manifest import Manifest, ManifestDirectory, ManifestError, ManifestFile
from spotd.shell.store.protocol import Flow, NotFound, ObjectStore, Part, StoreProblem
from spotd.shell.store.record import Done, UploadRecord, age, open_records, read_done
from spotd.shell.store.source import SourceFile, SourceGone, SourceTree, UploadSource
from spotd.shell.store.transfer import (
    WHOLE_LIMIT,
    Lanes,
    Transfer,
    finished,
    send_large,
    send_small,
)
from spotd.shell.store.unchanged import Unchanged

FOLDER = "checkpoints/"
COMPLETED = "completed.json"
# A record that nobody has touched for a day, of a checkpoint older than one just stored, will
# not be continued: its parts only cost storage.
ABANDONED_AFTER = 24 * 3600.0  # seconds
_STORED_RECORD = "last.stored"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a run has in the store. `damaged` is (id, reason) of manifests not believed."""

    stored: tuple[StoredCheckpoint, ...] = ()
    completed: bool = False
    top_sequence: int = 0
    damaged: tuple[tuple[str, str], ...] = ()


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
    """Figures of an upload. `sent` is what went over the wire, `copied` stayed inside."""

    size: int
    sent: int
    copied: int
    seconds: float


@dataclass(slots=True)
class _Progress:
    size: int
    report: Callable[[int, int], None]
    sent: int = 0

    def add(self, count: int) -> None:
        self.sent += count
        self.report(self.sent, self.size)


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """The checkpoints of one run.

    Attributes:
        store: Opened at the run.
        run: Its name.
        instance_id: Of this machine, for manifests.
        node: This machine's number in the run.
        state: Directory for what must survive this process.
    """

    store: ObjectStore
    run: str
    instance_id: str
    node: int
    state: Path
    clock: Callable[[], float] = field(default=time.time)

    @property
    def _uploads(self) -> Path:
        return self.state / "uploads"

    def ids(self) -> list[str]:
        """Returns the ids that something stands under, whole or not, oldest first."""
        found = []
        for entry in self.store.list(FOLDER, delimiter=True):
            name = entry.key.removeprefix(FOLDER).removesuffix("/")
            if entry.key.endswith("/") and parse_checkpoint_id(name) is not None:
                found.append(name)
        return sorted(found)

    def listing(self, lanes: Lanes) -> Listing:
        """Returns what is whole, and what is not believed."""
        ids = self.ids()
        whole: list[StoredCheckpoint] = []
        damaged: list[tuple[str, str]] = []

        def reading(checkpoint: str) -> Callable[[], tuple[str, Manifest | ManifestError | None]]:
            def read() -> tuple[str, Manifest | ManifestError | None]:
                try:
                    return checkpoint, self.manifest(checkpoint)
                except NotFound:
                    return checkpoint, None
                except ManifestError as error:
                    return checkpoint, error

            return read

        for checkpoint, found in lanes.each(reading(each) for each in ids):
            if isinstance(found, Manifest):
                whole.append(found.stored())
            elif found is not None:
                damaged.append((checkpoint, found.message))
        top = max((parse_checkpoint_id(each) or (0, ""))[0] for each in ids) if ids else 0
        return Listing(
            stored=tuple(sorted(whole, key=lambda each: (each.sequence, each.id))),
            completed=self.completed(),
            top_sequence=top,
            damaged=tuple(sorted(damaged)),
        )

    def manifest(self, checkpoint: str) -> Manifest:
        """Reads one manifest; raises NotFound or ManifestError."""
        blob = self.store.get(_manifest_key(checkpoint), limit=schema.MAX_BYTES)
        return schema.parse_manifest(blob.data, run=self.run, checkpoint=checkpoint)

    def completed(self) -> bool:
        """Whether the run is complete."""
        try:
            self.store.get(COMPLETED, limit=64 * 1024)
        except NotFound:
            return False
        return True

    def complete(self) -> None:
        """Notes that the run is complete."""
        document = {
            "format": 1,
            "run": self.run,
            "node": self.node,
            "instance_id": self.instance_id,
            "completed": schema.render_time(self.clock()),
        }
        self.store.put(COMPLETED, schema.render_json(document))

    def delete(self, ids: Iterable[str]) -> None:
        """Deletes checkpoints: the manifest first, then they do not exist any more."""
        for checkpoint in ids:
            if parse_checkpoint_id(checkpoint) is None:
                raise StoreProblem(f"{checkpoint!r} is not a checkpoint id")
            self.store.delete([_manifest_key(checkpoint)])
            self._delete_objects(checkpoint)
            record = UploadRecord(self._uploads, checkpoint, self.store.location)
            self._drop(record)

    def _delete_objects(self, checkpoint: str) -> None:
        keys = [entry.key for entry in self.store.list(f"{FOLDER}{checkpoint}/")]
        if keys:
            self.store.delete(keys)

    def upload(
        self,
        order: UploadOrder,
        flow: Flow,
        lanes: Lanes,
        *,
        report: Callable[[int, int], None],
        still_ours: Callable[[], None],
        patience: float | None,
        on_trouble: Callable[[StoreProblem], None] = lambda _problem: None,
    ) -> Stored:
        """Stores a checkpoint, going on where an earlier attempt was cut off.

        Args:
            order: What, and as what.
            flow: How to stop it, and its pace.
            lanes: Threads to send with.
            report: Told (bytes in the store, size) now and then.
            still_ours: Called before the manifest; raises when the lease is lost.
            patience: Seconds without progress before it gives up; None: never.
            on_trouble: Told of every call that will be tried again.

        Raises:
            SourceGone: It was written or deleted meanwhile; nothing of it is visible.
            Cancelled: Stopped; what is needed to continue is kept.
            StoreProblem: The store does not take it.
        """
        started = time.monotonic()
        identity = parse_checkpoint_id(order.id)
        if identity is None:
            raise SourceGone(f"{order.id!r} is not a checkpoint id")
        transfer = Transfer(self.store, lanes, flow, patience, on_trouble)
        record = UploadRecord(self._uploads, order.id, self.store.location)
        try:
            with SourceTree(order.source, identity[1]) as tree:
                unchanged = self._unchanged(transfer, order, tree)
                progress = _Progress(tree.size, report)
                parts = self._send_files(transfer, order, tree, record, unchanged, progress)
                tree.check_unchanged()
                manifest = self._manifest_of(order, identity, tree, parts)
                still_ours()
                data = schema.render_manifest(manifest)
                transfer.again(lambda: self.store.put(_manifest_key(order.id), data))
        except SourceGone:
            self._take_back(transfer, order.id, record)
            raise
        finally:
            record.close()
        record.keep_as(self._uploads / _STORED_RECORD)
        self._sweep(identity[0])
        seconds = time.monotonic() - started
        return Stored(manifest.size, flow.wire, unchanged.copied, seconds)

    def _send_files(
        self,
        transfer: Transfer,
        order: UploadOrder,
        tree: SourceTree,
        record: UploadRecord,
        unchanged: Unchanged,
        progress: _Progress,
    ) -> dict[str, Part]:
        parts = self._sent_before(transfer, order, tree, record)
        for file in tree.files:
            if file.path in parts:
                progress.add(file.entry.size)
        todo = [file for file in tree.files if file.path not in parts]
        large = [file for file in todo if file.entry.size > WHOLE_LIMIT]
        small = [file for file in todo if file.entry.size <= WHOLE_LIMIT]

        def sending(file: SourceFile) -> Callable[[], tuple[SourceFile, Part]]:
            def send() -> tuple[SourceFile, Part]:
                key = object_key(order.id, file.path)
                with tree.opened(file) as descriptor:
                    part = unchanged.copy(file, descriptor, key)
                    if part is None:
                        part = send_small(transfer, key, descriptor, file.entry.size)
                    record.finish(
                        file.path, finished(part, file.stat, descriptor, self.store.algorithm)
                    )
                return file, part

            return send

        # Big files one after the other, each over all lanes: the first is complete, and in a
        # cut worth something, before the last has begun.
        for file in sorted(large, key=lambda each: -each.entry.size):
            parts[file.path] = self._send_large(
                transfer, order, tree, record, unchanged, progress, file
            )
        for file, part in transfer.lanes.each(sending(file) for file in small):
            parts[file.path] = part
            progress.add(file.entry.size)
        return parts

    def _send_large(
        self,
        transfer: Transfer,
        order: UploadOrder,
        tree: SourceTree,
        record: UploadRecord,
        unchanged: Unchanged,
        progress: _Progress,
        file: SourceFile,
    ) -> Part:
        key = object_key(order.id, file.path)
        with tree.opened(file) as descriptor:
            part = None if file.path in record.begun else unchanged.copy(file, descriptor, key)
            if part is None:
                part = send_large(transfer, key, file.path, descriptor, record, progress.add)
            else:
                progress.add(part.size)
            record.finish(file.path, finished(part, file.stat, descriptor, self.store.algorithm))
        return part

    def _sent_before(
        self, transfer: Transfer, order: UploadOrder, tree: SourceTree, record: UploadRecord
    ) -> dict[str, Part]:
        """Returns the files an earlier attempt has stored, if they still are there and the same."""
        if not record.done:
            return {}
        folder = f"{FOLDER}{order.id}/"
        there = transfer.again(lambda: {entry.key: entry.size for entry in self.store.list(folder)})
        found = {}
        for file in tree.files:
            done = record.done.get(file.path)
            if done is not None and done.stat == file.stat:
                if there.get(object_key(order.id, file.path)) == file.entry.size:
                    found[file.path] = done.part
        return found

    def _unchanged(self, transfer: Transfer, order: UploadOrder, tree: SourceTree) -> Unchanged:
        checkpoint, files = "", dict[str, Done]()
        if order.source.kind == "directory":
            checkpoint, files = read_done(self._uploads / _STORED_RECORD, self.store.location)
        if checkpoint == order.id:
            files = {}
        sources = {path: object_key(checkpoint, path) for path in files}
        return Unchanged(transfer, files, sources)

    def _manifest_of(
        self,
        order: UploadOrder,
        identity: tuple[int, str],
        tree: SourceTree,
        parts: dict[str, Part],
    ) -> Manifest:
        files = tuple(
            ManifestFile(
                path=file.path,
                size=file.entry.size,
                mode=tree.mode(file),
                mtime_ns=file.entry.mtime_ns,
                checksum=self.store.algorithm.label(parts[file.path].crc or 0),
            )
            for file in tree.files
        )
        directories: tuple[ManifestDirectory, ...] = tree.directories
        return Manifest(
            run=self.run,
            id=order.id,
            sequence=identity[0],
            generation=order.generation,
            name=identity[1],
            kind=order.source.kind,
            step=order.step,
            created=order.created,
            instance_id=self.instance_id,
            size=tree.size,
            files=files,
            directories=directories,
            node=self.node,
        )

    def _take_back(self, transfer: Transfer, checkpoint: str, record: UploadRecord) -> None:
        """Removes what was sent of a checkpoint that can never be stored, as far as possible now."""
        try:
            if not transfer.flow.cancel.is_set():
                self._drop(record)
                self._delete_objects(checkpoint)
        except StoreProblem as problem:
            # Nothing of it is visible; the record stays, and the sweep comes back to it.
            transfer.on_trouble(problem)

    def _drop(self, record: UploadRecord) -> None:
        for path, begun in record.begun.items():
            self.store.abort(object_key(record.id, path), begun.upload)
        record.remove()

    def _sweep(self, sequence: int) -> None:
        """Cleans up what this machine began, never continued, and now never will."""
        for record in open_records(self._uploads, self.store.location):
            known = parse_checkpoint_id(record.id)
            older = known is not None and known[0] < sequence
            if older and age(record) > ABANDONED_AFTER:
                self._drop(record)


def _manifest_key(checkpoint: str) -> str:
    return f"{FOLDER}{checkpoint}/{schema.NAME}"


def object_key(checkpoint: str, path: str) -> str:
    """Returns the key of a file of a checkpoint."""
    return f"{FOLDER}{checkpoint}/{path}"
