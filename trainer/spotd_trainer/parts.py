"""The live objects of a run, and what of them goes into a checkpoint."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from spotd_trainer.archive import FORMAT, LIBRARY
from spotd_trainer.errors import CheckpointError
from spotd_trainer.rng import rng_state
from spotd_trainer.state import check_tensors, check_types, plain, tensors_of, unwrap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spotd_trainer.agreement import Alone, Ranks
    from spotd_trainer.position import Position


log = logging.getLogger("spotd_trainer")


def as_list(value: Any) -> list[Any]:
    """None, one or several, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


@dataclass(slots=True)
class Parts:
    """Everything a run is made of, as the program uses it."""

    model: torch.nn.Module
    optimizers: list[Any]
    schedulers: list[Any]
    scaler: Any
    position: Position
    extra: dict[str, Any]
    _left_out: dict[str, str] = field(default_factory=dict)
    _own_buffers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        module = unwrap(self.model)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_meta:
                raise ValueError(
                    f"model.{name} is on the meta device, where it has no values: give it some "
                    "(Module.to_empty, then initialise it) before the session is made"
                )
        persistent = module.state_dict().keys()
        self._left_out = {
            name: _checksum(buffer)
            for name, buffer in self._buffers().items()
            if name not in persistent
        }

    def own(self, ranks: Alone | Ranks) -> dict[str, Any]:
        """What this rank has of its own: RNGs, place in the data, and buffers. Collective.

        Ranks have batch normalisation's running statistics, say, each of its own, unless
        DistributedDataParallel was told to broadcast them. And buffers that a model's
        `state_dict` leaves out, but that have changed, are of no rank but their own.
        """
        buffers = self._buffers()
        sums = {name: _checksum(buffer) for name, buffer in buffers.items()}
        first = ranks.from_first(sums)
        self._own_buffers |= {name for name in sums if sums[name] != first.get(name)}
        self._own_buffers |= {n for n, was in self._left_out.items() if sums.get(n) != was}
        return {
            "rng": rng_state(),
            "position": self.position.state(),
            "buffers": {
                name: buffers[name].clone() for name in sorted(self._own_buffers & {*sums})
            },
        }

    def load_own_buffers(self, saved: dict[str, torch.Tensor]) -> None:
        """Put back what `own` returned; after the model, whose buffers are rank 0's."""
        buffers = dict(unwrap(self.model).named_buffers())
        with torch.no_grad():
            for name, value in saved.items():
                if name in buffers and buffers[name].shape == value.shape:
                    buffers[name].copy_(value)
        self._own_buffers |= set(saved)

    def _buffers(self) -> dict[str, torch.Tensor]:
        named = unwrap(self.model).named_buffers()
        return {name: buffer.detach().cpu().contiguous() for name, buffer in named}

    def types(self) -> dict[str, str]:
        """Class names, so that a checkpoint of other parts is refused by name."""
        named = {f"optimizers[{i}]": part for i, part in enumerate(self.optimizers)}
        named |= {f"schedulers[{i}]": part for i, part in enumerate(self.schedulers)}
        if self.scaler is not None:
            named["scaler"] = self.scaler
        return {name: type(part).__name__ for name, part in named.items()}

    def header(self) -> dict[str, Any]:
        """All but model, optimizers and what each rank has of its own.

        Raises:
            TypeError: a part's state could not be loaded back safely.
        """
        return {
            "library": LIBRARY,
            "format": FORMAT,
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "attempt": os.environ.get("SPOTD_ATTEMPT"),
            "types": self.types(),
            "schedulers": [
                plain(part.state_dict(), f"schedulers[{i}]")
                for i, part in enumerate(self.schedulers)
            ],
            "scaler": None if self.scaler is None else plain(self.scaler.state_dict(), "scaler"),
            "extra": {name: _state_of(part, f"extra.{name}") for name, part in self.extra.items()},
        }

    def check_header(self, path: Path, header: dict[str, Any]) -> None:
        """Refuse a checkpoint of a run that is put together differently.

        Raises:
            CheckpointError: naming the part.
        """
        check_types(path, self.types(), header["types"])
        for name, part in self.extra.items():
            if name not in header["extra"]:
                raise CheckpointError(path, "expected a state, found none", key=f"extra.{name}")
            if isinstance(part, torch.nn.Module):
                check_tensors(path, f"extra.{name}", part.state_dict(), header["extra"][name])
        for name in header["extra"].keys() - self.extra.keys():
            log.warning("%s: extra.%s is not asked for: the next save is without it", path, name)

    def load_header(self, path: Path, header: dict[str, Any]) -> None:
        """Load the small parts. Comes before the model, which is then still untouched.

        Raises:
            CheckpointError: a part refused its state.
        """
        named: list[tuple[str, Any, Any]] = [
            (f"extra.{name}", part, header["extra"][name]) for name, part in self.extra.items()
        ]
        named += [
            (f"schedulers[{i}]", part, header["schedulers"][i])
            for i, part in enumerate(self.schedulers)
        ]
        if self.scaler is not None:
            named.append(("scaler", self.scaler, header["scaler"]))
        for key, part, saved in named:
            _load_part(path, key, part, saved)

    def written_by_optimizers(self) -> Iterator[torch.Tensor]:
        """Tensors that nobody but `optimizer.step` writes to."""
        for optimizer in self.optimizers:
            if not hasattr(optimizer, "register_step_pre_hook"):
                continue
            for group in optimizer.param_groups:
                yield from group["params"]
            for state in optimizer.state.values():
                yield from tensors_of(state, "").values()

    def notes(self) -> list[str]:
        """What a resume will not restore exactly, as far as it can be seen now."""
        found = self.position.notes()
        for optimizer in self.optimizers:
            if not self.schedulers and any("initial_lr" in g for g in optimizer.param_groups):
                found.append(
                    "the learning rate is scheduled, but the session was given no scheduler"
                )
        if _regroups(self.model):
            found.append(
                "DistributedDataParallel regroups the gradients after its first step, and with "
                "more than two ranks a sum depends on the grouping in its last bit: give it "
                "find_unused_parameters=True, or use fully_shard"
            )
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            if torch.backends.cudnn.benchmark:
                found.append("torch.backends.cudnn.benchmark picks kernels by how fast they ran")
            if not torch.are_deterministic_algorithms_enabled():
                found.append("torch.use_deterministic_algorithms is off: kernels may differ")
        return found


def _checksum(tensor: torch.Tensor) -> str:
    # In-place kernels, batch normalisation's for one, do not all count in the tensor's version.
    raw = ctypes.string_at(tensor.data_ptr(), tensor.nbytes) if tensor.numel() else b""
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def _state_of(part: Any, key: str) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return plain(part.state_dict(), key)


def _regroups(model: torch.nn.Module) -> bool:
    return (
        isinstance(model, torch.nn.parallel.DistributedDataParallel)
        and not model.find_unused_parameters
        and torch.distributed.get_world_size() > 2  # noqa: PLR2004 - two summands commute
    )


def _load_part(path: Path, key: str, part: Any, saved: Any) -> None:
    try:
        if isinstance(part, torch.Generator):
            part.set_state(saved)
        else:
            part.load_state_dict(saved)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            path, f"{type(part).__name__} does not accept what was saved: {error!r}", key=key
        ) from error
