"""What a run has cost: ranges with honest ends, and never a guess shown as a fact."""

from __future__ import annotations

import pytest

from spotd.bill.parts import interruptions
from spotd.bill.reckoning import Prices, Range, cost_between, reckon
from spotd.bill.records import merge
from spotd.core.ledger import BootRecord, NoticeRecord

H = 3600.0
NOW = 1000 * H
PRICES = Prices(
    spot={("g5.xlarge", "us-east-1a"): [(-H, 0.40)]},
    on_demand={"g5.xlarge": 1.00},
)


def boot(start, end, *, name="b1", instance="i-1", kind="interrupted", notice=False, **more):
    """A boot from hour `start`, last seen at hour `end`."""
    record = BootRecord(
        "mono", instance, name, kind, "g5.xlarge", "us-east-1a", "us-east-1", "spot",
        booted=start * H, began=start * H + 10, seen=end * H, started=start * H + 30,
        stepped=start * H + 45, **more,
    )  # fmt: skip
    if notice:
        at = end * H - 60
        record.notices.append(NoticeRecord("stop", at, at + 105, at + 1, at + 5, at + 20, at + 21))
    return record


def bill(*boots, prices=PRICES, now=NOW, running=None):
    return reckon(boots, prices, now=now, running=running)


def test_a_price_holds_from_one_change_to_the_next():
    assert cost_between([(0, 1.0), (H, 2.0)], 0.5 * H, 2 * H) == pytest.approx(0.5 + 2.0)
    assert cost_between([(H, 2.0)], 0, 2 * H) is None, "the first hour's price is not known"
    assert cost_between([], 0, H) is None


def test_a_machine_that_still_runs_is_paid_for_up_to_now_and_that_is_exact():
    found = bill(boot(0, 9.9), now=10 * H, running=("i-1", "b1"))
    assert found.up == Range(10 * H, 10 * H)
    assert found.paid.low == found.paid.high == pytest.approx(4.0)
    assert found.on_demand.low == pytest.approx(10.0)


def test_the_end_of_a_boot_lies_between_the_last_sign_of_life_and_the_notices_time():
    found = bill(boot(0, 5, notice=True), boot(7, 8, name="b2"), now=8 * H, running=("i-1", "b2"))
    assert found.up.low == pytest.approx(6 * H)
    assert 0 < found.up.high - found.up.low < 300
    assert found.off.high == pytest.approx(2 * H)


def test_without_a_notice_the_end_lies_anywhere_before_the_next_boot():
    found = bill(
        boot(0, 5), boot(7, 8, name="b2", kind="power-loss"), running=("i-1", "b2"), now=8 * H
    )
    assert (found.up.low, found.up.high) == (6 * H, 8 * H)
    assert (found.off.low, found.off.high) == (0, 2 * H)


def test_a_last_boot_of_which_nothing_more_is_known_has_no_upper_end():
    found = bill(boot(0, 5))
    assert found.up == Range(5 * H, None)
    assert found.paid.high is None
    assert found.paid.low == pytest.approx(2.0)


def test_a_fresh_instance_taken_within_its_first_hour_costs_nothing_for_it():
    first = boot(0, 0.5, kind="first", notice=True)
    found = bill(first, boot(2, 4, name="b2"), now=4 * H, running=("i-1", "b2"))
    assert found.credit.low == found.credit.high > 0.19
    assert found.paid.low == pytest.approx(found.paid.high)
    assert found.paid.low == pytest.approx(0.8, abs=0.03)


def test_whether_a_first_hour_begins_anew_after_a_stop_is_a_range():
    boots = (
        boot(0, 5, kind="first", notice=True),
        boot(6, 6.5, name="b2", notice=True),
        boot(8, 9, name="b3"),
    )
    found = bill(*boots, now=9 * H, running=("i-1", "b3"))
    assert found.credit.low == 0
    assert found.credit.high == pytest.approx(0.2, abs=0.03)
    assert found.paid.high - found.paid.low > 0.19


def test_a_boot_that_ended_without_ec2_taking_it_has_no_credit():
    found = bill(boot(0, 0.5, kind="first"), boot(1, 2, name="b2", kind="reboot"))
    assert found.credit == Range(0.0, 0.0)


def test_a_notice_that_was_not_carried_out_ends_nothing():
    record = boot(0, 0.5, kind="first", notice=True)
    record.notices[-1].outcome = "not carried out"
    found = bill(record, boot(1, 2, name="b2", kind="reboot"))
    assert found.credit == Range(0.0, 0.0)
    assert found.interruptions == ()


def test_hours_without_a_known_price_are_said_and_not_guessed():
    elsewhere = boot(10, 12, name="b2", instance="i-2")
    elsewhere.zone = "us-east-1f"
    found = bill(boot(0, 5, notice=True), elsewhere)
    assert found.unpriced == pytest.approx(2 * H)
    assert found.paid.low == pytest.approx(2.0)
    nowhere = bill(boot(0, 5), prices=Prices())
    assert nowhere.paid is None
    assert nowhere.on_demand is None


def test_the_configuration_gives_a_price_where_the_api_does_not():
    found = bill(boot(0, 5, spot_price=0.5, on_demand_price=1.2), prices=Prices())
    assert found.paid.low == pytest.approx(2.5)
    assert found.on_demand.low == pytest.approx(6.0)


def test_disks_cost_while_the_instance_is_stopped():
    prices = Prices(disk=0.08, disk_size={"i-1": 100.0})
    boots = (boot(0, 5, notice=True), boot(735, 736, name="b2"))
    found = bill(*boots, prices=prices, now=736 * H, running=("i-1", "b2"))
    assert found.disk.high == pytest.approx(8.0)
    assert bill(*boots, prices=Prices(disk=0.08)).disk is None, "no size, no price"


def test_each_interruption_is_told_part_by_part():
    boots = (boot(0, 5, notice=True), boot(6, 8, name="b2", lost_steps=3, lost_seconds=1.5))
    (found,) = interruptions(boots, NOW)
    assert (found.action, found.saving, found.storing) == ("stop", 5, 15)
    assert (found.off, found.booting, found.restoring, found.starting) == (H, 10, 20, 15)
    assert (found.lost_steps, found.lost_seconds) == (3, 1.5)


def test_a_power_cut_is_an_interruption_without_a_notice_and_a_reboot_is_none():
    cut = interruptions([boot(0, 5), boot(6, 8, name="b2", kind="power-loss")], NOW)
    assert [(i.action, i.saving) for i in cut] == [("", None)]
    assert interruptions([boot(0, 5), boot(6, 8, name="b2", kind="reboot")], NOW) == []


def test_a_notice_whose_time_has_not_come_is_no_interruption_yet():
    record = boot(0, 5, notice=True)
    assert interruptions([record], record.seen + 1) == []
    assert len(interruptions([record], record.seen + 500)) == 1


def test_a_boot_that_disk_and_store_both_know_is_counted_once_with_the_fuller_record():
    old, new = boot(0, 4), boot(0, 5)
    assert merge([old, new, boot(6, 7, name="b2")]) == [new, boot(6, 7, name="b2")]
    assert merge([new, old]) == [new]


def test_two_instances_are_each_stopped_for_their_own_time():
    found = bill(
        boot(0, 5, notice=True), boot(5.2, 6, name="b9", instance="i-2", kind="new-instance"),
        boot(10, 11, name="b2"), running=("i-1", "b2"), now=11 * H,
    )  # fmt: skip
    assert (found.instances, found.boots) == (2, 3)
    assert found.off.high == pytest.approx(5 * H)
