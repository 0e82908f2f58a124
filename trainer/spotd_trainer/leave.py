"""What the callbacks for other trainers share: a flag all ranks agree on, and the way out."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from spotd_trainer.agreement import Alone, Ranks, Wish, agree
from spotd_trainer.errors import Interrupted
from spotd_trainer.report import Reporter
from spotd_trainer.signals import StopFlag

if TYPE_CHECKING:
    from pathlib import Path


log = logging.getLogger("spotd_trainer")


def exit_status(number: int) -> int:
    """Of a process that was stopped by signal `number` and has saved; see `Interrupted`."""
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else 128 + number


class Watch:
    """Listens to the signals while a foreign training loop runs."""

    def __init__(self) -> None:
        self._flag = StopFlag()
        self._reporter = Reporter()
        self._ranks: Alone | Ranks = Alone()

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self._ranks.rank == 0

    def begin(self) -> None:
        """Call when training begins, after the framework has put its own handlers in place."""
        self._flag.install()
        self._ranks = agree()

    def end(self) -> None:
        """Call when training ends."""
        self._ranks.finish()
        self._flag.restore()
        self._reporter.close()

    def stepped(
        self, step: int, *, total_steps: int | None = None, loss: float | None = None
    ) -> Wish:
        """Call at every optimizer step, on every rank: report, and say what all agreed on."""
        if os.environ.get("LOCAL_RANK", "0") == "0" and self._reporter.due:
            self._reporter.progress(step, total_steps=total_steps, loss=loss)
        wish = Wish(stop=self._flag.stop, checkpoint=int(self._flag.checkpoints_asked > 0))
        return self._ranks.decide(step, wish) or Wish()

    def saved(self, path: Path) -> None:
        """A checkpoint is complete and on the disk."""
        self._flag.checkpoints_asked = 0
        # What was sent before would ask for the same save again.
        self._ranks.finish()
        if self.first:
            self._reporter.checkpoint(path)

    def failed(self, step: int, error: OSError) -> None:
        """There was no space for a checkpoint: report it; training goes on."""
        self._flag.checkpoints_asked = 0
        log.error("the checkpoint of step %d was not saved: %s", step, error)
        self._reporter.status(f"checkpoint of step {step} failed: {error}")

    def leave(self, number: int, *, step: int, checkpoint: Path) -> Interrupted:
        """What to raise once the checkpoint is on the disk, on every rank."""
        self._reporter.stopping()
        # No rank may leave before rank 0 has written: its end would end the others.
        self._ranks.share(None)
        return Interrupted(exit_status(number), step=step, checkpoint=checkpoint)
