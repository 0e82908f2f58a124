"""The checkpoint to resume from, for training code that loads it itself."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

from spotd_trainer.archive import verify_archive
from spotd_trainer.errors import CheckpointError, TornCheckpointError
from spotd_trainer.files import step_of

log = logging.getLogger("spotd_trainer")

_HUGGING_FACE = re.compile(r"checkpoint-(\d+)")


def newest_checkpoint(directory: str | Path | None = None) -> Path | None:
    """`$SPOTD_RESUME_FROM`, else the newest whole checkpoint in `directory`; None: begin anew.

    Knows a session's and the Lightning callback's `step-N`, and HF Trainer's `checkpoint-N`. A
    torn one, which its own trainer would run into again and again, is passed over with a warning.

    Args:
        directory: default: `$SPOTD_CHECKPOINT_DIR`, else `./checkpoints`.
    """
    named = os.environ.get("SPOTD_RESUME_FROM")
    if named:
        return Path(named)
    chosen = Path(directory or os.environ.get("SPOTD_CHECKPOINT_DIR") or "checkpoints").absolute()
    if not chosen.is_dir():
        return None
    found = [(step, path) for path in chosen.iterdir() if (step := _step(path.name)) is not None]
    for _, path in sorted(found, reverse=True):
        if _is_whole(path):
            return path
    return None


def _step(name: str) -> int | None:
    match = _HUGGING_FACE.fullmatch(name)
    return int(match.group(1)) if match else step_of(name)


def _is_whole(path: Path) -> bool:
    try:
        _require_whole(path)
    except CheckpointError as error:
        log.warning("%s; trying the next older one", error)
        return False
    return True


def _require_whole(path: Path) -> None:
    if path.is_file():
        verify_archive(path)
        return
    if _HUGGING_FACE.fullmatch(path.name):
        # HF Trainer writes it last.
        state = path / "trainer_state.json"
        try:
            json.loads(state.read_bytes())
        except (OSError, ValueError) as error:
            raise TornCheckpointError(state, f"expected JSON: {error}") from error
        # It syncs nothing: after a power cut what was written before the last file can be torn.
        for part in sorted(path.rglob("*")):
            if part.suffix == ".safetensors":
                _require_whole_safetensors(part)
            elif part.suffix in (".pt", ".pth", ".bin") and _is_judged(part):
                verify_archive(part)
    elif not (path / ".metadata").is_file():
        raise TornCheckpointError(path / ".metadata", "expected a file, found none")


def _is_judged(path: Path) -> bool:
    """Whether it begins as an archive, or as a power cut leaves one; others nobody can judge."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", bytes(4), b"")


def _require_whole_safetensors(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(8)
        try:
            described = json.loads(file.read(int.from_bytes(head, "little")))
            ends = [v["data_offsets"][1] for k, v in described.items() if k != "__metadata__"]
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            MemoryError,
            OverflowError,
        ) as error:
            raise TornCheckpointError(path, f"expected a header: {error!r}") from error
        expected = file.tell() + max(ends, default=0)
        if (size := file.seek(0, os.SEEK_END)) < expected:
            raise TornCheckpointError(path, f"expected {expected} bytes, found {size}")
