"""The watcher against a metadata service in every mood, over real sockets."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spotd.config import ImdsSettings
from spotd.core.events import MetadataAnswered, MetadataFailed
from spotd.shell.clouds import MetadataTrouble
from spotd.shell.clouds.ec2 import (
    Ec2Metadata,
    read_action,
    read_rebalance,
    read_scheduled,
    read_time,
)
from spotd.shell.clouds.http import MOST_BODY, Endpoint
from spotd.shell.imds import InstanceIdentity, MetadataWatcher, next_due
from spotd.testing.imds import MetadataSimulator

ACTION = "spot/instance-action"
DEADLINE = 20.0  # for a condition; nothing waits this long when all is well


@pytest.fixture
def imds():
    with MetadataSimulator() as simulator:
        yield simulator


class Events:
    """What a watcher posted."""

    def __init__(self):
        self.queue = queue.SimpleQueue()

    def next(self):
        return self.queue.get(timeout=DEADLINE)

    def until(self, wanted):
        """The first event that `wanted` is true of."""
        end = time.monotonic() + DEADLINE
        last = None
        while time.monotonic() < end:
            last = self.queue.get(timeout=DEADLINE)
            if wanted(last):
                return last
        raise AssertionError(f"never came; the last was {last}")

    def failure(self):
        return self.until(lambda event: isinstance(event, MetadataFailed))

    def answer(self):
        return self.until(lambda event: isinstance(event, MetadataAnswered))


def settings_for(url, **changes):
    return ImdsSettings(**{"endpoint": url, "poll_interval": 0.05, "timeout": 5.0, **changes})


@contextmanager
def watching(url, **changes):
    events = Events()
    watcher = MetadataWatcher(settings_for(url, **changes), events.queue.put, cloud="ec2")
    watcher.start()
    events.watcher = watcher
    try:
        yield events
    finally:
        watcher.stop()
        assert watcher.join(DEADLINE)


def poll(source, timeout=5.0):
    """One poll: what was said early, and what at the end."""
    early = []
    return early, source.poll(timeout, early.append)


# --- notices ---


def test_a_quiet_instance_is_answered_with_nothing(imds):
    with watching(imds.url) as events:
        assert events.next() == MetadataAnswered()


def test_a_notice_is_posted_with_its_action_and_time(imds):
    imds.give_notice("stop", in_seconds=120)
    with watching(imds.url) as events:
        notice = events.next()
    assert notice.action == "stop"
    assert 110 < notice.time - time.time() <= 120


@pytest.mark.parametrize("action", ["stop", "terminate", "hibernate"])
def test_every_action_is_told_apart(imds, action):
    imds.give_notice(action)
    assert poll(Ec2Metadata(settings_for(imds.url)))[1].action == action


def test_a_withdrawn_notice_is_posted_as_gone(imds):
    imds.give_notice()
    with watching(imds.url) as events:
        assert events.next().action == "stop"
        imds.withdraw()
        assert events.until(lambda event: event.action is None) == MetadataAnswered()


def test_a_sliding_time_is_passed_on_as_it_slides():
    clock = [1_700_000_000.0]
    with MetadataSimulator(clock=lambda: clock[0]) as imds:
        imds.slide(in_seconds=120)
        source = Ec2Metadata(settings_for(imds.url))
        first = poll(source)[1].time
        clock[0] += 5
        assert poll(source)[1].time == first + 5


def test_a_notice_does_not_wait_for_the_other_questions(imds):
    imds.give_notice()
    imds.mood("hang", path="events/")
    with watching(imds.url) as events:
        assert events.next().action == "stop"
        # It was posted while the next question hung: the hang is still the newest question.
        assert imds.questions[-1].path.endswith(("instance-action", "rebalance"))
        imds.well()  # lets the watcher end


def test_a_notice_beside_other_trouble_never_counts_as_blind(imds):
    imds.give_notice()
    imds.mood("500", path="events/")
    with watching(imds.url) as events:
        seen = [events.next() for _ in range(6)]
    assert {type(event) for event in seen} == {MetadataAnswered}


def test_a_notice_that_goes_away_beside_other_trouble_is_known_to_be_gone(imds):
    imds.give_notice()
    imds.mood("500", path="rebalance")
    with watching(imds.url) as events:
        assert events.next().action == "stop"
        imds.withdraw()
        assert events.until(
            lambda event: isinstance(event, MetadataAnswered) and event.action is None
        )
        assert "rebalance" in events.failure().reason


@pytest.mark.parametrize(
    "said",
    ['{"action": "stop"}', '{"action": "stop", "time": 5}', '{"action": "STOP", "time": ""}'],
)
def test_a_notice_without_a_usable_time_is_a_notice_all_the_same(imds, said):
    imds.say(said)
    answer = poll(Ec2Metadata(settings_for(imds.url)))[1]
    assert (answer.action, answer.time) == ("stop", None)


# --- recommendations and scheduled events ---


def test_a_rebalance_recommendation_comes_with_its_time(imds):
    imds.rebalance()
    answer = poll(Ec2Metadata(settings_for(imds.url)))[1]
    assert answer.rebalance == imds.state()["rebalance"]
    assert answer.action is None


def test_a_notice_and_a_recommendation_at_once_are_both_posted(imds):
    imds.give_notice()
    imds.rebalance()
    with watching(imds.url) as events:
        assert events.next().action == "stop"
        assert events.until(lambda event: event.rebalance is not None).action == "stop"


def test_scheduled_events_come_with_id_code_and_start(imds):
    name = imds.schedule("system-reboot", in_seconds=3600)
    answer = poll(Ec2Metadata(settings_for(imds.url)))[1]
    (event,) = answer.events
    assert event[:2] == (name, "system-reboot")
    assert event[2].endswith(" GMT")


def test_a_finished_event_is_no_longer_scheduled(imds):
    name = imds.schedule()
    source = Ec2Metadata(settings_for(imds.url))
    assert len(poll(source)[1].events) == 1
    imds.finish_event(name, state="canceled")
    assert poll(source)[1].events == ()


# --- tokens ---


def test_one_token_serves_many_polls(imds):
    source = Ec2Metadata(settings_for(imds.url))
    for _ in range(4):
        poll(source)
    assert [q.method for q in imds.questions].count("PUT") == 1


def test_a_token_that_is_forgotten_is_replaced_within_the_poll(imds):
    source = Ec2Metadata(settings_for(imds.url))
    poll(source)
    imds.forget_tokens()
    imds.give_notice()
    assert poll(source)[1].action == "stop"
    stale, new = [
        q.headers["x-aws-ec2-metadata-token"] for q in imds.questions if q.method == "GET"
    ][3:5]
    assert stale != new


def test_a_token_is_renewed_at_half_of_its_life_after_the_questions(imds):
    source = Ec2Metadata(settings_for(imds.url))
    poll(source)
    source._token_ends = time.monotonic() + 1000
    source._token_got = source._token_ends - 5000
    poll(source)
    assert imds.questions[-1].method == "PUT"
    assert [q.method for q in imds.questions].count("PUT") == 2


def test_no_header_says_that_the_question_was_forwarded(imds):
    poll(Ec2Metadata(settings_for(imds.url)))
    assert not any("x-forwarded-for" in q.headers for q in imds.questions)


def test_a_hop_limit_that_is_too_low_is_recognised(imds):
    imds.configure(hops=2)
    with pytest.raises(MetadataTrouble) as trouble:
        poll(Ec2Metadata(settings_for(imds.url)), timeout=1.0)
    assert "hop" in trouble.value.hint


def test_version_1_is_not_used_unasked(imds):
    imds.configure(v1=True)
    imds.mood("404", path="api/token")
    with pytest.raises(MetadataTrouble):
        poll(Ec2Metadata(settings_for(imds.url)))
    assert not any(q.method == "GET" for q in imds.questions)


@pytest.mark.parametrize("trouble", ["404", "403", "hang"])
def test_version_1_is_used_where_no_token_can_be_had_and_the_user_allows_it(imds, trouble):
    imds.configure(v1=True)
    imds.mood(trouble, path="api/token")
    imds.give_notice()
    source = Ec2Metadata(settings_for(imds.url, v1_fallback=True))
    assert poll(source, timeout=2.0)[1].action == "stop"
    poll(source, timeout=2.0)
    assert [q.method for q in imds.questions].count("PUT") == 1


def test_version_1_that_is_off_leads_back_to_version_2(imds):
    imds.mood("hang", path="api/token")
    source = Ec2Metadata(settings_for(imds.url, v1_fallback=True))
    with pytest.raises(MetadataTrouble, match="401"):
        poll(source, timeout=1.0)
    imds.well()
    assert poll(source)[1] == MetadataAnswered()


# --- trouble ---

MOODS = ["401", "403", "404", "500", "503", "418", "garbage", "noise", "truncated", "hang",
         "trickle", "closed", "reset", "huge", "redirect"]  # fmt: skip


@pytest.mark.parametrize("mood", MOODS)
def test_trouble_is_posted_and_ends_with_the_trouble(imds, mood):
    with watching(imds.url, timeout=0.4) as events:
        events.answer()
        imds.mood(mood, seconds=0.05)
        if mood != "404":  # with a token in hand, 404 only means that there is nothing to say
            failure = events.failure()
            assert failure.reason
            assert "\n" not in failure.reason + failure.hint
        imds.well()
        imds.give_notice()
        wanted = events.until(lambda e: isinstance(e, MetadataAnswered) and e.action is not None)
        assert wanted.action == "stop"


@pytest.mark.parametrize("mood", MOODS)
def test_a_start_in_trouble_is_trouble_until_it_ends(imds, mood):
    imds.mood(mood, seconds=0.05)
    with watching(imds.url, timeout=0.4) as events:
        assert events.next().reason
        imds.well()
        assert events.answer() == MetadataAnswered()


@pytest.mark.parametrize("mood", ["hang", "trickle", "huge", "slow"])
@pytest.mark.parametrize("path", ["api/token", ACTION, "rebalance", "scheduled"])
def test_a_whole_poll_is_bounded_however_slowly_it_is_answered(imds, mood, path):
    imds.mood(mood, path=path, seconds=0.1 if mood == "trickle" else 30.0)
    source = Ec2Metadata(settings_for(imds.url))
    begin = time.monotonic()
    with pytest.raises(MetadataTrouble):
        poll(source, timeout=0.3)
    assert time.monotonic() - begin < 10.0  # twice 0.3 s, on a machine that does much else


def test_a_service_that_is_off_says_how_to_switch_it_on(imds):
    imds.mood("403")
    with watching(imds.url) as events:
        assert "--http-endpoint enabled" in events.failure().hint


def test_a_throttled_watcher_asks_less_often(imds):
    imds.mood("503")
    with watching(imds.url) as events:
        for _ in range(4):
            assert "503" in events.failure().reason
        assert events.watcher._pause() >= 8 * 0.05
        imds.well()
        events.answer()
        events.answer()
        assert events.watcher._pause() == 0.0


def test_throttled_side_questions_are_left_out_and_notices_are_still_asked_for(imds):
    imds.mood("503", path="rebalance")
    source = Ec2Metadata(settings_for(imds.url))

    def outcome():
        try:
            poll(source)
        except MetadataTrouble as trouble:
            return "asked, notices seen" if trouble.notices_seen else "blind"
        return "left out"

    asked = "asked, notices seen"
    assert [outcome() for _ in range(6)] == [
        asked, "left out", asked, "left out", "left out", asked,
    ]  # fmt: skip
    assert sum(q.path.endswith(ACTION) for q in imds.questions) == 6


def test_nobody_at_the_address_is_trouble_with_a_hint():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused for sure
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with watching(url) as events:
            failure = events.failure()
    assert "refused" in failure.reason
    assert failure.hint


def test_a_name_that_does_not_exist_is_trouble():
    with pytest.raises(MetadataTrouble):
        poll(Ec2Metadata(settings_for("http://no-such-host.invalid")), timeout=10.0)


def test_a_body_up_to_the_limit_is_read_whole_and_none_beyond_it(imds):
    imds.say(" " * (MOST_BODY - 20) + '{"action": "stop"}')
    assert poll(Ec2Metadata(settings_for(imds.url)))[1].action == "stop"
    imds.say(" " * MOST_BODY + '{"action": "stop"}')
    with pytest.raises(MetadataTrouble, match="larger than 64 KiB"):
        poll(Ec2Metadata(settings_for(imds.url)))


def test_proxies_of_the_environment_are_ignored(imds, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert poll(Ec2Metadata(settings_for(imds.url)))[1] == MetadataAnswered()


def test_the_ipv6_endpoint_works():
    try:
        simulator = MetadataSimulator(host="::1").start()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with simulator:
        simulator.give_notice()
        assert poll(Ec2Metadata(settings_for(simulator.url)))[1].action == "stop"


def test_a_name_works_as_an_endpoint(imds):
    url = imds.url.replace("127.0.0.1", "localhost")
    assert poll(Ec2Metadata(settings_for(url)))[1] == MetadataAnswered()


def test_a_bug_in_the_watcher_is_posted_and_the_watcher_goes_on():
    class Broken:
        longest_interval = 5.0
        polls = 0

        def poll(self, timeout, early):
            self.polls += 1
            if self.polls == 1:
                raise ZeroDivisionError("bug")
            return MetadataAnswered()

        def identity(self, timeout):
            return InstanceIdentity()

    events = Events()
    watcher = MetadataWatcher(settings_for("http://x"), events.queue.put, source=Broken())
    watcher.start()
    assert "bug" in events.failure().reason
    assert events.answer() == MetadataAnswered()
    watcher.stop()
    assert watcher.join(DEADLINE)


# --- pace ---


@pytest.mark.parametrize(
    ("now", "due"),
    [
        (100.0, 105.0),
        (100.01, 105.0),
        (104.9, 105.0),
        (105.0, 110.0),  # that one is missed
        (117.0, 120.0),  # and so are all of these
        (99.0, 105.0),
    ],
)
def test_polls_stay_on_their_grid_and_missed_ones_are_not_made_up_for(now, due):
    assert next_due(100.0, now, 5.0) == due


@given(due=st.floats(0, 1e6), took=st.floats(0, 1e4), interval=st.floats(0.01, 60))
def test_the_next_poll_is_ahead_and_at_most_one_interval_away(due, took, interval):
    ahead = next_due(due, due + took, interval) - (due + took)
    assert -1e-6 <= ahead <= interval + 1e-6


def test_a_poll_can_be_asked_for(imds):
    with watching(imds.url, poll_interval=50.0) as events:
        assert events.next() == MetadataAnswered()
        imds.give_notice()
        events.watcher.poll_soon()
        assert events.next().action == "stop"


def test_nothing_is_posted_after_stop(imds):
    with watching(imds.url) as events:
        events.next()
        events.watcher.stop()
        assert events.watcher.join(DEADLINE)
        while not events.queue.empty():
            events.queue.get()
        asked = len(imds.questions)
    assert events.queue.empty()
    assert len(imds.questions) == asked


# --- identity ---


def test_the_identity_is_fetched_in_the_background(imds):
    with watching(imds.url) as events:
        assert events.watcher.wait_for_identity(DEADLINE) == InstanceIdentity(
            "i-0123456789abcdef0", "g5.xlarge", "us-east-1a", "us-east-1", "spot"
        )
        assert events.watcher.identity().region == "us-east-1"
    assert sum(q.path.endswith("/instance-id") for q in imds.questions) == 1


def test_the_identity_is_unknown_and_asked_for_again_while_there_is_trouble(imds):
    imds.mood("500", path="instance-type")
    with watching(imds.url) as events:
        events.answer()
        assert events.watcher.identity() == InstanceIdentity()
        imds.well()
        assert events.watcher.wait_for_identity(DEADLINE).instance_type == "g5.xlarge"


@pytest.mark.parametrize(
    ("tag", "known"),
    [("i-0abc123def4567890", "i-0abc123def4567890"), ("Not Specified", None), ("i-0XYZ", None)],
)
def test_the_firmware_tells_the_instance_id_at_once(tmp_path, tag, known):
    (tmp_path / "board_asset_tag").write_text(f"{tag}\n")
    watcher = MetadataWatcher(ImdsSettings(), lambda event: None, cloud="ec2", dmi=tmp_path)
    assert watcher.identity().instance_id == known


def test_the_firmware_is_not_believed_for_a_simulated_instance(imds, tmp_path):
    (tmp_path / "board_asset_tag").write_text("i-0abc123def4567890\n")
    watcher = MetadataWatcher(settings_for(imds.url), lambda event: None, cloud="ec2", dmi=tmp_path)
    assert watcher.identity().instance_id is None


# --- what is read ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-21T08:22:00Z", 1795249320.0),
        ("2026-11-21T08:22:00.500Z", 1795249320.5),
        ("2026-11-21T08:22:00+00:00", None),
        ("2026-11-21 08:22:00", None),
        ("2026-13-21T08:22:00Z", None),
        ("9999-11-21T08:22:00Z", None),
        ("0000-00-00T00:00:00Z", None),
        ("२०२६-11-21T08:22:00Z", None),
        ("now", None),
        ("", None),
        (None, None),
        (1795249320, None),
    ],
)
def test_a_time_is_read_strictly(text, seconds, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1795249200.0)
    assert read_time(text) == seconds


READERS = {
    "action": (read_action, lambda said: said[0] in ("stop", "terminate", "hibernate")),
    "rebalance": (read_rebalance, lambda said: said.isprintable() and len(said) <= 64),
    "scheduled": (read_scheduled, lambda said: len(said) <= 20),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["action", "time", "noticeTime", "Code", "State", "EventId", "NotBefore"]
            )
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("reader", READERS)
@given(body=st.binary(max_size=200) | JSON.map(lambda said: json.dumps(said).encode()))
def test_whatever_a_body_holds_it_is_read_or_refused(reader, body):
    read, is_right = READERS[reader]
    try:
        said = read(body)
    except MetadataTrouble as trouble:
        refused = trouble.reason
    else:
        assert is_right(said)
        return
    assert refused.isprintable()


def test_json_nested_without_end_is_refused():
    with pytest.raises(MetadataTrouble):
        read_scheduled(b"[" * 60_000)


@pytest.fixture(scope="module")
def one_shot():
    """A server that answers each connection with given bytes, then closes it."""
    answers = queue.SimpleQueue()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while (answer := answers.get()) is not None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    try:
                        connection.sendall(answer)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        endpoint = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def ask(answer):
            answers.put(answer)
            return endpoint.ask("GET", "/x", {}, time.monotonic() + DEADLINE)

        yield ask
        answers.put(None)
        thread.join(DEADLINE)


@settings(max_examples=60, deadline=None)
@given(
    answer=st.binary(max_size=300)
    | st.tuples(
        st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 404\r\n", b"HTTP/1.1 100 x\r\n\r\n"]),
        st.sampled_from(
            [b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n"]
        )
        | st.binary(max_size=20),
        st.sampled_from([b"\r\n", b""]),
        st.sampled_from([b"5\r\nhello\r\n0\r\n\r\n", b"ffffffff\r\n"]) | st.binary(max_size=50),
    ).map(b"".join)
)
def test_whatever_comes_over_the_wire_is_a_reply_or_trouble(one_shot, answer):
    try:
        reply = one_shot(answer)
    except MetadataTrouble as trouble:
        refused = trouble.reason
    else:
        assert 200 <= reply.status <= 599
        return
    assert refused


def test_a_chunked_answer_is_put_together(one_shot):
    reply = one_shot(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;x=y\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"
    )
    assert reply.body == b"hello!"


def test_an_answer_that_ends_with_the_connection_is_whole(one_shot):
    assert one_shot(b"HTTP/1.0 200 OK\r\n\r\nhello").body == b"hello"
