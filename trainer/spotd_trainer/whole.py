"""A checkpoint in one file: rank 0 writes it, every rank reads it."""

from __future__ import annotations

import io
import logging
import mmap
from typing import TYPE_CHECKING, Any

import torch

from spotd_trainer.agreement import Ranks
from spotd_trainer.archive import (
    Pace,
    read_archive,
    read_received,
    require_keys,
    unreadable,
    write_archive,
)
from spotd_trainer.errors import CheckpointError, TornCheckpointError
from spotd_trainer.files import checkpoint_name
from spotd_trainer.rng import derive_seed, seed_all
from spotd_trainer.state import check_optimizer, check_tensors, load_optimizer, plain, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spotd_trainer.agreement import Alone
    from spotd_trainer.parts import Parts

log = logging.getLogger("spotd_trainer")

_CHUNK = 64 << 20
_KEYS = ("step", "types", "schedulers", "scaler", "extra", "model", "optimizers", "ranks")


class WholeLayout:
    """`step-00000120.pt`: everything, of all ranks."""

    def __init__(self, parts: Parts, ranks: Alone | Ranks) -> None:
        self._parts = parts
        self._ranks = ranks
        self.writes = ranks.rank == 0

    def name(self, step: int) -> str:
        """The file's name."""
        return checkpoint_name(step)

    def capture(self, about: dict[str, Any]) -> dict[str, Any] | None:
        """The live state, nothing copied yet; on the ranks that do not write, None. Collective.

        Raises:
            TypeError: a part of it could not be loaded back safely.
        """
        parts = self._parts
        everyone = self._ranks.gather(parts.own(self._ranks))
        if everyone is None:
            return None
        return {
            **parts.header(),
            **about,
            "model": plain(unwrap(parts.model).state_dict(), "model"),
            "optimizers": [
                plain(part.state_dict(), f"optimizers[{i}]")
                for i, part in enumerate(parts.optimizers)
            ],
            "ranks": everyone,
        }

    def write(
        self, path: Path, state: dict[str, Any], pace: Pace, complete: Callable[[], None]
    ) -> None:
        """Write it; see `write_archive`."""
        complete()
        write_archive(path, state, pace)

    def agree(self, value: Any) -> Any:
        """One rank writes, and agrees with itself."""
        return value

    def read(self, path: Path) -> dict[str, Any]:
        """Read and check it on every rank, without touching a live object. Collective.

        Ranks that have no such file, on another machine say, get it from one that has.

        Raises:
            TornCheckpointError: no rank has a whole one.
            CheckpointError: not of this run. The same on every rank.
        """
        state, problem = self._try(path)
        problems = self._ranks.share(problem)
        foreign = [p for p in problems if p and p["kind"] == "foreign"]
        if foreign:
            raise _error(foreign[0])
        sources = [rank for rank, p in enumerate(problems) if p is None]
        if not sources:
            raise _error(problems[0])
        if len(sources) < self._ranks.size and isinstance(self._ranks, Ranks):
            received = _pass_on(self._ranks, path, sources[0], wanted=state is None)
            if received is not None:
                state = read_received(path, received)
        if state is None:
            raise _error(problems[self._ranks.rank] or {})
        self._check(path, state)
        return state

    def _try(self, path: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        try:
            return read_archive(path), None
        except TornCheckpointError as error:
            return None, _problem("torn", error)
        except CheckpointError as error:
            return None, _problem("foreign", error)
        except FileNotFoundError:
            problem = TornCheckpointError(path, "expected a file, found none")
            return None, _problem("absent", problem)
        except OSError as error:
            refused = unreadable(path, error)
            kind = "torn" if isinstance(refused, TornCheckpointError) else "foreign"
            return None, _problem(kind, refused)

    def _check(self, path: Path, state: dict[str, Any]) -> None:
        parts = self._parts
        require_keys(path, state, _KEYS)
        try:
            check_tensors(path, "model", unwrap(parts.model).state_dict(), state["model"])
            parts.check_header(path, state)
            for i, optimizer in enumerate(parts.optimizers):
                check_optimizer(path, f"optimizers[{i}]", optimizer, state["optimizers"][i])
        except KeyError as error:
            raise CheckpointError(path, "expected a value, found none", key=error.args[0]) from None

    def load(self, path: Path, state: dict[str, Any]) -> None:
        """Put it into the live objects; the model last.

        Raises:
            CheckpointError: a small part refused its state; the model is as it was.
        """
        parts = self._parts
        parts.load_header(path, state)
        load_own(path, parts, self._ranks, state["ranks"])
        for optimizer, saved in zip(parts.optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, saved)
        unwrap(parts.model).load_state_dict(state["model"])
        load_own_buffers(parts, self._ranks, state["ranks"])


def load_own(
    path: Path, parts: Parts, ranks: Alone | Ranks, everyone: list[dict[str, Any]]
) -> None:
    """Load what a rank has of its own: its RNGs and its place in the data.

    Raises:
        CheckpointError: the loader refused its position.
    """
    own = everyone[ranks.rank] if ranks.rank < len(everyone) else everyone[0]
    try:
        same = len(everyone) == ranks.size
        parts.position.load(own["position"], own["rng"], same_ranks=same)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(path, f"the loader refuses it: {error}", key="loader") from error
    if len(everyone) != ranks.size:
        if ranks.rank == 0:
            log.warning(
                "%s was saved by %d ranks and is resumed by %d: model and optimizer go on exactly, "
                "random numbers drawn by the ranks do not; %s",
                path,
                len(everyone),
                ranks.size,
                "so does the order of the data"
                if parts.position.fits_any_ranks
                else "the loader's place in the data means another one now: use Loader",
            )
        if ranks.rank >= len(everyone):
            parts.position.release()
            seed_all(derive_seed(torch.initial_seed(), ranks.rank))


def load_own_buffers(parts: Parts, ranks: Alone | Ranks, everyone: list[dict[str, Any]]) -> None:
    """Load a rank's own buffers, if it had any; otherwise it has rank 0's."""
    own = everyone[ranks.rank] if len(everyone) == ranks.size else everyone[0]
    parts.load_own_buffers(own["buffers"])


def _problem(kind: str, error: CheckpointError) -> dict[str, Any]:
    return {
        "kind": kind,
        "path": error.path,
        "problem": error.problem,
        "key": error.key,
        "hint": error.hint,
    }


def _error(problem: dict[str, Any]) -> CheckpointError:
    kind = CheckpointError if problem["kind"] == "foreign" else TornCheckpointError
    return kind(problem["path"], problem["problem"], key=problem["key"], hint=problem["hint"])


def _pass_on(ranks: Ranks, path: Path, source: int, *, wanted: bool) -> io.BytesIO | None:
    """Send the file's bytes from rank `source` to all; kept where they are wanted."""
    size = int(ranks.share(path.stat().st_size if ranks.rank == source else 0)[source])
    received = io.BytesIO() if wanted else None
    mapped: mmap.mmap | None = None
    if ranks.rank == source:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for start in range(0, size, _CHUNK):
        length = min(_CHUNK, size - start)
        raw = bytearray(length if mapped is None else mapped[start : start + length])
        ranks.broadcast(torch.frombuffer(raw, dtype=torch.uint8), source)
        if received is not None:
            received.write(raw)
    if mapped is not None:
        mapped.close()
    if received is not None:
        received.seek(0)
    return received
