from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from spotd.testing.faults import Fault

if TYPE_CHECKING:
    from machines import Machine


def newest_on_disk(machine: Machine) -> dict:
    return machine.status()["checkpoint"]["newest"]


def test_with_s3_down_at_start_and_a_good_checkpoint_it_starts_at_once(build, network):
    machine = build(s3=True, endpoint_url=network.endpoint_url)
    machine.boot()
    machine.wait_for_steps(3)
    saved = machine.saved()["step"]
    machine.power_cut()
    network.set(Fault("drop"))
    machine.boot()
    assert machine.wait_for_steps(1, attempt=2)[0]["step"] == saved + 1
    assert machine.status()["store"]["status"] != "open"
    machine.wait_for_event("store_failed")
    machine.pull("save")
    machine.wait(lambda: machine.status()["checkpoint"]["pending"], "something to store")
    assert "store fails" in machine.status()["line"]
    network.set(Fault())
    assert machine.wait_stored()["step"] > saved
    machine.wait_for_event("store_back")
    assert len(machine.named("store_failed")) == 1


def test_s3_killed_during_training_leaves_training_alone_and_is_caught_up_with(build, seaweed):
    machine = build(s3=True)
    machine.boot()
    pid = machine.wait_for_steps(3)[0]["pid"]
    machine.saved()
    seaweed.kill()
    try:
        machine.pull("save")
        pending = machine.wait(lambda: machine.status()["checkpoint"]["pending"], "a lag")
        status = machine.status()
        assert not status["checkpoint"]["newest"]["stored"]
        assert "uploading" in status["line"] or "NOT in the store" in status["line"]
        machine.wait_for_steps(20)
    finally:
        seaweed.start()
    assert machine.wait_stored()["id"] == pending[-1]
    assert machine.steps()[-1]["pid"] == pid
    assert machine.status()["counts"]["crashes"] == 0


def test_on_a_slow_line_training_is_untouched_and_only_the_newest_is_worth_sending(build, network):
    machine = build("--size", 2_000_000, s3=True, endpoint_url=network.endpoint_url)
    machine.boot()
    pid = machine.wait_for_steps(3)[0]["pid"]
    machine.saved()
    network.set(Fault("throttle", rate=500_000))
    machine.pull("save")
    first = machine.wait(lambda: machine.status()["checkpoint"]["upload"], "an upload")["id"]
    for _ in range(3):
        before = machine.newest_id()
        machine.pull("save")
        machine.wait(lambda before=before: machine.newest_id() > before, "another checkpoint")
    last = machine.newest_id()
    assert machine.status()["checkpoint"]["upload"]["id"] == first, "it is not broken off"
    network.set(Fault())
    machine.wait_for_event("checkpoint_stored", checkpoint=last)
    stored = [e["checkpoint"] for e in machine.named("checkpoint_stored")]
    assert stored[1:] == [first, last]
    assert machine.steps()[-1]["pid"] == pid


def test_a_cut_off_upload_is_continued_after_the_daemon_was_killed(build, network):
    machine = build("--size", 40_000_000, s3=True, endpoint_url=network.endpoint_url)
    machine.boot()
    machine.wait_for_steps(3)
    network.set(Fault("throttle", rate=4_000_000))
    machine.pull("save")
    machine.wait(
        lambda: (u := machine.status()["checkpoint"]["upload"]) and u["sent"] > 5_000_000,
        "a part of the upload",
    )
    machine.kill_daemon()
    network.set(Fault())
    machine.start_daemon()
    stored = machine.wait_for_event("checkpoint_stored")
    assert stored["sent"] < stored["bytes"]


def test_a_first_start_without_the_store_waits_for_it_and_then_trains_from_scratch(build, network):
    network.set(Fault("drop"))
    machine = build(
        s3=True, endpoint_url=network.endpoint_url, sections={"store": {"start_timeout": 2}}
    )
    machine.boot()
    status = machine.wait_for_state("restoring")
    machine.wait(lambda: "waiting for the store" in machine.status()["reason"], "the reason")
    assert machine.steps() == []
    machine.wait_for_event("blind_start")
    machine.wait_for_steps(3)
    network.set(Fault())
    machine.saved()
    assert status["attempt"] == 0


def test_wrong_credentials_are_said_plainly(build):
    machine = build(s3=True, environment={"AWS_SECRET_ACCESS_KEY": "wrong"},
                    sections={"store": {"start_timeout": 1}})  # fmt: skip
    machine.boot()
    said = machine.wait_for_event("store_failed")["message"]
    assert "credential" in said.lower() or "signature" in said.lower() or "denied" in said.lower()
    machine.wait_for_steps(3)
    assert "store fails" in machine.status()["line"]


# --- the lease -----------------------------------------------------------------------


def test_a_second_machine_refuses_to_train_and_names_the_holder(on_both_stores, imds, other_imds):
    machine = on_both_stores()
    machine.boot()
    machine.wait_for_steps(3)
    saved = machine.saved()["step"]
    other = on_both_stores(name="two", run=machine.run, imds_url=other_imds.url)
    other.boot()
    refused = other.wait_for_event("lease_refused")
    assert imds.instance_id in refused["message"]
    # The refusal may come before the look at the disk, and only then is it what is waited for.
    other.wait(lambda: imds.instance_id in other.status()["reason"], "the holder as the reason")
    status = other.status()
    assert status["state"] == "restoring"
    assert status["store"]["holder"] == imds.instance_id
    assert other.steps() == []
    machine.wait_for_steps(3)
    machine.stop_daemon()
    last = machine.last_step()
    assert last > saved
    other.power_cut()
    other.boot()  # at once, instead of with its next try
    assert other.wait_for_steps(1)[0]["step"] == last + 1


def set_lease(machine: Machine, **changes) -> None:
    path = Path(machine.store_url.removeprefix("file://")) / machine.run / "lease.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def test_a_lease_that_has_run_out_is_taken_over_and_the_one_who_lost_it_stores_nothing(
    build, imds, other_imds
):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    saved = machine.saved()["step"]
    set_lease(machine, expires=rfc3339(time.time() + 8))  # the other boots meanwhile
    other = build(name="two", run=machine.run, imds_url=other_imds.url)
    other.boot()
    other.wait_for_event("lease_refused")
    assert other.wait_for_steps(1)[0]["step"] == saved + 1
    pid = machine.pid()
    machine.kill_daemon()
    machine.start_daemon()
    machine.wait_for_event("trainer_adopted")
    lost = machine.wait_for_event("lease_lost")
    assert other_imds.instance_id in lost["message"]
    machine.pull("save")
    machine.wait(lambda: not newest_on_disk(machine)["stored"], "a checkpoint of its own")
    machine.wait_for_steps(20)
    status = machine.status()
    assert status["trainer"]["pid"] == pid
    assert not status["checkpoint"]["newest"]["stored"]
    assert "nothing is stored from here" in status["line"]
    other.saved()
