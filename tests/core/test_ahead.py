"""When what is being written goes up: under a threat, once, under the id it will get."""

from __future__ import annotations

import pytest
from test_deadline_plan import MB, WALL, Machine

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.names import final_name
from spotd.core.state import Now
from spotd.core.status import status_of

TEMPORARY = ".tmp-step-00000007.pt-77"
FINAL = "step-00000007.pt"


def ahead(machine):
    return machine.done(do.UploadAhead)


@pytest.fixture
def machine():
    return Machine()


@pytest.mark.parametrize(
    ("name", "final"),
    [
        ("step-7.pt", "step-7.pt"),
        ("checkpoint-500", "checkpoint-500"),
        (".tmp-step-00000120.pt-4711", "step-00000120.pt"),
        (".tmp-step-00000120-4711", "step-00000120"),
        ("model.pt.tmp", "model.pt"),
        (".model.pt.tmp", "model.pt"),
        ("model.pt.tmp.4711", "model.pt"),
        ("model.pt.tmp-4711", "model.pt"),
        ("model.pt.part", "model.pt"),
        ("tmp-checkpoint-500", "checkpoint-500"),
        ("model_tmp.pt", "model.pt"),
        ("tmp.pth.tar", None),
        (".tmpQx31a", None),
        (".hidden", None),
        (".tmp", None),
        ("a" * 5000 + ".tmp", None),
    ],
)
def test_the_final_name_is_guessed_where_the_writer_s_rule_says_it(name, final):
    assert final_name(name) == final


def test_in_peace_nothing_goes_up_before_it_is_whole(machine):
    machine.tell(on.SavesInProgress((TEMPORARY,)))
    assert ahead(machine) == []


def test_at_a_notice_what_is_being_written_goes_up_under_the_id_it_will_get(machine):
    machine.notice()
    machine.tell(on.SavesInProgress((TEMPORARY,)))
    (action,) = ahead(machine)
    assert (action.id, action.name, action.urgent) == (f"00000001-{FINAL}", TEMPORARY, True)
    machine.tell(on.AheadProgressed(action.id, 5))
    told = status_of(machine.state, Now(machine.mono, WALL + machine.mono))
    assert told["checkpoint"]["ahead"] == {"id": action.id, "sent": 5}
    machine.tell(on.SavesInProgress(()))
    assert machine.saves(FINAL, 400) == action.id
    (upload,) = machine.done(do.Upload)
    assert upload.id == action.id
    assert machine.done(do.StopAhead) == []
    machine.tell(on.SavesInProgress((FINAL,)))
    assert ahead(machine) == [], "it is whole already"


def test_a_save_that_was_going_on_when_the_notice_came_goes_up_too(machine):
    machine.tell(on.SavesInProgress((FINAL,)))
    machine.notice()
    assert [action.id for action in ahead(machine)] == [f"00000001-{FINAL}"]


def test_after_a_rebalance_recommendation_it_goes_up_without_taking_the_machine(machine):
    machine.tell(on.MetadataAnswered(None, rebalance="2026-11-21T08:00:00Z"))
    machine.tell(on.SavesInProgress((FINAL,)))
    assert [action.urgent for action in ahead(machine)] == [False]


def test_without_a_lease_nothing_goes_up(machine):
    machine.tell(on.LeaseRefused("i-2", 600.0))
    machine.notice()
    machine.tell(on.SavesInProgress((FINAL,)))
    assert ahead(machine) == []


def test_a_number_that_went_to_another_checkpoint_begins_again_under_the_next(machine):
    machine.notice()
    machine.tell(on.SavesInProgress((FINAL,)))
    machine.saves("step-00000003.pt", 10)
    assert machine.done(do.StopAhead) == [do.StopAhead(keep=False)]
    assert [action.id for action in ahead(machine)] == [f"00000002-{FINAL}"]


def test_a_torn_save_is_dropped_when_the_disk_has_been_looked_at(machine):
    machine.notice()
    machine.tell(on.SavesInProgress((FINAL,)))
    machine.tell(on.SavesInProgress(()), on.TrainerExited(status=137))
    assert machine.done(do.StopAhead) == []
    machine.tell(on.LocalInventory(torn=((FINAL, "cut short"),)))
    assert machine.done(do.StopAhead) == [do.StopAhead(keep=False)]


def test_at_the_margin_all_sending_ends(machine):
    machine.notice()
    machine.tell(on.SavesInProgress((FINAL,)))
    machine.tell(on.Tick(), after=95.0)
    assert machine.done(do.StopAhead) == [do.StopAhead(keep=False)]
    assert ahead(machine) == []


def test_what_is_whole_but_not_taken_over_at_the_margin_is_kept_for_after_the_restart(machine):
    machine.measured()
    machine.saves("old.pt", 100)
    machine.notice()
    machine.tell(on.SavesInProgress((FINAL,)))
    machine.saves(FINAL, 8000)  # the older one is under way, and the only one to fit
    machine.tell(on.Tick(), after=95.0)
    assert {action.keep for action in machine.done(do.StopAhead)} <= {True}


def test_what_went_up_ahead_counts_in_the_plan(machine):
    machine.measured()
    machine.notice()
    machine.tell(on.SavesInProgress((FINAL,)))
    name = f"00000002-{FINAL}"
    machine.tell(on.AheadProgressed(name, 7500 * MB), after=60.0)
    machine.saves(FINAL, 8000)
    assert not [a for a in machine.done(do.Announce) if a.name == "not_in_time"]
    upload = machine.state.store.upload
    assert (upload.id, upload.sent) == (name, 7500 * MB)


def test_an_upload_that_was_taken_over_says_nothing_of_the_link(machine):
    machine.measured()
    machine.notice()
    machine.tell(on.SavesInProgress((FINAL,)))
    sent = machine.saves(FINAL, 4000)
    for seconds in range(1, 6):
        machine.tell(on.UploadProgressed(sent, seconds * 800 * MB, 4000 * MB), after=1.0)
    machine.tell(on.Uploaded(sent, 4000 * MB, 4000 * MB, 5.0, None, 3000 * MB))
    assert machine.state.store.rate == 100.0 * MB
    said = next(a for a in machine.done(do.Announce) if a.name == "checkpoint_stored")
    assert "while it was being written" in said.message


def test_a_file_that_grows_for_ever_has_a_limit_that_follows_from_the_checkpoints_known(machine):
    machine.measured()
    machine.notice()
    machine.tell(on.SavesInProgress((FINAL,)))
    (action,) = ahead(machine)
    assert action.expected == 400 * MB
    assert action.limit < 3_000 * MB
