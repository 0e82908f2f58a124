"""kill -9 between any two changes of the disk loses no checkpoint and leaves no litter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from directory_killed import FILES
from directory_kit import a_world, eventually

LITTER = (".new-", ".trash-", ".doubt-")


def litter(place: Path) -> list[Path]:
    hold = place / ".spotd-hold"
    return [p for p in hold.iterdir() if p.name.startswith(LITTER)] if hold.exists() else []


def check(place: Path) -> None:
    """What the next daemon finds, and leaves, where the last one was killed."""
    with a_world(place) as world:
        inventory = world.inspect(contents=True)
        assert inventory.torn == ()
        for held in inventory.held:
            assert world.content_of(held.id) == FILES[held.checkpoint.name]
        eventually(lambda: not litter(place))
    kept = {f.read_bytes() for f in place.rglob("*.pt*") if f.is_file()}
    for name, data in FILES.items():
        if name != "step-9.pt":
            assert data in kept, name
        elif (place / name).exists():
            assert (place / name).read_bytes() == data


def test_a_daemon_killed_before_any_change_of_the_disk_comes_back_right(tmp_path):
    program = Path(__file__).with_name("directory_killed.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        check=True, timeout=100, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    *deaths, last = [int(line) for line in done.stdout.split()]
    assert last == 0
    assert set(deaths) == {-9}
    assert len(deaths) > 15
    for place in tmp_path.iterdir():
        check(place)
