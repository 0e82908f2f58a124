"""The session: everything a training loop needs to be interrupted as if it had not been."""

from __future__ import annotations

import functools
import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spotd_trainer.agreement import Alone, Ranks, Wish, agree
from spotd_trainer.errors import CheckpointError, Interrupted
from spotd_trainer.files import remove_leftovers, set_aside
from spotd_trainer.layouts import layout_to_read, layout_to_write
from spotd_trainer.leave import exit_status
from spotd_trainer.parts import Parts, as_list
from spotd_trainer.position import Position
from spotd_trainer.report import Reporter
from spotd_trainer.resume import candidates, resume
from spotd_trainer.saver import Saver
from spotd_trainer.schedule import Schedule
from spotd_trainer.signals import StopFlag
from spotd_trainer.snapshot import Snapshot, Stager
from spotd_trainer.whole import WholeLayout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    import torch
    from typing_extensions import Self

    from spotd_trainer.saver import Layout

log = logging.getLogger("spotd_trainer")


class Session:
    """Finds and loads the newest checkpoint, saves new ones, and ends the loop when asked to.

        with Session(model, optimizer, loader=loader, total_steps=1000) as session:
            for batch in session:
                ...  # forward, backward, optimizer.step(), zero_grad()
                session.advance(loss)

    Entering loads; `advance`, at the end of each optimizer step, counts, reports, saves when it is
    time, and leaves by `Interrupted` (a SystemExit) after a stop signal, once the checkpoint is on
    the disk. Leaving without an error saves the last state.

    Args:
        model: plain, compiled, in DistributedDataParallel, or sharded by `fully_shard` (FSDP2).
        optimizer: one or several.
        scheduler: one or several; leave none out that changes the learning rate.
        scaler: the GradScaler, with float16.
        loader: `spotd_trainer.Loader`, torchdata's StatefulDataLoader, any DataLoader, or None if
            the loop draws its batches from the RNGs.
        extra: whatever else has `state_dict` and `load_state_dict`, and torch.Generators, by name.
        directory: of checkpoints. Default: `$SPOTD_CHECKPOINT_DIR`, else `./checkpoints`.
        resume_from: a checkpoint. Default: `$SPOTD_RESUME_FROM`, else the newest whole one of
            `directory`.
        save_every: steps; "auto": by what a save costs; None: only when asked or stopped.
        keep: how many checkpoints stay in `directory`.
        total_steps: where the run is complete.
        on_stop: "exit" leaves `advance` by `Interrupted`; "return" only sets `should_stop`.
        asynchronous: write beside the loop. False waits for the disk at every save.
        interruptions_per_day: for "auto": how often the run is cut off without a warning.
        stop_signals, checkpoint_signals: what to listen to. Ctrl-C twice does not wait for a save.

    Raises:
        CheckpointError: on entering: what there is cannot be resumed from. No live object of the
            model was touched.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Any = None,
        *,
        scheduler: Any = None,
        scaler: Any = None,
        loader: Any = None,
        extra: Mapping[str, Any] | None = None,
        directory: str | Path | None = None,
        resume_from: str | Path | None = None,
        save_every: int | Literal["auto"] | None = "auto",
        keep: int = 3,
        total_steps: int | None = None,
        on_stop: Literal["exit", "return"] = "exit",
        asynchronous: bool = True,
        interruptions_per_day: float = 1.0,
        stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
        checkpoint_signals: tuple[signal.Signals, ...] = (signal.SIGUSR1,),
    ) -> None:
        chosen = directory or os.environ.get("SPOTD_CHECKPOINT_DIR") or "checkpoints"
        self.directory = Path(chosen).absolute()
        self.total_steps = total_steps
        self.step = 0
        """Optimizer steps done."""
        self.resumed_from: Path | None = None
        """The checkpoint this process began with, None: at step 0."""
        self.should_stop = False
        """Whether a stop was agreed on, and saved for."""
        named = resume_from or os.environ.get("SPOTD_RESUME_FROM")
        self._named = str(named) if named else None
        self._position = Position(loader)
        self._parts = Parts(
            model,
            as_list(optimizer),
            as_list(scheduler),
            scaler,
            self._position,
            dict(extra or {}),
        )
        self._schedule = Schedule(save_every, interruptions_per_day)
        self._keep = keep
        self._on_stop = on_stop
        self._asynchronous = asynchronous
        self._flag = StopFlag(stop_signals, checkpoint_signals)
        self._reporter = Reporter()
        self._stager = Stager()
        self._ranks: Alone | Ranks = Alone()
        self._layout: Layout
        self._saver: Saver
        self._snapshot: Snapshot | None = None
        self._hooks: list[Any] = []
        self._whole_step = -1
        self._started_step = -1
        self._save_wanted = False
        self._idle = True
        self._prepared = False

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._position.epoch

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that this process knows to be whole and on the disk."""
        saved = self._saver.last_saved
        return saved.path if saved is not None else self.resumed_from

    @property
    def save_failures(self) -> int:
        """Saves that failed, for want of space say, and were reported."""
        return self._saver.failures

    @property
    def done(self) -> bool:
        """Whether the loop is to end: complete, or stopped."""
        return self.should_stop or (self.total_steps is not None and self.step >= self.total_steps)

    def __enter__(self) -> Self:
        self._ranks = agree()
        self._layout = layout_to_write(self._parts, self._ranks)
        first = self._ranks.rank == 0
        self._saver = Saver(
            self._layout, self.directory, self._reporter, keep=self._keep, first_rank=first
        )
        if first:
            self.directory.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.directory)
        self._flag.install()
        try:
            self._resume()
        except BaseException:
            self._flag.restore()
            raise
        for optimizer in self._parts.optimizers:
            if hasattr(optimizer, "register_step_pre_hook"):
                self._hooks.append(optimizer.register_step_pre_hook(self._before_optimizer))
        self._schedule.began()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and not self.should_stop:
                self._ranks.finish()
                self._save_and_wait()
            if kind is KeyboardInterrupt:
                self._saver.cancel()
            # After a crash of another rank a shard's writer may wait for it in vain.
            alone = isinstance(self._layout, WholeLayout)
            self._saver.wait(None if kind is None or alone else 60.0)
        finally:
            for hook in self._hooks:
                hook.remove()
            self._position.close()
            self._stager.release()
            self._reporter.close()
            self._flag.restore()

    def __iter__(self) -> Iterator[Any]:
        """Batches, epoch after epoch, until `done`."""
        while not self.done:
            yield from self.batches()

    def batches(self) -> Iterator[Any]:
        """The rest of the current epoch; ends early when `done`."""
        if self.done:
            return
        for batch in self._position.batches():
            yield batch
            if self.done:
                return

    def epochs(self, total: int) -> Iterator[int]:
        """Numbers of the epochs up to `total`, beginning with the one to go on with.

        Raises:
            RuntimeError: the loop's body left some of the epoch's batches unused.
        """
        while self.epoch < total and not self.done:
            before = self.epoch
            yield before
            if self.epoch == before and not self.done:
                raise RuntimeError(
                    f"the batches of epoch {before} were not used up, so that it has not ended: "
                    "take them from session.batches() and do not break out of them"
                )

    def request_stop(self) -> None:
        """Stop at the next step boundary, as after a stop signal."""
        self._flag.stop = self._flag.stop or signal.SIGTERM

    def advance(self, loss: Any = None) -> None:
        """One optimizer step is done. Call it right after, on every rank.

        Args:
            loss: a number or a tensor of one; read, and so waited for, only when a report is due.

        Raises:
            Interrupted: a stop was asked for, and the checkpoint is on the disk.
            CheckpointError: a stop was asked for, and nothing could be saved.
            Exception: whatever went wrong in a save beside the loop, want of space excepted.
        """
        if self._saver.raise_error():
            # As if somebody had asked: all ranks then save at the same step.
            self._flag.checkpoints_asked += 1
        saved = self._saver.last_saved
        if saved is not None and not self._saver.busy:
            self._schedule.ended(saved.seconds)
        if self._position.rng_is_owed:
            log.warning("the data was not taken from the session: the resume is not exact")
            self._position.release()
        self.step += 1
        self._schedule.meter.stepped(saving=self._saver.busy)
        self._report(loss)
        if not self._prepared:
            self._prepare()
        stop = self._consult()
        if stop:
            self._stop(stop)
        elif self._save_wanted and self._idle:
            self._start_save()
        self._schedule.meter.left()

    def save(self, *, wait: bool = False) -> None:
        """Save now, between two steps, on every rank. `wait`: return when it is on the disk.

        Raises:
            CheckpointError: with `wait`: it could not be saved.
        """
        if wait:
            self._save_and_wait()
        elif self._started_step != self.step:
            self._saver.wait()
            self._saver.raise_error()
            self._start_save()

    def _resume(self) -> None:
        paths = candidates(self.directory, self._named, self._ranks)
        layouts = functools.partial(layout_to_read, self._layout, self._parts, self._ranks)
        found = resume(paths, self._ranks, layouts)
        if found is not None:
            self.resumed_from, state = found
            self.step = self._whole_step = self._started_step = state["step"]
            for moved in set_aside(self.directory, self.step):
                log.warning("of a later step than the run goes on from, and set aside: %s", moved)
            if self._ranks.rank == 0:
                log.info("resumed at step %d from %s", self.step, self.resumed_from)

    def _report(self, loss: Any) -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0" and (self._reporter.due or self.done):
            self._reporter.progress(
                self.step,
                total_steps=self.total_steps,
                epoch=self.epoch,
                loss=loss,
            )

    def _consult(self) -> int:
        """Agree with the other ranks; returns the stop signal's number, or 0."""
        by_step = self._schedule.by_step(self.step)
        wish = Wish(
            stop=self._flag.stop,
            checkpoint=int(self._flag.checkpoints_asked > 0),
            due=int(self._ranks.rank == 0 and self._schedule.by_time),
            busy=int(self._saver.busy),
        )
        known = self._idle or not by_step
        agreed = self._ranks.decide(self.step, wish) if known else self._ranks.now(wish)
        self._save_wanted |= by_step
        if agreed is None:
            return 0
        self._save_wanted |= bool(agreed.checkpoint or agreed.due)
        self._idle = not agreed.busy
        return agreed.stop

    def _before_optimizer(self, *_: Any) -> None:
        if self._snapshot is not None:
            self._schedule.meter.waited(self._snapshot.wait())
            self._snapshot = None

    def _prepare(self) -> None:
        """After the first step: whatever is wrong with a save shows now, not hours later."""
        self._prepared = True
        about = self._about()
        if self._ranks.rank == 0:
            for note in about["inexact"]:
                log.warning("a resume will not be exact: %s", note)
        state = self._layout.capture(about)
        if state is not None and self._asynchronous and self._schedule.save_every is not None:
            self._stager.prepare(state)

    def _about(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "total_steps": self.total_steps,
            "inexact": self._parts.notes(),
        }

    def _start_save(self) -> None:
        began = time.perf_counter()
        self._save_wanted = False
        self._flag.checkpoints_asked = 0
        self._schedule.began()
        # What was sent before this save began says nothing about it being under way.
        self._ranks.finish()
        if not self._asynchronous:
            self._save_synchronously()
            return
        self._idle = isinstance(self._ranks, Alone)
        self._started_step = self.step
        state = self._layout.capture(self._about())
        if state is not None:
            later = () if self._saver.copy_at_once else self._parts.written_by_optimizers()
            self._snapshot = self._stager.take(state, later)
            self._saver.start(self.step, self._snapshot)
        self._schedule.meter.began(time.perf_counter() - began)

    def _save_synchronously(self) -> None:
        try:
            self._save_and_wait()
        except CheckpointError:
            # Want of space was reported and is no reason to stop; anything else is.
            self._saver.raise_error()

    def _save_and_wait(self) -> None:
        """Save this step and wait, on every rank, until it is on the disk.

        Raises:
            CheckpointError: on every rank, if it failed on one.
        """
        if self._whole_step == self.step:
            return
        if self._started_step == self.step:
            self._saver.wait()
            current = self._saver.current
            failed = current is not None and current.error is not None
            if not any(self._ranks.share(failed)):
                self._whole_step = self.step
                return
        saving = self._saver.save_now(self.step, self._layout.capture(self._about()))
        problems = self._ranks.share(None if saving.error is None else str(saving.error))
        for problem in problems:
            if problem is not None:
                raise CheckpointError(saving.path, f"not saved: {problem}") from saving.error
        self._whole_step = self._started_step = self.step

    def _stop(self, number: int) -> None:
        if self._ranks.rank == 0:
            log.info("asked to stop by %s: saving step %d", signal.Signals(number).name, self.step)
        self._ranks.finish()
        self._save_and_wait()
        self.should_stop = True
        self._reporter.stopping()
        if self._on_stop == "exit":
            raise Interrupted(exit_status(number), step=self.step, checkpoint=self.last_checkpoint)
