"""Which of the two layouts a checkpoint is written and read in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd_trainer.errors import CheckpointError
from spotd_trainer.state import unwrap
from spotd_trainer.whole import WholeLayout

if TYPE_CHECKING:
    from pathlib import Path

    from spotd_trainer.agreement import Alone, Ranks
    from spotd_trainer.parts import Parts
    from spotd_trainer.saver import Layout


def layout_to_write(parts: Parts, ranks: Alone | Ranks) -> Layout:
    """Shards if any parameter is spread over ranks (FSDP2, tensor parallel), else one file."""
    if any(hasattr(parameter, "_local_tensor") for parameter in unwrap(parts.model).parameters()):
        return _sharded(parts, ranks)
    return WholeLayout(parts, ranks)


def layout_to_read(
    writes: Layout, parts: Parts, ranks: Alone | Ranks, path: Path, *, directory: bool
) -> Layout:
    """By what is there: one process can read what several have written in shards.

    Raises:
        CheckpointError: a model in shards is given one file.
    """
    if directory:
        return _sharded(parts, ranks)
    if not isinstance(writes, WholeLayout):
        raise CheckpointError(
            path,
            "expected a directory of shards, found a file",
            hint="the model is sharded, the saved one was not",
        )
    return writes


def _sharded(parts: Parts, ranks: Alone | Ranks) -> Layout:
    # DCP takes a second to import, and most runs do not need it.
    from spotd_trainer.sharded import ShardedLayout  # noqa: PLC0415

    return ShardedLayout(parts, ranks)
