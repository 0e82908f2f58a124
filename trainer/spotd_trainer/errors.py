"""What this library raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, does not belong to this run, or cannot be written.

    The message names the file, the key inside it, what was expected and what was found, so that
    one line is enough to act on. Nothing was loaded when it is raised by a resume.
    """

    def __init__(
        self, path: Path | str, problem: str, *, key: str | None = None, hint: str | None = None
    ) -> None:
        self.path = str(path)
        self.key = key
        self.problem = problem
        self.hint = hint
        where = f"{path}: {key}" if key else str(path)
        super().__init__(f"{where}: {problem}" + (f" ({hint})" if hint else ""))


class TornCheckpointError(CheckpointError):
    """A checkpoint is damaged: cut short, or bytes have changed. An older one may be whole."""


class Interrupted(SystemExit):
    """Raised by `Session.advance` at a step boundary once the checkpoint is on the disk.

    `code` is the exit status: 128 + signal for a plain process (143 after SIGTERM), so that no
    supervisor takes the exit for a completed run; 0 under torchrun, where any other status of one
    rank makes the agent kill the others or start them again (design/measured.md, section 1).
    """

    def __init__(self, code: int, *, step: int, checkpoint: Path | None) -> None:
        super().__init__(code)
        self.step = step
        self.checkpoint = checkpoint
