"""Writes checkpoints beside the loop: one at a time, and none of its errors is lost."""

from __future__ import annotations

import errno
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from spotd_trainer.archive import Cancelled, Pace
from spotd_trainer.files import find_checkpoints, prune
from spotd_trainer.snapshot import StateChangedError, step_back
from spotd_trainer.state import tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spotd_trainer.report import Reporter
    from spotd_trainer.snapshot import Snapshot

log = logging.getLogger("spotd_trainer")

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Layout(Protocol):
    """How a checkpoint lies on the disk: in one file, or in shards."""

    writes: bool

    def name(self, step: int) -> str:
        """Name of the file or directory."""

    def capture(self, about: dict[str, Any]) -> dict[str, Any] | None:
        """The live state, nothing copied yet; None on ranks that do not write. Collective."""

    def write(
        self, path: Path, state: dict[str, Any], pace: Pace, complete: Callable[[], None]
    ) -> None:
        """Call `complete`, which fills `state`, then write it durably."""

    def agree(self, value: Any) -> Any:
        """The first writing rank's value, on every writing rank, in the saving thread."""

    def read(self, path: Path) -> dict[str, Any]:
        """Read and check, without touching a live object. Collective."""

    def load(self, path: Path, state: dict[str, Any]) -> None:
        """Put it into the live objects."""


@dataclass(slots=True)
class Saving:
    """One save: under way, then done."""

    step: int
    path: Path
    pace: Pace = field(default_factory=Pace)
    snapshot: Snapshot | None = None
    seconds: float = 0.0
    error: BaseException | None = None
    thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether it is still being written."""
        return self.thread is not None and self.thread.is_alive()

    @property
    def saved(self) -> bool:
        """Whether the checkpoint is whole and on the disk."""
        return not self.busy and self.error is None


class Saver:
    """Runs saves on a thread of its own, or at once.

    A full disk is no reason to stop training: it is logged, told to spotd, and the save is tried
    again at its next turn. Any other error is raised in the loop.
    """

    def __init__(
        self, layout: Layout, directory: Path, reporter: Reporter, *, keep: int, first_rank: bool
    ) -> None:
        self._layout = layout
        self._directory = directory
        self._reporter = reporter
        self._keep = keep
        self._first_rank = first_rank
        self.current: Saving | None = None
        self.last_saved: Saving | None = None
        self.failures = 0
        self.copy_at_once = False

    @property
    def busy(self) -> bool:
        """Whether a save is being written."""
        return self.current is not None and self.current.busy

    def start(self, step: int, snapshot: Snapshot) -> Saving:
        """Write `snapshot` beside the loop. Nothing may be under way."""
        saving = self._saving(step, snapshot.state)
        saving.snapshot = snapshot
        saving.thread = threading.Thread(
            target=self._write, args=(saving, snapshot.state), name="spotd-save", daemon=True
        )
        self.current = saving
        saving.thread.start()
        return saving

    def save_now(self, step: int, state: dict[str, Any] | None) -> Saving:
        """Write `state`, which nobody changes meanwhile, and return when it is on the disk."""
        self.give_way(step)
        saving = self._saving(step, state)
        self.current = saving
        if state is not None:
            self._write(saving, state)
        return saving

    def give_way(self, step: int) -> None:
        """End what is under way: at once, unless it is of this very step or nearly done."""
        current = self.current
        if current is None or not current.busy:
            return
        if current.step != step and not current.pace.nearly_done:
            log.info("the save of step %d gives way to that of step %d", current.step, step)
            current.pace.cancelled = True
        self.wait()

    def cancel(self) -> None:
        """Let what is under way end soon, and leave nothing."""
        if self.current is not None:
            self.current.pace.cancelled = True

    def wait(self, timeout: float | None = None) -> None:
        """Wait for what is under way, at most `timeout` seconds."""
        if self.current is not None and self.current.thread is not None:
            self.current.thread.join(timeout)

    def raise_error(self) -> bool:
        """Raise, once, what went wrong beside the loop; whether it is to be tried again at once."""
        current = self.current
        if current is None or current.busy or current.error is None:
            return False
        error, self.current = current.error, None
        if isinstance(error, StateChangedError):
            self.copy_at_once = True
            return True
        if not is_no_space(error) and not isinstance(error, Cancelled):
            raise error
        return False

    def _saving(self, step: int, state: dict[str, Any] | None) -> Saving:
        saving = Saving(step, self._directory / self._layout.name(step))
        tensors = tensors_of(state, "").values()
        local = (getattr(tensor, "_local_tensor", tensor) for tensor in tensors)
        saving.pace.expected = sum(tensor.nbytes for tensor in local)
        return saving

    def _write(self, saving: Saving, state: dict[str, Any]) -> None:
        began = time.monotonic()
        try:
            if saving.snapshot is not None:
                step_back()
            self._write_or_make_room(saving, state)
        except BaseException as error:
            saving.error = error
            if saving.snapshot is not None:
                saving.snapshot.give_up()
            if saving.thread is None and not isinstance(error, Exception):
                # Ctrl-C in the loop's own thread: not of the save, and not to be waited for.
                raise
            # Otherwise it is raised in the loop, by raise_error.
            self._tell_failure(saving, error)
        else:
            saving.seconds = time.monotonic() - began
            self.last_saved = saving
            self._finished(saving)

    def _write_or_make_room(self, saving: Saving, state: dict[str, Any]) -> None:
        complete = _nothing if saving.snapshot is None else saving.snapshot.finish
        try:
            self._layout.write(saving.path, state, saving.pace, complete)
        except OSError as error:
            has_older = self._layout.agree(bool(find_checkpoints(self._directory)[1:]))
            if not is_no_space(error) or not has_older:
                raise
            # The newest stays: until the new one is whole it is all there is.
            log.warning("no space for %s: older ones are deleted to make room", saving.path)
            if self._first_rank:
                prune(self._directory, 1)
            saving.pace.written = 0
            # Asked again so that no rank writes before the first one has deleted.
            self._layout.agree(value=None)
            self._layout.write(saving.path, state, saving.pace, _nothing)

    def _finished(self, saving: Saving) -> None:
        log.info("saved %s in %.2f s", saving.path, saving.seconds)
        self._reporter.checkpoint(saving.path)
        if self._first_rank:
            prune(self._directory, self._keep)

    def _tell_failure(self, saving: Saving, error: BaseException) -> None:
        if isinstance(error, Cancelled):
            return
        self.failures += 1
        if isinstance(error, StateChangedError):
            log.warning(
                "the save of step %d is given up: %s was written to outside optimizer.step while "
                "it was copied; from now on the loop waits for the whole copy",
                saving.step,
                error,
            )
            return
        log.error("%s was not saved: %s", saving.path, error)
        self._reporter.status(f"checkpoint of step {saving.step} failed: {error}")


def _nothing() -> None:
    """A state that is complete already."""


def is_no_space(error: BaseException) -> bool:
    """Whether the disk, a quota or a size limit is exhausted."""
    return isinstance(error, OSError) and error.errno in NO_SPACE
