"""`spotd simulate`: traces, the replay's figures, the table, the JSON, the picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from spotd.cli import main
from spotd.errors import SpotdError
from spotd.simulation.replay import Job, best, daly, replay, replay_naive, young
from spotd.simulation.report import duration
from spotd.simulation.trace import Trace, read_trace, repeated, trace_from_rate

TRACES = Path(__file__).parents[3] / "shared" / "data" / "spot-traces"
MEASURED = sorted(TRACES.rglob("*.json"))
DAY = 86400.0
THREE_RUNS = Trace("three", 20000.0, ((0, 5000.0), (6000.0, 12000.0), (13000.0, 20000.0)))


def written(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


# --- traces ------------------------------------------------------------------------------


def test_a_trace_is_read_as_stretches_of_capacity(tmp_path):
    data = {"metadata": {"gap_seconds": 30}, "data": [0, 1, 1, 0, 2, 0, 0, 1],
            "prices": [9, 1, 2, 9, 3, 9, 9, 2]}  # fmt: skip
    trace = read_trace(written(tmp_path / "zone.json", data))
    assert trace.up == ((30, 90), (120, 150), (210, 240))
    assert (trace.seconds, trace.up_seconds, trace.interruptions) == (240, 120, 2)
    assert trace.price == 2.0


@pytest.mark.parametrize(
    "value",
    [
        [], 5, {}, {"metadata": {}, "data": [1]}, {"metadata": {"gap_seconds": 0}, "data": [1]},
        {"metadata": {"gap_seconds": 30}, "data": []}, {"metadata": {"gap_seconds": 30}, "data": 1},
        {"metadata": {"gap_seconds": 30}, "data": ["1"]}, {"metadata": [], "data": [1]},
        {"metadata": {"gap_seconds": True}, "data": [1]},
    ],
)  # fmt: skip
def test_what_is_no_trace_is_refused_with_what_one_looks_like(tmp_path, value):
    with pytest.raises(SpotdError) as refused:
        read_trace(written(tmp_path / "x.json", value))
    assert "gap_seconds" in refused.value.hint


def test_a_file_that_is_not_there_or_not_json_is_refused(tmp_path):
    with pytest.raises(SpotdError, match="cannot read"):
        read_trace(tmp_path / "nothing.json")
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(SpotdError, match="not JSON"):
        read_trace(tmp_path / "half.json")


def test_a_rate_makes_a_trace_with_about_that_many_interruptions():
    trace = trace_from_rate(10.0, days=300, seed=3)
    per_day = trace.interruptions / (trace.up_seconds / DAY)
    assert 8.5 < per_day < 11.5
    assert trace == trace_from_rate(10.0, days=300, seed=3)
    assert trace != trace_from_rate(10.0, days=300, seed=4)


def test_a_trace_repeated_has_no_seam_where_it_was_up_at_both_ends():
    assert repeated(THREE_RUNS, 40000 / DAY).up == (
        (0, 5000.0), (6000.0, 12000.0), (13000.0, 25000.0), (26000.0, 32000.0), (33000.0, 40000.0),
    )  # fmt: skip


# --- replays -----------------------------------------------------------------------------


def test_with_a_notice_and_a_handler_no_step_is_lost():
    outcome = replay(THREE_RUNS, Job(), 600.0)
    assert (outcome.lost_steps, outcome.met, outcome.missed, outcome.starts) == (0, 2, 0, 3)
    assert len(outcome.window) == 2
    assert all(0 < seconds < 110 for seconds in outcome.window)
    assert 0.9 < outcome.goodput < 1.0


def test_without_a_notice_what_came_after_the_last_save_is_lost():
    outcome = replay(THREE_RUNS, Job(unannounced=1.0), 600.0)
    assert outcome.missed == 2
    assert 0 < outcome.lost_steps <= 2 * (600 + 60)
    assert outcome.window == ()


def test_the_saves_that_are_not_played_change_nothing_but_the_time_it_takes():
    trace = trace_from_rate(12.0, days=1, seed=5)
    for job in (Job(), Job(unannounced=0.5), Job(catches=False), Job(bandwidth=20e6)):
        for interval in (120.0, 900.0):
            thin, every = (replay(trace, job, interval, thin=thin) for thin in (True, False))
            assert thin.useful_steps == every.useful_steps
            assert thin.lost_steps == every.lost_steps
            assert (thin.met, thin.missed, thin.starts) == (every.met, every.missed, every.starts)
            assert thin.decisions < every.decisions


def test_spotd_trains_more_than_a_run_without_a_handler():
    trace = trace_from_rate(12.0, days=2, seed=2)
    job = Job(unannounced=0.05)
    assert replay(trace, job, 600.0).useful_steps > replay_naive(trace, job, 600.0).useful_steps


def test_a_naive_run_loses_what_it_had_not_saved():
    trace = Trace("two", 4000.0, ((0.0, 1000.0), (2000.0, 4000.0)))
    job = Job(boot_seconds=30, import_seconds=20, save_seconds=10.0)
    outcome = replay_naive(trace, job, 300.0)
    # 950 s: three cycles of 310 s and 20 steps that are lost; then 1950 s: six and 90.
    assert outcome.lost_steps == 20
    assert outcome.useful_steps == 3 * 300 + 6 * 300 + 90
    assert (outcome.met, outcome.missed) == (0, 1)


def test_without_a_notice_the_best_interval_is_near_what_young_and_daly_say():
    trace = trace_from_rate(12.0, days=8, seed=9)
    job = Job(unannounced=1.0, save_seconds=10.0)
    said = daly(job.save_seconds, trace.seconds_between)
    assert said == pytest.approx(young(job.save_seconds, trace.seconds_between), rel=0.05)
    found = best([replay(trace, job, said * x) for x in (0.2, 0.5, 1.0, 2.0, 5.0)])
    assert 0.5 * said <= found.interval <= 2.0 * said


def test_daly_does_not_save_more_often_than_it_is_interrupted():
    assert daly(100.0, 40.0) == 40.0


# --- the verb ----------------------------------------------------------------------------


def test_the_table_names_the_best_interval_and_what_is_gained(capsys):
    assert main(["simulate", "--days", "2", "--save-every", "5min", "--save-every", "1h",
                 "--spot-price", "1", "--on-demand-price", "3"]) == 0  # fmt: skip
    told = capsys.readouterr().out
    assert "spotd *" in told
    assert "naive" in told
    assert "best: save every" in told
    assert "Young says" in told
    assert "$" in told


def test_json_has_the_same_figures_for_programs(capsys):
    assert main(["simulate", "--days", "2", "--save-every", "10min", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [o["policy"] for o in told["outcomes"]] == ["spotd", "naive"]
    assert told["best_interval"] == 600.0
    assert 0.5 < told["outcomes"][0]["goodput"] < 1.0
    assert told["outcomes"][0]["cost"] == {"spot": None, "on_demand": None, "saved": None}


def test_the_picture_is_an_svg_with_both_charts(tmp_path, capsys):
    path = tmp_path / "run.svg"
    args = ["simulate", "--days", "1", "--save-every", "5min", "--save-every", "20min"]
    assert main([*args, "--picture", str(path)]) == 0
    texts = [e.text for e in ET.parse(path).getroot().iter() if e.tag.endswith("text")]
    assert any("steps over time" in t for t in texts)
    assert any("goodput" in t for t in texts)
    capsys.readouterr()


def test_the_picture_can_be_a_png(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="a PNG needs matplotlib (the demo extra)")
    path = tmp_path / "run.png"
    args = ["simulate", "--days", "1", "--save-every", "5min", "--picture", str(path)]
    assert main(args) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rate", "5", "trace.json"], "two answers"),
        (["--days", "1", "--picture", "run.gif"], "cannot draw"),
        (["nothing.json"], "cannot read"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(args, words, capsys):
    assert main(["simulate", "--save-every", "5min", *args]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["--rate", "-1"], ["--rate", "x"], ["--unannounced", "2"], ["--save-every", "0"],
        ["--save", "x"],
    ],
)  # fmt: skip
def test_an_impossible_option_is_wrong_usage(args, capsys):
    try:
        status = main(["simulate", *args])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    capsys.readouterr()


def test_durations_read_like_speech():
    assert [duration(s) for s in (0, 45, 720, 7800, 273600)] == [
        "0 s", "45 s", "12 min", "2 h 10 min", "3 d 4 h",
    ]  # fmt: skip


# --- measured traces -----------------------------------------------------------------------


@pytest.mark.skipif(not MEASURED, reason="the measured Spot traces are not beside the project")
@pytest.mark.parametrize("path", MEASURED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_on_a_measured_trace_no_notice_is_missed_and_little_is_lost(path):
    trace = read_trace(path)
    outcome = replay(trace, Job(), 600.0)
    naive = replay_naive(trace, Job(), 600.0)
    assert outcome.interruptions == trace.interruptions > 0
    assert (outcome.lost_steps, outcome.missed) == (0, 0)
    assert outcome.useful_steps > naive.useful_steps
