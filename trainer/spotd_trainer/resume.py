"""Which checkpoint to resume from: the one spotd names, else the newest whole one."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spotd_trainer.archive import read_header
from spotd_trainer.errors import CheckpointError, TornCheckpointError
from spotd_trainer.files import find_checkpoints, step_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd_trainer.agreement import Alone, Ranks
    from spotd_trainer.saver import Layout

log = logging.getLogger("spotd_trainer")


def candidates(directory: Path, named: str | None, ranks: Alone | Ranks) -> list[Path]:
    """Checkpoints to try, the one to be preferred first, the same on every rank. Collective.

    Ranks on other machines may see other files: the list is the union of what all see, and each
    rank gets the path that it would have there.
    """
    found = find_checkpoints(directory)
    mine = [path.name for path in found]
    newer = [path.name for path in found if _supersedes(path, named)]
    everyone = ranks.share((named, mine, newer))
    preferred = sorted(
        {Path(other).name for other, _, _ in everyone if other}
        | {name for _, _, names in everyone for name in names},
        key=lambda name: step_of(name) or 0,
        reverse=True,
    )
    seen = {name for _, names, _ in everyone for name in names} - set(preferred)
    others = sorted(seen, key=lambda name: step_of(name) or 0, reverse=True)
    here = {Path(named).name: Path(named).absolute()} if named else {}
    return [here.get(name, directory / name) for name in (*preferred, *others)]


def _supersedes(path: Path, named: str | None) -> bool:
    """Whether it was saved by the very attempt at whose start spotd named a checkpoint.

    torchrun with `--max-restarts`, or a shell's loop, starts the program again in one attempt:
    what spotd named then is no longer the newest.
    """
    attempt = os.environ.get("SPOTD_ATTEMPT")
    if not named or not attempt or named != os.environ.get("SPOTD_RESUME_FROM"):
        return False
    if (step_of(path.name) or 0) <= (step_of(Path(named).name) or 0):
        return False
    try:
        saved_by: dict[str, Any] = read_header(path / "trainer.pt" if path.is_dir() else path)
    except (CheckpointError, OSError):
        return False
    return saved_by.get("attempt") == attempt


def resume(
    paths: list[Path], ranks: Alone | Ranks, layout_for: Callable[..., Layout]
) -> tuple[Path, dict[str, Any]] | None:
    """Load the first whole one of `paths`; None when there are none. Collective.

    A torn one is passed over with a warning, since an older whole one loses less than a run that
    cannot start. One of another model or format stops the run: somebody has to decide.

    Raises:
        TornCheckpointError: there are checkpoints, and none is whole.
        CheckpointError: the first whole one does not belong to this run.
    """
    torn: TornCheckpointError | None = None
    for path in paths:
        layout = layout_for(path, directory=any(ranks.share(path.is_dir())))
        try:
            state = layout.read(path)
        except TornCheckpointError as error:
            log.warning("%s; trying the next older one", error)
            torn = torn or error
            continue
        layout.load(path, state)
        _warn_of_differences(path, state)
        return path, state
    if torn is not None:
        raise TornCheckpointError(
            torn.path,
            torn.problem,
            key=torn.key,
            hint="no whole checkpoint is left; move the torn ones away to begin at step 0",
        )
    return None


def _warn_of_differences(path: Path, state: dict[str, Any]) -> None:
    for what, now in (("torch", str(torch.__version__)), ("threads", torch.get_num_threads())):
        if state.get(what) != now:
            log.warning(
                "%s: %s was %s, is %s: the run goes on, but not bit for bit as it would have",
                path,
                what,
                state.get(what),
                now,
            )
