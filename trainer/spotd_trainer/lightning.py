"""For PyTorch Lightning: a callback that saves when asked, and leaves with the right status.

    trainer = Trainer(callbacks=[SpotdCallback()], ...)
    trainer.fit(module, ckpt_path=newest_checkpoint())

Lightning by itself exits 0 on SIGTERM without having saved (design/measured.md, section 1). With
a StatefulDataLoader the run goes on with the very next batch; with a plain DataLoader Lightning
begins the epoch's data anew.
"""

# ruff: noqa: ARG002 - the framework's signatures
from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from spotd_trainer.files import (
    checkpoint_name,
    prune,
    publish,
    remove,
    remove_leftovers,
    set_aside,
    sync_file,
    sync_tree,
    temporary_name,
)
from spotd_trainer.leave import Watch
from spotd_trainer.rng import restore_rng, rng_state
from spotd_trainer.saver import is_no_space

log = logging.getLogger("spotd_trainer")


class SpotdCallback(Callback):
    """Saves `step-N.ckpt` every so many steps, when asked, and before a stop.

    Args:
        directory: default: `$SPOTD_CHECKPOINT_DIR`, else `./checkpoints`.
        save_every: optimizer steps; None: only when asked or stopped.
        keep: how many stay in the directory.
    """

    def __init__(
        self, directory: str | Path | None = None, *, save_every: int | None = None, keep: int = 3
    ) -> None:
        chosen = directory or os.environ.get("SPOTD_CHECKPOINT_DIR") or "checkpoints"
        self._directory = Path(chosen).absolute()
        self._save_every = save_every
        self._keep = keep
        self._watch = Watch()
        self._step = 0
        self._rng: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over: Lightning's own handler would leave without saving."""
        self._watch.begin()
        self._step = trainer.global_step
        if trainer.is_global_zero:
            remove_leftovers(self._directory)
            for moved in set_aside(self._directory, self._step, (".ckpt",)):
                log.warning("of a later step than the run goes on from, and set aside: %s", moved)

    def on_train_batch_start(self, *_args: Any, **_kwargs: Any) -> None:
        """Put the RNGs back, now that the loaders have drawn from them."""
        if self._rng is not None:
            restore_rng(self._rng)
            self._rng = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """At an optimizer step: report, agree, save, leave."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        total = trainer.max_steps if trainer.max_steps > 0 else None
        agreed = self._watch.stepped(self._step, total_steps=total, loss=_loss(outputs))
        due = self._save_every is not None and self._step % self._save_every == 0
        if agreed.stop or agreed.checkpoint or due:
            try:
                path = self._save(trainer)
            except OSError as error:
                # Several ranks wait for each other in there: what one cannot do ends all.
                alone = trainer.world_size == 1
                if agreed.stop or not alone or not is_no_space(error):
                    raise
                self._watch.failed(self._step, error)
                return
            if agreed.stop:
                raise self._watch.leave(agreed.stop, step=self._step, checkpoint=path)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back, however training ended."""
        self._watch.end()

    def state_dict(self) -> dict[str, Any]:
        """Lightning saves no RNGs."""
        return {"rng": rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the first batch: what is drawn before it is not the loop's."""
        self._rng = state_dict["rng"]

    def _save(self, trainer: Trainer) -> Path:
        path = self._directory / checkpoint_name(self._step).replace(".pt", ".ckpt")
        temporary = self._directory / temporary_name(path.name)
        if trainer.is_global_zero:
            self._directory.mkdir(parents=True, exist_ok=True)
        # Its name is the same on all ranks, as strategies that write shards want it.
        temporary = Path(trainer.strategy.broadcast(str(temporary)))
        try:
            trainer.save_checkpoint(temporary)
        except OSError:
            if trainer.is_global_zero:
                remove(temporary)
            raise
        if trainer.is_global_zero:
            if temporary.is_dir():
                sync_tree(temporary)
            else:
                sync_file(temporary)
            publish(temporary, path)
            prune(self._directory, self._keep, (".ckpt",))
        self._watch.saved(path)
        return path


def _loss(outputs: Any) -> float | None:
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return float(loss.detach()) if loss is not None else None
