from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from spotd.testing.faults import Fault

CONTRACT = {  # contracts.md, section 5; more keys are welcome, none may go
    "": {"state", "run", "attempt", "trainer", "checkpoint", "interruption", "imds", "counts",
         "lost_steps", "since"},
    "trainer": {"pid", "started", "step", "total_steps", "loss", "adopted"},
    "checkpoint": {"newest", "resumed_from", "pending", "upload"},
    "imds": {"ok", "last_ok", "blind_since"},
    "counts": {"interruptions", "restarts", "crashes", "not_carried_out"},
}  # fmt: skip


@pytest.fixture
def trained(build):
    """A machine that trains and has stored something."""
    machine = build(trainer={"checkpoint_signal": "SIGUSR1"})
    machine.boot()
    machine.wait_for_steps(3)
    machine.saved()
    return machine


def test_status_has_the_shape_of_the_contract(trained, imds):
    status = json.loads(trained.spotd("status", "--json", check=True).stdout)
    for name, keys in CONTRACT.items():
        assert keys <= set(status[name] if name else status)
    newest = status["checkpoint"]["newest"]
    assert set(newest) >= {"id", "name", "step", "created", "verified", "stored"}
    assert status["interruption"] is None
    imds.give_notice()
    trained.wait_for_state("drained")
    status = json.loads(trained.spotd("status", "--json", check=True).stdout)
    assert set(status["interruption"]) >= {"action", "deadline", "seconds_left"}


def test_status_as_text_answers_the_five_questions(trained):
    trained.wait(lambda: trained.status()["trainer"]["step"], "a step")
    text = trained.spotd("status", check=True).stdout
    for word in (trained.run, "running", "step", "in the store", "metadata"):
        assert word in text
    line = trained.status()["line"]
    for word in ("training at step", "newest checkpoint", "in the store"):
        assert word in line


def test_checkpoint_waits_until_what_is_saved_now_is_stored(trained):
    before = trained.newest_id()
    done = trained.spotd("checkpoint", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ok"]
    assert answer["id"] > before
    assert trained.status()["checkpoint"]["newest"]["stored"]
    assert trained.status()["state"] == "running"


def test_checkpoint_without_a_signal_says_what_to_set(build):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    refused = machine.spotd("checkpoint")
    assert refused.returncode == 1
    assert "trainer.checkpoint_signal" in refused.stderr


def test_checkpoint_of_a_trainer_that_catches_nothing_says_so(build):
    machine = build("--deaf", trainer={"checkpoint_signal": "SIGUSR1"})
    machine.boot()
    pid = machine.wait_for_steps(3)[0]["pid"]
    refused = machine.spotd("checkpoint")
    assert refused.returncode == 1
    assert "does not catch" in refused.stderr
    machine.wait_for_steps(3)
    assert machine.steps()[-1]["pid"] == pid


def test_a_drill_takes_the_whole_road_and_training_goes_on(trained):
    last = trained.last_step()
    done = trained.spotd("drill", "--json")
    assert done.returncode == 0, done.stdout
    answer = json.loads(done.stdout)
    assert answer["fits"]
    assert answer["stored"]
    marks = [what for what, _ in answer["timeline"]]
    assert set(marks) >= {"signal sent", "saved", "stored", "trainer ended", "drained"}
    assert [at for _, at in answer["timeline"]] == sorted(at for _, at in answer["timeline"])
    assert "fits into the two minutes" in answer["message"]
    steps = trained.wait_for_steps(3, attempt=2)
    assert steps[0]["step"] > last
    assert [s["step"] for s in trained.steps()] == list(range(1, trained.last_step() + 1))
    assert trained.wait_for_state("running")["counts"]["interruptions"] == 0


def test_a_drill_shows_seconds_for_each_part(trained):
    text = trained.spotd("drill", check=True).stdout
    assert "stored" in text
    assert text.count(" s  ") >= 4


def test_a_drill_with_a_trainer_that_catches_nothing_kills_nobody(build):
    machine = build("--deaf", "--save-every", 20)
    machine.boot()
    pid = machine.wait_stored() and machine.steps()[-1]["pid"]
    done = machine.spotd("drill")
    assert done.returncode == 1
    assert "does not catch SIGTERM" in done.stderr
    machine.wait_for_state("running")
    machine.wait_for_steps(3)
    assert machine.steps()[-1]["pid"] == pid


def test_a_drill_without_a_trainer_is_refused(build):
    machine = build("--steps", 3)
    machine.boot()
    machine.wait_for_state("completed")
    done = machine.spotd("drill")
    assert done.returncode == 1
    assert "completed" in done.stderr


def test_a_drill_that_becomes_real_says_so(trained, imds):
    trained.pull("hold-in-save")
    drill = subprocess.Popen(
        [sys.executable, "-m", "spotd", "drill", "--config", str(trained.config)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    trained.wait_for_event("drill_started")
    trained.wait_for_event("stop_signal_sent")
    imds.give_notice()
    trained.wait_for_event("interruption_notice")
    trained.release("hold-in-save")
    _, told = drill.communicate(timeout=30)
    assert drill.returncode == 1
    assert "became real" in told
    trained.wait_for_state("drained")
    assert len(trained.named("stop_signal_sent")) == 1


def test_checkpoints_lists_disk_and_store_with_and_without_the_daemon(trained):
    stored = trained.newest_id()
    listed = json.loads(trained.spotd("checkpoints", "--json", check=True).stdout)
    (only,) = listed["checkpoints"]
    assert (only["id"], only["on_disk"], only["stored"], only["verified"]) == (
        stored, True, True, True,
    )  # fmt: skip
    trained.power_cut()
    (trained.checkpoints / only["name"]).unlink()
    (trained.checkpoints / "step-9.pt").write_bytes(b"PK\3\4" + b"x" * 100)
    listed = json.loads(trained.spotd("checkpoints", "--json", check=True).stdout)
    found = {c["name"]: c for c in listed["checkpoints"]}
    assert not found[only["name"]]["on_disk"]
    assert found[only["name"]]["stored"]
    assert found["step-9.pt"]["problem"]
    assert only["id"] in trained.spotd("checkpoints", check=True).stdout


def test_restore_fetches_and_verifies_into_another_directory(trained, tmp_path):
    older = trained.status()["checkpoint"]["newest"]
    newer = trained.saved()
    to = tmp_path / "elsewhere"
    to.mkdir()
    done = json.loads(trained.spotd("restore", "--to", str(to), "--json", check=True).stdout)
    assert done["id"] == newer["id"]
    for name in (newer["name"],):
        assert (to / name).read_bytes() == (trained.checkpoints / name).read_bytes()
    trained.spotd("restore", "--to", str(to), "--checkpoint", older["id"], check=True)
    assert (to / older["name"]).read_bytes() == (trained.checkpoints / older["name"]).read_bytes()
    missing = trained.spotd("restore", "--to", str(to), "--checkpoint", "00000099-x")
    assert missing.returncode == 1
    assert "not in the store" in missing.stderr


def test_restore_from_a_store_that_does_not_answer_exits_69(build, tmp_path):
    machine = build(s3=True, endpoint_url="http://127.0.0.1:9")
    machine.configure()
    done = machine.spotd("restore", "--to", str(tmp_path / "elsewhere"))
    assert done.returncode == 69
    assert "no answer from http://127.0.0.1:9" in done.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_restore_under_a_running_daemon_is_refused(trained):
    refused = trained.spotd("restore")
    assert refused.returncode == 1
    assert "--to" in refused.stderr


def test_history_tells_what_happened(trained):
    trained.pull("crash")
    trained.wait_for_steps(1, attempt=2)
    trained.stop_daemon()
    text = trained.spotd("history", check=True).stdout
    for word in ("trainer_started", "checkpoint_stored", "trainer_exited", "drained"):
        assert word in text
    entries = json.loads(trained.spotd("history", "--json", check=True).stdout)
    assert [e["event"] for e in entries if e["event"] == "trainer_started"] == [
        "trainer_started", "trainer_started",
    ]  # fmt: skip
    assert all(e["time"] > 0 for e in entries)


@pytest.mark.parametrize("verb", ["status", "drill", "checkpoint"])
def test_a_verb_that_needs_the_daemon_exits_69_without_one(build, verb):
    machine = build()
    machine.configure()
    done = machine.spotd(verb)
    assert done.returncode == 69
    assert "systemctl" in done.stderr


def test_wrong_usage_exits_2_and_a_wrong_configuration_78(build):
    machine = build()
    machine.configure()
    assert machine.spotd("status", "--no-such-option").returncode == 2
    assert machine.spotd("no-such-verb").returncode == 2
    machine.config.write_text("run = []")
    for verb in ("status", "run", "checkpoints", "history"):
        assert machine.spotd(verb).returncode == 78


def test_a_history_that_cannot_be_read_is_said_in_one_line(build):
    machine = build()
    machine.configure()
    (machine.state / "history.jsonl").mkdir(parents=True)
    refused = machine.spotd("history")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"spotd: cannot read {machine.state}/history.jsonl")
    assert "Traceback" not in refused.stderr


# --- what systemd sees ---------------------------------------------------------------


@pytest.fixture
def systemd(tmp_path):
    """systemd's end of sd_notify."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(path))
        s.settimeout(30)
        yield s, {"NOTIFY_SOCKET": str(path)}


def hear(s, wanted) -> list[str]:
    heard = []
    while not any(wanted(line) for line in heard):
        heard += s.recv(65536).decode().splitlines()
    return heard


def test_systemd_is_told_ready_alive_and_how_it_goes(build, systemd, imds):
    s, environment = systemd
    machine = build(environment={**environment, "WATCHDOG_USEC": "600000"})
    machine.boot()
    hear(s, lambda line: line == "READY=1")
    hear(s, lambda line: line.startswith("STATUS=training at step"))
    hear(s, lambda line: line == "WATCHDOG=1")
    imds.give_notice()
    hear(s, lambda line: line.startswith("STATUS=") and "NOTICE: stop" in line)
    machine.wait_for_state("drained")
    machine.daemon.terminate()
    hear(s, lambda line: line == "STOPPING=1")


def test_a_long_restore_does_not_hold_up_ready(build, systemd, network):
    s, environment = systemd
    network.set(Fault("stall"))
    machine = build(s3=True, endpoint_url=network.endpoint_url, environment=environment)
    machine.boot()
    hear(s, lambda line: line == "READY=1")
    assert machine.status()["state"] == "restoring"
    assert machine.steps() == []


def test_a_wrong_configuration_is_what_systemctl_status_shows(build, systemd):
    s, environment = systemd
    machine = build(environment=environment)
    machine.configure()
    machine.config.write_text("run = []")
    machine.start_daemon()
    assert any("run" in line for line in hear(s, lambda line: line.startswith("STATUS=config")))
    assert machine.exit_status() == 78
