"""The training command on this machine: started, signalled, followed, found again."""

from __future__ import annotations

from spotd.shell.trainer.host import TrainerHost

__all__ = ["TrainerHost"]
