"""`spotd launch` against EC2 over HTTP: moto's server with the rules of `ec2_region`."""

from __future__ import annotations

import base64
import json

import pytest
from ec2_region import AMI, ZONE_A, ZONE_B, price

from spotd.ec2 import intent, launching
from spotd.ec2.following import Way, follow
from spotd.errors import SpotdError

SPOT_A, SPOT_B = ("g5.xlarge", ZONE_A, "spot"), ("g5.xlarge", ZONE_B, "spot")
NO_CAPACITY = "InsufficientInstanceCapacity"


def test_one_persistent_instance_that_stops_is_launched(run, cloud):
    status, out, err = run.launch("--key-name", "laptop", "--volume-size", "200GiB")
    assert status == 0, err
    (instance,) = cloud.instances(run.name)
    (request,) = cloud.requests(run.name)
    assert instance.id in out
    assert (request.type, request.instance_interruption_behaviour) == ("persistent", "stop")
    assert request.valid_until is not None
    assert (instance.image_id, instance.key_name) == (AMI, "laptop")
    assert instance.metadata_options.http_tokens == "required"
    assert instance.instance_initiated_shutdown_behavior == "stop"
    (volume,) = (d for _, d in instance.get_block_device_mapping)
    assert volume.size == 200
    tags = {t["key"]: t["value"] for t in instance.get_tags()}
    assert tags == {"Name": f"spotd-{run.name}", "spotd:run": run.name}
    user_data = base64.b64decode(str(instance.user_data)).decode()
    assert f'run = "{run.name}"' in user_data
    assert user_data.startswith("#cloud-config")


def test_a_repeated_command_names_the_instance_and_launches_nothing(run, cloud):
    run.launch()
    (first,) = cloud.instances(run.name)
    for _ in range(2):
        status, out, _ = run.launch()
        assert status == 0
        assert first.id in out
    assert cloud.instances(run.name) == [first]
    assert len(cloud.asked) == 1


def test_from_another_machine_too(run, cloud, monkeypatch, tmp_path):
    run.launch()
    (first,) = cloud.instances(run.name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    status, out, _ = run.launch()
    assert status == 0
    assert first.id in out
    assert "nothing was launched" in out
    assert cloud.instances(run.name) == [first]


def test_a_lost_answer_is_asked_for_again_with_the_same_token(run, cloud):
    cloud.loses_answer = True
    status, _, err = run.launch()
    assert status == 69
    assert "repeat the command" in err
    (first,) = cloud.instances(run.name)
    status, out, _ = run.launch()
    assert status == 0
    assert first.id in out
    assert cloud.instances(run.name) == [first]
    assert len({token for *_, token in cloud.asked}) == 1


def test_a_command_that_was_killed_in_between_is_taken_up_where_it_was(run, cloud, monkeypatch):
    cloud.history = [price("g5.xlarge", ZONE_A, 0.4), price("g5.xlarge", ZONE_B, 0.5)]

    def killed(self, instance_id=""):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(intent.Intent, "answered", killed)
        assert run.launch()[0] == 130
    (first,) = cloud.instances(run.name)
    # Prices have moved, and EC2's lists do not show the instance yet.
    cloud.history = [price("g5.xlarge", ZONE_A, 0.6), price("g5.xlarge", ZONE_B, 0.5)]
    monkeypatch.setattr(launching, "present", lambda *_: launching.Present((), ()))
    status, out, _ = run.launch()
    assert status == 0
    assert "asking again" in out
    assert first.id in out
    assert cloud.instances(run.name) == [first]


def test_right_after_a_launch_ec2s_lists_need_not_show_it(run, cloud, monkeypatch):
    cloud.history = [price("g5.xlarge", ZONE_A, 0.4), price("g5.xlarge", ZONE_B, 0.5)]
    run.launch()
    cloud.history = [price("g5.xlarge", ZONE_A, 0.6), price("g5.xlarge", ZONE_B, 0.5)]
    monkeypatch.setattr(launching, "present", lambda *_: launching.Present((), ()))
    assert run.launch()[0] == 0
    assert len(cloud.instances(run.name)) == 1


def test_two_commands_at_once_are_one(run, cloud):
    with intent.held(run.name, "us-east-1", f"file://{run.store_path}"):
        status, _, err = run.launch()
    assert status == 1
    assert "another spotd launch" in err
    assert cloud.asked == []


def test_the_same_token_with_other_parameters_finds_what_was_launched(run, cloud, monkeypatch):
    """Another machine, seconds later: another ValidUntil, and lists that lag behind."""
    run.launch()
    (first,) = cloud.instances(run.name)
    monkeypatch.setenv("XDG_STATE_HOME", str(run.config.parent / "elsewhere"))
    monkeypatch.setattr(launching, "present", lambda *_: launching.Present((), ()))
    status, out, err = run.launch("--valid-for", "2d")
    assert status == 0, err
    assert first.id in out
    assert cloud.instances(run.name) == [first]


def test_after_the_end_of_one_another_can_be_launched(run, cloud):
    run.launch()
    (first,) = cloud.instances(run.name)
    assert run.spotd("terminate", "--yes")[0] == 0
    assert cloud.instances(run.name) == []
    assert run.launch()[0] == 0
    (second,) = cloud.instances(run.name)
    assert second.id != first.id


def test_pools_are_asked_in_the_order_of_price(run, cloud):
    run.configure(types='["g5.xlarge", "g6.xlarge"]')
    cloud.history = [
        price("g5.xlarge", ZONE_A, 0.50), price("g5.xlarge", ZONE_B, 0.40),
        price("g6.xlarge", ZONE_A, 0.45), price("g6.xlarge", ZONE_B, 0.30),
    ]  # fmt: skip
    cloud.refuses = dict.fromkeys(
        [("g6.xlarge", ZONE_B, "spot"), SPOT_B, ("g6.xlarge", ZONE_A, "spot")], NO_CAPACITY
    )
    status, out, _ = run.launch()
    assert status == 0
    assert [pool[:2] for pool in cloud.asked] == [
        ("g6.xlarge", ZONE_B), ("g5.xlarge", ZONE_B), ("g6.xlarge", ZONE_A), ("g5.xlarge", ZONE_A)
    ]  # fmt: skip
    assert out.count("no capacity") == 3


def test_a_better_placement_score_outweighs_a_little_money(run, cloud):
    run.configure(types='["g5.xlarge", "g6.xlarge", "g4dn.xlarge"]')
    cloud.history = [price("g5.xlarge", ZONE_A, 0.40), price("g5.xlarge", ZONE_B, 0.44)]
    cloud.scores = {"use1-az6": 1, "use1-az1": 9}  # a's and b's zone ids
    status, out, _ = run.launch()
    assert status == 0
    assert cloud.asked[0][:2] == ("g5.xlarge", ZONE_B)
    assert "9/10" in out


def test_without_capacity_anywhere_it_says_what_was_tried_and_what_to_try(run, cloud):
    cloud.refuses = dict.fromkeys([SPOT_A, SPOT_B], NO_CAPACITY)
    status, _, err = run.launch()
    assert status == 1
    assert f"g5.xlarge in {ZONE_A}, spot: {NO_CAPACITY}" in err
    assert f"g5.xlarge in {ZONE_B}, spot: {NO_CAPACITY}" in err
    assert "--on-demand-fallback" in err
    assert cloud.instances(run.name) == []


def test_on_demand_is_asked_last_and_only_when_wanted(run, cloud):
    cloud.refuses = dict.fromkeys([SPOT_A, SPOT_B], NO_CAPACITY)
    status, _, _ = run.launch("--on-demand-fallback")
    assert status == 0
    assert [market for _, _, market, _ in cloud.asked] == ["spot", "spot", "on-demand"]
    assert cloud.requests(run.name) == []


def test_a_quota_spares_the_other_zones_and_is_named(run, cloud):
    cloud.refuses = dict.fromkeys([SPOT_A, SPOT_B], "MaxSpotInstanceCountExceeded")
    status, _, err = run.launch()
    assert status == 1
    assert len(cloud.asked) == 1
    assert "All G and VT Spot Instance Requests" in err


def test_a_quota_that_is_too_small_for_one_type_may_do_for_another(run, cloud):
    run.configure(types='["g5.12xlarge", "g5.xlarge"]', zones=f'["{ZONE_A}"]')
    cloud.refuses = {("g5.12xlarge", ZONE_A, "spot"): "MaxSpotInstanceCountExceeded"}
    assert run.launch()[0] == 0
    assert [pool[0] for pool in cloud.asked] == ["g5.12xlarge", "g5.xlarge"]


def test_a_request_that_a_refusal_left_open_is_cancelled_before_the_next_pool(run, cloud):
    cloud.history = [price("g5.xlarge", ZONE_A, 0.4), price("g5.xlarge", ZONE_B, 0.5)]
    cloud.refuses, cloud.leaves_open = {SPOT_A: NO_CAPACITY}, True
    assert run.launch()[0] == 0
    states = sorted(r.state for r in cloud.requests(run.name))
    assert states == ["active", "cancelled"]
    assert cloud.calls == ["RunInstances", "CancelSpotInstanceRequests", "RunInstances"]


def test_no_permission_names_action_resource_and_where_the_policy_is(run, cloud):
    cloud.denies = {"ec2:RunInstances"}
    status, _, err = run.launch()
    assert status == 1
    assert "ec2:RunInstances on arn:aws:ec2:us-east-1:123456789012:instance/*" in err
    assert "packaging/aws/operator-policy.md" in err
    assert cloud.asked == []


def test_scores_that_are_not_allowed_are_done_without(run, cloud):
    run.configure(types='["g5.xlarge", "g6.xlarge", "g4dn.xlarge"]')
    cloud.denies = {"ec2:GetSpotPlacementScores"}
    status, out, _ = run.launch()
    assert status == 0
    assert "placement scores are not known" in out
    assert len(cloud.instances(run.name)) == 1


def test_a_dry_run_prints_the_request_and_launches_nothing(run, cloud):
    status, out, _ = run.spotd("launch", "--dry-run")
    assert status == 0
    assert '"SpotInstanceType": "persistent"' in out
    assert '"HttpTokens": "required"' in out
    assert "EC2 would allow it. Nothing was launched." in out
    assert cloud.instances(run.name) == []
    assert list((run.config.parent / "state").glob("**/*.json")) == []


def test_a_dry_run_says_only_once_what_is_the_same_everywhere(run, cloud):
    run.configure("on_demand_fallback = true", zones=f'["{ZONE_A}"]')
    _, out, _ = run.spotd("launch", "--dry-run")
    spot, _, on_demand = out.partition("g5.xlarge in us-east-1a, on-demand: the same with")
    assert '"InstanceMarketOptions": null' in on_demand
    assert "ImageId" in spot
    assert "ImageId" not in on_demand


def test_a_dry_run_in_json_is_what_is_sent(run, cloud):
    _, out, _ = run.spotd("launch", "--dry-run", "--json")
    asks = json.loads(out)["asks"]
    assert [a["Placement"]["AvailabilityZone"] for a in asks] == [ZONE_A, ZONE_B]
    run.launch()
    assert cloud.asked[0][3] == asks[0]["ClientToken"]


def test_a_dry_run_says_that_the_permission_is_missing(run, cloud):
    cloud.denies = {"ec2:RunInstances"}
    status, _, err = run.spotd("launch", "--dry-run")
    assert status == 1
    assert "ec2:RunInstances" in err


def test_a_complete_run_is_not_launched(run, cloud):
    run.open_store().put("completed.json", run.completion())
    status, _, err = run.launch()
    assert status == 1
    assert "is complete" in err
    assert cloud.asked == []


def test_s3_without_an_instance_profile_is_refused(run, cloud):
    text = run.config.read_text().replace(f"file://{run.store_path}", "s3://my-bucket/x")
    run.config.write_text(text)
    status, _, err = run.launch()
    assert status == 1
    assert "--instance-profile" in err
    assert cloud.asked == []


def test_an_image_for_another_processor_is_refused_before_it_costs_anything(run, cloud):
    status, _, err = run.launch("--image", "ami-0fedcba9876543210")
    assert status == 1
    assert "is for arm64, and g5.xlarge is x86_64" in err
    assert cloud.asked == []


def test_a_stopped_instance_of_the_run_is_named_and_no_second_one_launched(run, cloud):
    run.launch()
    cloud.interrupt(run.name)
    (stopped,) = cloud.instances(run.name)
    status, out, err = run.launch()
    assert status == 1
    assert "is stopped: nothing was launched" in err
    assert f"{stopped.id}, g5.xlarge" in out
    assert len(cloud.asked) == 1


def test_an_open_request_without_an_instance_is_named(run, cloud):
    run.launch()
    (request,) = cloud.requests(run.name)
    request.instance.terminate()
    request.instance = None
    request.become("open", "capacity-not-available")
    status, _, err = run.launch()
    assert status == 1
    assert request.id in err
    assert len(cloud.asked) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--instance-type", "G5"], "not an instance type"),
        (["--volume-size", "100"], "100GiB"),
        (["--valid-for", "soon"], "duration"),
        (["--image", "ubunto-24.04"], "did you mean ubuntu-24.04"),
        (["--tag", "spotd:run=x"], "no name for a tag"),
    ],
)
def test_a_wrong_option_is_a_usage_error(run, cloud, arguments, said):
    status, _, err = run.launch(*arguments)
    assert status == 2
    assert said in err


class Stage:
    """The way of one instance, each pause a step of a story."""

    def __init__(self, run, cloud, *story):
        from spotd.config import load
        from spotd.ec2.api import Ec2
        from spotd.ec2.standing import look

        run.launch()
        (self.instance,) = cloud.instances(run.name)
        settings = load(str(run.config))
        self.lines, self._story = [], list(story)
        self.way = Way(
            Ec2("us-east-1"), self.instance.id, lambda: look(settings), self.lines.append
        )

    def follow(self, goal, timeout=60.0):
        follow(self.way, goal, timeout=timeout, sleep=lambda _: self._story.pop(0)(self))


def test_it_watches_until_spotd_there_has_taken_the_run(run, cloud):
    stage = Stage(run, cloud, lambda s: run.take_lease(s.instance.id))
    stage.follow("spotd")
    assert stage.lines[0].startswith("running in us-east-1")
    assert "status checks: ok" in stage.lines
    assert stage.lines[-1] == "spotd there has taken the run, and starts from the beginning"


def test_it_watches_until_a_checkpoint_from_there_is_stored(run, cloud):
    stage = Stage(
        run, cloud, lambda s: run.take_lease(s.instance.id),
        lambda s: run.store_checkpoint(s.instance.id, step=700),
    )  # fmt: skip
    stage.follow("checkpoint")
    assert stage.lines[-1] == "checkpoint 00000001-step-700.pt is stored, step 700"


def test_an_instance_that_ends_is_no_success(run, cloud):
    stage = Stage(run, cloud, lambda s: s.instance.terminate())
    with pytest.raises(SpotdError, match="ended before it trained"):
        stage.follow("spotd")


def test_without_sight_of_the_store_it_watches_what_can_be_seen(run, cloud):
    run.store_path.rmdir()
    status, out, _ = run.spotd("launch")
    assert status == 0
    assert "status checks: ok" in out
    assert "is not mounted on this machine" in out


def test_it_does_not_watch_for_ever(run, cloud):
    run.launch()
    status, out, err = run.spotd("launch", "--timeout", "0")
    assert status == 1
    assert "running in us-east-1" in out
    assert "the instance runs on" in err
