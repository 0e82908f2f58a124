"""What spotd has called durable survives a power cut at any moment.

`SPOTD_POWER_CUTS=500 python -m pytest tests/systemd/test_power.py` cuts it 500 times each.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ec2box import claimant

if TYPE_CHECKING:
    from ec2box.disk import Disk

pytestmark = [pytest.mark.root, pytest.mark.systemd, pytest.mark.timeout(120, func_only=True)]
CUTS = int(os.environ.get("SPOTD_POWER_CUTS", "25"))


def claim_until_the_power_goes(disk: Disk, kind: str, seconds: float) -> int:
    """Runs a claimant and cuts the power; returns the last claim it was heard to make."""
    folder = disk.path / kind
    folder.mkdir(exist_ok=True)
    # A folder that is itself not on the disk yet would lose everything in it.
    for path in (folder, disk.path):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    process = subprocess.Popen(
        [sys.executable, claimant.__file__, kind, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it dies of the cut, with a traceback
    )
    assert process.stdout is not None
    with process.stdout as heard:
        assert heard.readline() == b"1\n"
        time.sleep(seconds)
        disk.cut()
        process.kill()
        claims = [1, *(int(line) for line in heard.read().split(b"\n") if line)]
    process.wait()
    disk.unmount()
    disk.mount()
    return claims[-1]


def cuts() -> list[tuple[int, float]]:
    chance = random.Random(20261121)
    return [(number, chance.uniform(0.0, 0.05)) for number in range(CUTS)]


@pytest.mark.timeout(60 + CUTS, func_only=True)
def test_the_record_is_the_last_one_saved_or_a_newer_one_after_a_power_cut(disk: Disk) -> None:
    for number, seconds in cuts():
        heard = claim_until_the_power_goes(disk, "record", seconds)
        found = json.loads((disk.path / "record/state.json").read_bytes())["number"]
        assert found >= heard, f"cut {number}: claimed {heard}, found {found}"
        (disk.path / "record/state.json").unlink()


@pytest.mark.timeout(60 + CUTS, func_only=True)
@pytest.mark.parametrize(
    ("kind", "place"), [("files", "{0}"), ("objects", "store/run/checkpoints/{0:08d}/file")]
)
def test_whatever_was_called_written_is_whole_after_a_power_cut(
    disk: Disk, kind: str, place: str
) -> None:
    for number, seconds in cuts():
        heard = claim_until_the_power_goes(disk, kind, seconds)
        lost = [
            n
            for n in range(1, heard + 1)
            if (disk.path / kind / place.format(n)).read_bytes() != claimant.content(n)
        ]
        assert not lost, f"cut {number}: of {heard} claims {len(lost)} were not true"


def test_without_fsync_the_same_cut_loses_files_so_it_bites(disk: Disk) -> None:
    heard = claim_until_the_power_goes(disk, "careless", 0.05)
    whole = [
        n
        for n in range(1, heard + 1)
        if (path := Path(disk.path, "careless", str(n))).exists()
        and path.read_bytes() == claimant.content(n)
    ]
    assert len(whole) < heard
