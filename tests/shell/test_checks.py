"""What `spotd check` decides, and what it looks at, each part alone."""

from __future__ import annotations

import datetime as dt

import pytest

from spotd.checks import (
    FAILED,
    OK,
    WARNING,
    configuration,
    disk,
    request,
    store,
    trainer,
    unit,
    window,
)
from spotd.checks.metadata import judge as judge_metadata
from spotd.config import parse
from spotd.shell.clouds import InstanceIdentity
from spotd.shell.store.api import Probe

GIB = 1 << 30


def levels(findings):
    return {f.subject: f.level for f in findings}


# --- what the instance is ------------------------------------------------------------


def test_a_spot_instance_is_what_is_wanted():
    found = judge_metadata("ec2", InstanceIdentity("i-1", "g5.xlarge", "us-east-1a", None, "spot"))
    assert levels(found) == {"metadata": OK, "life cycle": OK}


def test_an_on_demand_instance_is_worth_a_warning():
    found = judge_metadata("ec2", InstanceIdentity("i-1", life_cycle="on-demand"))
    assert levels(found)["life cycle"] == WARNING


REQUEST = {
    "SpotInstanceRequestId": "sir-1",
    "Type": "persistent",
    "InstanceInterruptionBehavior": "stop",
    "State": "active",
}


@pytest.mark.parametrize(
    ("change", "subject", "level"),
    [
        ({}, "spot request", OK),
        ({"Type": "one-time"}, "spot request", FAILED),
        ({"InstanceInterruptionBehavior": "terminate"}, "spot request", WARNING),
        ({"InstanceInterruptionBehavior": "hibernate"}, "spot request", OK),
        ({"LaunchGroup": "g"}, "launch group", FAILED),
        ({"State": "disabled"}, "request state", FAILED),
        ({"State": "cancelled"}, "request state", FAILED),
    ],
)
def test_a_request_is_judged_by_what_happens_after_an_interruption(change, subject, level):
    assert levels(request.judge_request({**REQUEST, **change}, 0.0))[subject] == level


def test_a_request_that_ends_tomorrow_is_worth_a_warning():
    until = dt.datetime(2026, 11, 22, tzinfo=dt.timezone.utc)
    soon = request.judge_request({**REQUEST, "ValidUntil": until}, until.timestamp() - 3600)
    later = request.judge_request({**REQUEST, "ValidUntil": until}, until.timestamp() - 9 * 86400)
    assert levels(soon)["request validity"] == WARNING
    assert levels(later)["request validity"] == OK


def test_what_the_role_may_not_see_is_a_warning_that_names_the_action():
    facts = request.Facts(instance_trouble=("not allowed: ec2:DescribeInstances on *", "allow it"))
    found = request.judge(facts)
    assert {f.level for f in found} == {WARNING}
    assert all("ec2:DescribeInstances" in f.found for f in found)


def test_a_root_volume_that_is_no_ebs_fails():
    assert levels(request.judge(request.Facts(root="instance-store")))["root volume"] == FAILED


# --- disks ---------------------------------------------------------------------------

MOUNTINFO = """\
22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:26 / /dev/shm rw,nosuid - tmpfs tmpfs rw
31 22 259:5 / /mnt/fast\\040disk rw - xfs /dev/nvme1n1 rw
32 22 0:50 / /mnt/efs rw - nfs4 fs-1:/ rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", "ext4"),
        ("/dev/shm/x", "tmpfs"),
        ("/dev/shmx", "ext4"),
        ("/mnt/fast disk/ckpt", "xfs"),
        ("/mnt/efs", "nfs4"),
    ],
)
def test_a_path_lies_on_the_innermost_mount_that_holds_it(path, kind):
    assert disk.mount_of(path, disk.read_mounts(MOUNTINFO)).kind == kind


@pytest.mark.parametrize(
    ("kind", "models", "level"),
    [
        ("ext4", ("Amazon Elastic Block Store",), OK),
        ("ext4", ("Amazon EC2 NVMe Instance Storage",), FAILED),
        ("ext4", ("Amazon EC2 NVMe Instance Storage", "Amazon Elastic Block Store"), FAILED),
        ("tmpfs", (), FAILED),
        ("overlay", (), WARNING),
        ("nfs4", (), OK),
        ("fuse.mountpoint-s3", (), OK),
    ],
)
def test_whether_a_directory_survives_a_stop(kind, models, level):
    place = disk.Place("checkpoints.directory", "/x", disk.Mount("/x", kind, "1:1"), models)
    assert [f.level for f in disk.judge_survival([place])] == [level]


def test_the_disk_behind_raid_and_partitions_is_found(tmp_path):
    devices = tmp_path / "devices"
    for name in ("nvme1n1", "nvme2n1"):
        (devices / name / "device").mkdir(parents=True)
        (devices / name / "device/model").write_text("Amazon EC2 NVMe Instance Storage  \n")
    (devices / "nvme1n1/nvme1n1p1").mkdir()
    (devices / "nvme1n1/nvme1n1p1/partition").write_text("1\n")
    (devices / "md0/slaves").mkdir(parents=True)
    (devices / "md0/slaves/nvme1n1p1").symlink_to(devices / "nvme1n1/nvme1n1p1")
    (devices / "md0/slaves/nvme2n1").symlink_to(devices / "nvme2n1")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/9:0").symlink_to(devices / "md0")
    assert disk.models_of("9:0", tmp_path / "dev") == ("Amazon EC2 NVMe Instance Storage",)
    assert disk.models_of("7:7", tmp_path / "dev") == ()


@pytest.mark.parametrize(
    ("free", "newest", "level"),
    [(10 * GIB, GIB, OK), (2 * GIB, GIB, WARNING), (GIB // 2, GIB, FAILED), (GIB, None, OK)],
)
def test_room_is_measured_by_the_newest_checkpoint(free, newest, level):
    assert disk.judge_room(disk.Room("/x", free, 100 * GIB, None), newest).level == level


def test_a_file_system_out_of_inodes_is_full():
    assert disk.judge_room(disk.Room("/x", GIB, GIB, 3), 1).level == FAILED


def test_the_nearest_directory_that_is_there_is_asked(tmp_path):
    assert disk.nearest(tmp_path / "not/yet/there") == tmp_path
    assert disk.room_at(tmp_path / "not/yet").free > 0


# --- the two minutes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        (window.Facts(GIB, 100 * 1e6, 5.0), OK),
        (window.Facts(7 * GIB, 100 * 1e6, 5.0), WARNING),
        (window.Facts(20 * GIB, 100 * 1e6, 5.0), FAILED),
        (window.Facts(GIB, 100 * 1e6, 88.0), FAILED),
        (window.Facts(GIB, 100 * 1e6, None), WARNING),
        (window.Facts(None, 100 * 1e6, None, measured=True), WARNING),
        (window.Facts(GIB, None, None, trouble="no network"), WARNING),
    ],
)
def test_save_and_upload_together_must_fit_into_the_two_minutes(facts, level):
    assert window.judge(facts).level == level


def test_how_long_a_save_takes_is_read_off_the_last_one_that_was_asked_for():
    def line(time, event):
        return {"time": time, "event": event}

    story = [
        line(1, "stop_signal_sent"), line(4, "checkpoint_seen"), line(5, "checkpoint_seen"),
        line(9, "stop_signal_sent"), line(10, "drained"), line(11, "checkpoint_seen"),
    ]  # fmt: skip
    assert window.seconds_to_save(story) == 3
    assert window.seconds_to_save(story[3:]) is None


# --- the rest ------------------------------------------------------------------------


def test_credentials_that_end_or_that_only_a_shell_sees_are_worth_a_warning():
    assert store.judge_credentials(None).level == FAILED
    assert store.judge_credentials(store.Credentials("env", True, False)).level == WARNING
    assert store.judge_credentials(store.Credentials("env", False, False)).level == WARNING
    assert store.judge_credentials(store.Credentials("env", False, True)).level == OK
    assert store.judge_credentials(store.Credentials("iam-role", False, False)).level == OK


def test_a_store_without_conditional_writes_protects_no_lease():
    assert store.judge(Probe("s3://b/r", 0.1, conditional=True), 3).level == OK
    assert store.judge(Probe("s3://b/r", 0.1, conditional=False), 3).level == WARNING


def test_a_run_that_is_complete_and_a_checkpoint_that_is_damaged_are_told():
    found = store.judge_listing((("00000001-a", "no size"),), completed=True, run="r")
    assert levels(found) == {"run": WARNING, "checkpoint": WARNING}


UNIT = {
    "LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "active",
    "TimeoutStopUSec": "2min 30s", "After": "network-online.target",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "subject", "level"),
    [
        ({}, "unit", OK),
        ({"LoadState": "not-found"}, "unit", FAILED),
        ({"UnitFileState": "disabled"}, "unit", FAILED),
        ({"ActiveState": "failed"}, "unit", WARNING),
        ({"TimeoutStopUSec": "1min 30s"}, "stop time-out", WARNING),
        ({"After": "cloud-final.service"}, "unit order", FAILED),
    ],
)
def test_the_unit_is_judged_by_what_happens_at_the_next_boot(change, subject, level):
    assert levels(unit.judge(unit.Facts({**UNIT, **change})))[subject] == level


def test_without_systemd_somebody_else_must_start_it():
    assert levels(unit.judge(unit.Facts(None))) == {"unit": WARNING}


def test_a_trainer_that_caught_no_signal_the_last_time_loses_steps():
    assert trainer.signal_was_caught(["stop_signal_uncaught", "stop_signal_sent"]) is True
    assert trainer.signal_was_caught(["stop_signal_sent", "stop_signal_uncaught"]) is False
    assert trainer.signal_was_caught(["trainer_started"]) is None
    facts = trainer.Facts("me", program="/bin/x", caught=False)
    assert levels(trainer.judge(facts)) == {"trainer": OK, "stop signal": WARNING}


def test_a_command_that_the_user_cannot_find_fails(tmp_path):
    facts = trainer.Facts("me", directory=tmp_path, command="trane.py", program=None)
    found = trainer.judge(facts)
    assert levels(found) == {"trainer": FAILED}
    assert "'trane.py'" in found[0].found


def test_a_secret_that_others_can_read_is_told(tmp_path):
    path = tmp_path / "url"
    path.write_text("https://example.com/x")
    path.chmod(0o644)
    assert configuration.judge_secret("k", path, path.stat().st_mode)[0].level == WARNING
    path.chmod(0o600)
    assert configuration.judge_secret("k", path, path.stat().st_mode)[0].level == OK
    assert configuration.judge_secret("k", path, None)[0].level == FAILED


def test_the_speed_of_the_store_is_measured_and_nothing_stays_behind(tmp_path):
    (tmp_path / "store").mkdir()
    settings = parse(
        f"""
        run = "r"
        trainer = {{command = "x", directory = "/"}}
        checkpoints = {{directory = "c"}}
        store = {{url = "file://{tmp_path}/store"}}
        """,
        "test",
    )
    assert store.measure(settings) > 0
    assert [p for p in (tmp_path / "store").rglob("*") if p.is_file()] == []
