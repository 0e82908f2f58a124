"""What people and programs around a run see: messages, figures, the end of the bill."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


def address(tmp_path, url):
    """`[notify]` with a URL in a file that only its owner reads."""
    path = tmp_path / "webhook-url"
    path.write_text(url)
    path.chmod(0o600)
    return {"webhook_url_file": str(path)}


@pytest.fixture
def hook(tmp_path):
    """A webhook that keeps what it is told."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.heard = heard
    server.notify = address(tmp_path, f"http://127.0.0.1:{server.server_port}/hook")
    yield server
    server.shutdown()
    server.server_close()


def test_people_are_told_of_notice_resume_and_completion_each_once_and_the_instance_is_ended(
    build, imds, hook, account
):
    instance, _ = account.spot_instance()
    imds.instance_id = instance
    machine = build(
        sections={"notify": hook.notify, "completion": {"action": "terminate"}},
        environment=account.environment,
    )
    machine.boot()
    machine.wait_for_steps(10)
    given = time.time()
    imds.give_notice("stop", in_seconds=120)
    machine.wait_for_event("drained", after=given)
    machine.wait(lambda: len(hook.heard) == 1, "the notice's message")
    machine.power_cut()
    imds.withdraw()
    assert account.state_of(instance) == "running", "an interruption is no completion"

    machine.boot()
    machine.wait_for_steps(3, attempt=2)
    machine.wait(lambda: len(hook.heard) == 2, "the resume's message")
    machine.kill_daemon()
    machine.start_daemon()
    machine.wait_for_state("running")
    machine.pull("finish")
    machine.wait(lambda: account.state_of(instance) == "terminated", "the end of the instance")
    events = [e["event"] for e in machine.events()]
    stored = max(n for n, e in enumerate(events) if e == "checkpoint_stored")
    assert stored < events.index("finishing_instance"), "never before the last one is stored"
    notice, resume, complete = hook.heard
    assert "stop notice" in notice
    assert instance in notice
    assert "training goes on" in resume
    assert "complete" in complete


def test_a_run_that_failed_is_never_ended(build, imds, hook, account):
    instance, _ = account.spot_instance()
    imds.instance_id = instance
    machine = build(
        sections={"notify": hook.notify, "completion": {"action": "terminate"}},
        command=["sh", "-c", "exit 3"],
        trainer={"max_failures": 2, "backoff_min": 0.05},
        environment=account.environment,
    )  # fmt: skip
    machine.boot()
    machine.wait_for_state("failed")
    machine.wait(lambda: hook.heard, "the message")
    assert "given up" in hook.heard[0]
    assert account.state_of(instance) == "running"
    assert machine.named("finishing_instance") == []


def test_a_webhook_that_is_dead_disturbs_nothing(build, imds, tmp_path):
    machine = build(sections={"notify": address(tmp_path, "http://127.0.0.1:9/SECRET")})
    machine.boot()
    machine.wait_for_steps(5)
    given = time.time()
    imds.give_notice("stop", in_seconds=120)
    machine.wait_for_event("drained", after=given)
    machine.wait_for_event("message_failed")
    assert len(list((machine.state / "messages").glob("*.json"))) == 1, "kept for after the boot"
    assert "SECRET" not in machine.log.read_text()
    assert "SECRET" not in (machine.state / "history.jsonl").read_text()


def test_figures_can_be_scraped_and_go_on_after_a_boot(build, imds):
    from prometheus_client.parser import text_string_to_metric_families

    def figures():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for s in family.samples:
                found[(s.name, *s.labels.values())] = s.value
        return found

    port = free_port()
    machine = build(sections={"metrics": {"listen": f"127.0.0.1:{port}"}})
    machine.boot()
    machine.wait_for_steps(5)
    machine.saved()
    assert figures()["spotd_state", "running"] == 1
    given = time.time()
    imds.give_notice("stop", in_seconds=120)
    machine.wait_for_event("drained", after=given)
    kept = machine.state / "observed.json"
    machine.wait(lambda: json.loads(kept.read_text())["tally"]["notice_to_stored"], "the disk")
    machine.power_cut()
    imds.withdraw()
    machine.boot()
    machine.wait_for_steps(3, attempt=2)
    machine.wait(
        lambda: figures().get(("spotd_interruptions_total", "stop")) == 1, "the counted notice"
    )
    machine.wait(lambda: figures().get(("spotd_trainer_starts_total",)) == 2, "the second start")
    found = figures()
    assert found[("spotd_notice_to_stored_seconds",)] < 60
    assert found[("spotd_seconds_saved_total",)] > 0
    assert found[("spotd_lost_steps_total",)] == 0
    assert found[("spotd_checkpoint_bytes_total",)] > 0


def test_what_one_machine_cost_is_known_to_another_by_way_of_the_bucket(build, imds):
    prices = {"cost": {"spot_price": 0.4, "on_demand_price": 1.0}}
    first = build(s3=True, sections=prices)
    first.boot()
    first.wait_for_steps(10)
    first.saved()
    given = time.time()
    imds.give_notice("terminate", in_seconds=120)
    first.wait_for_event("drained", after=given)
    assert first.stop_daemon() == 0  # as the shutdown does; the lease is given back
    imds.withdraw()
    imds.instance_id = "i-0fedcba9876543210"
    second = build(s3=True, sections=prices, name="two", run=first.run)
    second.boot()
    second.wait_for_steps(3)

    def bill():
        return json.loads(second.spotd("cost", "--offline", "--json", check=True).stdout)

    second.wait(lambda: bill().get("instances") == 2, "both instances in the bill")
    found = bill()
    assert found["boots"] == 2
    assert found["running"]
    assert found["sources"]["spot"] == "the configuration"
    page = second.spotd("report", "--offline", "--output", "-", check=True).stdout
    assert "i-0fedcba9876543210" in page
    assert "i-0123456789abcdef0" in page


def test_a_machine_that_never_trained_shows_the_loss_of_the_one_that_did(build):
    trains = build()
    trains.boot()
    laptop = build(name="laptop", run=trains.run)
    laptop.configure()

    def page():
        trains.saved()  # a boot's record goes to the store when a checkpoint does
        return laptop.spotd("report", "--offline", "--output", "-", check=True).stdout

    trains.wait(lambda: "Loss over steps" in page(), "the loss in a report from elsewhere")


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
