"""Real torch, a jumping clock, a newer Debian, two Ubuntus, and no systemd at all."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ec2box import ami, image

from spotd.config.documents import default_file
from spotd.user_data import Source, Volume, render

if TYPE_CHECKING:
    from ec2box.cloud import Cloud
    from ec2box.training import Training

pytestmark = [
    pytest.mark.root,
    pytest.mark.systemd,
    pytest.mark.slow,
    pytest.mark.timeout(240, func_only=True),  # building the image is not the first test's time
]
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


def test_the_reference_trainer_on_real_torch_goes_on_at_the_same_step(
    training: Training, cloud: Cloud, launch: Any, base: Path
) -> None:
    torch = pytest.importorskip("torch")
    minor = f"python3.{sys.version_info.minor}"
    if not (base / "usr/bin" / minor).exists():
        pytest.skip(f"the image has no {minor}, and torch here is built for it")
    site = Path(torch.__file__).parents[1]
    binds = {str(site): "/opt/site", str(ami.REPOSITORY / "trainer"): "/opt/trainer"}
    training.instance = launch(binds=binds)
    program = (
        f'command = "{minor} -m spotd_trainer.reference --steps 100000 --layers 1 --heads 1 '
        '--width 16 --context 16 --batch 2 --threads 1 --workers 0 --save-every 200"\n'
        'directory = "/home/ubuntu"\nuser = "ubuntu"\n'
        'environment = { PYTHONPATH = "/opt/site:/opt/trainer", OMP_NUM_THREADS = "1" }'
    )
    training.configure(program=program)
    training.instance.start()
    training.until_stored(patience=90)
    cloud.imds.give_notice("stop", in_seconds=40)
    training.until_state("drained", 40)
    saved = training.stored_step()
    assert training.status()["checkpoint"]["newest"]["step"] == saved > 0
    training.instance.stop()
    cloud.imds.withdraw()
    training.instance.start()
    training.until_stored(saved + 1, patience=90)
    started = training.instance.events("trainer_started")
    assert len(started) == 2
    assert str(saved) in started[1]["MESSAGE"]


@pytest.mark.parametrize("jump", ["+300", "-300"])
def test_a_clock_that_jumps_neither_ends_the_training_nor_hides_a_notice(
    training: Training, cloud: Cloud, jump: str
) -> None:
    if not Path(str(training.base) + FAKETIME).exists():
        pytest.skip("the image has no libfaketime for this machine")
    drop_in = (
        f"[Service]\nEnvironment=LD_PRELOAD={FAKETIME} FAKETIME_TIMESTAMP_FILE=/etc/faketime\n"
        "Environment=FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1\n"
    )
    training.configure()
    training.instance.write("/etc/systemd/system/spotd.service.d/clock.conf", drop_in)
    training.instance.write("/etc/faketime", "+0")
    training.instance.start()
    training.until_training()
    training.until_stored()
    training.instance.write("/etc/faketime", jump)
    training.until_training(60)
    cloud.imds.give_notice("stop", in_seconds=60)
    training.instance.until_event("stop_signal_sent", patience=15)
    training.until_state("drained")
    assert training.stored_step() == training.step
    assert len(training.resumed_at()) == 1
    assert [e["MESSAGE"] for e in training.instance.events("store_failed")] == []


def test_without_systemd_it_is_pid_1_and_drains_on_sigterm(
    training: Training, cloud: Cloud
) -> None:
    training.configure()
    cloud.address(training.instance.name)
    training.instance.start("/opt/spotd/bin/spotd", "run")
    training.until_training()
    os.kill(training.instance.leader, signal.SIGTERM)
    assert training.instance.wait_off() == 0
    assert training.stored_step() == training.step
    assert training.step > 0


def test_as_pid_1_it_buries_everybodys_orphans(training: Training, cloud: Cloud) -> None:
    training.configure()
    cloud.address(training.instance.name)
    training.instance.start("/opt/spotd/bin/spotd", "run")
    training.until_training()
    # An orphan's parent is pid 1, and nobody but pid 1 can bury it.
    training.instance.shell("(sleep 0.1 &)")
    training.until_training(20)

    def all_buried() -> bool:
        states = training.instance.shell("cat /proc/[0-9]*/stat 2>/dev/null || true")
        return not re.findall(r"\) Z ", states)

    training.instance.until(all_buried, "the orphans to be buried", 10)


@pytest.fixture
def elsewhere(request: pytest.FixtureRequest, scratch: Path, package: Path) -> list[Path]:
    """The layers of another release; made before the test's own time begins."""
    try:
        root = image.base(request.param)
    except (RuntimeError, OSError) as error:
        pytest.skip(f"the image could not be built: {error}")
    return [ami.bake(scratch / root.name, root, package), root]


@pytest.mark.timeout(400, func_only=True)
@pytest.mark.parametrize(
    ("elsewhere", "python"),
    [("trixie", "Python 3.13"), ("noble", "Python 3.12"), ("jammy", "Python 3.10")],
    indirect=["elsewhere"],
    ids=["debian-13", "ubuntu-24.04", "ubuntu-22.04"],
)
def test_the_same_package_trains_on_another_release_with_its_python_and_systemd(
    training: Training, cloud: Cloud, launch: Any, elsewhere: list[Path], python: str
) -> None:
    training.instance = launch(layers=elsewhere)
    training.boot()
    assert python in training.instance.run("python3", "--version")
    training.instance.run("systemctl", "restart", "spotd")
    training.until_training()
    assert len(training.resumed_at()) == 1
    cloud.imds.give_notice("stop", in_seconds=30)
    training.until_state("drained")
    saved = training.stored_step()
    assert saved == training.step
    training.instance.stop()
    cloud.imds.withdraw()
    training.instance.start()
    training.until_training()
    assert training.resumed_at() == [0, saved]


@pytest.mark.timeout(400, func_only=True)
def test_the_rpm_installs_beside_python_3_11_and_its_unit_trains(
    training: Training, cloud: Cloud, launch: Any, scratch: Path, base: Path
) -> None:
    if not (shutil.which("rpmbuild") and shutil.which("rpm")):
        pytest.skip("needs rpmbuild and rpm: apt-get install rpm")
    if not (base / "usr/bin/python3.11").exists():
        pytest.skip("the image has no python3.11, which Amazon Linux 2023 has beside its own")
    built = ami.builder().rpm(scratch / "dist-rpm")
    training.instance = launch(layers=[ami.bake(scratch / "rpm", base, built), base])
    training.boot()
    assert "enabled" in training.instance.run("systemctl", "is-enabled", "spotd")
    cloud.imds.give_notice("stop", in_seconds=30)
    training.until_state("drained")
    assert training.stored_step() == training.step > 0


#: In a mount namespace of its own: the root is shared by every instance, and stays as it is.
SCHEMA = """
mount -t tmpfs tmpfs "$1/mnt" && mount -t proc proc "$1/proc" && cat > "$1/mnt/user-data" || exit 1
for verb in schema "devel schema"; do  # up to 22.1 the second
    chroot "$1" cloud-init $verb --config-file /mnt/user-data 2>&1 && exit
done
exit 1
"""


@pytest.mark.parametrize("suite", ["bookworm", "trixie", "noble", "jammy"])
def test_cloud_init_of_every_release_finds_the_user_data_valid(machinery: None, suite: str) -> None:
    try:
        root = image.base(suite)
    except (RuntimeError, OSError) as error:
        pytest.skip(f"the image could not be built: {error}")
    volume = Volume("/dev/nvme1n1", "/data", "ubuntu")
    text = render(default_file(), source=Source("s3://b/training/spotd.deb"), volume=volume)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCHEMA, "sh", root],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Valid" in done.stdout
