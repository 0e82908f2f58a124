"""How ranks agree, at the same step, on stopping and saving.

Theory of operation. Every rank contributes a handful of integers, their maximum is what all
ranks know. A blocking all-reduce at every step would cost more than a short step allows. So it
is started at one boundary and read at the next one, `every` steps later, when it has long been
done: reading costs nothing, and because all ranks read the same result at the same step, they act
at the same step. Rank 0 measures how long a step takes and says in the same message how many
steps to leave between boundaries: about a quarter of a second's worth. Where one step takes
longer than 50 ms, the boundary is every step and the all-reduce blocks, which costs under 1 % of
such a step and answers at once.

It runs over a gloo group of its own, on the CPU: it never waits for a GPU, and never gets in
between the collectives of the training.
"""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

_BETWEEN = 0.25
_BLOCKING_FROM = 0.05
_MOST_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Wish:
    """What one rank wants, or, as the maximum over all, what they agreed on."""

    stop: int = 0
    """Number of the stop signal seen, 0: none."""
    checkpoint: int = 0
    """1: a checkpoint was asked for."""
    due: int = 0
    """1: it is time to save."""
    busy: int = 0
    """1: a save is still being written."""
    every: int = 0
    """Rank 0's: steps between boundaries; 0: every step, blocking."""


class Alone:
    """One process: it agrees with itself."""

    rank = 0
    size = 1

    def decide(self, _step: int, wish: Wish) -> Wish | None:
        """The wish itself."""
        return wish

    def now(self, wish: Wish) -> Wish:
        """The wish itself."""
        return wish

    def gather(self, value: Any) -> list[Any] | None:
        """A list of one."""
        return [value]

    def share(self, value: Any) -> list[Any]:
        """A list of one."""
        return [value]

    def from_first(self, value: Any) -> Any:
        """The value."""
        return value

    def finish(self) -> None:
        """Nothing is under way."""


class Ranks:
    """All ranks of torch.distributed's default group.

    Every method is a collective: all ranks call the same ones in the same order.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.group = dist.new_group(backend="gloo")
        self._every = 0
        self._under_way: tuple[torch.Tensor, Any] | None = None
        self._last: tuple[float, int] | None = None
        self._step_seconds: float | None = None

    def decide(self, step: int, wish: Wish) -> Wish | None:
        """At a boundary: what all ranks agreed on. Between boundaries: None, at no cost."""
        if self._every and step % self._every:
            return None
        self._measure(step)
        agreed = self._read()
        blocking = self._every == 0
        self._start(wish)
        if blocking:
            agreed = self._read()
        if agreed is not None and agreed.every != self._every:
            self._every = agreed.every
            if self._every == 0:
                self._read()
        return agreed

    def now(self, wish: Wish) -> Wish:
        """A blocking agreement, wherever it is called."""
        self._read()
        self._start(wish)
        agreed = self._read()
        return agreed or Wish()

    def _measure(self, step: int) -> None:
        now = time.perf_counter()
        if self._last is not None and step > self._last[1]:
            seconds = (now - self._last[0]) / (step - self._last[1])
            before = self._step_seconds
            self._step_seconds = seconds if before is None else 0.7 * before + 0.3 * seconds
        self._last = (now, step)

    def _wanted_every(self) -> int:
        if self.rank or self._step_seconds is None or self._step_seconds > _BLOCKING_FROM:
            return 0
        return max(1, min(_MOST_STEPS, round(_BETWEEN / self._step_seconds)))

    def _start(self, wish: Wish) -> None:
        values = torch.tensor(astuple(replace(wish, every=self._wanted_every())))
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self._under_way = (values, work)

    def _read(self) -> Wish | None:
        if self._under_way is None:
            return None
        values, work = self._under_way
        self._under_way = None
        work.wait()
        return Wish(*values.tolist())

    def gather(self, value: Any) -> list[Any] | None:
        """Every rank's value, on rank 0; None on the others."""
        gathered: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, gathered, group=self.group)
        return gathered

    def share(self, value: Any) -> list[Any]:
        """Every rank's value, on all of them."""
        shared: list[Any] = [None] * self.size
        dist.all_gather_object(shared, value, group=self.group)
        return shared

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on all of them."""
        return self.share(value)[0]

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Fill `tensor` (CPU) on all ranks with what it holds on rank `source`."""
        dist.broadcast(tensor, source, group=self.group)

    def finish(self) -> None:
        """Wait for what is under way, so that no rank leaves while another still sends."""
        self._read()


def agree() -> Alone | Ranks:
    """The ranks of torch.distributed if it is initialised, else this process alone."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return Ranks()
    return Alone()
