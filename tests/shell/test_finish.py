"""`completion.action` against moto's EC2, over HTTP: what is done, in which order, and when not."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from account_kit import IMAGE

from spotd.errors import SpotdError
from spotd.shell import finish
from spotd.shell.account import Denied
from spotd.shell.finish import carry_out, finish_instance
from spotd.testing.stage import wait_until


class Watched:
    """An EC2 client that notes what it was asked to change."""

    def __init__(self, ec2):
        self.ec2, self.calls = ec2, []

    def __getattr__(self, name):
        method = getattr(self.ec2, name)
        if name.startswith("describe"):
            return method

        def note(**arguments):
            self.calls.append(name)
            return method(**arguments)

        return note


@pytest.fixture
def ec2(account):
    return Watched(account.client("ec2"))


def test_the_request_is_cancelled_before_the_instance_is_terminated(account, ec2):
    instance, _ = account.spot_instance()
    carry_out(ec2, "terminate", instance)
    assert ec2.calls == ["cancel_spot_instance_requests", "terminate_instances"]
    assert account.state_of(instance) == "terminated"
    found = ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
    assert [r for r in found if r["State"] in ("open", "active")] == []


def test_done_again_nothing_is_done(account, ec2):
    instance, _ = account.spot_instance()
    carry_out(ec2, "terminate", instance)
    ec2.calls.clear()
    carry_out(ec2, "terminate", instance)
    carry_out(ec2, "stop", instance)
    assert ec2.calls == []


def test_an_instance_without_a_request_is_terminated(account, ec2):
    made = account.client("ec2").run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1)
    instance = made["Instances"][0]["InstanceId"]
    carry_out(ec2, "terminate", instance)
    assert ec2.calls == ["terminate_instances"]


def test_a_stop_leaves_the_request_alone(account, ec2):
    instance, request = account.spot_instance()
    carry_out(ec2, "stop", instance)
    assert ec2.calls == ["stop_instances"]
    assert account.state_of(instance) == "stopped"
    assert account.request_state(request) == "active"
    carry_out(ec2, "stop", instance)
    assert ec2.calls == ["stop_instances"], "not twice"


def test_a_request_that_is_not_to_be_found_keeps_the_instance_from_being_terminated(account, ec2):
    """EC2 would open the persistent request again, and launch another instance."""
    made = account.client("ec2").run_instances(
        ImageId=IMAGE, MinCount=1, MaxCount=1, InstanceMarketOptions={"MarketType": "spot"}
    )
    instance = made["Instances"][0]["InstanceId"]
    with pytest.raises(SpotdError, match="its request is not to be found"):
        carry_out(ec2, "terminate", instance)
    assert account.state_of(instance) == "running"


def test_a_request_that_does_not_become_cancelled_keeps_it_too(account, ec2):
    instance, request = account.spot_instance()
    ec2.ec2 = SimpleNamespace(
        describe_instances=account.client("ec2").describe_instances,
        describe_spot_instance_requests=account.client("ec2").describe_spot_instance_requests,
        cancel_spot_instance_requests=lambda **_: {
            "CancelledSpotInstanceRequests": [{"SpotInstanceRequestId": request, "State": "active"}]
        },
    )
    with pytest.raises(SpotdError, match="not cancelled"):
        carry_out(ec2, "terminate", instance)
    assert account.state_of(instance) == "running"


@pytest.mark.parametrize(
    ("allowed", "lacking"),
    [
        ([], "ec2:DescribeInstances"),
        (["ec2:DescribeInstances"], "ec2:DescribeSpotInstanceRequests"),
        (["ec2:Describe*"], "ec2:CancelSpotInstanceRequests"),
        (["ec2:Describe*", "ec2:CancelSpotInstanceRequests"], "ec2:TerminateInstances"),
    ],
)
def test_what_the_policy_lacks_is_named_and_nothing_is_terminated(
    account, monkeypatch, allowed, lacking
):
    instance, _ = account.spot_instance()
    for name, value in account.user_who_may("s3:GetObject", *allowed).items():
        monkeypatch.setenv(name, value)
    account.policies_count()
    from spotd.shell.account import client

    with pytest.raises(Denied) as denied:
        carry_out(client("ec2", "us-east-1"), "terminate", instance)
    account.policies_count(False)
    assert denied.value.action == lacking
    assert lacking in denied.value.hint
    assert account.state_of(instance) == "running"


# --- as the daemon does it -----------------------------------------------------------


def test_the_daemons_helper_terminates_after_people_have_been_told(account):
    instance, _ = account.spot_instance()
    told, lines = threading.Event(), []

    def before():
        assert account.state_of(instance) == "running"
        told.set()

    finish_instance("terminate", instance, "us-east-1", lines.append, before=before)
    wait_until(lambda: account.state_of(instance) == "terminated", within=60, what="the end")
    assert told.is_set()
    assert lines == []


def test_what_fails_is_told_once_and_tried_again(account, monkeypatch):
    monkeypatch.setattr(finish, "FIRST_PAUSE", 0.05)
    tries, lines, done = [], [], threading.Event()

    def once(*_):
        tries.append(1)
        if len(tries) == 4:
            done.set()
            return ""
        return "not allowed: ec2:TerminateInstances on i-1"

    monkeypatch.setattr(finish, "_once", once)
    finish_instance("terminate", "i-1", "us-east-1", lines.append)
    assert done.wait(30)
    assert [line.name for line in lines] == ["finish_failed"]
    assert "ec2:TerminateInstances" in lines[0].message


def test_it_gives_up_after_an_hour_and_says_so(monkeypatch):
    monkeypatch.setattr(finish, "GIVE_UP_AFTER", 0.2)
    monkeypatch.setattr(finish, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(finish, "_once", lambda *_: "no")
    lines = []
    finish_instance("stop", "i-1", None, lines.append)
    wait_until(lambda: len(lines) == 2, within=30, what="the last word")
    assert "by hand" in lines[-1].message


def test_a_machine_that_is_no_instance_is_left_alone():
    lines = []
    finish_instance("terminate", "laptop-1234", None, lines.append)
    assert [line.name for line in lines] == ["finish_failed"]
