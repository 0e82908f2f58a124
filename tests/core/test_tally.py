"""What is counted from announcements, and how it is shown to Prometheus."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from spotd.core.curve import Point
from spotd.core.ledger import LARGEST, MOST_NOTICES, MOST_POINTS, BootRecord, NoticeRecord, parse
from spotd.core.metrics import families, render
from spotd.core.state import Known, Now, Phase, Policy, State, Trainer
from spotd.core.tally import Tally

STATE = State(policy=Policy(), run="mono", phase=Phase.RUNNING)


def told(*story, tally=None):
    """A tally after a story of (second, event, fields)."""
    tally = tally or Tally()
    for wall, name, *fields in story:
        tally.count(name, fields[0] if fields else {}, float(wall))
    return tally


def test_work_since_the_newest_checkpoint_is_lost_and_the_rest_is_saved():
    tally = told(
        (0, "trainer_started"),
        (60, "checkpoint_seen", {"checkpoint": "1-a"}),
        (100, "trainer_exited"),
        (130, "trainer_started", {"checkpoint": "1-a"}),
    )
    assert (tally.saved, tally.lost, tally.trained) == (60, 40, 100)
    tally = told((190, "trainer_exited"), tally=tally)
    assert tally.progress == 120, "60 from the checkpoint, 60 since"
    assert tally.trained == 160


def test_a_start_from_scratch_loses_everything():
    tally = told((0, "trainer_started"), (50, "trainer_exited"), (60, "trainer_started"))
    assert (tally.saved, tally.lost) == (0, 50)


def test_after_a_power_cut_training_counts_up_to_the_last_sign_of_life():
    tally = told((0, "trainer_started"), (30, "checkpoint_seen", {"checkpoint": "1-a"}))
    tally.alive(45)
    tally = told(
        (5000, "boot_classified", {"boot": "power-loss"}),
        (5010, "trainer_started", {"checkpoint": "1-a"}),
        tally=tally,
    )
    assert (tally.trained, tally.lost, tally.saved) == (45, 15, 30)


def test_a_checkpoint_nobody_remembers_says_nothing_about_what_was_lost():
    tally = told((0, "trainer_started", {"checkpoint": "9-z"}))
    assert tally.last_lost is None
    assert tally.lost == 0


def test_an_adopted_trainer_has_trained_all_along():
    tally = told((0, "trainer_started"), (10, "boot_classified", {"boot": "same-boot"}),
                 (11, "trainer_adopted"), (20, "trainer_exited"))  # fmt: skip
    assert tally.trained == 20


def test_the_time_from_notice_to_stored_is_that_of_the_last_notice():
    tally = told(
        (0, "checkpoint_stored", {"bytes": 7}),
        (100, "interruption_notice", {"action": "stop"}),
        (112, "checkpoint_stored", {"bytes": 5}),
        (113, "drained"),
        (500, "checkpoint_stored", {"bytes": 1}),
    )
    assert tally.notice_to_stored == 12
    assert tally.stored_bytes == 13
    assert tally.interruptions == {"stop": 1}


def test_what_was_counted_survives_being_written_and_read():
    tally = told((0, "trainer_started"), (5, "interruption_notice", {"action": "hibernate"}))
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))) == tally


@pytest.mark.parametrize(
    "junk",
    [None, [], {"trained": "x"}, {"interruptions": {"stop": -1}}, {"saved": -5}, {"seen": True}],
)
def test_a_damaged_file_counts_from_nothing(junk):
    assert Tally.from_json(junk) == Tally()


def test_only_so_many_checkpoints_are_remembered():
    tally = told(*[(n, "checkpoint_seen", {"checkpoint": str(n)}) for n in range(200)])
    assert len(tally.progress_at) == 64
    assert "199" in tally.progress_at


# --- as Prometheus sees it -----------------------------------------------------------

CONTRACT = {
    "spotd_state", "spotd_interruptions_total", "spotd_rebalance_total",
    "spotd_trainer_starts_total", "spotd_trainer_crashes_total", "spotd_step",
    "spotd_checkpoint_stored_timestamp_seconds", "spotd_checkpoint_bytes_total",
    "spotd_store_failures_total", "spotd_notice_to_stored_seconds", "spotd_lost_steps_total",
    "spotd_imds_failures_total", "spotd_seconds_saved_total",
}  # fmt: skip


def scraped(state=STATE, tally=None):
    from prometheus_client.parser import text_string_to_metric_families

    text = render(families(state, tally or Tally(), Now(10.0, 1000.0)))
    samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in samples, "each sample once"
            samples[key] = sample.value
    return text, samples


def test_prometheus_own_parser_reads_every_metric_of_the_contract():
    text, samples = scraped()
    assert set(re.findall(r"# TYPE (\S+)", text)) >= CONTRACT
    assert samples["spotd_state", ("state", "running")] == 1
    assert sum(v for k, v in samples.items() if k[0] == "spotd_state") == 1
    assert {k[1][1] for k in samples if k[0] == "spotd_state"} == {p.value for p in Phase}


def test_counters_start_at_zero_and_unknown_gauges_are_absent():
    _, samples = scraped()
    for action in ("stop", "terminate", "hibernate"):
        assert samples["spotd_interruptions_total", ("action", action)] == 0
    assert samples[("spotd_lost_steps_total",)] == 0
    assert ("spotd_step",) not in samples
    assert ("spotd_notice_to_stored_seconds",) not in samples


def test_the_figures_are_those_of_the_state_and_the_tally():
    trainer = Trainer(attempt=3, started=0.0, started_mono=0.0, pid=7, step=41, loss=2.5)
    known = Known("1-a", 1, "a", "file", 10, 0, "f", 40, 900.0, stored=True)
    state = STATE.__class__(
        policy=Policy(), run="mono", phase=Phase.RUNNING, attempt=3, trainer=trainer,
        known=(known,), lost_steps=12,
    )  # fmt: skip
    tally = told(
        (0, "interruption_notice", {"action": "stop"}), (3, "checkpoint_stored", {"bytes": 10})
    )
    _, samples = scraped(state, tally)
    assert samples[("spotd_step",)] == 41
    assert samples[("spotd_loss",)] == 2.5
    assert samples[("spotd_trainer_starts_total",)] == 3
    assert samples[("spotd_lost_steps_total",)] == 12
    assert samples[("spotd_checkpoint_stored_timestamp_seconds",)] == 900
    assert samples[("spotd_notice_to_stored_seconds",)] == 3
    assert samples["spotd_interruptions_total", ("action", "stop")] == 1


def test_no_id_is_in_a_label():
    text, _ = scraped()
    assert set(re.findall(r'[{,](\w+)="', text)) == {"state", "action", "version"}


# --- the ledger ----------------------------------------------------------------------


def test_a_boot_is_booked_with_its_parts():
    book = BootRecord("mono", "i-1", "boot-1", booted=100.0, began=105.0, seen=105.0)
    story = [
        (106, "boot_classified", {"boot": "interrupted"}), (108, "restore_finished", {}),
        (109, "steps_lost", {"lost_steps": 4}), (110, "trainer_started", {}), (112, "training", {}),
        (200, "interruption_notice", {"action": "stop", "seconds_left": 105}),
        (201, "stop_signal_sent", {}), (203, "checkpoint_seen", {}),
        (205, "trainer_exited", {}), (210, "checkpoint_stored", {"bytes": 9}), (211, "drained", {}),
    ]  # fmt: skip
    for wall, name, fields in story:
        book.book(name, fields, float(wall))
    assert (book.kind, book.restored, book.started, book.stepped) == ("interrupted", 108, 110, 112)
    assert (book.lost_steps, book.training_seconds(), book.stored_bytes) == (4, 95, 9)
    (notice,) = book.notices
    assert (notice.seen, notice.deadline, notice.signalled) == (200, 305, 201)
    assert (notice.saved, notice.stored, notice.drained) == (203, 210, 211)
    assert parse(book.to_bytes(), "mono") == book


WHOLE = (
    b'{"format": 1, "run": "mono", "instance_id": "i-1", "boot_id": "b", "booted": 1, "seen": 2.0}'
)


def test_the_smallest_record_is_believed():
    assert parse(WHOLE, "mono") is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100000,
        b'{"format": 2, "run": "mono"}',
        WHOLE.replace(b"mono", b"other"),
        WHOLE.replace(b"2.0", b"0.5"),
        WHOLE.replace(b"2.0", b"1e999"),
        WHOLE.replace(b"i-1", b""),
    ],
)
def test_what_is_no_record_is_not_believed(data):
    assert parse(data, "mono") is None


def test_a_record_from_somebody_else_is_taken_only_as_far_as_its_types_go():
    value = {
        "format": 1, "run": "mono", "instance_id": "i-1\x1b[2J", "boot_id": "b", "booted": 1.0,
        "seen": 2.0, "lost_steps": "many", "trained": -3, "spot_price": float("inf"),
        "notices": [{"action": 7, "seen": 1}, "x", None],
    }  # fmt: skip
    record = parse(json.dumps(value).encode(), "mono")
    assert record.instance_id == "i-1[2J"
    assert (record.lost_steps, record.trained, record.spot_price) == (0, 0.0, None)
    assert [n.action for n in record.notices] == ["stop"]


def test_a_record_holds_the_loss_curve_of_its_boot_however_long_that_was():
    book = BootRecord("mono", "i-1", "boot-1", booted=1.0, began=1.0, seen=1e6)
    for second in range(100_000):
        book.plot(Point(float(second), 1 + second // 60_000, second, 2.0**-20))
    book.notices = [NoticeRecord() for _ in range(MOST_NOTICES)]
    assert len(book.to_bytes()) < LARGEST / 2
    found = parse(book.to_bytes(), "mono")
    assert MOST_POINTS / 2 - 2 <= len(found.curve) <= MOST_POINTS
    assert (found.curve[0].step, found.curve[0].boot) == (0, "i-1 boot-1")
    assert found.curve[-1].step > 99_000
    gaps = {b.time - a.time for a, b in itertools.pairwise(found.curve) if a.attempt == b.attempt}
    assert max(gaps) <= 2 * min(gaps), "an even density"
    assert {p.attempt for p in found.curve} == {1, 2}


def test_what_is_no_point_of_a_curve_is_left_out():
    value = json.loads(WHOLE)
    junk = [1, "x", [], [1, 1, 1], [1, 1, 1, "x"], [1, 1, 1, float("nan")], [None, 1, 1, 1],
            [10**400, 1, 1, 1], [5, 1, 7, None], [6, 1, 8, -0.5], {"time": 1}]  # fmt: skip
    found = parse(json.dumps({**value, "curve": junk}).encode(), "mono")
    assert [(p.step, p.loss) for p in found.curve] == [(7, None), (8, -0.5)]
    assert parse(json.dumps({**value, "curve": {"a": 1}}).encode(), "mono").curve == []


def test_a_records_name_holds_no_path():
    assert BootRecord("r", "../../etc", "../x/y").name == "..-..-etc-xy.json"
