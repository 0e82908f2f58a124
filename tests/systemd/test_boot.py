"""Boots of every kind: first, again, elsewhere, and after the power went."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ec2box import ami, index
from ec2box.disk import run

from spotd.user_data import Source, Volume, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ec2box.cloud import Cloud
    from ec2box.instance import Instance
    from ec2box.training import Training

pytestmark = [
    pytest.mark.root,
    pytest.mark.systemd,
    pytest.mark.slow,
    pytest.mark.timeout(240, func_only=True),  # building the image is not the first test's time
]


def messages(instance: Instance, event: str) -> list[str]:
    return [entry["MESSAGE"] for entry in instance.events(event)]


@pytest.fixture
def plain(training: Training, launch: Any, base: Path, scratch: Path) -> Callable[..., Instance]:
    """`plain(layer=None, **options)`: of a plain Debian image, with the user's own files alone."""

    def plain(layer: Path | None = None, **options: Any) -> Instance:
        layer = Path(tempfile.mkdtemp(dir=scratch)) if layer is None else layer
        layer.chmod(0o755)
        ami.put_trainer(layer)
        training.instance = launch(layers=[layer, base], **options)
        return training.instance

    return plain


@pytest.fixture
def bare(plain: Callable[..., Instance]) -> Instance:
    """An instance without spotd."""
    return plain()


def test_the_first_boot_from_user_data_installs_spotd_from_s3_and_trains(
    training: Training, cloud: Cloud, bare: Instance, package: Path
) -> None:
    instance = bare
    cloud.put("spotd.deb", package.read_bytes())
    source = Source(f"s3://{cloud.bucket}/spotd.deb", endpoint_url=cloud.s3_url)
    cloud.imds.user_data = render(training.configuration(), source=source)
    instance.start()
    training.until_training(patience=60)
    assert "enabled" in instance.run("systemctl", "is-enabled", "spotd")
    assert oct(instance.file("/etc/spotd/spotd.toml").stat().st_mode)[-4:] == "0640"
    training.until_stored()
    ready = ("cat", "/var/lib/cloud/instance/spotd-ready")
    instance.until(lambda: instance.run(*ready, check=False) == "done\n", "the setup's end")

    # The second boot runs no user data, and the unit trains all the same.
    cloud.imds.user_data = "#cloud-config\n{}\n"
    instance.stop()
    saved = training.step
    instance.start()
    training.until_training()
    assert training.resumed_at() == [0, saved]


@pytest.fixture
def volume(scratch: Path) -> Iterator[str]:
    """A blank block device."""
    file = Path(tempfile.mkdtemp(dir=scratch), "volume")
    with file.open("wb") as opened:
        opened.truncate(128 << 20)
    device = run("losetup", "--find", "--show", str(file)).strip()
    yield device
    run("losetup", "--detach", device)


def test_a_blank_data_volume_is_formatted_once_mounted_and_trained_on(
    training: Training, cloud: Cloud, plain: Callable[..., Instance], package: Path, volume: str
) -> None:
    instance = plain(devices={volume: "/dev/nvme1n1"})
    (cloud.files / "spotd.deb").write_bytes(package.read_bytes())
    program = (
        'command = "python3 -u /home/ubuntu/train.py checkpoints"\n'
        'directory = "/data"\nuser = "ubuntu"\n'
        'resume_arguments = ["--resume", "{checkpoint}"]'
    )
    cloud.imds.user_data = render(
        training.configuration(program=program),
        source=Source(cloud.url("spotd.deb")),
        volume=Volume("/dev/nvme1n1", "/data", "ubuntu"),
    )
    instance.start()
    training.until_stored(patience=60)
    mounted = instance.run("findmnt", "--noheadings", "--output=SOURCE,FSTYPE", "/data")
    assert mounted.split() == ["/dev/nvme1n1", "ext4"]
    assert int(instance.shell("ls /data/checkpoints/*.pt | wc -l")) > 0

    # cloud-init may run it again, after a cut: what is on the volume stays.
    instance.shell("touch /data/precious")
    instance.run("/usr/local/sbin/spotd-setup")
    assert instance.run("ls", "/data/precious")
    assert instance.shell("grep -c /data /etc/fstab").strip() == "1"
    training.until_stored(training.stored_step() + 1)


@pytest.mark.timeout(400, func_only=True)
def test_the_first_boot_installs_from_a_package_index_with_pip_and_trains(
    training: Training, cloud: Cloud, plain: Callable[..., Instance], scratch: Path
) -> None:
    try:
        venv = index.venv_layer(Path(tempfile.mkdtemp(dir=scratch)))
        index.fill(cloud.files / "simple")
    except RuntimeError as error:
        pytest.skip(f"no packages to be had: {error}")
    address = cloud.url("simple/")
    host = address.split("/")[2].split(":")[0]
    config = venv / "etc/pip.conf"
    config.write_text(f"[global]\nindex-url = {address}\ntrusted-host = {host}\n")
    instance = plain(venv)
    version = ami.builder().version()
    cloud.imds.user_data = render(training.configuration(), source=Source(f"spotd=={version}"))
    instance.start()
    training.until_training(patience=150)
    training.until_stored()
    assert f"spotd {version}" in instance.run("/usr/local/bin/spotd", "--version")
    assert "enabled" in instance.run("systemctl", "is-enabled", "spotd")
    instance.run("systemctl", "reload", "spotd")  # the unit finds everything where pip put it


def test_a_power_cut_during_the_first_boot_is_made_good_by_the_second(
    training: Training, cloud: Cloud, bare: Instance, package: Path
) -> None:
    instance = bare
    (cloud.files / "spotd.deb").write_bytes(package.read_bytes())
    source = Source(cloud.url("spotd.deb"))
    cloud.imds.user_data = render(training.configuration(), source=source)
    instance.start()
    instance.until(lambda: instance.file("/etc/spotd/spotd.toml").exists(), "write_files")
    instance.cut()
    instance.start()
    training.until_training(patience=60)
    training.until_stored()


def test_a_reboot_by_hand_goes_on_at_the_same_step(training: Training) -> None:
    training.boot()
    training.instance.run("systemctl", "reboot", "--no-block", check=False)
    assert training.instance.wait_off() == 133
    saved = training.step
    training.instance.start()
    training.until_training()
    assert training.resumed_at() == [0, saved]
    assert "reboot" in messages(training.instance, "boot_classified")[-1]


def test_a_new_instance_with_an_empty_disk_goes_on_from_the_store(
    training: Training, cloud: Cloud
) -> None:
    training.boot()
    cloud.imds.give_notice("terminate", in_seconds=30)
    training.until_state("drained")
    saved = training.step
    training.instance.stop()
    cloud.imds.withdraw()
    training.replace()
    training.instance.start()
    training.until_training()
    assert training.resumed_at() == [saved]
    assert training.instance.events("restore_finished")


def test_ten_power_cuts_at_random_moments_cost_what_was_not_saved_and_no_more(
    training: Training,
) -> None:
    chance = random.Random(6)
    training.configure()
    stored = 0
    for _ in range(10):
        training.instance.start()
        training.until_training(1)
        pause = time.monotonic() + chance.uniform(0.0, 1.5)
        training.instance.until(lambda p=pause: time.monotonic() > p, "the cut")
        stored = training.stored_step()
        training.instance.cut()
        training.forget_lost_steps()
    training.instance.start()
    training.until_training()
    assert training.resumed_at()[-1] >= stored
    kinds = messages(training.instance, "boot_classified")
    assert kinds[-1] == "the machine went down without warning"
    assert not training.instance.events("gave_up")
    manifests = training.stored()
    assert [m["sequence"] for m in manifests] == sorted({m["sequence"] for m in manifests})
