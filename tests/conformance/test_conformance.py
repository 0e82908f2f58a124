"""The same scenario in the simulated world and on real processes: the journals agree.

A scenario is a function of a `Scene`; `played` has it happen in both worlds and compares.
What is compared, and what may differ, is said in `comparing.py`.
"""

from __future__ import annotations

import os
from functools import partial

import pytest
from comparing import differences
from model import ModelScene
from real import RealScene, can_mount
from scene import Cast

pytestmark = pytest.mark.slow


@pytest.fixture
def played(tmp_path, seaweed, bucket):
    """Plays a scenario in both worlds; fails where they differ."""

    def play(scenario, **cast):
        in_model = ModelScene(Cast(**cast), tmp_path / "model")
        scenario(in_model)
        with RealScene(Cast(**cast), tmp_path / "real", seaweed, bucket) as on_machine:
            scenario(on_machine)
            pairs = list(zip(in_model.seen(), on_machine.seen(), strict=True))
        for ours, theirs in pairs:
            said = differences(ours, theirs)
            assert not said, said

    return play


def begun(s, step=14):
    """A machine that trains at this step, its checkpoint of step 10 stored."""
    s.boot()
    s.train(10)
    s.wait_stored(10)
    if step > 10:
        s.train(step)


def ended(s, machine=0):
    """It trains to the end, all is stored, and spotd is stopped."""
    s.finish(machine)
    s.stop(machine)


# --- notices -----------------------------------------------------------------------------


def test_a_first_start_three_checkpoints_and_the_end(played):
    def scenario(s):
        begun(s)
        for step in (20, 30):
            s.train(step)
            s.wait_stored(step)
        ended(s)

    played(scenario)


def test_a_notice_that_is_carried_out(played):
    def scenario(s):
        begun(s)
        s.notice()
        s.wait_state("drained")
        s.cut()
        s.withdraw()
        s.boot()
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario)


def test_a_notice_that_is_withdrawn(played):
    def scenario(s):
        begun(s)
        s.notice(seconds=4)
        s.wait_state("drained")
        s.withdraw()
        s.wait("notice_withdrawn")
        s.wait("not_carried_out")
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario)


def test_a_notice_that_is_not_carried_out(played):
    def scenario(s):
        begun(s)
        s.notice(seconds=4)
        s.wait_state("drained")
        s.wait("not_carried_out")
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario)


def test_a_notice_to_a_trainer_that_catches_nothing(played):
    def scenario(s):
        begun(s)
        s.notice(seconds=4)
        s.wait("trainer_killed")
        s.wait_state("drained")
        s.cut()
        s.withdraw()
        s.boot()
        s.train(20)
        s.wait_stored(20)
        ended(s)

    played(scenario, catches=False)


def test_a_notice_to_a_trainer_that_ends_without_saving(played):
    def scenario(s):
        begun(s)
        s.notice()
        s.wait_state("drained")
        s.cut()
        s.withdraw()
        s.boot()
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario, saves=False)


def test_a_rebalance_recommendation_and_then_a_notice(played):
    def scenario(s):
        begun(s)
        s.rebalance()
        s.wait("checkpoint_requested")
        s.wait_stored(14)
        s.train(16)
        s.notice()
        s.wait_state("drained")
        s.cut()
        s.withdraw()
        s.boot()
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario)


def test_a_drill(played):
    def scenario(s):
        begun(s)
        s.drill()
        s.wait("drill_finished")
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario)


# --- the trainer -------------------------------------------------------------------------


def test_a_crash_of_the_trainer(played):
    def scenario(s):
        begun(s)
        s.wait("training")
        s.crash()
        s.wait("trainer_exited")
        s.train(20)
        s.wait_stored(20)
        ended(s)

    played(scenario)


def test_a_trainer_that_cannot_even_start(played):
    def scenario(s):
        s.crash_at_start(True)
        s.boot()
        s.wait("gave_up")
        s.stop()

    played(scenario, trainer={"max_failures": 2})


def test_a_checkpoint_that_the_trainer_crashes_from(played):
    def scenario(s):
        begun(s)
        s.train(20)
        s.wait_stored(20)
        s.poison("step-20.pt")
        s.crash()
        s.wait("checkpoint_rejected")
        s.train(20)
        s.wait_stored(20)
        s.train(30)
        s.wait_stored(30)
        s.stop()

    played(scenario)


# --- spotd itself ------------------------------------------------------------------------


def test_a_stop_of_spotd_and_a_start(played):
    def scenario(s):
        begun(s)
        s.stop()
        s.start()
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario)


def test_spotd_killed_while_it_trains(played):
    def scenario(s):
        begun(s)
        s.kill()
        s.train(17)
        s.start()
        s.wait("trainer_adopted")
        s.train(20)
        s.wait_stored(20)
        ended(s)

    played(scenario)


def test_spotd_killed_and_the_trainer_ends_meanwhile(played):
    def scenario(s):
        begun(s)
        s.kill()
        s.crash()
        s.until(partial(trainer_is_gone, s), "the trainer's end")
        s.start()
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario)


def trainer_is_gone(s):
    return not s.trainer_lives()


def test_spotd_killed_in_the_middle_of_a_drain(played):
    def scenario(s):
        begun(s)
        s.hold_saves(True)
        s.notice()
        s.wait("stop_signal_sent")
        s.wait_in_save()
        s.kill()
        s.hold_saves(False)
        s.until(partial(trainer_is_gone, s), "the trainer's end")
        s.start()
        s.wait_state("drained")
        s.cut()
        s.withdraw()
        s.boot()
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario)


def test_spotd_killed_when_it_has_drained(played):
    def scenario(s):
        begun(s)
        s.notice()
        s.wait_state("drained")
        s.kill()
        s.start()
        s.wait_state("drained")
        s.wait_open()
        s.cut()
        s.withdraw()
        s.boot()
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario)


def test_spotd_killed_while_it_backs_off(played):
    def scenario(s):
        begun(s)
        s.crash()
        s.wait_state("backing-off")
        s.kill()
        s.start()
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario, trainer={"backoff_min": 30.0, "backoff_max": 30.0})


# --- power and disks ---------------------------------------------------------------------


def test_a_power_cut(played):
    def scenario(s):
        begun(s)
        s.cut()
        s.boot()
        s.train(20)
        s.wait_stored(20)
        ended(s)

    played(scenario)


def test_a_power_cut_that_tears_the_newest_checkpoint(played):
    def scenario(s):
        begun(s)
        s.train(20)
        s.wait_stored(20)
        s.cut()
        s.tear("step-20.pt")
        s.boot()
        s.train(30)
        s.wait_stored(30)
        s.stop()

    played(scenario)


def test_a_torn_checkpoint_that_never_reached_the_store(played):
    def scenario(s):
        begun(s)
        s.store(False)
        s.train(20)
        s.wait_durable(20)
        s.cut()
        s.tear("step-20.pt")
        s.boot()
        s.wait("store_failed")
        s.train(20)
        s.wait_durable(20)
        s.store(True)
        s.wait_stored(20)
        s.stop()

    played(scenario)


def test_a_new_instance_with_an_empty_disk(played):
    def scenario(s):
        begun(s)
        s.notice("terminate")
        s.wait_state("drained")
        s.cut()
        s.new_instance()
        s.lease_runs_out()
        s.boot()
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario)


def test_a_new_instance_waits_for_the_lease_of_one_that_died_without_a_word(played):
    def scenario(s):
        begun(s)
        s.cut()
        s.new_instance()
        s.boot()
        s.wait("lease_refused")
        s.cut()
        s.lease_runs_out()
        s.boot()
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario)


def test_a_new_instance_and_a_damaged_checkpoint_in_the_store(played):
    def scenario(s):
        begun(s)
        s.train(20)
        s.wait_stored(20)
        s.cut()
        s.new_instance()
        s.damage("00000002-step-20.pt")
        s.lease_runs_out()
        s.boot()
        s.wait("checkpoint_rejected")
        s.train(20)
        s.wait_stored(20)
        s.train(30)
        s.wait_stored(30)
        s.stop()

    played(scenario)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a small file system of its own")
def test_a_disk_that_is_full_for_a_while(played, tmp_path):
    if not can_mount(tmp_path / "try"):
        pytest.skip("needs mkfs.ext4 and a loop device")

    def scenario(s):
        begun(s)
        s.full(True)
        s.train_into_crash(20)
        s.full(False)
        s.train(20)
        s.wait_stored(20)
        s.stop()

    played(scenario, small_disk=True, trainer={"backoff_min": 2.0})


# --- the store ---------------------------------------------------------------------------


def test_the_store_down_and_up_again(played):
    def scenario(s):
        begun(s)
        s.store(False)
        s.train(20)
        s.wait_durable(20)
        s.train(30)
        s.wait_durable(30)
        s.store(True)
        s.wait_stored(30)
        s.stop()

    played(scenario)


def test_the_store_down_for_a_whole_life(played):
    def scenario(s):
        begun(s)
        s.cut()
        s.store(False)
        s.boot()
        s.train(20)
        s.wait_durable(20)
        s.wait("store_failed")
        s.cut()
        s.store(True)
        s.boot()
        s.wait_stored(20)
        s.train(30)
        s.wait_stored(30)
        s.stop()

    played(scenario)


def test_a_first_start_without_the_store(played):
    def scenario(s):
        s.store(False)
        s.boot()
        s.wait("blind_start")
        s.train(10)
        s.wait_durable(10)
        s.store(True)
        s.wait_stored(10)
        s.stop()

    played(scenario, store={"start_timeout": 1.0})


def test_a_trainer_started_without_the_store_that_turns_out_to_be_behind_it(played):
    def scenario(s):
        begun(s)
        s.train(20)
        s.wait_stored(20)
        s.cut()
        s.new_instance()
        s.lease_runs_out()
        s.store(False)
        s.boot()
        s.wait("blind_start")
        s.train(6)
        s.store(True)
        s.wait("trainer_superseded")
        s.train(30)
        s.wait_stored(30)
        s.stop()

    played(scenario, store={"start_timeout": 1.0})


def test_two_instances_race_for_one_run(played):
    def scenario(s):
        begun(s)
        s.boot(1)
        s.wait("lease_refused", 1)
        s.stop()
        s.cut(1)
        s.boot(1)
        s.train(20, 1)
        s.wait_stored(20, 1)
        s.stop(1)

    played(scenario)


def test_a_lease_that_was_taken_over(played):
    def scenario(s):
        begun(s)
        s.lease_runs_out()
        s.boot(1)
        s.train(20, 1)
        s.wait_stored(20, 1)
        s.kill()
        s.start()
        s.wait("lease_lost")
        s.train(20)
        s.wait_durable(20)
        s.cut()
        s.stop(1)

    played(scenario)


# --- the end, and the metadata -----------------------------------------------------------


def test_a_complete_run_stays_complete_on_this_instance_and_on_the_next(played):
    def scenario(s):
        begun(s)
        ended(s)
        s.cut()
        s.boot()
        s.wait_state("completed")
        s.stop()
        s.cut()
        s.new_instance()
        s.boot()
        s.wait_state("completed")
        s.stop()

    played(scenario)


def test_a_run_that_ends_while_the_store_is_down(played):
    def scenario(s):
        begun(s)
        s.train(20)
        s.wait_stored(20)
        s.train(30)
        s.wait_stored(30)
        s.store(False)
        s.train(40)
        s.wait("completed")
        s.store(True)
        s.wait_complete()
        s.stop()

    played(scenario)


def test_metadata_that_does_not_answer_for_a_while(played):
    def scenario(s):
        begun(s)
        s.imds(False)
        s.wait("imds_blind")
        s.imds(True)
        s.wait("imds_back")
        s.stop()

    played(scenario)
