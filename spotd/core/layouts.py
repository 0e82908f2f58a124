"""How the trainers people use lay out a checkpoint directory, and what they write last.

Sources: the writers themselves, read and run. torch 2.13 `distributed/checkpoint/filesystem.py`,
transformers 5.23 `trainer.py` and `trainer_jit_checkpoint.py`, accelerate 1.15
`checkpointing.py` and `accelerator.py`, orbax's documentation of its commit.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Protocol, TypeVar

from spotd.core.names import has_checkpoint_extension, is_temporary

_HF_SIGNATURE = frozenset(
    {"config.json", "training_args.bin", "adapter_config.json", "optimizer.pt", "scheduler.pt",
     "rng_state.pth", "generation_config.json", "checkpoint-is-incomplete.txt"}
)  # fmt: skip
_ACCELERATE_SIGNATURE = frozenset({"optimizer.bin", "scheduler.bin", "sampler.bin"})
_HF_NAME = re.compile(r"checkpoint-\d+")
_RANDOM_STATES = re.compile(r"random_states_\d+\.pkl")
_RNG_STATE = re.compile(r"rng_state_\d+\.pth")
_CUSTOM_OBJECT = re.compile(r"custom_checkpoint_\d+\.pkl")
_ORBAX_MARKERS = frozenset(
    {"commit_success.txt", "_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"}
)
_SENTINELS = frozenset({"checkpoint-is-incomplete.txt"})


class Layout(Enum):
    """Who wrote a directory; the value is the name of the marker it leaves last, or ""."""

    DCP = ".metadata"
    TRAINER = "trainer_state.json"  # Hugging Face
    ACCELERATE = "random_states_*.pkl"
    ORBAX = "commit_success.txt"  # the final rename is the commit where there is none
    OTHER = ""

    @property
    def marker(self) -> str:
        """The file whose presence, as the newest, makes a directory whole."""
        return self.value


class HasPath(Protocol):
    """Anything with a path relative to the candidate."""

    @property
    def path(self) -> str: ...  # noqa: D102


_F = TypeVar("_F", bound=HasPath)


def base_name(path: str) -> str:
    """Returns the last component of a relative path."""
    return path.rpartition("/")[2]


def directory_of(path: str) -> str:
    """Returns what stands before the last component, with its slash; "" at the top."""
    head, slash, _ = path.rpartition("/")
    return head + slash


def layout_of(name: str, paths: tuple[str, ...], family: Layout | None) -> Layout:
    """Tells who writes a directory from its name, its files, and what its siblings are."""
    marked = _marked_layout(paths)
    if marked is not None:
        return marked
    # A directory in the making has no marker yet: its siblings tell what it will be.
    if family is not None and family is not Layout.OTHER:
        return family
    if _HF_NAME.fullmatch(name) and not _HF_SIGNATURE.isdisjoint(paths):
        return Layout.TRAINER
    if not _ACCELERATE_SIGNATURE.isdisjoint(paths):
        return Layout.ACCELERATE
    if any(path.endswith(".distcp") or base_name(path) == ".metadata" for path in paths):
        return Layout.DCP
    return Layout.OTHER


def _marked_layout(paths: tuple[str, ...]) -> Layout | None:
    """The layout whose own marker is there already."""
    if "trainer_state.json" in paths:
        return Layout.TRAINER
    if any(_RANDOM_STATES.fullmatch(path) for path in paths):
        return Layout.ACCELERATE
    if any(base_name(path) in _ORBAX_MARKERS for path in paths):
        return Layout.ORBAX
    return None


def markers_of(layout: Layout, files: tuple[_F, ...]) -> list[_F]:
    """Returns the files that are this layout's markers."""
    if layout is Layout.DCP:
        return [file for file in files if base_name(file.path) == ".metadata"]
    if layout is Layout.TRAINER:
        return [file for file in files if file.path == "trainer_state.json"]
    if layout is Layout.ACCELERATE:
        return [file for file in files if _RANDOM_STATES.fullmatch(file.path)]
    if layout is Layout.ORBAX:
        return [file for file in files if base_name(file.path) in _ORBAX_MARKERS]
    return []


def is_rank_file(path: str) -> bool:
    """A file that each rank writes for itself, the others' perhaps after the marker."""
    return bool(_RANDOM_STATES.fullmatch(path) or _RNG_STATE.fullmatch(path))


def is_custom_object(path: str) -> bool:
    """Accelerate writes registered objects after the random states."""
    return _CUSTOM_OBJECT.fullmatch(path) is not None


def is_data_file(layout: Layout, path: str) -> bool:
    """Whether the layout's marker must not be older than this file."""
    name = base_name(path)
    if layout is Layout.DCP:
        return False  # compared directory by directory
    return (
        has_checkpoint_extension(name)
        and not is_temporary(name)
        and not is_rank_file(path)
        and not is_custom_object(path)
    )


def unfinished_sentinel(name: str) -> bool:
    """A file whose very presence says that the directory is unfinished."""
    return name in _SENTINELS
