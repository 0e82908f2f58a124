from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from machines import WITHIN, little_trainer

SMALLEST = {
    "run": 'run = "mono"',
    "trainer": '[trainer]\ncommand = "true"\ndirectory = "{work}"',
    "checkpoints": '[checkpoints]\ndirectory = "checkpoints"',
    "store": '[store]\nurl = "file://{work}/store"',
    "paths": '[paths]\nstate = "{work}/state"\nruntime = "{work}/run"',
}


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"run": "rum = 'mono'"}, "rum", "run"),
        ({"run": "run = 3"}, "run", ""),
        ({"run": 'run = "a/../b"'}, "run", ""),
        ({"run": ""}, "run", ""),
        ({"trainer": '[trainer]\ncommand = "true"'}, "trainer.directory", ""),
        ({"trainer": SMALLEST["trainer"] + '\nstop_signal = "SIGTREM"'}, "stop_signal", "SIGTERM"),
        ({"trainer": SMALLEST["trainer"] + "\nmax_failure = 3"}, "max_failure", "max_failures"),
        ({"trainer": SMALLEST["trainer"] + '\nbackoff_min = "soon"'}, "backoff_min", ""),
        ({"trainer": SMALLEST["trainer"] + "\nmax_failures = 0"}, "max_failures", ""),
        ({"checkpoints": '[checkpoint]\ndirectory = "c"'}, "checkpoint", "checkpoints"),
        ({"store": '[store]\nurl = "ftp://there"'}, "store.url", "s3://"),
        ({"store": '[store]\nurl = "s3://Bad_Bucket!/x"'}, "store.url", ""),
        ({"imds": '[imds]\npoll_interval = "-1s"'}, "poll_interval", ""),
        ({"interruption": '[interruption]\nmargin = "3 lightyears"'}, "margin", ""),
        ({"completion": '[completion]\naction = "explode"'}, "completion.action", "terminate"),
        ({"store": '[store]\nurl = "'}, "line", ""),
    ],
)  # fmt: skip
def test_an_impossible_configuration_is_refused_and_nothing_is_started(
    tmp_path, capfd, changes, key, said
):
    from spotd.cli import main

    text = "\n\n".join({**SMALLEST, **changes}.values()).replace("{work}", str(tmp_path))
    config = tmp_path / "spotd.toml"
    config.write_text(text)
    assert main(["run", "--config", str(config)]) == 78
    told = capfd.readouterr().err
    assert str(config) in told
    assert key in told
    assert said in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spotd.toml"]


def test_a_missing_configuration_exits_78_from_the_real_command(build):
    machine = build()
    refused = machine.spotd("run")
    assert refused.returncode == 78
    assert str(machine.config) in refused.stderr
    machine.configure()
    machine.config.write_text(machine.config.read_text().replace("poll_interval", "pol_interval"))
    refused = machine.spotd("run")
    assert refused.returncode == 78
    assert "pol_interval" in refused.stderr
    assert "poll_interval" in refused.stderr, "the nearest valid name"
    assert not machine.runtime.exists()
    assert not machine.state.exists()


def reason(machine) -> str:
    status = machine.status()
    return status.get("reason", "") + status.get("line", "")


def test_a_checkpoint_directory_without_a_parent_is_said_and_waited_for(build):
    machine = build(sections={"checkpoints": {"directory": "not/there/checkpoints"}})
    machine.boot()
    machine.wait(lambda: "does not exist" in reason(machine), "the reason")
    assert "mount the disk or create the directory" in reason(machine)
    assert machine.steps() == []
    (machine.work / "not" / "there").mkdir(parents=True)
    machine.wait_for_steps(1)
    assert len(machine.named("directory_trouble")) <= 2, "each reason once"


def test_a_checkpoint_directory_that_is_a_file_is_said_and_waited_for(build):
    machine = build()
    machine.configure()
    machine.checkpoints.write_text("")
    machine.boot()
    machine.wait(lambda: "Not a directory" in reason(machine), "the reason")
    machine.checkpoints.unlink()
    machine.wait_for_steps(1)


def test_a_command_that_is_not_there_is_said_and_tried_again(build):
    machine = build(command=["./train"])
    machine.boot()
    machine.wait(lambda: "train" in reason(machine), "the reason")
    machine.wait_for_state("backing-off")
    assert "does not exist" in reason(machine)
    program = machine.work / "train"
    program.write_text("#!/bin/sh\nexec " + " ".join(little_trainer()) + "\n")
    program.chmod(0o755)
    machine.wait_for_steps(1)
    assert len(machine.named("trainer_start_failed")) == 1


def test_a_user_that_is_not_there_is_said(build):
    machine = build(trainer={"user": "nobody-of-that-name"})
    machine.boot()
    machine.wait(lambda: "nobody-of-that-name" in reason(machine), "the reason")
    assert machine.wait_for_state("backing-off")["trainer"]["pid"] is None
    assert machine.daemon.poll() is None


# --- what takes root -----------------------------------------------------------------


@pytest.fixture
def open_place():
    """A directory that other users can reach."""
    place = Path(tempfile.mkdtemp(prefix="spotd-e2e-", dir="/var/tmp"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def small_disk(as_root, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=70m", "tmpfs", place], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs to be allowed to mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.root
def test_a_trainer_of_another_user_runs_as_that_user_and_is_stored(as_root, build, open_place):
    nobody = pwd.getpwnam("nobody")
    trainer = shutil.copy(little_trainer()[-1], open_place)
    machine = build(
        command=["/usr/bin/env", "python3", "-S", trainer], trainer={"user": "nobody"},
        sections={"trainer": {"directory": str(open_place)},
                  "checkpoints": {"directory": str(open_place / "checkpoints")}},
    )  # fmt: skip
    os.chown(open_place, nobody.pw_uid, nobody.pw_gid)
    (open_place / "levers").mkdir()
    os.chown(open_place / "levers", nobody.pw_uid, nobody.pw_gid)
    machine.boot()
    pid = machine.wait(lambda: machine.status().get("trainer", {}).get("pid"), "a trainer")
    machine.wait(lambda: Path(f"/proc/{pid}").stat().st_uid == nobody.pw_uid, "the user")
    (open_place / "levers" / "save").touch()
    newest = machine.wait_stored()
    assert (open_place / "checkpoints" / newest["name"]).stat().st_uid == nobody.pw_uid
    assert machine.stop_daemon() == 0


@pytest.mark.root
def test_a_checkpoint_directory_the_user_cannot_write_is_said_and_waited_for(
    as_root, build, open_place
):
    nobody = pwd.getpwnam("nobody")
    checkpoints = open_place / "checkpoints"
    checkpoints.mkdir()
    machine = build(
        command=["sleep", "1000"], trainer={"user": "nobody"},
        sections={"trainer": {"directory": str(open_place)},
                  "checkpoints": {"directory": str(checkpoints)}},
    )  # fmt: skip
    machine.boot()
    machine.wait(lambda: "cannot be written" in reason(machine), "the reason")
    assert f"chown {nobody.pw_uid}" in reason(machine)
    os.chown(checkpoints, nobody.pw_uid, nobody.pw_gid)
    machine.wait_for_state("running")


@pytest.mark.root
def test_a_checkpoint_directory_that_does_not_survive_a_stop_is_said(build, small_disk):
    machine = build(sections={"checkpoints": {"directory": str(small_disk)}})
    machine.boot()
    machine.wait_for_steps(3)
    machine.wait(lambda: "does not survive a stop" in reason(machine), "the warning")
    assert machine.saved()


@pytest.mark.root
def test_a_restore_onto_a_full_disk_says_so_and_goes_on_when_there_is_room(build, small_disk):
    machine = build("--size", 300_000)
    machine.boot()
    machine.wait_for_steps(3)
    saved = machine.saved()["step"]
    machine.power_cut()
    machine.lose_disk()
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 40_000_000)
    machine.sections["checkpoints"] = {"directory": str(small_disk)}
    machine.boot()
    machine.wait(lambda: "free space" in reason(machine), "the reason")
    assert machine.steps() == []
    filler.unlink()
    assert machine.wait_for_steps(1)[0]["step"] == saved + 1


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as f, contextlib.suppress(OSError):
        while True:
            f.write(b"x" * 65536)


@pytest.mark.root
def test_a_full_disk_under_the_state_is_said_and_training_goes_on(build, small_disk):
    machine = build(sections={"paths": {"state": str(small_disk)}})
    machine.boot()
    machine.wait_for_steps(3)
    fill(small_disk / "filler")
    machine.pull("save")
    machine.wait(lambda: "cannot write" in machine.log.read_text(), "the line")
    (small_disk / "filler").unlink()
    machine.pull("save")
    machine.wait_stored()
    assert machine.daemon.poll() is None
    assert machine.stop_daemon() == 0


# --- hostile trainers ----------------------------------------------------------------


def test_hostile_datagrams_are_dropped_and_counted(build):
    machine = build("--silent")
    machine.boot()
    pid = machine.wait_for_steps(3)[0]["pid"]
    path = next(machine.runtime.glob("*trainer.sock"))
    hostile = [
        b"\0" * 100, b"\xff\xfe=\xfd", b"STEP=-1", b"STEP=1e400", b"STEP=" + b"9" * 5000,
        b"no equals", b"CHECKPOINT=/etc/passwd", b"CHECKPOINT=../../etc/passwd",
        b"CHECKPOINT=" + str(machine.checkpoints).encode() + b"/../../secret",
        b"x" * 60_000, b"=", b"\n" * 1000, b"STATUS=\x1b[2J\x07",
    ]  # fmt: skip
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        for datagram in hostile:
            s.sendto(datagram, str(path))
        s.sendto(b"STEP=41200\nLOSS=nan", str(path))
    machine.wait(lambda: machine.status()["trainer"]["step"] == 41200, "the honest one")
    assert machine.status()["trainer"]["datagrams"]["dropped"] >= 8
    assert "\x1b" not in (machine.status()["trainer"]["status"] or "")
    machine.wait_for_steps(5)
    assert machine.steps()[-1]["pid"] == pid
    assert machine.named("checkpoint_seen") == []


def test_garbage_on_the_control_socket_harms_nobody(build):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    path = str(machine.runtime / "control.sock")
    for garbage in (b"\0\xff\n", b"{}\n", b'{"verb": 3}\n', b'{"verb": "kill"}\n', b"x" * 10_000,
                    b"[" * 4000 + b"\n"):  # fmt: skip
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(WITHIN)
            s.connect(path)
            try:
                s.sendall(garbage)
                s.shutdown(socket.SHUT_WR)
                while s.recv(4096):
                    pass
            except (ConnectionResetError, BrokenPipeError):
                pass
    held = []
    for _ in range(60):  # more than it keeps
        s = socket.socket(socket.AF_UNIX)
        s.connect(path)
        held.append(s)
    machine.wait_for_state("running")
    for s in held:
        s.close()
