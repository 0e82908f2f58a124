from __future__ import annotations

import sys

from machines import little_trainer


def test_a_crash_is_a_restart_from_the_newest_checkpoint(build):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    saved = machine.saved()["step"]
    machine.pull("crash")
    assert machine.wait_for_steps(2, attempt=2)[0]["step"] == saved + 1
    status = machine.wait_for_state("running")
    assert status["counts"]["crashes"] == 1
    assert status["counts"]["restarts"] == 1
    assert status["checkpoint"]["resumed_from"].endswith(f"step-{saved}.pt")


def test_a_crash_is_backed_off_from_with_the_reason_and_the_last_lines_in_status(build):
    machine = build(trainer={"backoff_min": 60})
    machine.boot()
    machine.wait_for_steps(3)
    machine.pull("crash", "CUDA error: an illegal memory access\nwas encountered")
    status = machine.wait_for_state("backing-off")
    assert "status 3" in status["reason"]
    assert "was encountered" in status["reason"]
    lines = status["trainer"]["last_lines"]
    assert lines[-2:] == ["CUDA error: an illegal memory access", "was encountered"]
    assert "CUDA error" in machine.spotd("status", check=True).stdout


def test_it_gives_up_after_crashes_without_progress_and_says_why(build):
    failing = [sys.executable, "-S", "-c", "import sys; sys.exit('no module named apex')"]
    machine = build(command=failing, trainer={"max_failures": 3, "backoff_min": 0.05})
    machine.boot()
    status = machine.wait_for_state("failed")
    assert "3 crashes" in status["reason"]
    assert "no module named apex" in status["reason"]
    assert status["trainer"]["last_lines"] == ["no module named apex"]
    assert len(machine.named("trainer_started")) == 3
    assert "systemctl restart" in machine.wait_for_event("gave_up")["message"]
    assert machine.daemon.poll() is None, "it stays to be asked"
    machine.stop_daemon()
    machine.start_daemon()
    machine.wait(lambda: len(machine.named("trainer_started")) > 3, "a start to try again")


def test_a_checkpoint_it_crashes_at_twice_is_put_aside_and_the_one_before_is_tried(build):
    machine = build("--crash-from", "step-40.", "--save-every", 20, "--tick", 0.02)
    machine.boot()
    machine.wait(lambda: machine.last_step() > 40, "step 41")
    machine.wait(lambda: machine.newest_id().endswith("step-40.pt"), "step-40.pt to be known")
    machine.pull("crash")
    steps = machine.wait(lambda: machine.steps(attempt=4), "attempt 4")
    assert steps[0]["step"] == 21
    rejected = machine.named("checkpoint_rejected")
    assert [e["checkpoint"] for e in rejected] == ["00000002-step-40.pt"]
    assert not (machine.checkpoints / "step-40.pt").exists() or steps[-1]["step"] >= 40
    assert [p for p in (machine.checkpoints / ".spotd-aside").rglob("*") if "step-40" in p.name]


def test_exit_0_completes_the_run_for_ever_and_for_every_machine(on_both_stores, other_imds):
    machine = on_both_stores("--steps", 30)
    machine.boot()
    machine.wait_for_event("completed")
    machine.wait(lambda: "stored" in machine.status()["reason"], "completed.json")
    assert machine.status()["checkpoint"]["newest"]["stored"]
    assert machine.stop_daemon() == 0
    machine.boot()
    assert machine.wait_for_state("completed")["trainer"]["pid"] is None
    machine.stop_daemon()
    machine.lose_disk()
    machine.boot()
    machine.wait_for_state("completed")
    other = on_both_stores("--steps", 30, name="two", run=machine.run, imds_url=other_imds.url)
    other.boot()
    other.wait_for_state("completed")
    assert [s["attempt"] for s in machine.steps() + other.steps()] == []
    assert machine.named("trainer_started") == other.named("trainer_started") == []


def test_a_complete_run_begins_again_only_under_another_name(build):
    machine = build("--steps", 10)
    machine.boot()
    machine.wait_for_state("completed")
    machine.stop_daemon()
    machine.run += "-again"
    machine.boot()
    machine.wait_for_state("completed")
    assert len(machine.named("trainer_started")) == 1


def test_a_trainer_without_progress_is_stopped_and_started_again(build):
    machine = build(trainer={"progress_timeout": 1})
    machine.boot()
    machine.wait_for_steps(3)
    saved = machine.saved()["step"]
    machine.pull("still")
    machine.wait_for_event("trainer_hung")
    machine.release("still")
    assert machine.wait_for_steps(1, attempt=2)[0]["step"] > saved


def test_the_preflight_command_is_waited_for(build):
    machine = build(trainer={"preflight": "test -e ready"})
    machine.boot()
    machine.wait(lambda: "preflight" in machine.status().get("reason", ""), "the reason")
    assert machine.steps() == []
    (machine.work / "ready").touch()
    machine.wait_for_steps(1)


def test_what_a_trainer_leaves_behind_does_not_outlive_it(build):
    python, *rest = little_trainer()
    script = "import subprocess, sys, runpy; subprocess.Popen(['sleep', '1000']);"
    script += f" sys.argv = {rest[1:]!r}; runpy.run_path({rest[1]!r}, run_name='__main__')"
    machine = build(command=[python, "-S", "-c", script])
    machine.boot()
    machine.wait_for_steps(3)
    machine.saved()
    before = set(machine.processes())
    machine.pull("crash")
    machine.wait_for_steps(1, attempt=2)
    assert len(set(machine.processes()) & before) <= 2, "the daemon and its worker"
    assert machine.stop_daemon() == 0
    assert machine.processes() == []
