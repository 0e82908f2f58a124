"""What is asked, in which order, and what the answers mean: no network."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotd.config import LaunchSettings
from spotd.core.checkpoint import StoredCheckpoint
from spotd.ec2 import plan, words
from spotd.ec2.ending import Alive, judge
from spotd.ec2.problems import Denied, refused
from spotd.ec2.standing import Standing

NOW = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
WANTED = plan.Wanted("r", "s3://b/p", LaunchSettings(), "#cloud-config\n", NOW)
IMAGE = plan.Image("ami-1", "/dev/xvda", 8 * plan.GIB, "x86_64")
A = plan.Pool("g5.xlarge", "us-east-1a")


def ordered(prices, scores=(), types=("a.large", "b.large"), zones=("z1", "z2")):
    found = plan.pools(
        {(t, z) for t in types for z in zones},
        types=types, zones=(), subnets={}, prices=prices, scores=dict(scores),
    )  # fmt: skip
    return [(p.instance_type, p.zone) for p in found]


def test_the_cheapest_pool_comes_first_and_what_has_no_price_last():
    prices = {("a.large", "z1"): 3.0, ("b.large", "z2"): 1.0, ("a.large", "z2"): 2.0}
    assert ordered(prices) == [
        ("b.large", "z2"), ("a.large", "z2"), ("a.large", "z1"), ("b.large", "z1")
    ]  # fmt: skip


def test_among_equals_the_users_order_of_types_decides():
    assert ordered({}, types=("b.large", "a.large"), zones=("z1",)) == [
        ("b.large", "z1"), ("a.large", "z1")
    ]  # fmt: skip


def test_each_missing_point_of_score_counts_a_tenth_of_the_price():
    prices = {("a.large", "z1"): 1.0, ("a.large", "z2"): 1.1}
    assert ordered(prices, {"z1": 8, "z2": 10}, types=("a.large",))[0] == ("a.large", "z2")
    assert ordered(prices, {"z1": 10, "z2": 10}, types=("a.large",))[0] == ("a.large", "z1")


@given(st.permutations(["us-east-1a", "us-east-1b", "us-east-1c"]), st.data())
def test_the_order_does_not_depend_on_the_order_of_answers(zones, data):
    prices = {("a.large", z): data.draw(st.floats(0.01, 100)) for z in zones}
    first = ordered(prices, types=("a.large",), zones=tuple(zones))
    assert first == ordered(prices, types=("a.large",), zones=tuple(sorted(zones)))


def test_the_token_depends_on_run_place_and_past_and_on_nothing_that_moves():
    def token(wanted=WANTED, pool=A, market=plan.SPOT, past=()):
        return plan.ask(wanted, pool, IMAGE, market, past).parameters["ClientToken"]

    assert token() == token(replace(WANTED, valid_until=NOW + timedelta(days=1), user_data="x"))
    assert token() == token(pool=replace(A, price=0.3, score=4))
    others = {
        token(replace(WANTED, run="other")), token(replace(WANTED, store_url="s3://c")),
        token(pool=plan.Pool("g5.xlarge", "us-east-1b")), token(market=plan.ON_DEMAND),
        token(past=("i-1",)), token(),
    }  # fmt: skip
    assert len(others) == 6
    assert token(past=("i-1", "i-2")) == token(past=("i-2", "i-1"))
    assert all(len(t) <= 64 and t.isascii() for t in others)


def test_a_subnet_takes_the_place_of_the_zone():
    parameters = plan.ask(WANTED, replace(A, subnet="subnet-1"), IMAGE, plan.SPOT).parameters
    assert parameters["SubnetId"] == "subnet-1"
    assert "Placement" not in parameters


def test_no_maximum_price_is_ever_asked_for():
    options = plan.ask(WANTED, A, IMAGE, plan.SPOT).parameters["InstanceMarketOptions"]
    assert options["SpotOptions"] == {
        "SpotInstanceType": "persistent",
        "InstanceInterruptionBehavior": "stop",
        "ValidUntil": NOW,
    }


def test_on_demand_has_no_market_options_and_tags_no_request():
    parameters = plan.ask(WANTED, A, IMAGE, plan.ON_DEMAND).parameters
    assert "InstanceMarketOptions" not in parameters
    assert [t["ResourceType"] for t in parameters["TagSpecifications"]] == ["instance", "volume"]


def test_the_root_volume_is_never_smaller_than_the_image():
    big = replace(IMAGE, size=300 * plan.GIB)
    (device,) = plan.ask(WANTED, A, big, plan.SPOT).parameters["BlockDeviceMappings"]
    assert device["DeviceName"] == "/dev/xvda"
    assert device["Ebs"]["VolumeSize"] == 300


@pytest.mark.parametrize(
    ("instance_type", "quota"),
    [("g5.xlarge", "G and VT"), ("p4d.24xlarge", "P"), ("trn1.2xlarge", "Trn"),
     ("inf2.xlarge", "Inf"), ("m7i-flex.large", "Standard"), ("dl1.24xlarge", "DL")],
)  # fmt: skip
def test_quotas_have_the_names_of_the_console(instance_type, quota):
    assert plan.quota(instance_type).startswith(f"All {quota}")


def situation(code, state="stopped", held="open", until=None, kind="persistent"):
    request = {"State": held, "Status": {"Code": code}, "Type": kind}
    if until is not None:
        request["ValidUntil"] = until
    instance = {"InstanceId": "i-1", "State": {"Name": state}, "InstanceLifecycle": "spot"}
    return words.explain(instance if state else None, request, NOW)


@pytest.mark.parametrize(
    ("code", "state", "held", "again"),
    [
        ("fulfilled", "running", "active", "runs"),
        ("fulfilled", "pending", "active", "runs"),
        ("marked-for-stop", "running", "active", "yes"),
        ("instance-stopped-no-capacity", "stopped", "open", "yes"),
        ("instance-stopped-by-price", "stopped", "open", "yes"),
        ("instance-stopped-by-user", "stopped", "disabled", "no"),
        ("fulfilled", "stopped", "disabled", "no"),
        ("instance-stopped-by-experiment", "stopped", "open", "no"),
        ("capacity-not-available", "stopped", "open", "yes"),
        ("price-too-low", "stopped", "open", "unknown"),
        ("constraint-not-fulfillable", "stopped", "open", "no"),
        ("limit-exceeded", "stopped", "open", "unknown"),
        ("request-canceled-and-instance-running", "running", "cancelled", "no"),
        ("instance-terminated-no-capacity", "terminated", "closed", "no"),
        ("instance-terminated-by-user", "terminated", "open", "yes"),
        ("instance-terminated-by-experiment", "terminated", "open", "yes"),
        ("schedule-expired", "stopped", "closed", "no"),
        ("fulfilled", "running", "cancelled", "no"),
        ("never-heard-of", "stopped", "open", "unknown"),
    ],
)
def test_whether_ec2_starts_it_again(code, state, held, again):
    found = situation(code, state, held)
    assert found.again == again
    assert found.what


def test_a_terminated_instance_of_an_open_persistent_request_comes_back_as_a_fresh_one():
    found = situation("instance-terminated-by-user", "terminated", "open")
    assert "fresh instance" in found.todo
    assert "terminate" in found.todo
    assert (
        situation("instance-terminated-by-user", "terminated", "closed", kind="one-time").again
        == "no"
    )


def test_a_request_whose_time_is_over_starts_nothing():
    hour = timedelta(hours=1)
    code = "instance-stopped-no-capacity"
    assert situation(code, until=NOW + hour).again == "yes"
    assert situation(code, until=NOW - hour).again == "no"


def test_every_code_of_the_facts_is_known():
    known = set(words.CODES)
    text = """fulfilled marked-for-stop instance-stopped-no-capacity instance-stopped-by-price
        instance-stopped-by-user capacity-not-available price-too-low constraint-not-fulfillable
        limit-exceeded request-canceled-and-instance-running instance-terminated-by-price
        instance-terminated-no-capacity instance-terminated-by-user instance-terminated-by-schedule
        instance-stopped-by-experiment instance-terminated-by-experiment"""
    assert set(text.split()) <= known


def test_without_a_request_it_is_on_demand_or_on_its_own():
    spot = {"State": {"Name": "running"}, "InstanceLifecycle": "spot"}
    assert words.explain(spot, None, NOW).again == "no"
    assert words.explain({"State": {"Name": "running"}}, None, NOW).again == "runs"
    assert words.explain({"State": {"Name": "stopped"}}, None, NOW).again == "no"


def stored(created, sequence=1):
    return StoredCheckpoint("00000001-a", sequence, 1, "a", "file", 1, 10, created, 0, "i-1")


@pytest.mark.parametrize(
    ("standing", "alive", "safe"),
    [
        (Standing(), Alive("i-1", "running"), True),
        (Standing(holder="i-1", lease_left=800), Alive("i-1", "running"), False),
        (
            Standing(holder="i-1", lease_left=800, newest=stored(990)),
            Alive("i-1", "running"),
            False,
        ),
        (Standing(True, "i-1", 800), Alive("i-1", "running"), True),
        (Standing(holder="i-0", lease_left=800), Alive("i-1", "running"), True),
        (Standing(holder="i-1", lease_left=-10, newest=stored(980)), Alive("i-1", "running"), True),
        (Standing(holder="i-1", lease_left=-10, newest=stored(0)), Alive("i-1", "running"), False),
        (Standing(holder="i-1", newest=stored(100)), Alive("i-1", "stopped", 200), True),
        (Standing(holder="i-1", newest=stored(100)), Alive("i-1", "stopped", 900), False),
        (Standing(holder="i-1", newest=stored(100)), Alive("i-1", "stopped"), False),
        (Standing(holder="i-1"), Alive("i-1", "stopped", 900), False),
    ],
)
def test_what_may_end_without_losing_work(standing, alive, safe):
    found = judge(standing, [alive], 1000.0)
    assert found.safe is safe
    assert bool(found.reason) is not safe


def test_a_refusal_names_what_aws_itself_names():
    text = (
        "You are not authorized to perform this operation. User: arn:aws:iam::1:user/ann is not "
        "authorized to perform: iam:PassRole on resource: arn:aws:iam::1:role/spotd because no "
        "identity-based policy allows the iam:PassRole action."
    )
    found = refused("UnauthorizedOperation", text, "ec2:RunInstances", "*")
    assert isinstance(found, Denied)
    assert "iam:PassRole on arn:aws:iam::1:role/spotd" in found.message


def test_a_bare_refusal_names_what_was_asked():
    found = refused("UnauthorizedOperation", "You are not authorized.", "ec2:RunInstances", "arn:x")
    assert "ec2:RunInstances on arn:x" in found.message


def test_of_what_is_not_answered_nothing_is_claimed():
    assert not refused("InternalError", "", "ec2:RunInstances", "*").sure
    assert refused("InsufficientInstanceCapacity", "", "ec2:RunInstances", "*").sure


def test_the_operators_policy_allows_what_the_code_asks_for_and_says_why():
    root = Path(__file__).parents[2]
    source = "".join(p.read_text() for p in (root / "spotd/ec2").glob("*.py"))
    used = set(re.findall(r'"((?:ec2|ssm|pricing):[A-Z][A-Za-z]+)"', source))
    assert len(used) > 10
    policy = json.loads((root / "packaging/aws/operator-policy.json").read_text())
    actions = [s["Action"] for s in policy["Statement"]]
    allowed = {a for each in actions for a in ([each] if isinstance(each, str) else each)}
    assert used <= allowed
    table = (root / "packaging/aws/operator-policy.md").read_text()
    explained = re.findall(r"^\| `([a-z0-9]+:[A-Za-z]+)` \| \S", table, re.MULTILINE)
    assert sorted(explained) == sorted(allowed)
