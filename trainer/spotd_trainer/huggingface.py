"""For the Hugging Face Trainer: a callback that saves when asked, and leaves with the right status.

    trainer = Trainer(..., callbacks=[SpotdCallback()])
    trainer.train(resume_from_checkpoint=newest_checkpoint(arguments.output_dir))

The Trainer itself does not catch SIGTERM, and looks for the newest `checkpoint-N` without asking
whether it is whole (design/measured.md, section 3). It resumes exactly.
"""

# ruff: noqa: ARG002 - the framework's signatures
from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from spotd_trainer.files import sync_tree
from spotd_trainer.leave import Watch


class SpotdCallback(TrainerCallback):
    """Makes the Trainer save at a stop or checkpoint signal, and syncs what it saves."""

    def __init__(self) -> None:
        self._watch = Watch()
        self._stop = 0

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Take the signals over."""
        self._watch.begin()

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Give the signals back."""
        self._watch.end()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        """At an optimizer step: report, and ask for a save where all ranks agreed on one."""
        loss = state.log_history[-1].get("loss") if state.log_history else None
        agreed = self._watch.stepped(state.global_step, total_steps=state.max_steps, loss=loss)
        if agreed.stop or agreed.checkpoint:
            control.should_save = True
            self._stop = agreed.stop
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The Trainer has written a checkpoint: make it durable, then leave if that was asked."""
        path = Path(str(args.output_dir)).absolute() / f"checkpoint-{state.global_step}"
        if self._watch.first and path.is_dir():
            sync_tree(path)
        self._watch.saved(path)
        if self._stop:
            leaving = self._watch.leave(self._stop, step=state.global_step, checkpoint=path)
            self._watch.end()
            raise leaving
