"""The trainer side of spotd: bit-exact resume in a few lines.

    from spotd_trainer import Session

    with Session(model, optimizer, loader=loader, total_steps=10_000) as session:
        for batch in session:
            loss = train_step(batch)
            session.advance(loss)

Works with spotd and without. Only torch is needed. See docs/trainer.md.
"""

from __future__ import annotations

from spotd_trainer.errors import CheckpointError, Interrupted, TornCheckpointError
from spotd_trainer.loader import Loader
from spotd_trainer.newest import newest_checkpoint
from spotd_trainer.session import Session
from spotd_trainer.signals import shield_worker

__all__ = [
    "CheckpointError",
    "Interrupted",
    "Loader",
    "Session",
    "TornCheckpointError",
    "newest_checkpoint",
    "shield_worker",
]
