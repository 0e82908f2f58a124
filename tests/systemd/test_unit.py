"""spotd as a unit: stopped, restarted, upgraded, killed, hung, misconfigured, removed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ec2box import ami

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ec2box.instance import Instance
    from ec2box.training import Training

pytestmark = [
    pytest.mark.root,
    pytest.mark.systemd,
    pytest.mark.slow,
    pytest.mark.timeout(240, func_only=True),  # building the image is not the first test's time
]


SECRET = """chmod 644 /etc/spotd/spotd.toml; cat >>/etc/spotd/spotd.toml <<'END'
[notify]
webhook_url = "https://hooks.example/T0/B0/x"
END"""


#: Where memory can be limited from outside: no controller reaches into the container.
MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def pinch() -> Iterator[Callable[[int, int], Path]]:
    """`pinch(pid, bytes)`: what that process takes from now on is limited; its group."""
    if not (MEMORY / "memory.limit_in_bytes").exists():
        pytest.skip("no memory controller of cgroup v1 here; tests/systemd/vm.py stages it")
    groups: list[Path] = []

    def pinch(pid: int, limit: int) -> Path:
        group = MEMORY / f"spotd-tests-{os.getpid()}-{pid}"
        group.mkdir()
        groups.append(group)
        (group / "memory.limit_in_bytes").write_text(str(limit))
        (group / "cgroup.procs").write_text(str(pid))
        return group

    yield pinch
    for group in groups:
        for pid in (group / "cgroup.procs").read_text().split():
            (MEMORY / "cgroup.procs").write_text(pid)
        group.rmdir()


def oom_kills(group: Path) -> int:
    words = (group / "memory.oom_control").read_text().split()
    return int(words[words.index("oom_kill") + 1])


def main_pid(instance: Instance) -> int:
    return int(instance.show("spotd.service", "MainPID")["MainPID"])


def trainers(training: Training) -> set[int]:
    return {pid for _, pid, _ in training.steps()}


def may_raise_limits() -> bool:
    """CAP_SYS_RESOURCE, capability 24: capabilities(7)."""
    status = Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0]
    return bool(int(status, 16) >> 24 & 1)


def no_step_is_missing(training: Training) -> bool:
    numbers = [step for step, _, _ in training.steps()]
    return numbers == list(range(1, len(numbers) + 1))


def test_systemctl_stop_saves_stores_and_ends(training: Training) -> None:
    training.boot()
    training.instance.run("systemctl", "stop", "spotd")
    assert training.stored_step() == training.step
    unit = training.instance.show("spotd.service", "ActiveState", "Result")
    assert unit == {"ActiveState": "inactive", "Result": "success"}
    assert training.instance.run("pgrep", "-f", "train.py", check=False) == ""
    training.instance.run("systemctl", "start", "spotd")
    training.until_training()
    assert no_step_is_missing(training)


def test_systemctl_restart_does_not_interrupt_the_training(training: Training) -> None:
    training.boot()
    for round_ in range(3):
        before = main_pid(training.instance)
        training.instance.run("systemctl", "restart", "spotd")
        training.until_training()
        assert main_pid(training.instance) != before
        assert len(training.instance.events("trainer_adopted")) == round_ + 1
    training.until_stored(training.step)
    assert len(trainers(training)) == 1
    assert no_step_is_missing(training)
    assert training.status()["trainer"]["adopted"] is True


def test_an_upgrade_of_the_package_does_not_interrupt_the_training(
    training: Training, scratch: Path
) -> None:
    newer = ami.builder().deb(scratch / "newer", release="0.1.0+next")
    training.boot()
    training.instance.write("/root/spotd.deb", "")
    training.instance.file("/root/spotd.deb").write_bytes(newer.read_bytes())
    said = training.instance.run("dpkg", "-i", "/root/spotd.deb")
    assert "rror" not in said
    training.instance.until_event("trainer_adopted")
    training.until_training()
    assert len(trainers(training)) == 1
    assert no_step_is_missing(training)
    assert "0.1.0+next" in training.instance.run("dpkg-query", "-W", "spotd")


def test_a_daemon_that_is_killed_comes_back_and_adopts_the_trainer(training: Training) -> None:
    training.boot()
    training.instance.run("systemctl", "kill", "-s", "KILL", "--kill-who=main", "spotd")
    training.instance.until_event("trainer_adopted")
    training.until_training()
    assert len(trainers(training)) == 1
    assert no_step_is_missing(training)


def test_a_daemon_that_hangs_is_ended_by_the_watchdog_and_the_training_goes_on(
    training: Training,
) -> None:
    training.configure()
    drop_in = "/etc/systemd/system/spotd.service.d/watchdog.conf"
    training.instance.write(drop_in, "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n")
    training.instance.start()
    training.until_training()
    training.instance.run("systemctl", "kill", "-s", "STOP", "--kill-who=main", "spotd")
    training.instance.until_event("trainer_adopted")
    training.until_training()
    assert len(trainers(training)) == 1
    assert no_step_is_missing(training)
    assert training.instance.show("spotd.service", "NRestarts")["NRestarts"] == "1"


def test_a_trainer_that_is_killed_is_started_again_from_its_newest_checkpoint(
    training: Training,
) -> None:
    training.boot()
    training.until_training(60)
    training.instance.run("pkill", "-KILL", "-f", "train.py")
    training.instance.until_event("trainer_started", 2)
    training.until_training()
    begins = training.resumed_at()
    assert len(begins) == 2
    assert begins[1] >= 50
    assert training.status()["counts"]["crashes"] == 1


def test_a_trainer_that_hangs_is_stopped_and_started_again(training: Training) -> None:
    training.boot(trainer='progress_timeout = "3s"', interruption='stop_timeout = "1s"')
    training.until_training(30)
    training.instance.run("pkill", "-STOP", "-f", "train.py")
    training.instance.until_event("trainer_started", 2)
    training.until_training()
    assert training.resumed_at()[1] >= 25
    names = [event["SPOTD_EVENT"] for event in training.instance.events()]
    assert names.index("trainer_hung") < names.index("trainer_killed")


def test_a_trainer_that_runs_out_of_memory_is_started_again_from_its_newest_checkpoint(
    training: Training, pinch: Callable[[int, int], Path]
) -> None:
    training.boot()
    training.until_training(60)
    daemon = main_pid(training.instance)
    trainer = int(training.instance.run("pgrep", "-o", "-u", "ubuntu", "-f", "train.py"))
    group = pinch(training.instance.outside(trainer), 64 << 20)
    training.instance.write("/home/ubuntu/greedy", "")
    training.instance.until_event("trainer_started", 2)
    training.until_training()
    assert oom_kills(group) == 1
    assert training.resumed_at()[1] >= 50
    assert "SIGKILL" in training.instance.events("trainer_exited")[0]["MESSAGE"]
    assert main_pid(training.instance) == daemon
    assert training.instance.show("spotd.service", "NRestarts")["NRestarts"] == "0"


def test_a_daemon_that_runs_out_of_memory_comes_back_and_adopts_the_trainer(
    training: Training, pinch: Callable[[int, int], Path]
) -> None:
    training.boot()
    before = main_pid(training.instance)
    group = pinch(training.instance.outside(before), 64 << 10)
    training.instance.until_event("trainer_adopted")
    training.until_training()
    assert oom_kills(group) >= 1  # the store's worker may be the first to be taken
    assert main_pid(training.instance) != before
    assert len(trainers(training)) == 1
    assert no_step_is_missing(training)
    assert training.instance.show("spotd.service", "NRestarts")["NRestarts"] == "1"


def test_memory_pressure_takes_neither_by_mistake(training: Training) -> None:
    training.boot()
    instance = training.instance
    daemon = instance.run("cat", f"/proc/{main_pid(instance)}/oom_score_adj").strip()
    trainer = instance.run("pgrep", "-f", "train.py").split()[-1]
    if not may_raise_limits():
        pytest.skip("CAP_SYS_RESOURCE is missing here: no machine below can lower an OOM score")
    assert daemon == "-900"
    assert instance.run("cat", f"/proc/{trainer}/oom_score_adj").strip() == "0"
    assert instance.show("spotd.service", "OOMPolicy")["OOMPolicy"] == "continue"


def test_the_trainer_keeps_what_training_needs_and_has_nothing_of_the_daemons(
    training: Training,
) -> None:
    training.boot()
    instance = training.instance
    trainer = instance.run("pgrep", "-u", "ubuntu", "-f", "train.py").split()[-1]
    environment = instance.run("cat", f"/proc/{trainer}/environ").split("\0")
    names = {line.partition("=")[0] for line in environment}
    assert not names & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "INVOCATION_ID"}
    assert "SPOTD_CHECKPOINT_DIR" in names
    assert f"0::/system.slice/spotd-trainer-{training.run}" in instance.run(
        "cat", f"/proc/{trainer}/cgroup"
    )
    status = dict(
        line.split(":\t", 1) for line in instance.run("cat", f"/proc/{trainer}/status").splitlines()
    )
    assert status["NoNewPrivs"] == "0"
    assert status["Uid"].split()[0] == "1000"
    if may_raise_limits():
        limits = instance.run("cat", f"/proc/{trainer}/limits")
        assert "Max locked memory         unlimited" in limits
    assert any("umask 0022" in e.get("MESSAGE", "") for e in instance.journal())


def test_everything_is_explained_by_journalctl_x_and_systemctl_status(training: Training) -> None:
    training.boot()
    training.until_stored()
    explained = training.instance.run("journalctl", "-x", "-u", "spotd", "--no-pager")
    assert "Defined-By: spotd" in explained
    said = training.instance.run("systemctl", "status", "spotd", "--no-pager")
    line = next(line for line in said.splitlines() if "Status:" in line)
    assert "step" in line


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        ("rm /etc/spotd/spotd.toml", "no such file"),
        ("echo 'run = ' > /etc/spotd/spotd.toml", "spotd.toml"),
        ("sed -i s/command/comand/ /etc/spotd/spotd.toml", "comand"),
        ("chown ubuntu /etc/spotd/spotd.toml", "owned by"),
        ("chmod o+w /etc/spotd/spotd.toml", "written by anybody"),
        (
            SECRET,
            "read by anybody",
        ),
    ],
    ids=["missing", "broken", "unknown-key", "foreign", "writable", "secret-for-all"],
)
def test_a_unit_that_cannot_be_configured_says_why_in_one_line_and_does_not_loop(
    training: Training, prepare: str, words: str
) -> None:
    training.configure()
    training.instance.start()
    training.instance.booted()
    training.instance.run("systemctl", "stop", "spotd")
    steps = len(training.steps())
    training.instance.shell(prepare)
    training.instance.run("systemctl", "start", "spotd", check=False)
    unit = training.instance.show(
        "spotd.service", "ActiveState", "ExecMainStatus", "NRestarts", "StatusText"
    )
    assert unit["ActiveState"] == "failed"
    assert unit["ExecMainStatus"] == "78"
    assert unit["NRestarts"] == "0"
    assert words in unit["StatusText"], unit["StatusText"]
    assert len(training.steps()) == steps


def test_a_reload_takes_over_what_is_right_and_refuses_what_is_wrong(training: Training) -> None:
    training.boot()
    before = main_pid(training.instance)
    instance = training.instance
    instance.write("/etc/spotd/spotd.toml", training.configuration() + "\n[metrics]\n")
    instance.run("systemctl", "reload", "spotd")
    instance.until_event("configuration_reloaded")
    instance.write("/etc/spotd/spotd.toml", "run = 3\n")
    with pytest.raises(RuntimeError, match="failed"):
        instance.run("systemctl", "reload", "spotd")
    instance.until_event("reload_refused")
    said = instance.run("systemctl", "status", "spotd", "--no-pager", "--full", check=False)
    assert "nothing was taken over: " in said
    instance.write("/etc/spotd/spotd.toml", training.configuration().replace("margin", "magrin"))
    refused = instance.run("spotd", "reload", check=False)
    assert "magrin" in refused
    assert "margin" in refused  # what it may have meant
    unit = instance.show("spotd.service", "ActiveState", "SubState", "NRestarts")
    assert unit == {"ActiveState": "active", "SubState": "running", "NRestarts": "0"}
    training.until_training()
    instance.write("/etc/spotd/spotd.toml", training.configuration())
    instance.run("systemctl", "reload", "spotd")
    assert main_pid(instance) == before
    assert len(trainers(training)) == 1


def test_a_run_that_completed_is_not_started_again_at_the_next_boot(training: Training) -> None:
    training.configure(arguments="--steps 40")
    training.instance.start()
    training.until_state("completed")
    training.instance.until(  # completed first, then the last checkpoint is stored
        lambda: "complete and stored" in training.status()["reason"], "completed.json"
    )
    assert training.stored_step() == 40
    assert any(key.endswith("/completed.json") for key in training.cloud.keys("spotd/"))
    training.instance.stop()
    training.instance.start()
    training.until_state("completed")
    assert training.step == 40
    assert len(training.resumed_at()) == 1


def test_a_full_disk_stops_neither_the_daemon_nor_later_checkpoints(
    training: Training, launch: Any
) -> None:
    training.instance = launch(disk_size=300 << 20)
    training.boot()
    training.until_stored()
    instance = training.instance
    instance.shell("cp /dev/zero /home/ubuntu/ballast 2>/dev/null || true")
    instance.until(lambda: len(training.resumed_at()) > 0, "the trainer to meet the full disk")
    instance.shell("sleep 1; systemctl is-active spotd; rm /home/ubuntu/ballast")
    training.until_training(60)
    training.until_stored(training.step)


def test_removal_and_purge_leave_every_checkpoint_where_it_is(training: Training) -> None:
    training.boot()
    training.until_stored()
    instance = training.instance
    instance.run("dpkg", "--remove", "spotd")
    saved = training.step
    assert training.stored_step() == saved
    assert instance.file("/var/lib/spotd").is_dir()
    assert instance.file("/etc/spotd/spotd.toml").exists()
    instance.run("dpkg", "--purge", "spotd")
    assert instance.file(f"/home/ubuntu/checkpoints/step-{saved}.pt").exists()
    assert training.stored_step() == saved
    assert not instance.file("/opt/spotd").exists()
    left = [path.name for path in instance.file("/var/lib/spotd").glob("**/*")]
    assert left == []


def test_purge_spares_a_state_directory_that_the_configuration_names(training: Training) -> None:
    training.boot()
    training.instance.write("/etc/spotd/other.toml", 'directory = "/var/lib/spotd/work"\n')
    training.instance.run("dpkg", "--purge", "spotd")
    assert list(training.instance.file("/var/lib/spotd").glob("*/state.json"))


def test_nobody_but_root_can_stop_the_training_over_the_control_socket(training: Training) -> None:
    training.boot()
    instance = training.instance
    modes = instance.run("find", "/run/spotd", "-type", "s", "-printf", "%f %M %u\n")
    control = next(line for line in modes.splitlines() if line.startswith("control.sock"))
    assert control.split()[2] == "root"
    refused = instance.run(
        "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "spotd", "drill", check=False
    )
    assert "safe to stop" not in refused
    training.until_training()
    assert len(trainers(training)) == 1
