"""Which names are those of checkpoints, and which are those of files still being made."""

from __future__ import annotations

import re
from fnmatch import translate

# Shapes of temporary names, lower case: safetensors `.tmpXXXX`, timm `tmp.pth.tar`, orbax,
# DCP `.metadata.tmp`, older transformers `tmp-checkpoint-500`, and what people write.
_TEMPORARY = (
    ".tmp*", "*.tmp", "tmp.*", "*_tmp.*", "*.orbax-checkpoint-tmp*",
    "*.tmp.*", "*.tmp-*", "*.tmp_*", "tmp-*", "tmp_*", "*.part", "*.partial", "*.incomplete",
)  # fmt: skip

_TEMPORARY_NAME = re.compile("|".join(translate(shape) for shape in _TEMPORARY))

_EXTENSIONS = (
    ".pt", ".pth", ".ckpt", ".tar", ".safetensors", ".bin", ".pkl", ".pickle", ".npz", ".npy",
    ".h5", ".hdf5", ".keras", ".msgpack", ".joblib", ".pdparams", ".pdopt", ".params", ".gguf",
    ".distcp", ".model", ".weights", ".state", ".zip",
)  # fmt: skip

# Parts of a checkpoint, and things trainers leave beside checkpoints: alone they are none.
_PART = re.compile(
    r"(training_args\.bin|optimizer(_\d+)?\.(pt|bin)|scheduler(_\d+)?\.(pt|bin)|scaler\.pt"
    r"|rng_state(_\d+)?\.pth|random_states_\d+\.pkl|sampler(_\d+)?\.bin|custom_checkpoint_\d+\.pkl"
    r"|.*-\d{5}-of-\d{5}\.[a-z]+|.*\.distcp|tokenizer\.model|dl_state_dict(_\d+)?\.bin)",
    re.IGNORECASE | re.DOTALL,
)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is still being made by the rules of some writer."""
    return _TEMPORARY_NAME.match(name.lower()) is not None


def has_checkpoint_extension(name: str) -> bool:
    """Whether a file's name ends as checkpoints do, parts of directories included."""
    return name.lower().endswith(_EXTENSIONS)


def is_checkpoint_name(name: str) -> bool:
    """Whether a file of this name is by itself a checkpoint under the pattern `*`."""
    return has_checkpoint_extension(name) and _PART.fullmatch(name) is None


# What surrounds the final name in a temporary one: spotd_trainer's `.tmp-NAME-PID`, `NAME.tmp`,
# `NAME.tmp.123`, `tmp-NAME`, `NAME_tmp.pt`.
_AROUND = (
    re.compile(r"\.tmp-(?P<name>.+)-\d+", re.DOTALL),
    re.compile(r"\.?(?P<name>.+?)\.(?:tmp|part|partial|incomplete)(?:[._-].*)?", re.DOTALL),
    re.compile(r"\.?tmp[-_](?P<name>.+)", re.DOTALL),
    re.compile(r"(?P<name>.+)_tmp(?P<rest>\.[^.]+(?:\.tar)?)", re.DOTALL),
)


def final_name(name: str) -> str | None:
    """Guesses which name a file or directory will have when it is whole.

    None where its writer's rule does not say: timm's `tmp.pth.tar` becomes `last.pth.tar`,
    a `.tmpQx31a` may become anything.
    """
    if not (name.startswith(".") or is_temporary(name)):
        return name
    for around in _AROUND:
        match = around.fullmatch(name)
        if match is not None:
            found = match["name"] + match.groupdict().get("rest", "")
            usable = not found.startswith(".") and not is_temporary(found)
            return found if usable and re.search(r"[0-9.]", found) else None
    return None


_RANK = re.compile(r"(?<![a-z])rank[_-]?\d+", re.IGNORECASE)


def without_rank(name: str) -> str | None:
    """Returns what the files of all ranks have in common; None when the name has no rank.

    Composer's `ep1-ba20-rank0.pt` and `ep1-ba20-rank1.pt`, say.
    """
    common, found = _RANK.subn("rank", name)
    return common if found else None
