from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from machines import Machine, alive, little_trainer

from spotd.testing.stage import wait_until


def test_sigterm_to_the_daemon_drains_and_exits_0_and_leaves_nothing_behind(on_both_stores):
    machine = on_both_stores("--save-every", 20)
    machine.boot()
    machine.wait_stored()
    assert machine.stop_daemon() == 0
    drained = machine.named("drained")[-1]
    assert f"step-{machine.last_step()}.pt is in the store" in drained["message"]
    assert machine.processes() == []
    assert left_over(machine) == []
    assert sorted(p.suffix for p in machine.runtime.iterdir() if p.is_socket()) == []


def left_over(machine: Machine) -> list[str]:
    return [
        str(p.relative_to(machine.directory))
        for root in (machine.disk, machine.runtime)
        for p in root.rglob("*")
        if "tmp" in p.name or "partial" in p.name
    ]


def test_sigint_from_a_terminal_is_the_same_stop(build):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    machine.daemon.send_signal(signal.SIGINT)
    assert machine.exit_status() == 0
    assert machine.named("drained")
    assert machine.processes() == []


def test_after_a_stop_by_the_user_the_next_start_goes_on_at_the_same_step(build):
    machine = build()
    machine.boot()
    machine.wait_for_steps(5)
    machine.stop_daemon()
    last = machine.last_step()
    machine.start_daemon()
    assert machine.wait_for_steps(2, attempt=2)[0]["step"] == last + 1
    assert machine.status()["counts"]["crashes"] == 0


def test_a_stop_of_a_trainer_that_catches_nothing_stores_what_it_saved_and_kills_it(build):
    machine = build("--deaf", "--save-every", 10)
    machine.boot()
    machine.wait_stored()
    began = time.monotonic()
    assert machine.stop_daemon() == 0
    assert time.monotonic() - began < 60, "it need not wait for the deadline"
    assert machine.status() == {}
    assert machine.processes() == []
    assert machine.named("drained")[-1]["message"].endswith("in the store")


def test_a_killed_daemon_leaves_the_trainer_training_and_the_next_adopts_it(on_both_stores):
    machine = on_both_stores()
    machine.boot()
    pid = machine.wait_for_steps(5)[0]["pid"]
    machine.saved()
    machine.kill_daemon()
    machine.wait_for_steps(10)  # with nobody watching
    machine.start_daemon()
    adopted = machine.wait_for_event("trainer_adopted")
    assert adopted["pid"] == pid
    status = machine.wait_for_state("running")
    assert status["trainer"]["adopted"]
    assert status["trainer"]["pid"] == pid
    assert status["attempt"] == 1
    machine.saved()
    steps = [s["step"] for s in machine.steps()]
    assert steps == list(range(1, len(steps) + 1)), "no step is missed or trained twice"


def test_an_adopted_trainer_that_ends_is_started_again_from_its_newest_checkpoint(build):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    machine.kill_daemon()
    machine.start_daemon()
    machine.wait_for_event("trainer_adopted")
    saved = machine.saved()["step"]
    machine.pull("crash")
    assert machine.wait_for_steps(2, attempt=2)[0]["step"] == saved + 1


def test_an_adopted_trainer_is_stopped_like_any_other(build, imds):
    machine = build()
    machine.boot()
    pid = machine.wait_for_steps(3)[0]["pid"]
    machine.kill_daemon()
    machine.start_daemon()
    machine.wait_for_event("trainer_adopted")
    imds.give_notice()
    assert machine.wait_for_state("drained")["checkpoint"]["newest"]["stored"]
    assert machine.named("stop_signal_sent")[-1]["pids"] == str(pid)


def test_a_trainer_that_ended_while_no_daemon_looked_is_started_again(build):
    machine = build()
    machine.boot()
    pid = machine.wait_for_steps(3)[0]["pid"]
    saved = machine.saved()["step"]
    machine.kill_daemon()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), within=10, what="the trainer's end")
    machine.start_daemon()
    assert machine.wait_for_steps(2, attempt=2)[0]["step"] == saved + 1


def test_a_daemon_killed_right_after_the_fork_leaves_one_trainer_at_most(build):
    machine = build("--tick", 0.02)
    machine.boot()
    # The record of who is about to train is the last thing written before it trains.
    record = machine.state / "trainer.json"
    machine.wait(record.exists, "the record of a trainer", within=30)
    machine.kill_daemon()
    machine.start_daemon()
    machine.wait_for_steps(5)
    machine.wait_for_state("running")
    assert len({s["pid"] for s in machine.steps()}) == 1
    steps = [s["step"] for s in machine.steps()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(trainers(machine)) == 1


def trainers(machine: Machine) -> list[int]:
    found = []
    for pid in machine.processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found += [pid] if any(w.endswith(b"little_trainer.py") for w in words) else []
    return found


@pytest.mark.parametrize("event", ["interruption_notice", "stop_signal_sent", "checkpoint_seen"])
def test_a_daemon_killed_in_the_middle_of_a_drain_is_replaced_and_drains(build, imds, event):
    machine = build()
    machine.boot()
    machine.wait_for_steps(5)
    machine.pull("hold-in-save")
    imds.give_notice()
    if event == "checkpoint_seen":
        machine.release("hold-in-save")
    machine.wait_for_event(event)
    machine.kill_daemon()
    machine.release("hold-in-save")
    machine.start_daemon()
    status = machine.wait_for_state("drained")
    assert status["checkpoint"]["newest"]["stored"]
    assert status["checkpoint"]["newest"]["step"] == machine.last_step()
    assert status["counts"]["interruptions"] == 1
    assert len({s["attempt"] for s in machine.steps()}) == 1


def test_two_daemons_on_one_runtime_directory_never_run_one_trainer_twice(build):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    second = machine.spotd("run")
    assert second.returncode == 1
    assert "another spotd runs" in second.stderr
    assert "paths.runtime" in second.stderr, "what to do"
    assert len(trainers(machine)) == 1
    assert machine.status()["state"] == "running"


def test_a_daemon_with_a_runtime_directory_of_its_own_starts_no_second_trainer(build):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    text = machine.config.read_text()
    machine.config.write_text(text.replace(str(machine.runtime), str(machine.directory / "run2")))
    second = machine.spotd("run")
    assert second.returncode == 1
    assert "another spotd" in second.stderr
    machine.wait_for_steps(10)
    assert len(trainers(machine)) == 1


def test_a_reload_takes_over_what_can_change_and_names_what_cannot(build):
    machine = build()
    machine.boot()
    pid = machine.wait_for_steps(3)[0]["pid"]
    machine.sections["interruption"] = {"margin": 20}
    machine.configure()
    machine.daemon.send_signal(signal.SIGHUP)
    machine.wait_for_event("configuration_reloaded")
    machine.sections["store"] = {"keep": 2}
    machine.configure()
    machine.daemon.send_signal(signal.SIGHUP)
    assert "store" in machine.wait_for_event("reload_refused")["message"]
    machine.config.write_text("run = 1")
    before = time.time()
    machine.daemon.send_signal(signal.SIGHUP)
    assert "run" in machine.wait_for_event("reload_refused", after=before)["message"]
    machine.wait_for_steps(3)
    assert machine.steps()[-1]["pid"] == pid


def test_the_trainer_gets_what_the_contract_says_and_nothing_of_the_daemons(build):
    script = (
        "import json, os; json.dump(dict(os.environ), open('environment.json', 'w'));"
        " open(os.environ['SPOTD_CHECKPOINT_DIR'] + '/step-1.pt', 'wb').close()"
    )
    machine = build(
        command=[*little_trainer()[:1], "-c", script],
        environment={"SECRET_OF_THE_DAEMON": "x", "NOTIFY_SOCKET": "/nowhere"},
        trainer={"environment": {"MINE": "1"}},
    )
    machine.boot()
    machine.wait_for_state("completed")
    told = json.loads((machine.work / "environment.json").read_text())
    assert told["SPOTD_RUN"] == machine.run
    assert told["SPOTD_ATTEMPT"] == "1"
    assert told["SPOTD_CHECKPOINT_DIR"] == str(machine.checkpoints)
    assert "SPOTD_RESUME_FROM" not in told
    assert float(told["SPOTD_STOP_GRACE"]) > 0
    assert told["SPOTD_SOCKET"].startswith(str(machine.runtime))
    assert told["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"].isdigit()
    assert told["MINE"] == "1"
    unwanted = {"SECRET_OF_THE_DAEMON", "NOTIFY_SOCKET", "WATCHDOG_USEC", "INVOCATION_ID"}
    assert not unwanted & set(told)


def test_two_configurations_of_one_checkpoint_directory_never_train_in_it_at_once(build):
    machine = build(name="one", run="same")
    machine.boot()
    machine.wait_for_steps(3)
    directory = {"checkpoints": {"directory": str(machine.checkpoints)}}
    other = build(name="two", run="same", sections=directory)
    other.boot()
    other.wait(
        lambda: "another spotd" in other.status().get("line", ""), "the reason in the status"
    )
    assert other.steps() == []
    machine.power_cut()
    other.wait_for_steps(1)
