"""What a checkpoint holds, taken from live objects, compared with them, and put back."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from spotd_trainer.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum", "ax")
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size)


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The user's own module below DistributedDataParallel, DataParallel and torch.compile.

    A checkpoint then fits with and without them.
    """
    wrappers = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
            model = inner
        else:
            return model


def plain(value: Any, key: str) -> Any:
    """`value` with every leaf a tensor or a plain value, which `weights_only` can read back.

    Raises:
        TypeError: naming the key whose value could not be read back. This is asked at save time,
            when something can be done about it, and not at resume.
    """
    if isinstance(value, torch.Tensor) and (value.is_meta or value.layout != torch.strided):
        found = "on the meta device has no values" if value.is_meta else "that is sparse"
        raise TypeError(f"{key}: a tensor {found}: it cannot be saved; make it a dense one")
    if isinstance(value, torch.nn.Parameter):
        return value.detach()
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        for k in value:
            parts = k if type(k) is tuple else (k,)
            if not all(type(part) in _PLAIN for part in parts):
                raise TypeError(_cannot(f"{key}: as a key, ", k))
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind((k, plain(v, f"{key}.{k}")) for k, v in value.items())
    if type(value) in (list, tuple):
        return type(value)(plain(v, f"{key}[{i}]") for i, v in enumerate(value))
    if hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(_cannot(f"{key}: ", value))


def _cannot(where: str, value: Any) -> str:
    return (
        f"{where}a {type(value).__qualname__} cannot be saved so that it is loaded back without "
        "executing a pickle; keep tensors, numbers, text, lists, tuples and dicts in state_dict()"
    )


def tensors_of(value: Any, key: str) -> dict[str, torch.Tensor]:
    """Every tensor inside `value`, by its dotted key."""
    if isinstance(value, torch.Tensor):
        return {key: value}
    found: dict[str, torch.Tensor] = {}
    if isinstance(value, dict):
        for name, item in value.items():
            found.update(tensors_of(item, f"{key}.{name}"))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            found.update(tensors_of(item, f"{key}[{index}]"))
    return found


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def check_tensors(
    path: Path, prefix: str, live: Mapping[str, Any], saved: Mapping[str, Any]
) -> None:
    """Compare names, shapes and types of a model's state with a saved one's.

    Raises:
        CheckpointError: naming the first key that differs, and how many do.
    """
    missing = [k for k in live if k not in saved]
    foreign = [k for k in saved if k not in live]
    hint = "a checkpoint of another model"
    if missing:
        raise CheckpointError(
            path,
            f"expected {_kind_or_type(live[missing[0]])}, found nothing"
            f" ({len(missing)} keys missing, {len(foreign)} unknown)",
            key=f"{prefix}.{missing[0]}",
            hint=hint,
        )
    if foreign:
        raise CheckpointError(
            path,
            f"expected nothing, found {_kind_or_type(saved[foreign[0]])}"
            f" ({len(foreign)} unknown keys)",
            key=f"{prefix}.{foreign[0]}",
            hint=hint,
        )
    for key, value in live.items():
        if _kind_or_type(value) != _kind_or_type(saved[key]):
            raise CheckpointError(
                path,
                f"expected {_kind_or_type(value)}, found {_kind_or_type(saved[key])}",
                key=f"{prefix}.{key}",
                hint=hint,
            )


def _kind_or_type(value: Any) -> str:
    return _kind(value) if isinstance(value, torch.Tensor) else type(value).__name__


def check_optimizer(path: Path, prefix: str, optimizer: torch.optim.Optimizer, saved: Any) -> None:
    """Compare an optimizer's groups and state shapes with saved ones.

    Raises:
        CheckpointError: naming the first difference.
    """
    if not isinstance(saved, dict) or "param_groups" not in saved or "state" not in saved:
        raise CheckpointError(path, "expected an optimizer's state, found none", key=prefix)
    groups = optimizer.param_groups
    if len(groups) != len(saved["param_groups"]):
        raise CheckpointError(
            path,
            f"expected {len(groups)} parameter groups, found {len(saved['param_groups'])}",
            key=f"{prefix}.param_groups",
        )
    parameters: dict[int, torch.Tensor] = {}
    for number, (mine, other) in enumerate(zip(groups, saved["param_groups"], strict=True)):
        key = f"{prefix}.param_groups[{number}]"
        if len(mine["params"]) != len(other["params"]):
            raise CheckpointError(
                path,
                f"expected {len(mine['params'])} parameters, found {len(other['params'])}",
                key=f"{key}.params",
            )
        parameters.update(zip(other["params"], mine["params"], strict=True))
        if absent := sorted(set(mine) - set(other)):
            raise CheckpointError(
                path,
                "expected a value, found none",
                key=f"{key}.{absent[0]}",
                hint="a checkpoint of another optimizer",
            )
    for index, state in saved["state"].items():
        expected = parameters.get(index)
        for name in _SHAPED:
            value = state.get(name)
            if (
                isinstance(value, torch.Tensor)
                and expected is not None
                and value.shape != expected.shape
            ):
                raise CheckpointError(
                    path,
                    f"expected shape {tuple(expected.shape)}, found {tuple(value.shape)}",
                    key=f"{prefix}.state[{index}].{name}",
                    hint="a checkpoint of another model",
                )


def check_types(path: Path, live: Mapping[str, str], saved: Mapping[str, str]) -> None:
    """Compare the class names of what is saved beside the model with those of this run."""
    for key in sorted({*live, *saved}):
        if live.get(key) != saved.get(key):
            raise CheckpointError(
                path,
                f"expected {live.get(key, 'none')}, found {saved.get(key, 'none')}",
                key=key,
                hint="this run is put together from other parts than the saved one",
            )


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load, keeping the saved types: torch would cast float32 state of bfloat16 weights down."""
    optimizer.load_state_dict(saved)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [i for group in saved["param_groups"] for i in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        for name, value in saved["state"].get(index, {}).items():
            loaded = optimizer.state[parameter].get(name)
            if not (isinstance(value, torch.Tensor) and isinstance(loaded, torch.Tensor)):
                continue
            if loaded.dtype != value.dtype:
                optimizer.state[parameter][name] = value.to(loaded.device, copy=True)
            elif loaded.data_ptr() == value.data_ptr():
                # Torch takes CPU tensors as they are, and ours are mapped from the file.
                optimizer.state[parameter][name] = value.clone()
