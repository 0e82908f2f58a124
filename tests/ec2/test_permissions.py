"""Each action that the operator's policy lacks is named, with what it is wanted on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

POLICY = Path(__file__).parents[2] / "packaging/aws/operator-policy.json"
LAUNCH = ("launch", "--until", "launched")


def actions():
    for statement in json.loads(POLICY.read_text())["Statement"]:
        found = statement["Action"]
        yield from [found] if isinstance(found, str) else found


@pytest.fixture
def allowing(cloud, monkeypatch):
    """`allowing(actions)`: from here on whoever calls may do just that, by moto's own IAM."""
    import boto3
    from moto import settings
    from moto.core.responses import ActionAuthenticatorMixin

    from spotd.ec2 import api

    iam = boto3.client("iam", endpoint_url=cloud.url, region_name="us-east-1")
    iam.create_user(UserName="ann")

    def forget():
        """The clients are kept between tests, with the credentials they were made with."""
        with contextlib.suppress(AttributeError):
            api.client.cache_clear()

    def allow(wanted):
        forget()
        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", float("inf"))
        iam.put_user_policy(
            UserName="ann", PolicyName="narrow",
            PolicyDocument=json.dumps({
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Action": sorted(wanted), "Resource": "*"}],
            }),
        )  # fmt: skip
        key = iam.create_access_key(UserName="ann")["AccessKey"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
        monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 0)

    yield allow
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", float("inf"))
    forget()
    for key in iam.list_access_keys(UserName="ann")["AccessKeyMetadata"]:
        iam.delete_access_key(UserName="ann", AccessKeyId=key["AccessKeyId"])
    with contextlib.suppress(iam.exceptions.NoSuchEntityException):
        iam.delete_user_policy(UserName="ann", PolicyName="narrow")
    iam.delete_user(UserName="ann")


def test_the_operators_policy_is_enough_to_launch_list_and_end(run, cloud, allowing):
    allowing(actions())
    status, _, err = run.launch()
    assert status == 0, err
    assert run.spotd("instances")[0] == 0
    status, _, err = run.spotd("terminate", "--yes")
    assert status == 0, err
    assert cloud.instances(run.name) == []


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("ec2:DescribeInstances", LAUNCH),
        ("ec2:DescribeSpotInstanceRequests", LAUNCH),
        ("ec2:RunInstances", LAUNCH),
        ("ec2:RunInstances", ("launch", "--dry-run")),
        ("ec2:DescribeInstanceTypes", LAUNCH),
        ("ec2:DescribeInstanceTypeOfferings", LAUNCH),
        ("ec2:DescribeImages", LAUNCH),
        ("ssm:GetParameter", LAUNCH),
        ("ec2:DescribeInstances", ("instances",)),
        ("ec2:DescribeSpotInstanceRequests", ("instances", "--json")),
        ("ec2:DescribeSpotPriceHistory", ("prices",)),
    ],
)
def test_what_cannot_be_done_without_names_the_action_and_changes_nothing(
    run, cloud, allowing, action, words
):
    allowing(set(actions()) - {action})
    status, out, err = run.spotd(*words)
    assert status == 1, out
    assert f"do not allow {action} on " in err
    assert "packaging/aws/operator-policy.md" in err
    assert "Traceback" not in err
    assert cloud.instances(run.name) == []


@pytest.mark.parametrize(
    "action",
    ["ec2:DescribeSpotPriceHistory", "ec2:GetSpotPlacementScores", "ec2:DescribeAvailabilityZones"],
)
def test_what_can_be_done_without_is_done_without_and_said(run, cloud, allowing, action):
    run.configure(types='["g5.xlarge", "g4dn.xlarge", "t3.micro"]')
    allowing(set(actions()) - {action})
    status, out, err = run.launch()
    assert status == 0, err
    assert action in out
    assert len(cloud.instances(run.name)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ("AWS_PROFILE", "nobody"),
        ("AWS_DEFAULT_REGION", "no region"),
        ("AWS_ENDPOINT_URL", "not a url"),
    ],
    ids=lambda pair: pair[0],
)
@pytest.mark.parametrize("verb", ["instances", "prices", "launch", "terminate"])
def test_an_aws_configuration_that_cannot_be_used_is_said_in_a_line(
    run, cloud, monkeypatch, wrong, verb
):
    from spotd.ec2 import api

    monkeypatch.setattr(api, "client", getattr(api.client, "__wrapped__", api.client))
    monkeypatch.setenv(*wrong)
    status, _, err = run.spotd(verb)
    assert status == 1
    assert wrong[1] in err
    assert "AWS_PROFILE" in err


@pytest.mark.parametrize("action", ["ec2:CancelSpotInstanceRequests", "ec2:TerminateInstances"])
def test_what_is_missing_to_end_is_named_and_a_repeated_command_ends_it(
    run, cloud, allowing, action
):
    run.launch()
    allowing(set(actions()) - {action})
    status, _, err = run.spotd("terminate", "--yes")
    assert status == 1
    assert f"do not allow {action} on arn:aws:ec2:" in err
    assert len(cloud.instances(run.name)) == 1
    allowing(actions())
    status, _, err = run.spotd("terminate", "--yes")
    assert status == 0, err
    assert cloud.instances(run.name) == []
    (request,) = cloud.requests(run.name)
    assert request.state == "cancelled"
