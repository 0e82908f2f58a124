"""Which checkpoints may be deleted. The newest whole one never may."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spotd.core.checkpoint import StoredCheckpoint


def superfluous(stored: Sequence[StoredCheckpoint], keep: int) -> tuple[str, ...]:
    """Returns the ids in the store beyond the newest `keep`, oldest first.

    `keep` below 1 counts as 1. Only what the store itself lists is considered: that a
    checkpoint went from the disk is no reason to delete it from the store.
    """
    ordered = sorted(stored, key=lambda s: (s.sequence, s.generation))
    return tuple(s.id for s in ordered[: -max(1, keep)])
