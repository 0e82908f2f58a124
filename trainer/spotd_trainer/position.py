"""Where in the data the loop is, for every kind of loader, and how to get back there exactly."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from spotd_trainer.loader import Loader
from spotd_trainer.rng import restore_rng, rng_state
from spotd_trainer.signals import Shielded
from spotd_trainer.state import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("spotd_trainer")


_END = object()


class Position:
    """The session's side of a loader.

    Three kinds. `Loader` and whatever else has `state_dict` and `load_state_dict` (torchdata's
    StatefulDataLoader) are asked for their position. A plain `DataLoader`, or any iterable, is
    played back: its epoch is begun again with the RNGs the epoch began with, and what was
    consumed is skipped; exact, at the price of making those batches again. None: the loop draws
    its data from the RNGs, which are restored anyway.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
        if isinstance(loader, DataLoader) and loader.num_workers:
            loader.worker_init_fn = Shielded(loader.worker_init_fn)
        self._epoch = 0
        self._consumed = 0
        self._inside = False
        self._epoch_began: dict[str, Any] | None = None
        self._resuming: dict[str, Any] | None = None
        self._rng: dict[str, Any] | None = None

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._loader.epoch if isinstance(self._loader, Loader) else self._epoch

    def state(self) -> dict[str, Any]:
        """The position of this rank.

        Raises:
            TypeError: the loader's own state holds something that cannot be loaded back safely.
        """
        return {
            "epoch": self.epoch,
            "consumed": self._consumed,
            "inside": self._inside,
            "epoch_began": self._epoch_began if self._inside else None,
            "length": self._length(),
            "loader": plain(self._loader.state_dict(), "loader") if self._stateful else None,
        }

    @property
    def fits_any_ranks(self) -> bool:
        """Whether the place in the data is that of the run, and not of one of so many ranks."""
        return self._loader is None or isinstance(self._loader, Loader)

    def _length(self) -> int | None:
        if self._stateful or not hasattr(self._loader, "__len__"):
            return None
        try:
            return len(self._loader)
        except TypeError:
            # A DataLoader has the method, whether its dataset has or not.
            return None

    def load(self, state: dict[str, Any], rng: dict[str, Any], *, same_ranks: bool = True) -> None:
        """Go there; `rng` is put back once the loader has drawn from the RNGs what it draws.

        Raises:
            ValueError: the loader does not accept the position.
        """
        if self._stateful:
            if state["loader"] is None:
                raise ValueError("expected a position of the loader, found none")
            self._loader.load_state_dict(state["loader"])
        before, now = state.get("length"), self._length()
        if same_ranks and before is not None and now is not None and before != now:
            raise ValueError(f"batches in an epoch: expected {now}, found {before}")
        self._epoch = state["epoch"]
        self._resuming, self._rng = state, rng
        if self._loader is None or not state["inside"]:
            self.release()

    def release(self) -> None:
        """Put the saved RNGs back, if that has not been done."""
        if self._rng is not None:
            restore_rng(self._rng)
            self._rng = None

    @property
    def rng_is_owed(self) -> bool:
        """Whether the loop was entered without the RNGs having been put back."""
        return self._rng is not None

    def batches(self) -> Iterator[Any]:
        """The rest of the epoch."""
        if self._loader is None:
            raise ValueError("the session was given no loader to iterate over")
        self._tell_epoch()
        resuming, self._resuming = self._resuming, None
        replay = resuming is not None and resuming["inside"] and not self._stateful
        if replay and resuming is not None:
            iterator = self._play_back(resuming)
        else:
            if not self._stateful:
                self._epoch_began = self._beginning()
            inside = resuming is not None and resuming["inside"]
            iterator = iter(self._loader)
            self._consumed = resuming["consumed"] if inside and resuming is not None else 0
        self.release()
        self._inside = True
        for batch in iterator:
            self._consumed += 1
            yield batch
        self._inside = False
        self._consumed = 0
        self._epoch += 1

    def _beginning(self) -> dict[str, Any]:
        generator = getattr(self._loader, "generator", None)
        sampler = getattr(getattr(self._loader, "sampler", None), "generator", None)
        return {
            "rng": rng_state(),
            "generators": [g.get_state() if g is not None else None for g in (generator, sampler)],
        }

    def _play_back(self, state: dict[str, Any]) -> Iterator[Any]:
        began = self._epoch_began = state["epoch_began"]
        restore_rng(began["rng"])
        generators = (
            getattr(self._loader, "generator", None),
            getattr(getattr(self._loader, "sampler", None), "generator", None),
        )
        for generator, saved in zip(generators, began["generators"], strict=True):
            if generator is not None and saved is not None:
                generator.set_state(saved)
        iterator: Iterator[Any] = iter(self._loader)
        log.info("playing back %d batches of epoch %d", state["consumed"], self._epoch)
        for done in range(state["consumed"]):
            if next(iterator, _END) is _END:
                raise RuntimeError(
                    f"the loader ended epoch {self._epoch} after {done} batches, of which "
                    f"{state['consumed']} had been trained on when the checkpoint was saved: "
                    "it has other data now"
                )
        self._consumed = state["consumed"]
        return iterator

    def _tell_epoch(self) -> None:
        for sampler in (
            getattr(self._loader, "sampler", None),
            getattr(getattr(self._loader, "batch_sampler", None), "sampler", None),
        ):
            set_epoch = getattr(sampler, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(self.epoch)
                return

    def notes(self) -> list[str]:
        """What a resume cannot restore exactly, or only at a price."""
        loader = self._loader
        if loader is None or isinstance(loader, Loader):
            return []
        workers = getattr(loader, "num_workers", 0)
        note = ""
        if self._stateful and workers:
            note = (
                "random numbers drawn inside loader workers are not restored: key them by "
                "(seed, index), or use spotd_trainer.Loader, which does"
            )
        elif not self._stateful and workers and getattr(loader, "persistent_workers", False):
            note = (
                "persistent loader workers carry random numbers from epoch to epoch, which are "
                "not restored: use spotd_trainer.Loader, or persistent_workers=False"
            )
        elif not self._stateful and not isinstance(loader, DataLoader):
            note = (
                f"a {type(loader).__qualname__} has no state_dict: a resume plays the epoch back, "
                "which is right only if it gives the same batches from the same RNGs"
            )
        return [note] if note else []

    def close(self) -> None:
        """End worker processes of our own loader."""
        if isinstance(self._loader, Loader):
            self._loader.close()
