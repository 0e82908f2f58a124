"""Retention is done before a run is over: nobody comes after it to delete the oldest."""

from __future__ import annotations

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.checkpoint import LocalCheckpoint, StoredCheckpoint
from spotd.core.lifecycle import step, wake_at
from spotd.core.state import Now, Policy, State

KEEP = 2


def stored(*numbers: int) -> tuple[StoredCheckpoint, ...]:
    return tuple(
        StoredCheckpoint(f"{n:08}-{n}.pt", n, 1, f"{n}.pt", "file", 7, n, 1e6 + n, n, "i-1")
        for n in numbers
    )


class Run:
    """A run with three checkpoints in the store, where two are to be kept; 4.pt is its last."""

    def __init__(self) -> None:
        self.state = State(policy=Policy(keep=KEEP), run="r")
        self.now = Now(10.0, 1_000_010.0)
        self.done: list[do.Action] = []
        self.happens(
            on.Started(record=None, boot="first", boot_id="b", instance_id="i-1", booted=1e6),
            on.LocalInventory(),
            on.StoreOpened(generation=1, lease_in=9000.0, top_sequence=0),
            on.TrainerStarted(pid=7),
        )
        for n in (1, 2, 3):
            self.stores(n)

    def happens(self, *events: on.Event) -> None:
        for event in events:
            self.now = Now(self.now.mono + 0.1, self.now.wall + 0.1)
            self.state, actions = step(self.state, event, self.now)
            self.done += actions

    def later(self) -> None:
        """Time passes to the next moment that the core has asked for."""
        due = wake_at(self.state, self.now)
        assert due is not None, "it waits for nothing that could come"
        self.now = Now(due, self.now.wall + due - self.now.mono)
        self.state, actions = step(self.state, on.Tick(), self.now)
        self.done += actions

    def stores(self, n: int) -> None:
        c = LocalCheckpoint(f"{n}.pt", "file", 7, n, f"f{n}", step=n)
        name = f"{n:08}-{n}.pt"
        self.happens(
            on.CheckpointSeen(c), on.Held(name, "copy"), on.Durable(name),
            on.Uploaded(name, size=7, sent=7, seconds=1.0),
        )  # fmt: skip

    def ends(self, *there: int) -> None:
        """The trainer stores 4.pt and exits; the store confirms what it has."""
        self.stores(4)
        found = tuple(LocalCheckpoint(f"{n}.pt", "file", 7, n, f"f{n}", step=n) for n in (3, 4))
        self.happens(on.TrainerExited(status=0), on.LocalInventory(found))
        self.opened(*there)

    def opened(self, *numbers: int) -> None:
        self.happens(
            on.StoreOpened(
                generation=1, lease_in=9000.0, stored=stored(*numbers), top_sequence=max(numbers)
            )
        )

    @property
    def deletions(self) -> list[tuple[str, ...]]:
        return [a.ids for a in self.done if isinstance(a, do.DeleteFromStore)]

    @property
    def over(self) -> bool:
        return any(isinstance(a, do.ReleaseLease) for a in self.done)


def test_a_run_is_over_when_the_oldest_checkpoint_is_deleted():
    run = Run()
    run.opened(1, 2, 3)
    assert run.deletions == [("00000001-1.pt",)]
    run.ends(1, 2, 3, 4)  # while that deletion is under way
    run.happens(on.DeletedFromStore(("00000001-1.pt",)), on.CompletionStored())
    assert run.deletions[1:] == [("00000002-2.pt",)]
    assert not run.over
    run.happens(on.DeletedFromStore(("00000002-2.pt",)))
    assert run.over
    assert len(run.state.store.listed) == KEEP


def run_that_ends_with_one_to_delete():
    run = Run()
    run.opened(1, 2, 3)
    run.happens(on.DeletedFromStore(("00000001-1.pt",)))
    run.ends(2, 3, 4)
    assert run.deletions == [("00000001-1.pt",), ("00000002-2.pt",)]
    return run


def test_a_deletion_that_failed_is_tried_once_more_before_the_run_is_over():
    run = run_that_ends_with_one_to_delete()
    run.happens(on.StoreFailed("delete", "it is away"), on.CompletionStored())
    assert not run.over
    while len(run.deletions) == 2:
        run.later()
    run.happens(on.DeletedFromStore(run.deletions[-1]))
    assert run.over


def test_a_store_that_lets_nothing_be_deleted_does_not_keep_a_run_from_ending():
    run = run_that_ends_with_one_to_delete()
    run.happens(on.StoreFailed("delete", "AccessDenied"), on.CompletionStored())
    while len(run.deletions) == 2:
        run.later()
    run.happens(on.StoreFailed("delete", "AccessDenied"))
    assert run.over
