from __future__ import annotations

import shlex
import time

import pytest
from machines import alive, little_trainer

from spotd.testing.faults import Fault

QUICK = {"interruption": {"margin": 1}}


def polls(imds):
    return sum(q.path.endswith("spot/instance-action") for q in imds.questions)


def wait_for_polls(machine, imds, count=4):
    before = polls(imds)
    machine.wait(lambda: polls(imds) >= before + count, f"{count} polls")


def trains_on_after(machine, step):
    """The next attempt's first step is the one after."""
    attempt = machine.steps()[-1]["attempt"]
    machine.boot()
    steps = machine.wait(
        lambda: [s for s in machine.steps() if s["attempt"] > attempt], "training to go on"
    )
    assert steps[0]["step"] == step + 1


def test_at_a_notice_it_saves_and_stores_and_the_next_boot_goes_on_at_the_same_step(
    on_both_stores, imds
):
    machine = on_both_stores()
    machine.boot()
    machine.wait_for_steps(10)
    given = time.time()
    imds.give_notice("stop", in_seconds=120)
    drained = machine.wait_for_event("drained", after=given)
    status = machine.wait_for_state("drained")
    assert status["checkpoint"]["newest"]["stored"]
    assert status["interruption"]["drained"]
    assert drained["checkpoint"] == status["checkpoint"]["newest"]["id"]
    last = machine.last_step()
    assert status["checkpoint"]["newest"]["step"] == last
    assert machine.daemon.poll() is None, "only EC2 stops the machine"
    machine.power_cut()
    imds.withdraw()
    trains_on_after(machine, last)
    status = machine.wait_for_state("running")
    assert status["boot"] == "interrupted"
    assert status["lost_steps"] == 0
    assert status["counts"]["interruptions"] == 1


def test_a_trainer_that_does_not_catch_the_signal_trains_on_to_the_margin(build, imds):
    machine = build("--deaf", "--save-every", 25, sections=QUICK)
    machine.boot()
    machine.wait_stored()
    imds.give_notice("stop", in_seconds=4)
    notice = machine.wait_for_event("interruption_notice")
    machine.wait_for_event("stop_signal_uncaught")
    at_notice = machine.last_step()
    killed = machine.wait_for_event("trainer_killed")
    assert machine.last_step() > at_notice + 25
    assert killed["time"] >= notice["time"] + notice["seconds_left"] - 1.6
    machine.wait_for_state("drained")
    # What it saved in the very last moment may come too late; what it saved before did not.
    stored = [e for e in machine.named("checkpoint_stored") if e["time"] > notice["time"]]
    assert stored[-1]["step"] >= (machine.last_step() // 25 - 2) * 25
    assert machine.named("stop_signal_sent") == []


def test_the_signal_goes_to_the_python_below_a_shell(build, imds):
    machine = build(command=["bash", "-c", f"{shlex.join(little_trainer())}; true"])
    machine.boot()
    python = machine.wait_for_steps(5)[0]["pid"]
    assert python != machine.pid()
    imds.give_notice()
    machine.wait_for_state("drained")
    (sent,) = machine.named("stop_signal_sent")
    assert sent["pids"] == str(python)
    assert machine.status()["checkpoint"]["newest"]["step"] == machine.last_step()


def test_exit_0_after_the_signal_is_an_interruption_and_not_completion(build, imds):
    machine = build("--leaves-unsaved")
    machine.boot()
    machine.wait_for_steps(5)
    saved = machine.saved()["step"]
    imds.give_notice()
    machine.wait_for_state("drained")
    assert machine.named("completed") == []
    machine.power_cut()
    imds.withdraw()
    trains_on_after(machine, saved)
    assert machine.named("steps_lost")


def test_a_notice_during_a_restore_ends_it_and_the_next_boot_restores(build, imds, network):
    machine = build("--size", 3_000_000, s3=True, endpoint_url=network.endpoint_url)
    machine.boot()
    machine.wait_for_steps(3)
    saved = machine.saved()["step"]
    machine.power_cut()
    machine.lose_disk()
    network.set(Fault("throttle", rate=500_000))
    machine.boot()
    machine.wait_for_event("restore_started")
    machine.wait(lambda: "%" in machine.status().get("reason", ""), "bytes of the restore")
    imds.give_notice()
    machine.wait_for_state("drained")
    assert machine.named("trainer_started") == []
    machine.power_cut()
    imds.withdraw()
    network.set(Fault())
    machine.boot()
    assert machine.wait_for_steps(1)[0]["step"] == saved + 1


def test_a_notice_in_the_middle_of_a_save_waits_for_it(build, imds):
    machine = build()
    machine.boot()
    machine.wait_for_steps(5)
    machine.pull("hold-in-save")
    machine.pull("save")
    machine.wait((machine.work / "in-save").exists, "the middle of a save")
    imds.give_notice()
    machine.wait_for_event("stop_signal_sent")
    assert machine.status()["state"] == "draining"
    machine.release("hold-in-save")
    newest = machine.wait_for_state("drained")["checkpoint"]["newest"]
    assert newest["stored"]
    assert newest["step"] == machine.last_step()


def test_a_notice_during_an_upload_sends_the_newest_first(build, imds, network):
    machine = build("--size", 4_000_000, s3=True, endpoint_url=network.endpoint_url)
    machine.boot()
    machine.wait_for_steps(3)
    machine.saved()
    network.set(Fault("throttle", rate=400_000))
    machine.pull("save")
    upload = machine.wait(lambda: machine.status()["checkpoint"]["upload"], "an upload")
    given = time.time()
    imds.give_notice()
    machine.wait(
        lambda: (u := machine.status()["checkpoint"]["upload"]) and u["id"] > upload["id"],
        "the newest to be sent",
    )
    assert not [e for e in machine.named("checkpoint_stored") if e["time"] > given]
    network.set(Fault())
    newest = machine.wait_for_state("drained")["checkpoint"]["newest"]
    assert newest["stored"]
    assert newest["step"] == machine.last_step()


def test_a_notice_during_back_off_stores_what_there_is_and_starts_nothing(build, imds, network):
    machine = build(
        s3=True, endpoint_url=network.endpoint_url, trainer={"backoff_min": 60},
    )  # fmt: skip
    machine.boot()
    machine.wait_for_steps(3)
    machine.saved()
    network.set(Fault("drop"))
    machine.pull("save")
    machine.wait(lambda: machine.status()["checkpoint"]["pending"], "something to store")
    machine.pull("crash")
    machine.wait_for_state("backing-off")
    imds.give_notice()
    machine.wait_for_state("draining")
    network.set(Fault())
    newest = machine.wait_for_state("drained")["checkpoint"]["newest"]
    assert newest["stored"]
    assert len(machine.named("trainer_started")) == 1


def test_a_trainer_that_still_imports_is_told_when_it_listens(build, imds):
    machine = build(levers_up=("importing",))
    machine.boot()
    machine.pid()
    imds.give_notice()
    machine.wait_for_event("stop_signal_uncaught")
    machine.release("importing")
    machine.wait_for_event("stop_signal_sent")
    assert machine.wait_for_state("drained")["checkpoint"]["newest"]["stored"]


def test_a_notice_and_a_stop_of_the_daemon_are_one_drain(build, imds):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    machine.pull("hold-in-save")
    imds.give_notice()
    machine.wait_for_event("stop_signal_sent")
    machine.wait((machine.work / "in-save").exists, "the last save")
    machine.daemon.terminate()
    machine.wait_for_state("stopping")
    machine.release("hold-in-save")
    assert machine.exit_status() == 0
    assert len(machine.named("stop_signal_sent")) == 1
    assert machine.named("drained")[-1]["message"].endswith("in the store")
    assert machine.processes() == []


def test_two_notices_are_one_interruption_with_the_earlier_deadline(build, imds):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    machine.pull("hold-in-save")
    imds.give_notice("stop", in_seconds=110)
    machine.wait_for_event("interruption_notice", action="stop")
    imds.give_notice("terminate", in_seconds=60)
    machine.wait_for_event("interruption_notice", action="terminate")
    status = machine.status()
    assert status["interruption"]["seconds_left"] < 61
    assert status["counts"]["interruptions"] == 1
    machine.release("hold-in-save")
    machine.wait_for_state("drained")
    assert len(machine.named("stop_signal_sent")) == 1


def test_a_notice_that_is_not_carried_out_costs_only_the_pause(build, imds):
    machine = build(sections={"interruption": {"margin": 0.5, "not_carried_out_after": 0.5}})
    machine.boot()
    machine.wait_for_steps(5)
    imds.give_notice("stop", in_seconds=3)
    machine.wait_for_event("drained")
    last = machine.last_step()
    machine.wait_for_event("not_carried_out")
    assert machine.wait_for_steps(5, attempt=2)[0]["step"] == last + 1
    wait_for_polls(machine, imds)  # the old notice is still there, and is history
    status = machine.status()
    assert status["state"] == "running"
    assert status["counts"]["interruptions"] == 1
    assert status["counts"]["not_carried_out"] == 1
    assert status["interruption"] is None


def test_a_withdrawn_notice_costs_only_the_pause(build, imds):
    machine = build(sections={"interruption": {"margin": 0.5, "not_carried_out_after": 0.5}})
    machine.boot()
    machine.wait_for_steps(5)
    imds.give_notice("stop", in_seconds=3)
    machine.wait_for_event("drained")
    last = machine.last_step()
    imds.withdraw()
    machine.wait_for_event("notice_withdrawn")
    assert machine.wait_for_steps(5, attempt=2)[0]["step"] == last + 1
    assert machine.wait_for_state("running")["counts"]["interruptions"] == 1


def test_a_notice_whose_time_slides_is_one_notice(build, imds):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    imds.give_notice()
    imds.slide(in_seconds=100)
    first = machine.wait_for_state("drained")["interruption"]["seconds_left"]
    wait_for_polls(machine, imds, 8)
    status = machine.status()
    assert status["interruption"]["seconds_left"] < first - 1
    assert status["counts"]["interruptions"] == 1
    assert len(machine.named("interruption_notice")) == 1
    assert len(machine.named("stop_signal_sent")) == 1


def test_hibernation_leaves_no_time_and_kills_nobody(build, imds):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    machine.pull("hold-in-save")
    imds.give_notice("hibernate", in_seconds=5)
    notice = machine.wait_for_event("interruption_notice")
    assert notice["seconds_left"] == 0
    machine.wait_for_event("stop_signal_sent")
    wait_for_polls(machine, imds)
    machine.release("hold-in-save")
    machine.wait_for_state("drained")
    assert machine.named("trainer_killed") == []


@pytest.mark.parametrize(
    "said", ['{"action": "stop", "time": "soon"}', '{"action": "stop"}',
             '{"action": "stop", "time": "2099-01-01T00:00:00Z"}'],
)  # fmt: skip
def test_an_absurd_time_means_100_seconds(build, imds, said):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    imds.say(said)
    assert machine.wait_for_event("interruption_notice")["seconds_left"] in (99, 100)
    machine.wait_for_state("drained")


def test_a_notice_from_before_this_boot_is_history(build, imds):
    machine = build()
    imds.give_notice("stop", in_seconds=-60)
    machine.boot()
    machine.wait_for_event("notice_ignored")
    machine.wait_for_steps(5)
    wait_for_polls(machine, imds)
    status = machine.status()
    assert status["state"] == "running"
    assert status["counts"]["interruptions"] == 0
    assert len(machine.named("notice_ignored")) == 1


def test_a_rebalance_recommendation_is_one_checkpoint_and_training_goes_on(build, imds):
    machine = build(trainer={"checkpoint_signal": "SIGUSR1"})
    machine.boot()
    pid = machine.wait_for_steps(3)[0]["pid"]
    imds.rebalance()
    machine.wait_for_event("rebalance_recommended")
    machine.wait_stored()
    machine.wait_for_steps(3)
    wait_for_polls(machine, imds)
    assert len(machine.named("checkpoint_requested")) == 1
    assert len(machine.named("checkpoint_stored")) == 1
    assert machine.steps()[-1]["pid"] == pid
    assert machine.status()["state"] == "running"


def test_a_rebalance_recommendation_without_a_checkpoint_signal_is_only_told(build, imds):
    machine = build()
    machine.boot()
    pid = machine.wait_for_steps(3)[0]["pid"]
    imds.rebalance()
    machine.wait_for_event("rebalance_recommended")
    machine.wait_for_steps(5)
    assert machine.steps()[-1]["pid"] == pid
    assert machine.named("checkpoint_seen") == []


def test_scheduled_maintenance_is_told_once(build, imds):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    event = imds.schedule("instance-reboot")
    assert event in machine.wait_for_event("scheduled_event")["message"]
    wait_for_polls(machine, imds)
    assert len(machine.named("scheduled_event")) == 1
    assert machine.status()["state"] == "running"


def test_uploads_stop_at_the_margin_and_go_on_after_the_next_boot(build, imds, network):
    machine = build(s3=True, endpoint_url=network.endpoint_url, sections=QUICK)
    machine.boot()
    machine.wait_for_steps(3)
    machine.saved()
    network.set(Fault("swallow"))
    imds.give_notice("stop", in_seconds=4)
    notice = machine.wait_for_event("interruption_notice")
    drained = machine.wait_for_event("drained")
    assert drained["time"] >= notice["time"] + notice["seconds_left"] - 1.6
    assert "not in the store" in drained["message"]
    last = machine.last_step()
    machine.power_cut()
    imds.withdraw()
    network.set(Fault())
    trains_on_after(machine, last)
    machine.wait(
        lambda: any(e.get("step") == last for e in machine.named("checkpoint_stored")),
        "the upload to go on",
    )


def test_the_trainer_is_not_signalled_again_by_a_daemon_that_comes_back(build, imds):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    machine.pull("hold-in-save")
    imds.give_notice()
    machine.wait_for_event("stop_signal_sent")
    machine.wait((machine.work / "in-save").exists, "the last save")
    pid = machine.pid()
    machine.kill_daemon()
    machine.start_daemon()
    machine.wait_for_event("trainer_adopted")
    wait_for_polls(machine, imds)
    assert alive(pid)
    machine.release("hold-in-save")
    newest = machine.wait_for_state("drained")["checkpoint"]["newest"]
    assert newest["step"] == machine.last_step()
    assert len(machine.named("stop_signal_sent")) == 1
    assert machine.status()["counts"]["interruptions"] == 1
