"""The session: everything a training loop needs to be interrupted as if it had not been."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from spotd_trainer.archive import FORMAT, LIBRARY, read_archive, write_archive
from spotd_trainer.errors import CheckpointError, Interrupted, TornCheckpointError
from spotd_trainer.files import checkpoint_name, find_checkpoints, prune, remove_leftovers
from spotd_trainer.loader import Loader
from spotd_trainer.report import Reporter
from spotd_trainer.rng import restore_rng, rng_state
from spotd_trainer.signals import StopFlag
from spotd_trainer.state import (
    check_optimizer,
    check_tensors,
    check_types,
    load_optimizer,
    plain,
    unwrap,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

log = logging.getLogger("spotd_trainer")


class Session:
    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
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
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scaler = scaler
        self.loader = loader
        self.extra = dict(extra or {})
        chosen = directory or os.environ.get("SPOTD_CHECKPOINT_DIR") or "checkpoints"
        self.directory = Path(chosen).absolute()
        self.save_every = save_every
        self.keep = keep
        self.total_steps = total_steps
        self.step = 0
        self.resumed_from: Path | None = None
        self.last_checkpoint: Path | None = None
        self._resume_from = resume_from or os.environ.get("SPOTD_RESUME_FROM")
        self._on_stop = on_stop
        self._saved_step = -1
        self._saved_at = time.monotonic()
        self._flag = StopFlag()
        self._reporter = Reporter()
        self._pending_rng: dict[str, Any] | None = None
        self._stopping = False

    def __enter__(self) -> Session:
        self.directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.directory)
        self._flag.install()
        self._resume()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and not self._stopping and self.step != self._saved_step:
            self.save()
        if isinstance(self.loader, Loader):
            self.loader.close()
        self._reporter.close()
        self._flag.restore()

    @property
    def should_stop(self) -> bool:
        return self._stopping

    @property
    def done(self) -> bool:
        return self._stopping or (self.total_steps is not None and self.step >= self.total_steps)

    def __iter__(self) -> Iterator[Any]:
        while not self.done:
            yield from self.batches()

    def batches(self) -> Iterator[Any]:
        iterator = iter(self.loader)
        self._release_rng()
        while not self.done:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            yield batch

    def advance(self, loss: Any = None) -> None:
        self.step += 1
        if self._reporter.due or self.step == self.total_steps:
            self._reporter.progress(
                self.step,
                total_steps=self.total_steps,
                loss=None if loss is None else float(loss),
                epoch=getattr(self.loader, "epoch", None),
            )
        if self._flag.stop:
            self._stop()
        elif self._flag.checkpoints_asked or self._due():
            self._flag.checkpoints_asked = 0
            self.save()

    def _due(self) -> bool:
        if self.save_every is None:
            return False
        if self.save_every == "auto":
            return time.monotonic() - self._saved_at > 10
        return self.step % self.save_every == 0

    def _stop(self) -> None:
        self.save()
        self._stopping = True
        self._reporter.stopping()
        if self._on_stop == "exit":
            under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
            raise Interrupted(
                0 if under_torchrun else 128 + self._flag.stop,
                step=self.step,
                checkpoint=self.last_checkpoint,
            )

    def save(self) -> None:
        if self._saved_step == self.step:
            return
        path = self.directory / checkpoint_name(self.step)
        write_archive(path, self._capture())
        self._saved_step, self._saved_at = self.step, time.monotonic()
        self.last_checkpoint = path
        self._reporter.checkpoint(path, self.step)
        prune(self.directory, self.keep)

    def _types(self) -> dict[str, str]:
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        return {k: type(v).__name__ for k, v in parts.items() if v is not None}

    def _capture(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "library": LIBRARY,
            "format": FORMAT,
            "torch": str(torch.__version__),
            "step": self.step,
            "total_steps": self.total_steps,
            "types": self._types(),
            "model": plain(unwrap(self.model).state_dict(), "model"),
            "extra": {
                name: plain(part.state_dict(), f"extra.{name}") for name, part in self.extra.items()
            },
            "ranks": [
                {
                    "rng": rng_state(),
                    "loader": plain(self.loader.state_dict(), "loader") if self.loader else None,
                }
            ],
        }
        for name in ("optimizer", "scheduler", "scaler"):
            part = getattr(self, name)
            if part is not None:
                state[name] = plain(part.state_dict(), name)
        return state

    def _resume(self) -> None:
        candidates = find_checkpoints(self.directory)
        if self._resume_from:
            chosen = Path(self._resume_from)
            candidates = [chosen, *(c for c in candidates if c != chosen)]
        torn: list[TornCheckpointError] = []
        for path in candidates:
            try:
                state = read_archive(path)
            except TornCheckpointError as error:
                log.warning("%s; trying the next older one", error)
                torn.append(error)
                continue
            self._restore(path, state)
            return
        if torn:
            raise torn[0]

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        check_tensors(path, "model", unwrap(self.model).state_dict(), state["model"])
        check_types(path, self._types(), state["types"])
        if self.optimizer is not None:
            check_optimizer(path, "optimizer", self.optimizer, state["optimizer"])
        for name, part in self.extra.items():
            if name not in state["extra"]:
                raise CheckpointError(path, "expected a state, found none", key=f"extra.{name}")
            part.load_state_dict(state["extra"][name])
        mine = state["ranks"][0]
        if self.loader is not None:
            try:
                self.loader.load_state_dict(mine["loader"])
            except ValueError as error:
                raise CheckpointError(path, str(error), key="loader") from error
        for name in ("scheduler", "scaler"):
            part = getattr(self, name)
            if part is not None:
                part.load_state_dict(state[name])
        if self.optimizer is not None:
            load_optimizer(self.optimizer, state["optimizer"])
        unwrap(self.model).load_state_dict(state["model"])
        self.step = self._saved_step = state["step"]
        self.resumed_from = self.last_checkpoint = path
        self._pending_rng = mine["rng"]
        if self.loader is None:
            self._release_rng()
        log.info("resumed from %s at step %d", path, self.step)

    def _release_rng(self) -> None:
        if self._pending_rng is not None:
            restore_rng(self._pending_rng)
            self._pending_rng = None
