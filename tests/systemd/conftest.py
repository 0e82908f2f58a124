"""Instances for the scenarios: one network and one image a session, one machine a test."""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ec2box import ami, image, netns
from ec2box.cloud import Cloud
from ec2box.disk import Disk
from ec2box.instance import Instance
from ec2box.training import Training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


NUMBERS = itertools.count(0x5D07D)


@pytest.fixture(scope="session")
def machinery() -> None:
    """What booting an instance needs; where it cannot be had, the tests say why and skip."""
    if reason := image.unavailable():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def scratch(machinery: None) -> Iterator[Path]:
    """Space outside /tmp, which may be in memory; removed at the end."""
    netns.private_mounts()
    folder = Path(tempfile.mkdtemp(prefix="spotd-tests-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def disk(scratch: Path) -> Iterator[Disk]:
    """A small disk of its own, mounted."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    disk = Disk(folder, 64 << 20)
    disk.mount()
    yield disk
    disk.close()


@pytest.fixture(scope="session")
def base(machinery: None) -> Path:
    """Debian, without spotd."""
    try:
        return image.base()
    except RuntimeError as error:
        pytest.skip(f"the image could not be built: {error}")


@pytest.fixture(scope="session")
def package(scratch: Path) -> Path:
    """The .deb, built from this tree."""
    built: Path = ami.builder().deb(scratch / "dist")
    return built


@pytest.fixture(scope="session")
def baked(scratch: Path, base: Path, package: Path) -> Path:
    """The layer of an AMI with spotd in it."""
    return ami.bake(scratch, base, package)


@pytest.fixture(scope="session")
def network(scratch: Path) -> Iterator[Cloud]:
    cloud = Cloud(scratch / "cloud")
    yield cloud
    cloud.close()


@pytest.fixture
def cloud(network: Cloud) -> Cloud:
    """The network, with nothing to say and everything up."""
    network.s3_on()
    network.net.call(network.imds.well)  # it may have to listen again, and there
    network.imds.withdraw()
    network.imds.user_data = ""
    return network


@pytest.fixture
def launch(
    cloud: Cloud, scratch: Path, baked: Path, base: Path
) -> Iterator[Callable[..., Instance]]:
    """`launch(layers=None, **options)`: a new instance, off; its disk dies with the test."""
    launched: list[Instance] = []

    def launch(*, layers: list[Path] | None = None, **options: object) -> Instance:
        for other in launched:
            other.retire()
        name = f"i-0{next(NUMBERS):016x}"
        cloud.imds.instance_id = name
        folder = Path(tempfile.mkdtemp(dir=scratch))
        layers = [baked, base] if layers is None else layers
        instance = Instance(cloud, folder, layers, name, **options)  # type: ignore[arg-type]
        launched.append(instance)
        return instance

    yield launch
    for instance in launched:
        instance.close()


@pytest.fixture
def training(
    cloud: Cloud, launch: Callable[..., Instance], base: Path, request: pytest.FixtureRequest
) -> Training:
    """An instance that trains: its run is named after the test."""
    words = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))
    run = f"{words[:40].strip('-')}-{next(NUMBERS) % 1000}"
    return Training(cloud, launch, run, base)
