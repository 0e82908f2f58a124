"""Which checkpoint to resume from: the one spotd names, else the newest whole one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spotd_trainer.errors import TornCheckpointError
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
    mine = [path.name for path in find_checkpoints(directory)]
    everyone = ranks.share((named, mine))
    preferred = sorted(
        {Path(other).name for other, _ in everyone if other},
        key=lambda name: step_of(name) or 0,
        reverse=True,
    )
    seen = {name for _, names in everyone for name in names} - set(preferred)
    others = sorted(seen, key=lambda name: step_of(name) or 0, reverse=True)
    here = {Path(named).name: Path(named).absolute()} if named else {}
    return [here.get(name, directory / name) for name in (*preferred, *others)]


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
