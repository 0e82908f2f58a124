"""Which checkpoint training resumes from: the newest whole one of disk and store together.

Order. What spotd has given an id is ordered by its sequence. Against those, a checkpoint
on the disk without an id (it appeared while no spotd was looking, or was there before
spotd came) is ordered by step where both belong to one family of names, and by the time
of its newest file where not. The disk wins when equal, except where another machine has
stored something newer under the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.core.checkpoint import name_family

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from spotd.core.checkpoint import LocalCheckpoint, StoredCheckpoint
    from spotd.core.state import Known


@dataclass(frozen=True, slots=True)
class Choice:
    """What to resume from. `source`: "disk", "hold", "store" or "nothing".

    `id` is None for a checkpoint on the disk that has none yet.
    """

    source: str
    name: str | None = None
    id: str | None = None
    step: int | None = None
    fingerprint: str | None = None


NOTHING = Choice("nothing")


def newest(checkpoints: Iterable[LocalCheckpoint]) -> LocalCheckpoint | None:
    """Returns the newest of what stands in the directory.

    Names of one family (`step-100`, `step-200`) are ordered by step, families among each
    other by the time of their newest file: a step in `epoch_7.pt` and one in
    `checkpoint-500` have nothing to do with each other.
    """
    best: dict[str, LocalCheckpoint] = {}
    for c in checkpoints:
        family = name_family(c.name)
        if family not in best or _within_family(c) > _within_family(best[family]):
            best[family] = c
    return max(best.values(), key=lambda c: (c.mtime_ns, c.step or 0, c.name), default=None)


def _within_family(c: LocalCheckpoint) -> tuple[int, int, str]:
    return (c.step if c.step is not None else -1, c.mtime_ns, c.name)


def same_content(local: LocalCheckpoint | Known, stored: StoredCheckpoint) -> bool:
    """Whether a file on the disk is what the store has (restores keep names and times)."""
    return (local.name, local.kind, local.size, local.mtime_ns) == (
        stored.name,
        stored.kind,
        stored.size,
        stored.mtime_ns,
    )


def choose(
    *,
    local: Sequence[LocalCheckpoint],
    held: Sequence[tuple[str, LocalCheckpoint]],
    stored: Sequence[StoredCheckpoint],
    known: Sequence[Known],
    rejected: frozenset[str] = frozenset(),
) -> Choice:
    """Picks what to resume from.

    Args:
        local: Whole checkpoints in the trainer's directory.
        held: (id, checkpoint) that spotd holds, whole.
        stored: What the store lists; empty when the store is not to be asked.
        known: What this machine recorded.
        rejected: Ids and fingerprints that are not to be tried; `hold:<id>` only its hold.
    """
    offers, unrecorded = _on_disk(local, stored, known)
    by_id = {k.id: k for k in known}
    for checkpoint_id, c in held:
        k = by_id.get(checkpoint_id)
        if k is not None and f"hold:{k.id}" not in rejected:
            offers.append((k.sequence, 2, Choice("hold", c.name, k.id, k.step, k.fingerprint)))
    offers += [(s.sequence, 1, Choice("store", s.name, s.id, s.step)) for s in stored]
    offers = [_behind(o, by_id, stored) for o in offers]
    good = [o for o in offers if not {o[2].id, o[2].fingerprint} & rejected]
    best = max(good, key=lambda o: o[:2], default=(-1, -1, NOTHING))[2]
    fresh = newest(c for c in unrecorded if c.fingerprint not in rejected)
    if fresh is not None and _newer_than_best(fresh, best, stored, known):
        return Choice("disk", fresh.name, None, fresh.step, fresh.fingerprint)
    return best


def _behind(
    offer: tuple[int, int, Choice], by_id: Mapping[str, Known], stored: Sequence[StoredCheckpoint]
) -> tuple[int, int, Choice]:
    """Puts what was never stored after what another machine stored under the same number.

    Unless it is the newer one all the same, by step or by time.
    """
    sequence, _, choice = offer
    k = by_id.get(choice.id) if choice.id is not None else None
    if k is None or k.stored or choice.source == "store":
        return offer
    twins = (s for s in stored if s.sequence == sequence and not same_content(k, s))
    return offer if all(is_newer(k, s) for s in twins) else (sequence, 0, choice)


def _on_disk(
    local: Sequence[LocalCheckpoint],
    stored: Sequence[StoredCheckpoint],
    known: Sequence[Known],
) -> tuple[list[tuple[int, int, Choice]], list[LocalCheckpoint]]:
    """Returns (sequence, rank, choice) of what has an id, and what has none."""
    recorded = {(k.name, k.fingerprint): k for k in known if k.stored or not k.unsendable}
    offers, unrecorded = [], []
    for c in local:
        k = recorded.get((c.name, c.fingerprint))
        match = next((s for s in stored if same_content(c, s)), None)
        if k is not None:
            offers.append((k.sequence, 3, Choice("disk", c.name, k.id, k.step, c.fingerprint)))
        elif match is not None:
            found = Choice("disk", c.name, match.id, match.step, c.fingerprint)
            offers.append((match.sequence, 3, found))
        else:
            unrecorded.append(c)
    return offers, unrecorded


def _newer_than_best(
    fresh: LocalCheckpoint,
    best: Choice,
    stored: Sequence[StoredCheckpoint],
    known: Sequence[Known],
) -> bool:
    """Whether a checkpoint without an id is newer than the best one that has one."""
    ours = (k for k in known if (k.id, k.fingerprint) == (best.id, best.fingerprint))
    # Two machines may have given one id to two contents: what is not ours is the store's.
    named = next(ours, None) or next((s for s in stored if s.id == best.id), None)
    return named is None or is_newer(fresh, named)


def is_newer(fresh: LocalCheckpoint | Known, other: Known | StoredCheckpoint) -> bool:
    """Orders a checkpoint without an id against one with: by step in one family, else by time."""
    same_family = name_family(fresh.name) == name_family(other.name)
    if same_family and fresh.step is not None and other.step is not None:
        if fresh.step != other.step:
            return fresh.step > other.step
        return fresh.mtime_ns > other.mtime_ns
    return fresh.mtime_ns > other.mtime_ns
