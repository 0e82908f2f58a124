from __future__ import annotations

import time

import pytest

from spotd.testing.stage import wait_until


@pytest.mark.parametrize(
    "mood",
    ["401", "403", "500", "503", "garbage", "noise", "truncated", "hang", "closed", "reset", "huge",
     "redirect"],
)  # fmt: skip
def test_trouble_with_the_metadata_is_reported_once_and_once_when_it_ends(build, imds, mood):
    machine = build(sections={"imds": {"timeout": 0.3}})
    machine.boot()
    pid = machine.wait_for_steps(3)[0]["pid"]
    imds.mood(mood)
    machine.wait_for_event("imds_blind")
    status = machine.status()
    assert not status["imds"]["ok"]
    assert status["imds"]["blind_since"]
    assert "IMDS blind since" in status["line"]
    before = len(imds.questions)
    if mood not in ("closed", "reset"):
        machine.wait(lambda: len(imds.questions) > before + 1, "more questions")
    machine.wait_for_steps(10)
    imds.well()
    machine.wait_for_event("imds_back")
    assert machine.status()["imds"]["ok"]
    assert machine.status()["imds"]["blind_since"] is None
    assert len(machine.named("imds_blind")) == 1
    assert len(machine.named("imds_back")) == 1
    assert machine.steps()[-1]["pid"] == pid


def test_no_notice_is_no_trouble(build, imds):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    imds.forget_tokens()  # an expired token is renewed in the same poll
    before = len(imds.questions)
    machine.wait(lambda: len(imds.questions) >= before + 8, "polls")
    assert machine.named("imds_blind") == []
    assert machine.status()["imds"]["ok"]


def test_without_any_metadata_service_it_trains_and_says_so(build):
    machine = build(imds_url="http://127.0.0.1:9")
    machine.boot()
    machine.wait_for_steps(3)
    machine.wait_for_event("imds_blind")
    assert machine.status()["state"] == "running"


def test_a_notice_is_seen_as_soon_as_the_metadata_answer_again(build, imds):
    machine = build(sections={"imds": {"timeout": 0.3}})
    machine.boot()
    machine.wait_for_steps(3)
    imds.mood("hang")
    machine.wait_for_event("imds_blind")
    imds.give_notice()
    imds.well()
    assert machine.wait_for_state("drained")["checkpoint"]["newest"]["stored"]


def test_the_poll_waits_for_nothing_else(build, imds):
    """Not for the disk, not for the store, not for a trainer that takes its time."""
    machine = build("--save-takes", 0.5, "--save-every", 10, "--size", 2_000_000)
    machine.boot()
    machine.wait_for_steps(30)
    asked = [q.at for q in imds.questions if q.path.endswith("spot/instance-action")]
    wait_until(
        lambda: (
            len([q for q in imds.questions if q.path.endswith("instance-action")]) >= len(asked) + 5
        ),
        within=30,
        what="five polls more",
    )
    assert time.monotonic() - asked[-1] < 10
