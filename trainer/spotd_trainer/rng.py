"""Every random number generator a training step may draw from, as plain values."""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

import torch


def derive_seed(*numbers: int) -> int:
    """A 63-bit seed from several numbers, the same on every machine and Python version."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's (if loaded) and torch's CPU generator."""
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed & 0xFFFF_FFFF)


def rng_state(*, cuda: bool = True) -> dict[str, Any]:
    """The state of all of them: tensors and plain values only, safe for `weights_only`."""
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {
            "version": version,
            "internal": torch.tensor(internal, dtype=torch.int64),
            "gauss": gauss,
        },
        "torch": torch.get_rng_state(),
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = {
            "name": str(name),
            "keys": torch.from_numpy(keys.astype("int64")),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        }
    if cuda and torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned.

    Fewer CUDA devices than saved: those that exist are restored.
    """
    python = state["python"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        import numpy as np  # noqa: PLC0415 - only torch is a hard dependency

        saved = state["numpy"]
        keys = saved["keys"].numpy().astype("uint32")
        np.random.set_state(  # noqa: NPY002 - users' code draws from this one
            (saved["name"], keys, saved["position"], saved["has_gauss"], saved["cached"])
        )
    for device, cuda_state in enumerate(state.get("cuda", ())):
        if torch.cuda.is_available() and device < torch.cuda.device_count():
            torch.cuda.set_rng_state(cuda_state, device)
