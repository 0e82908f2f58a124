"""The part of the configuration that decisions depend on, as the core takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.core.state import Policy

if TYPE_CHECKING:
    from spotd.config import Settings


def policy_of(settings: Settings) -> Policy:
    """Returns what the core needs of the configuration."""
    trainer, interruption = settings.trainer, settings.interruption
    return Policy(
        margin=interruption.margin,
        on_rebalance=interruption.on_rebalance,
        on_scheduled_event=interruption.on_scheduled_event,
        not_carried_out_after=interruption.not_carried_out_after,
        stop_timeout=interruption.stop_timeout,
        stop_signal=trainer.stop_signal,
        checkpoint_signal=trainer.checkpoint_signal,
        preflight=trainer.preflight is not None,
        preflight_timeout=trainer.preflight_timeout,
        backoff_min=trainer.backoff_min,
        backoff_max=trainer.backoff_max,
        max_failures=trainer.max_failures,
        progress_timeout=trainer.progress_timeout,
        keep_local=settings.checkpoints.keep_local,
        keep=settings.store.keep,
        start_timeout=settings.store.start_timeout,
        completion_action=settings.completion.action,
        poll_interval=settings.imds.poll_interval,
    )
