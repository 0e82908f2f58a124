"""The live objects of a run, and what of them goes into a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from spotd_trainer.archive import FORMAT, LIBRARY
from spotd_trainer.errors import CheckpointError
from spotd_trainer.snapshot import version_of
from spotd_trainer.state import check_types, plain, tensors_of, unwrap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spotd_trainer.position import Position


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
    _buffer_versions: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._buffer_versions = {n: version_of(b) for n, b in self._unsaved_buffers()}

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
        for name in self.extra:
            if name not in header["extra"]:
                raise CheckpointError(path, "expected a state, found none", key=f"extra.{name}")

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
        found += [
            f"buffer {name} changes, but is registered with persistent=False"
            for name, buffer in self._unsaved_buffers()
            if version_of(buffer) != self._buffer_versions.get(name, 0)
        ]
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            if torch.backends.cudnn.benchmark:
                found.append("torch.backends.cudnn.benchmark picks kernels by how fast they ran")
            if not torch.are_deterministic_algorithms_enabled():
                found.append("torch.use_deterministic_algorithms is off: kernels may differ")
        return found

    def _unsaved_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        for prefix, module in unwrap(self.model).named_modules():
            for name in module._non_persistent_buffers_set:  # noqa: SLF001 - the only way
                buffer = getattr(module, name, None)
                if isinstance(buffer, torch.Tensor):
                    yield (f"{prefix}.{name}" if prefix else name), buffer


def _state_of(part: Any, key: str) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return plain(part.state_dict(), key)


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
