"""The policies, one by one: deadline, restart, resume, retention."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spotd.core.checkpoint import LocalCheckpoint, StoredCheckpoint, checkpoint_id
from spotd.core.deadline import PLANNED, WINDOW, first_to_send, plan_deadline
from spotd.core.restart import BLAME_WITHIN, backoff, checkpoint_to_blame
from spotd.core.resume import NOTHING, Choice, choose, is_newer, newest
from spotd.core.retention import superfluous
from spotd.core.state import Known

WALL = 1_750_000_000.0


def local(name: str, step: int | None = None, age: float = 0.0, size: int = 10) -> LocalCheckpoint:
    return LocalCheckpoint(name, "file", size, int((WALL - age) * 1e9), f"print-{name}", step)


def known(sequence: int, name: str, step: int | None = None, **more) -> Known:
    return Known(
        checkpoint_id(sequence, name), sequence, name, "file", 10, int(WALL * 1e9),
        f"print-{name}", step, WALL, **more,
    )  # fmt: skip


def stored(
    sequence: int, name: str, step: int | None = None, mtime: float = WALL
) -> StoredCheckpoint:
    return StoredCheckpoint(
        checkpoint_id(sequence, name), sequence, 1, name, "file", 10, step, WALL, int(mtime * 1e9)
    )


# --- deadline ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "time", "seconds"),
    [
        ("stop", WALL + 107, 107.0),
        ("stop", None, PLANNED),
        ("terminate", WALL + 500, WINDOW),
        ("stop", WALL + 86400, PLANNED),
        ("stop", WALL - 5, PLANNED),
        ("hibernate", WALL + 107, 0.0),
        ("hibernate", None, 0.0),
    ],
)
def test_a_notice_leaves_what_its_time_says_within_reason(action, time, seconds):
    assert plan_deadline(action, time, WALL, WALL - 3600).seconds == seconds


def test_a_notice_from_before_this_boot_is_history():
    assert plan_deadline("stop", WALL - 100, WALL, WALL - 50).history
    assert not plan_deadline("stop", WALL - 100, WALL, WALL - 150).history


@pytest.mark.parametrize(
    ("left", "rate", "waiting", "first"),
    [
        (60, None, [10, 10], 1),
        (60, 10, [100, 500], 1),
        (60, 10, [100, 5000], 0),
        (60, 10, [5000, 5000], 1),
        (60, 10, [5000, 600, 601], 1),
        (60, 10, [100, 100, 5000], 1),
        (-5, 10, [100, 100], 1),
    ],
)
def test_the_newest_that_can_be_finished_goes_first_and_the_newest_when_none_can(
    left, rate, waiting, first
):
    assert first_to_send(waiting, left=left, rate=rate) == first


# --- restart -----------------------------------------------------------------------------


def test_the_back_off_doubles_up_to_its_longest():
    assert [backoff(n, 1.0, 10.0) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert backoff(10_000, 1.0, 300.0) == 300.0


def test_a_checkpoint_is_to_blame_after_two_early_crashes_from_it():
    assert not checkpoint_to_blame(1, 5.0)
    assert checkpoint_to_blame(2, 5.0)
    assert not checkpoint_to_blame(2, BLAME_WITHIN + 1)


# --- retention ---------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [-1, 0, 1, 2, 5, 50])
def test_retention_keeps_the_newest_and_never_deletes_the_last_one(keep):
    all_of_them = [stored(n, f"step-{n}.pt") for n in (3, 1, 7, 5)]
    gone = superfluous(all_of_them, keep)
    left = {s.id for s in all_of_them} - set(gone)
    assert len(left) == min(4, max(1, keep))
    assert checkpoint_id(7, "step-7.pt") in left
    assert list(gone) == sorted(gone)


def test_nothing_stored_is_nothing_to_delete():
    assert superfluous([], 3) == ()


# --- resume ------------------------------------------------------------------------------


def pick(**given) -> Choice:
    return choose(**{"local": (), "held": (), "stored": (), "known": (), **given})


def test_with_nothing_anywhere_training_starts_from_scratch():
    assert pick() == NOTHING


def test_the_newest_by_sequence_wins_and_the_disk_when_equal():
    one, two = known(1, "step-100.pt", 100), known(2, "step-200.pt", 200)
    both = (local("step-100.pt", 100), local("step-200.pt", 200))
    found = pick(local=both, known=(one, two), stored=(stored(2, "step-200.pt", 200),))
    assert (found.source, found.id) == ("disk", two.id)


def test_the_store_wins_when_it_has_a_newer_one():
    found = pick(
        local=(local("step-100.pt", 100),),
        known=(known(1, "step-100.pt", 100),),
        stored=(stored(2, "step-200.pt", 200),),
    )
    assert (found.source, found.id) == ("store", checkpoint_id(2, "step-200.pt"))


def test_what_is_held_comes_before_what_must_be_fetched():
    k = known(2, "ckpt.pt", 200, hold="copy", stored=True)
    found = pick(held=((k.id, local("ckpt.pt")),), known=(k,), stored=(stored(2, "ckpt.pt", 200),))
    assert (found.source, found.id) == ("hold", k.id)


def test_what_has_no_number_is_held_against_what_would_be_resumed_from_and_not_its_namesake():
    ours = known(5, "last.pt", present=False, unsendable=True)
    theirs = stored(5, "last.pt", mtime=WALL - 200)  # another machine's: it was there first
    fetched = replace(local("last.pt", age=200), fingerprint="fetched")
    later = local("best.pt", age=100)
    for on_disk in ((fetched, later), (later,)):
        found = pick(local=on_disk, known=(ours,), stored=(theirs,))
        assert (found.source, found.name) == ("disk", "best.pt")


def test_a_hold_that_could_not_be_put_back_leaves_the_store():
    k = known(2, "ckpt.pt", 200, hold="copy", stored=True)
    found = pick(
        held=((k.id, local("ckpt.pt")),),
        known=(k,),
        stored=(stored(2, "ckpt.pt", 200),),
        rejected=frozenset({f"hold:{k.id}"}),
    )
    assert (found.source, found.id) == ("store", k.id)


def test_a_rejected_one_is_passed_over_for_the_one_before_it():
    one, two = known(1, "step-100.pt", 100), known(2, "step-200.pt", 200)
    both = (local("step-100.pt", 100), local("step-200.pt", 200))
    for rejected in (two.id, two.fingerprint):
        found = pick(local=both, known=(one, two), rejected=frozenset({rejected}))
        assert found.id == one.id


def test_a_restored_file_without_a_record_is_known_by_name_size_and_time():
    found = pick(local=(local("step-200.pt", 200),), stored=(stored(4, "step-200.pt", 200),))
    assert (found.source, found.id) == ("disk", checkpoint_id(4, "step-200.pt"))


def test_one_that_appeared_while_no_spotd_looked_is_ordered_by_step():
    k = known(1, "step-100.pt", 100)
    found = pick(local=(local("step-100.pt", 100), local("step-300.pt", 300)), known=(k,))
    assert found == Choice("disk", "step-300.pt", None, 300, "print-step-300.pt")
    found = pick(local=(local("step-100.pt", 100), local("step-50.pt", 50)), known=(k,))
    assert found.id == k.id


def test_one_whose_id_was_given_without_the_store_is_ordered_like_one_without():
    mine = known(1, "step-500.pt", 500, unsendable=True)
    found = pick(
        local=(local("step-500.pt", 500),), known=(mine,), stored=(stored(40, "step-400.pt", 400),)
    )
    assert (found.source, found.name) == ("disk", "step-500.pt")


def test_steps_order_within_a_family_and_times_between_families():
    assert newest([local("step-9.pt", 9), local("step-10.pt", 10, age=50)]).name == "step-10.pt"
    assert newest([local("epoch_7.pt", 7), local("step-100.pt", 100, age=9)]).name == "epoch_7.pt"
    assert newest([]) is None
    assert is_newer(local("step-9.pt", 9), known(1, "step-8.pt", 8))
    assert not is_newer(local("epoch_7.pt", 7, age=9), known(1, "step-8.pt", 8))
