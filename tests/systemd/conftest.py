"""Instances for the scenarios: one network a session, one machine a test."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ec2box import image
from ec2box.disk import Disk

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def machinery() -> None:
    """What booting an instance needs; where it cannot be had, the tests say why and skip."""
    if reason := image.unavailable():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def scratch(machinery: None) -> Iterator[Path]:
    """Space outside /tmp, which may be in memory; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="spotd-tests-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def disk(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A small disk of its own, mounted."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    disk = Disk(folder, 64 << 20)
    disk.mount()
    yield disk
    disk.close()
