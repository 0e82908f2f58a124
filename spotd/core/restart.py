"""When a crashed trainer is started again, and when a checkpoint is to blame."""

from __future__ import annotations

BLAME_WITHIN = 600.0  # seconds; a crash later than this is not the checkpoint's doing
BLAME_AFTER = 2  # crashes in a row from the same checkpoint


def backoff(failures: int, shortest: float, longest: float) -> float:
    """Seconds to wait before the next start after `failures` crashes in a row (1, 2, ...)."""
    return float(min(longest, shortest * 2.0 ** min(max(failures - 1, 0), 60)))


def checkpoint_to_blame(crashes_from_here: int, ran_for: float) -> bool:
    """Whether the checkpoint resumed from should be put aside and the one before it tried.

    Args:
        crashes_from_here: Crashes in a row, without progress, resumed from this checkpoint.
        ran_for: Seconds the last attempt lived.
    """
    return crashes_from_here >= BLAME_AFTER and ran_for <= BLAME_WITHIN
