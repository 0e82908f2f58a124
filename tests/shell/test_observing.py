"""The one who looks on: files, endpoint, and that nothing of it reaches the deciding loop."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import socket
import threading
import time
from dataclasses import replace

import pytest

from spotd.config import parse
from spotd.core.actions import Announce
from spotd.core.curve import Point
from spotd.core.state import Now, Phase, Policy, State, Trainer
from spotd.shell.boot import Boot
from spotd.shell.clouds import InstanceIdentity
from spotd.shell.observing import curve, observer
from spotd.shell.observing.books import read_books
from spotd.shell.observing.curve import Curve
from spotd.shell.observing.exposing import Endpoint, write_textfile
from spotd.testing.stage import wait_until


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(observer, "PAUSE", 0.05)
    monkeypatch.setattr(observer, "SAVE_EVERY", 0.1)
    made = []
    own = tmp_path / "own"
    own.mkdir()

    def build(extra="", boot="boot-1"):
        settings = parse(
            f"""
            run = "mono"
            trainer = {{command = "x", directory = "/"}}
            checkpoints = {{directory = "c"}}
            store = {{url = "file:///x"}}
            {extra}
            """,
            "test",
        )
        lines = []
        found = observer.Observer(
            lambda: settings, own, "i-1", Boot(boot, time.time() - 30),
            lambda: InstanceIdentity("i-1", "g5.xlarge", "us-east-1a", "us-east-1", "spot"),
            lambda: Now(time.monotonic(), time.time()), lines.append,
        )  # fmt: skip
        found.lines = lines
        found.own = own
        found.start()
        made.append(found)
        return found

    yield build
    for each in made:
        each.close()


def state(**changes):
    return replace(State(policy=Policy(), run="mono", phase=Phase.RUNNING), **changes)


def now():
    return Now(time.monotonic(), time.time())


def scrape(port, path="/metrics"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.getheader("Content-Type")


def test_the_textfile_holds_what_is_known_and_can_be_read_by_node_exporter(make, tmp_path):
    from prometheus_client.parser import text_string_to_metric_families

    path = tmp_path / "spotd.prom"
    old = os.umask(0o077)
    try:
        found = make(f'metrics = {{textfile = "{path}"}}')
        found.saw(state(attempt=4), now())
        wait_until(path.exists, within=10, what="the textfile")
    finally:
        os.umask(old)
    families = {f.name: f for f in text_string_to_metric_families(path.read_text())}
    assert families["spotd_trainer_starts"].samples[0].value == 4
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_counters_go_on_after_a_restart_of_the_daemon(make):
    first = make()
    first.saw(state(), now())
    first.announced(Announce("interruption_notice", "", 4, {"action": "stop"}), time.time())
    first.close()
    second = make()
    second.saw(state(), now())
    assert 'spotd_interruptions_total{action="stop"} 1' in second.figures()


def test_failures_of_store_and_metadata_are_counted_one_by_one(make):
    found = make()
    quiet = state()
    for failures in (0, 1, 2, 0, 1):
        found.saw(
            replace(
                quiet,
                store=replace(quiet.store, failures=failures),
                metadata=replace(quiet.metadata, failures=2 * failures),
            ),
            now(),
        )
    wait_until(lambda: "spotd_store_failures_total 3" in found.figures(), within=10, what="3")
    assert "spotd_imds_failures_total 6" in found.figures()


def test_a_textfile_that_cannot_be_written_is_told_once(make, tmp_path):
    found = make(f'metrics = {{textfile = "{tmp_path}/nowhere/spotd.prom"}}')
    found.saw(state(), now())
    wait_until(lambda: found.lines, within=10, what="a line")
    for _ in range(5):
        found.announced(Announce("checkpoint_seen", ""), time.time())
    found.close()
    assert [line.name for line in found.lines] == ["metrics_failed"]
    assert "nowhere" in found.lines[0].message


def test_an_address_that_is_taken_is_told_and_nothing_else_happens(make):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        found = make(f'metrics = {{listen = "127.0.0.1:{other.getsockname()[1]}"}}')
    assert [line.name for line in found.lines] == ["metrics_failed"]


def test_the_boots_record_names_the_instance_and_goes_on_after_a_restart(make):
    first = make()
    first.saw(state(), now())
    first.announced(Announce("boot_classified", "", 6, {"boot": "first"}), time.time())
    first.announced(Announce("trainer_started", ""), time.time())
    first.close()
    second = make()
    second.saw(state(), now())
    second.announced(Announce("trainer_exited", ""), time.time())
    second.close()
    (book,) = read_books(second.own / "ledger", "mono")
    assert (book.kind, book.starts, book.training_since) == ("first", 1, None)
    assert (book.instance_type, book.zone, book.life_cycle) == ("g5.xlarge", "us-east-1a", "spot")


def test_the_store_gets_this_boots_record_and_the_last_ones_before_it(make):
    for boot in ("boot-a1", "boot-b2"):
        found = make(boot=boot)
        found.saw(state(), now())
        found.announced(Announce("trainer_started", ""), time.time())
        found.close()
    assert [json.loads(v)["boot_id"] for v in found.ledger().values()] == ["boot-a1", "boot-b2"]


def test_looking_on_never_waits_for_a_disk_that_hangs(make, monkeypatch):
    """The deciding loop calls `saw`, `announced` and `ledger` while a write takes for ever."""
    hanging = threading.Event()
    release = threading.Event()

    def slow(*_args, **_more):
        hanging.set()
        release.wait(30)

    found = make()
    monkeypatch.setattr(observer, "write", slow)
    found.saw(state(), now())
    found.announced(Announce("drained", ""), time.time())
    assert hanging.wait(10)
    done = threading.Event()

    def loop():
        found.saw(state(attempt=2), now())
        found.announced(Announce("drained", ""), time.time())
        found.ledger()
        found.figures()
        done.set()

    threading.Thread(target=loop, daemon=True).start()
    try:
        assert done.wait(10), "the deciding loop was made to wait"
    finally:
        release.set()


def test_a_defect_in_it_is_told_once_and_it_goes_on(make, monkeypatch):
    found = make()
    turns = []

    def broken():
        turns.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(observer, "AFTER_DEFECT", 0.01)
    monkeypatch.setattr(found, "_expose", broken)
    wait_until(lambda: len(turns) > 2, within=10, what="more turns")
    assert [line.name for line in found.lines] == ["defect"]


# --- the endpoint --------------------------------------------------------------------


@pytest.fixture
def endpoint():
    found = Endpoint("127.0.0.1:0", lambda: "spotd_step 1\n")
    found.start()
    yield found
    found.close()


def test_the_endpoint_answers_at_metrics_and_nowhere_else(endpoint):
    status, text, kind = scrape(endpoint.port)
    assert (status, text) == (200, "spotd_step 1\n")
    assert kind.startswith("text/plain; version=0.0.4")
    assert scrape(endpoint.port, "/../etc/passwd")[0] == 404


def test_a_client_that_says_nothing_is_left_behind(endpoint, monkeypatch):
    monkeypatch.setattr("spotd.shell.observing.exposing.PATIENCE", 0.2)
    with socket.create_connection(("127.0.0.1", endpoint.port)):
        assert scrape(endpoint.port)[0] == 200


def test_garbage_and_floods_do_not_end_the_endpoint(endpoint):
    for junk in (b"\0" * 20000, b"GET /metrics", b"\r\n\r\n"):
        with (
            socket.create_connection(("127.0.0.1", endpoint.port), timeout=5) as client,
            contextlib.suppress(OSError),  # the endpoint may have had enough first
        ):
            client.sendall(junk)
            client.shutdown(socket.SHUT_WR)
    assert scrape(endpoint.port)[0] == 200


def test_a_link_in_the_textfiles_place_is_replaced_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "spotd.prom").symlink_to(victim)
    (tmp_path / ".spotd.prom.tmp").symlink_to(victim)
    write_textfile(tmp_path / "spotd.prom", "spotd_step 1\n")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "spotd.prom").is_symlink()


# --- the curve -----------------------------------------------------------------------


def test_a_long_run_is_kept_at_an_even_density_and_never_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(curve, "MOST", 100)
    path = tmp_path / "curve.jsonl"
    found = Curve(path)
    for second in range(5000):
        found.add(Point(float(second), 1, second, 1.0 / (second + 1)))
        if second % 7 == 0:
            found.save()
    found.save()
    points = list(curve.read(path))
    assert 25 <= len(points) <= 100
    gaps = [b.time - a.time for a, b in itertools.pairwise(points)]
    assert points[0].time < 100
    assert points[-1].time > 4800
    assert max(gaps) <= 4 * min(gaps)


def test_a_new_daemon_goes_on_at_the_same_density(tmp_path, monkeypatch):
    monkeypatch.setattr(curve, "MOST", 100)
    path = tmp_path / "curve.jsonl"
    for start in range(0, 5000, 500):
        found = Curve(path)
        for second in range(start, start + 500):
            found.add(Point(float(second), 1, second, None))
        found.save()
    points = list(curve.read(path))
    assert len(points) <= 100
    assert points[-1].time - points[0].time > 4500


def test_steps_and_losses_reach_the_file(make):
    found = make()
    trainer = Trainer(attempt=2, started=0.0, started_mono=0.0, pid=1, step=7, loss=0.5)
    found.saw(state(trainer=trainer), now())
    found.close()
    (point,) = curve.read(found.own / "curve.jsonl")
    assert (point.attempt, point.step, point.loss) == (2, 7, 0.5)


def test_foreign_lines_in_the_curve_are_passed_over(tmp_path):
    path = tmp_path / "curve.jsonl"
    path.write_text('[1,1,1,null]\n{"a":1}\n[1,2\nnull\n[NaN,1,1,1]\n[2,1,"x",1]\n[3,1,3,0.5]\n')
    assert [p.step for p in curve.read(path)] == [1, 3]
