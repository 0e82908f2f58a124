"""A data loader whose position is three numbers, so that a resume neither repeats nor skips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from spotd_trainer.rng import derive_seed, restore_rng, rng_state, seed_all
from spotd_trainer.signals import shield_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Keyed(Dataset[Any]):
    """Seeds the RNGs from (seed, epoch, index) before each sample is made.

    RNGs inside worker processes cannot be saved and restored; keyed this way they need not be.
    """

    def __init__(self, dataset: Any, seed: int | None) -> None:
        self.dataset = dataset
        self.seed = seed
        self.inside_worker = False

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        if self.seed is None:
            return self.dataset[index]
        before = None if self.inside_worker else rng_state(cuda=False)
        seed_all(derive_seed(self.seed, epoch, index))
        try:
            return self.dataset[index]
        finally:
            if before is not None:
                restore_rng(before)


def _init_worker(worker_id: int) -> None:
    shield_worker(worker_id)
    info = torch.utils.data.get_worker_info()
    if info is not None and isinstance(info.dataset, _Keyed):
        info.dataset.inside_worker = True


class _Order:
    """The batch sampler: which samples this rank gets next, from the position onwards."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        loader = self._loader
        epoch, order = loader.epoch, loader.order(loader.epoch)
        # Read once: the loader's position moves on while this generator is being read.
        begin, end = loader.position, loader.samples - loader.global_batch
        for position in range(begin, end + 1, loader.global_batch):
            start = position + loader.rank * loader.batch_size
            indices = order[start : start + loader.batch_size].tolist()
            yield [(epoch, index) for index in indices]


class Loader:
    """Batches of a map-style dataset, in an order that is a function of (seed, epoch).

    Iterating gives the rest of the current epoch; exhausting it moves on to the next one. What
    has been handed out, not what workers have read ahead, is the position: a save inside the loop
    body counts the batch in hand as done. With several ranks each gets its slice of every global
    batch, and because the position counts samples of the whole run, it stays right when the
    number of ranks changes.

    Args:
        dataset: anything with `__len__` and `__getitem__(int)`.
        batch_size: samples per batch and rank. What does not fill a global batch at the end of an
            epoch is dropped: every batch has one shape, which torch.compile needs to be exact.
        seed: of the order, and of the samples' own randomness.
        shuffle: a new permutation each epoch, or the dataset's order.
        workers: processes that make samples; they are shielded from stop signals.
        random_samples: the dataset draws random numbers (augmentation). They are then keyed by
            (seed, epoch, index), the same with any number of workers. Costs about 0.1 ms a sample.
        rank, world_size: default: torch.distributed's, else 0 and 1.
        collate: as in `DataLoader`.
        pin_memory: as in `DataLoader`.

    Raises:
        ValueError: the dataset does not fill one global batch.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        workers: int = 0,
        random_samples: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = (
            rank if rank is not None else (torch.distributed.get_rank() if distributed else 0)
        )
        if world_size is None:
            world_size = torch.distributed.get_world_size() if distributed else 1
        self.batch_size = batch_size
        self.global_batch = batch_size * world_size
        self.samples = len(dataset)
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.position = 0
        if self.samples < self.global_batch:
            raise ValueError(
                f"the dataset has {self.samples} samples, fewer than one batch of "
                f"{batch_size} for each of {world_size} ranks"
            )
        self._loader: DataLoader[Any] = DataLoader(
            _Keyed(dataset, seed if random_samples else None),
            batch_sampler=_Order(self),
            num_workers=workers,
            worker_init_fn=_init_worker,
            persistent_workers=workers > 0,
            collate_fn=collate,
            pin_memory=pin_memory,
            # With a generator of its own, a new epoch leaves the global one alone.
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.samples // self.global_batch

    def order(self, epoch: int) -> torch.Tensor:
        """The samples of `epoch` in order, all ranks together: int64, shape (samples,)."""
        if not self.shuffle:
            return torch.arange(self.samples)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        return torch.randperm(self.samples, generator=generator)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            self.position += self.global_batch
            yield batch
        self.epoch += 1
        self.position = 0

    def close(self) -> None:
        """End the worker processes. Iterating again starts new ones."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            self._loader._iterator = None  # noqa: SLF001 - DataLoader has no public way to end them
            iterator._shutdown_workers()  # noqa: SLF001

    def state_dict(self) -> dict[str, int]:
        """The position, the same on every rank."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "samples": self.samples,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position.

        Raises:
            ValueError: it was taken with another seed or a dataset of another length.
        """
        for key, mine in (("seed", self.seed), ("samples", self.samples)):
            if state[key] != mine:
                raise ValueError(f"{key}: expected {mine}, found {state[key]}")
        self.epoch, self.position = state["epoch"], state["position"]
