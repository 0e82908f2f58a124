"""A checkpoint in shards: every rank writes its own part, DCP's layout, `.metadata` last.

`step-00000120/` holds `__R_0.distcp` (the tensors of rank R), `rank-0000R.pt` (its RNGs and its
place in the data), `trainer.pt` (what all share) and `.metadata`, which says which tensor lies
where. It appears under its name only when every rank has written and synced its part.
"""

from __future__ import annotations

import logging
import os
import shutil
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from spotd_trainer.agreement import Alone, Ranks
from spotd_trainer.archive import (
    Cancelled,
    Pace,
    read_archive,
    require_keys,
    unreadable,
    write_file,
)
from spotd_trainer.dcp_files import PacedWriter, SafeReader
from spotd_trainer.errors import CheckpointError, TornCheckpointError
from spotd_trainer.files import checkpoint_name, publish, sync_directory
from spotd_trainer.snapshot import StateChangedError
from spotd_trainer.state import plain
from spotd_trainer.whole import load_own, load_own_buffers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spotd_trainer.parts import Parts

log = logging.getLogger("spotd_trainer")

_SHARED = "trainer.pt"
_TENSOR = "\0tensor"
_KEYS = ("step", "types", "schedulers", "scaler", "extra", "rest", "world_size")


class ShardedLayout:
    """`step-00000120/`: each rank writes what it holds."""

    writes = True

    def __init__(self, parts: Parts, ranks: Alone | Ranks) -> None:
        self._parts = parts
        self._ranks = ranks
        # The saving thread's collectives must never meet the loop's.
        self._background: Alone | Ranks = Ranks() if isinstance(ranks, Ranks) else Alone()
        self._attempt = ranks.from_first(os.getpid())

    def name(self, step: int) -> str:
        """The directory's name."""
        return checkpoint_name(step, sharded=True)

    def capture(self, about: dict[str, Any]) -> dict[str, Any] | None:
        """The live state of this rank, nothing copied yet. Collective.

        Raises:
            TypeError: a part of it could not be loaded back safely.
        """
        tensors, rest = _live_state(self._parts)
        shared = {**self._parts.header(), **about, "rest": rest, "world_size": self._ranks.size}
        return {"tensors": tensors, "shared": shared, "own": self._parts.own(self._ranks)}

    def write(
        self, path: Path, state: dict[str, Any], pace: Pace, complete: Callable[[], None]
    ) -> None:
        """Write this rank's part, and see to it that all have. Collective, in the saving thread.

        Raises:
            OSError: on any rank; nothing is left on the disk.
            Cancelled: on any rank; likewise.
            StateChangedError: on any rank; likewise.
        """
        temporary = path.with_name(f".tmp-{path.name}-{self._attempt}")
        try:
            self._together(complete)
            self._together(lambda: self._write_own(temporary, state, pace))
            self._together(lambda: self._write_shards(temporary, state["tensors"], pace))
            self._together(lambda: self._publish(temporary, path))
        except BaseException:
            if self._background.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on all of them."""
        return self._background.from_first(value)

    def _together(self, act: Callable[[], None]) -> None:
        """If it fails on one rank, it fails on all: a checkpoint without one shard is none."""
        failure: Exception | None = None
        told: Exception | None = None
        try:
            act()
        except (OSError, Cancelled, StateChangedError) as error:
            failure = told = error
        except Exception as error:  # noqa: BLE001 - raised below, once all know
            failure, told = error, RuntimeError(f"rank {self._background.rank}: {error!r}")
        failures = [f for f in self._background.share(told) if f is not None]
        if failure is not None:
            raise failure
        if failures:
            raise failures[0]

    def _publish(self, temporary: Path, path: Path) -> None:
        if self._background.rank == 0:
            sync_directory(temporary)
            publish(temporary, path)

    def _write_own(self, directory: Path, state: dict[str, Any], pace: Pace) -> None:
        rank = self._background.rank
        directory.mkdir(parents=True, exist_ok=True)
        write_file(directory / f"rank-{rank:05d}.pt", _header_of(state, "own"), pace)
        if rank == 0:
            write_file(directory / _SHARED, state["shared"], pace)

    def _write_shards(self, directory: Path, tensors: dict[str, Any], pace: Pace) -> None:
        alone = isinstance(self._background, Alone)
        group = None if isinstance(self._background, Alone) else self._background.group
        try:
            save(
                tensors,
                storage_writer=PacedWriter(directory, pace),
                process_group=group,
                no_dist=alone,
            )
        except CheckpointException as error:
            for cause, _ in error.failures.values():
                if isinstance(cause, (OSError, Cancelled)):
                    raise cause from error
            raise

    def read(self, path: Path) -> dict[str, Any]:
        """Read and check it on every rank, without touching a live object. Collective.

        Raises:
            TornCheckpointError: a part is missing or damaged.
            CheckpointError: not of this run. The same on every rank.
        """
        found: dict[str, Any] = {}
        problem: CheckpointError | None = None
        try:
            found = self._inspect(path)
        except CheckpointError as error:
            problem = error
        except OSError as error:
            problem = unreadable(path, error)
        problems = [p for p in self._ranks.share(problem and _told(problem)) if p is not None]
        if problem is not None:
            raise problem
        if problems:
            kind, arguments, key = problems[0]
            raise (TornCheckpointError if kind == "torn" else CheckpointError)(*arguments, key=key)
        # DCP loads in place: into copies, so that a failure half-way leaves the model alone.
        targets = {key: torch.empty_like(tensor) for key, tensor in found.pop("live").items()}
        try:
            load(
                targets,
                storage_reader=found.pop("reader"),
                process_group=self._ranks.group if isinstance(self._ranks, Ranks) else None,
                no_dist=isinstance(self._ranks, Alone),
            )
        except CheckpointException as error:
            first = next(iter(error.failures.values()))[0]
            raise TornCheckpointError(path, f"a shard cannot be read: {first!r}") from error
        return {**found, "tensors": targets}

    def _inspect(self, path: Path) -> dict[str, Any]:
        if not path.is_dir():
            found = "a file" if path.exists() else "nothing: every rank must see its directory"
            raise CheckpointError(path, f"expected a directory of shards, found {found}")
        reader = SafeReader(path)
        metadata = reader.read_metadata()
        reader.verify(metadata, self._ranks.rank, self._ranks.size)
        shared = _required(path / _SHARED)
        require_keys(path / _SHARED, shared, _KEYS)
        everyone = [_required(path / f"rank-{r:05d}.pt") for r in range(shared["world_size"])]
        self._parts.check_header(path, shared)
        live, _ = _live_state(self._parts)
        _check_metadata(path, live, metadata.state_dict_metadata)
        return {**shared, "ranks": everyone, "live": live, "reader": reader}

    def load(self, path: Path, state: dict[str, Any]) -> None:
        """Put it into the live objects; the model last.

        Raises:
            CheckpointError: a small part refused its state; the model is as it was.
        """
        parts = self._parts
        parts.load_header(path, state)
        load_own(path, parts, self._ranks, state["ranks"])
        whole = _join(state["rest"], state["tensors"])
        if parts.optimizers:
            set_optimizer_state_dict(parts.model, parts.optimizers, whole["optimizer"])
        set_model_state_dict(parts.model, whole["model"], options=StateDictOptions(strict=True))
        load_own_buffers(parts, self._ranks, state["ranks"])


def _told(problem: CheckpointError) -> tuple[str, tuple[str, str], str | None]:
    kind = "torn" if isinstance(problem, TornCheckpointError) else "foreign"
    return kind, (problem.path, problem.problem), problem.key


def _required(path: Path) -> dict[str, Any]:
    try:
        return read_archive(path)
    except FileNotFoundError:
        raise TornCheckpointError(path, "expected a file, found none") from None


def _header_of(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {**{k: state["shared"][k] for k in ("library", "format", "step")}, **state[name]}


def _live_state(parts: Parts) -> tuple[dict[str, torch.Tensor], Any]:
    """Tensors by flat key, and what is left of the state with a mark in the place of each.

    DCP would pickle everything that is no tensor; this way it never meets any.
    """
    state: dict[str, Any] = {"model": get_model_state_dict(parts.model)}
    if parts.optimizers:
        state["optimizer"] = get_optimizer_state_dict(parts.model, parts.optimizers)
    tensors: dict[str, torch.Tensor] = {}
    return tensors, plain(_split(state, "", tensors), "state")


def _split(value: Any, key: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[key] = value.detach()
        return _TENSOR
    if isinstance(value, dict):
        return {k: _split(v, f"{key}.{k}" if key else str(k), tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(v, f"{key}[{i}]", tensors) for i, v in enumerate(value)]
    return value


def _join(value: Any, tensors: dict[str, torch.Tensor], key: str = "") -> Any:
    if isinstance(value, str) and value == _TENSOR:
        return tensors[key]
    if isinstance(value, dict):
        return {k: _join(v, tensors, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_join(v, tensors, f"{key}[{i}]") for i, v in enumerate(value)]
    return value


def _check_metadata(path: Path, live: dict[str, torch.Tensor], saved: dict[str, Any]) -> None:
    for key in sorted({*live, *saved}, key=lambda k: (k in live and k in saved, k)):
        mine, other = live.get(key), saved.get(key)
        expected = "nothing" if mine is None else f"{mine.dtype} of shape {tuple(mine.shape)}"
        found = "nothing"
        if isinstance(other, TensorStorageMetadata):
            found = f"{other.properties.dtype} of shape {tuple(other.size)}"
        if expected != found:
            raise CheckpointError(
                path,
                f"expected {expected}, found {found}",
                key=key,
                hint="a checkpoint of another model",
            )
