"""Whole checkpoints in an object store: list, store, delete; never half of one.

Objects first, MANIFEST.json last, and on the way out the manifest first: at no moment
does a manifest speak of an object that is not there. Before the manifest is written the
lease must still be ours, so that a machine that lost its run adds nothing to it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spotd.core import manifest as schema
from spotd.core.checkpoint import StoredCheckpoint, parse_checkpoint_id
from spotd.core.manifest import Manifest, ManifestError
from spotd.shell.store.protocol import Damaged, NotFound, ObjectStore, StoreProblem
from spotd.shell.store.record import UploadRecord, open_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from spotd.shell.store.transfer import (
        Lanes,
    )

FOLDER = "checkpoints/"
COMPLETED = "completed.json"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a run has in the store. `damaged` is (id, reason) of manifests not believed."""

    stored: tuple[StoredCheckpoint, ...] = ()
    completed: bool = False
    top_sequence: int = 0
    damaged: tuple[tuple[str, str], ...] = ()


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
    def uploads(self) -> Path:
        """Where the records of uploads are."""
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
                except Damaged as error:  # too large to be one
                    return checkpoint, ManifestError(error.message)
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
        blob = self.store.get(manifest_key(checkpoint), limit=schema.MAX_BYTES)
        return schema.parse_manifest(blob.data, run=self.run, checkpoint=checkpoint)

    def completed(self) -> bool:
        """Whether the run is complete: completed.json is there, and is this run's.

        One that says nothing of the kind is not believed: a complete run that is started
        again ends at once, an incomplete one that is not would be lost.
        """
        limit = 64 * 1024
        try:
            data = self.store.get(COMPLETED, limit=limit).data
            document = schema.parse_json_object(data, COMPLETED, limit)
        except (NotFound, schema.ManifestError):
            return False
        return document.get("format") == 1 and document.get("run") == self.run

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
            self.store.delete([manifest_key(checkpoint)])
            self.delete_objects(checkpoint)
            record = UploadRecord(self.uploads, checkpoint, self.store.location)
            self.drop(record)

    def clear(self, ids: Iterable[str]) -> None:
        """Deletes objects that no manifest belongs to, up to the first whole one after `ids`.

        They are what a deletion that was cut off left, or a machine whose disk is lost. Where
        `ids` are superfluous, newer ones are whole: nobody may complete what is older any more.
        """
        deleted = max((parse_checkpoint_id(each) or (0, ""))[0] for each in ids)
        never_whole: list[str] = []
        for checkpoint in self.ids():
            keys = [entry.key for entry in self.store.list(f"{FOLDER}{checkpoint}/")]
            if manifest_key(checkpoint) not in keys:
                never_whole += keys
            elif (parse_checkpoint_id(checkpoint) or (0, ""))[0] > deleted:
                # Not before one was seen: what is newer than all may be on its way.
                if never_whole:
                    self.store.delete(never_whole)
                return

    def delete_objects(self, checkpoint: str) -> None:
        """Deletes what stands under an id, whole or not."""
        keys = [entry.key for entry in self.store.list(f"{FOLDER}{checkpoint}/")]
        if keys:
            self.store.delete(keys)

    def drop(self, record: UploadRecord) -> None:
        """Aborts what a record has open, and forgets it."""
        for path, begun in record.begun.items():
            self.store.abort(object_key(record.id, path), begun.upload)
        record.remove()

    def sweep(self, sequence: int) -> None:
        """Cleans up what this machine began, has not continued, and now never will."""
        for record in open_records(self.uploads, self.store.location):
            known = parse_checkpoint_id(record.id)
            if known is None:
                continue
            # What is older than what is stored is never gone on with. What went up while it was
            # being written and never became a checkpoint: its number has been given to another.
            if known[0] < sequence or (record.growing and known[0] == sequence):
                self.drop(record)


def manifest_key(checkpoint: str) -> str:
    """Returns the key of a checkpoint's manifest."""
    return f"{FOLDER}{checkpoint}/{schema.NAME}"


def object_key(checkpoint: str, path: str) -> str:
    """Returns the key of a file of a checkpoint."""
    return f"{FOLDER}{checkpoint}/{path}"
