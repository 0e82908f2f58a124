"""The bucket: manifests, objects, the lease, and how well it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.core.checkpoint import StoredCheckpoint, parse_checkpoint_id

if TYPE_CHECKING:
    from spotd.simulation.disk import File
    from spotd.simulation.models import StoreModel


@dataclass(slots=True)
class Stored:
    """A manifest, the content it promises, and the file behind the object."""

    manifest: StoredCheckpoint
    content: str
    file: File


@dataclass(slots=True)
class Lease:
    """Who trains the run, until when (seconds of the simulated clock)."""

    holder: str
    generation: int
    until: float


class Bucket:
    """Strongly consistent, with conditional writes, as S3 is."""

    def __init__(self, model: StoreModel) -> None:
        self.model = model
        self.mood = "ok"
        self.lease: Lease | None = None
        self.manifests: dict[str, Stored] = {}
        self.objects: dict[str, File] = {}  # objects without a manifest too
        self.sent: dict[str, tuple[str, float]] = {}  # parts of uploads cut off: (content, bytes)
        self.generation = 0
        self.completed = False

    def acquire(self, holder: str, now: float) -> Lease | None:
        """Takes the lease, or returns None where another one holds it."""
        lease = self.lease
        if lease is not None and lease.holder != holder and lease.until > now:
            return None
        self.generation += 1
        self.lease = Lease(holder, self.generation, now + self.model.lease_seconds)
        return self.lease

    def renew(self, holder: str, generation: int, now: float) -> bool:
        """Renews the lease where it is still this one, also after it has run out."""
        lease = self.lease
        if lease is not None and (lease.holder, lease.generation) != (holder, generation):
            return False
        self.lease = Lease(holder, generation, now + self.model.lease_seconds)
        return True

    def release(self, holder: str) -> None:
        """Gives the lease up."""
        if self.lease is not None and self.lease.holder == holder:
            self.lease = None

    def listing(self) -> tuple[StoredCheckpoint, ...]:
        """Lists what has a manifest, oldest first."""
        return tuple(
            sorted((s.manifest for s in self.manifests.values()), key=lambda m: m.sequence)
        )

    def top_sequence(self) -> int:
        """Returns the highest sequence in use, those without a manifest included."""
        ids = [*self.manifests, *self.objects]
        return max((p[0] for p in map(parse_checkpoint_id, ids) if p is not None), default=0)

    def restorable(self, checkpoint_id: str) -> bool:
        """Whether what the manifest promises is there, byte for byte."""
        stored = self.manifests.get(checkpoint_id)
        there = self.objects.get(checkpoint_id)
        return (
            stored is not None
            and there is not None
            and there.content == stored.content
            and stored.file.whole
        )

    def put(self, manifest: StoredCheckpoint, file: File) -> str:
        """Objects, then the manifest, conditionally. Returns "stored" or why not."""
        there = self.manifests.get(manifest.id)
        if there is not None:
            return "stored" if there.content == file.content else "another content has this id"
        if self.mood == "lying":
            return "stored"  # and nothing is kept: only a listing can tell
        self.objects[manifest.id] = file
        self.manifests[manifest.id] = Stored(manifest, file.content, file)
        self.sent.pop(manifest.id, None)
        return "stored"

    def delete(self, checkpoint_id: str) -> None:
        """Manifest first, then the objects."""
        self.manifests.pop(checkpoint_id, None)
        self.objects.pop(checkpoint_id, None)
