"""`spotd terminate` and `spotd instances`, against EC2 over HTTP."""

from __future__ import annotations

import json

import pytest

LONG_AGO = 3600.0


@pytest.fixture
def launched(run, cloud):
    """A run with a running instance."""
    run.launch()
    (run.instance,) = cloud.instances(run.name)
    (run.request,) = cloud.requests(run.name)
    cloud.calls.clear()
    return run


def test_the_request_is_cancelled_before_the_instance_is_terminated(launched, cloud):
    status, out, err = launched.spotd("terminate", "--yes")
    assert status == 0, err
    # The other way round EC2 would have launched another one: the region here does.
    assert cloud.calls == ["CancelSpotInstanceRequests", "TerminateInstances"]
    assert cloud.instances(launched.name) == []
    assert launched.request.state == "cancelled"
    assert launched.instance.id in out


def test_the_region_launches_another_one_when_it_is_done_the_wrong_way_round(launched, cloud):
    cloud.backend.terminate_instances([launched.instance.id])
    assert len(cloud.instances(launched.name)) == 1


def test_a_repeated_command_has_nothing_to_do(launched, cloud):
    launched.spotd("terminate", "--yes")
    cloud.calls.clear()
    status, out, _ = launched.spotd("terminate", "--yes")
    assert status == 0
    assert "no instance and no open request" in out
    assert cloud.calls == []


def test_an_instance_that_a_reopened_request_launched_meanwhile_ends_too(launched, cloud):
    cloud.backend.terminate_instances([launched.instance.id])
    status, _, err = launched.spotd("terminate", "--yes")
    assert status == 0, err
    assert cloud.instances(launched.name) == []


def test_without_yes_it_asks_and_without_a_terminal_it_refuses(launched, cloud):
    status, _, err = launched.spotd("terminate")
    assert status == 1
    assert "--yes" in err
    assert cloud.calls == []


@pytest.mark.parametrize(("answer", "ends"), [("y", True), ("", False), ("no", False)])
def test_it_does_what_the_answer_says(launched, cloud, monkeypatch, answer, ends):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda: answer)
    status, _, _ = launched.spotd("terminate")
    assert status == (0 if ends else 1)
    assert (cloud.instances(launched.name) == []) is ends


def test_a_training_instance_is_not_ended_without_force(launched, cloud):
    launched.take_lease(launched.instance.id)
    launched.store_checkpoint(launched.instance.id, step=400, ago=LONG_AGO)
    status, out, err = launched.spotd("terminate", "--yes")
    assert status == 1
    assert "newest stored checkpoint: 00000001-step-400.pt (step 400)" in out
    assert "is training" in err
    assert "--save" in err
    assert cloud.calls == []
    assert launched.spotd("terminate", "--yes", "--force")[0] == 0
    assert cloud.instances(launched.name) == []


def test_an_instance_that_has_stored_nothing_is_not_ended_without_force(launched, cloud):
    held = launched.take_lease(launched.instance.id)
    launched.give_back(held)
    status, _, err = launched.spotd("terminate", "--yes")
    assert status == 1
    assert "no checkpoint of it is in the store" in err
    assert cloud.calls == []


def test_an_interrupted_instance_that_saved_at_the_notice_may_end(launched, cloud):
    launched.take_lease(launched.instance.id)
    launched.store_checkpoint(launched.instance.id, ago=60.0)
    cloud.interrupt(launched.name)
    status, _, err = launched.spotd("terminate", "--yes")
    assert status == 0, err
    assert launched.instance._state.name == "terminated"


def test_an_interrupted_instance_whose_disk_may_hold_more_is_not_ended(launched, cloud):
    launched.take_lease(launched.instance.id)
    launched.store_checkpoint(launched.instance.id, ago=LONG_AGO)
    cloud.interrupt(launched.name)
    status, _, err = launched.spotd("terminate", "--yes")
    assert status == 1
    assert "its disk may hold more" in err
    assert cloud.calls == []


def test_a_complete_run_may_end_whatever_else(launched, cloud):
    launched.take_lease(launched.instance.id)
    launched.open_store().put("completed.json", launched.completion())
    assert launched.spotd("terminate", "--yes")[0] == 0
    assert cloud.instances(launched.name) == []


def test_a_store_that_cannot_be_seen_is_no_permission(launched, cloud):
    launched.store_path.rename(launched.store_path.with_name("elsewhere"))
    status, _, err = launched.spotd("terminate", "--yes")
    assert status == 69
    assert "cannot be seen" in err
    assert cloud.calls == []
    assert launched.spotd("terminate", "--yes", "--force")[0] == 0


def test_in_json_it_names_what_it_ended_and_progress_goes_aside(launched, cloud):
    status, out, err = launched.spotd("terminate", "--yes", "--json")
    assert status == 0
    assert json.loads(out) == {
        "run": launched.name, "region": "us-east-1",
        "cancelled": [launched.request.id], "terminated": [launched.instance.id],
    }  # fmt: skip
    assert "EC2 starts nothing for it any more" in err
    status, out, _ = launched.spotd("terminate", "--yes", "--json")
    assert (status, json.loads(out)["terminated"]) == (0, [])


def test_in_json_a_refusal_leaves_standard_output_empty(launched, cloud):
    launched.take_lease(launched.instance.id)
    status, out, err = launched.spotd("terminate", "--yes", "--json")
    assert (status, out) == (1, "")
    assert "no checkpoint of it is in the store" in err


def saving(launched, cloud, monkeypatch, *, saves):
    """The instance trains, and does this when its machine is shut down."""
    held = launched.take_lease(launched.instance.id)
    launched.store_checkpoint(launched.instance.id, step=400, ago=LONG_AGO)
    stopped = cloud.stopped

    def shutdown(ids):
        if saves:
            launched.store_checkpoint(launched.instance.id, sequence=2, step=450)
        launched.give_back(held)
        stopped(ids)

    monkeypatch.setattr(cloud, "stopped", shutdown)


def test_with_save_it_stops_stores_and_only_then_ends(launched, cloud, monkeypatch):
    saving(launched, cloud, monkeypatch, saves=True)
    status, out, err = launched.spotd("terminate", "--yes", "--save")
    assert status == 0, err
    assert cloud.calls[:2] == ["StopInstances", "CancelSpotInstanceRequests"]
    assert "00000002-step-450.pt" in out
    assert cloud.instances(launched.name) == []


def test_with_save_and_nothing_saved_the_disk_is_kept(launched, cloud, monkeypatch):
    saving(launched, cloud, monkeypatch, saves=False)
    status, _, err = launched.spotd("terminate", "--yes", "--save")
    assert status == 1
    assert "the trainer did not save" in err
    assert "keeps its disk" in err
    assert launched.instance._state.name == "stopped"
    assert cloud.calls == ["StopInstances"]


def test_without_permission_to_cancel_nothing_is_terminated(launched, cloud):
    cloud.denies = {"ec2:CancelSpotInstanceRequests"}
    status, _, err = launched.spotd("terminate", "--yes")
    assert status == 1
    assert "ec2:CancelSpotInstanceRequests on arn:aws:ec2:" in err
    assert "packaging/aws/operator-policy.md" in err
    assert cloud.instances(launched.name) == [launched.instance]


def test_instances_says_why_it_is_stopped_and_that_ec2_starts_it_again(launched, cloud):
    cloud.interrupt(launched.name)
    status, out, _ = launched.spotd("instances")
    assert status == 0
    line = next(x for x in out.splitlines() if launched.instance.id in x)
    assert "stopped" in line
    assert " yes " in line
    assert "EC2 needed the capacity" in line


def test_instances_says_that_a_user_stop_is_for_good(launched, cloud):
    cloud.backend.stop_instances([launched.instance.id])
    _, out, _ = launched.spotd("instances", "--json")
    (entry,) = json.loads(out)["instances"]
    assert entry["instance_id"] == launched.instance.id
    assert entry["starts_again"] == "no"
    assert entry["request_code"] == "instance-stopped-by-user"
    assert "start-instances" in entry["todo"]


def test_instances_shows_only_this_run_unless_asked_for_all(launched, cloud):
    mine = launched.instance.id
    name, launched.name = launched.name, "another"
    launched.configure()
    assert mine not in launched.spotd("instances")[1]
    assert mine in launched.spotd("instances", "--all")[1]
    launched.name = name


def test_instances_that_have_ended_are_shown_as_ended(launched, cloud):
    launched.spotd("terminate", "--yes")
    _, out, _ = launched.spotd("instances", "--all", "--json")
    mine = [e for e in json.loads(out)["instances"] if e["run"] == launched.name]
    assert [(e["what"], e["starts_again"]) for e in mine] == [("it is terminated", "no")]


def test_instances_of_a_run_that_has_none(run):
    status, out, _ = run.spotd("instances")
    assert status == 0
    assert "no instance and no open request" in out
