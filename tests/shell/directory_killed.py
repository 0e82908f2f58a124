"""A daemon's life with a checkpoint directory, killed before its n-th change of the disk.

Run as a program with a directory: lives once in each subdirectory 0, 1, 2, ..., killed there
before change 0, 1, 2, ..., until it lives through all of it. Prints how each ended.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from directory_kit import a_world, content

from spotd.core.actions import SetAside
from spotd.core.events import CheckpointVanished, Reinstated, SetAsideDone
from spotd.shell.directory import private

FILES = {
    "step-1.pt": content(1),
    "step-2.pt": content(2),
    "ckpt.pt": content(3),
    "step-9.pt": content(9),  # is deleted on purpose
}
CHANGES = {"os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


def die_before_change(number: int) -> None:
    left = [number]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple) -> None:
        if event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & 3):
            count()

    class Counting:
        def renameat2(self, *arguments: object) -> int:
            count()
            return int(real.renameat2(*arguments))

    real = private._libc
    private._libc = Counting()
    sys.addaudithook(hook)


def live(place: Path, number: int) -> None:
    with a_world(place) as world:
        inventory = {c.name: c for c in world.inspect().checkpoints}
        die_before_change(number)
        linked, _ = world.hold(inventory["step-1.pt"], 1)
        copied, _ = world.hold(inventory["ckpt.pt"], 2)
        world.directory.set_aside(SetAside("step-2.pt", "test"))
        world.wait(SetAsideDone)
        world.directory.bring_back("step-2.pt")
        world.seen("step-2.pt")
        world.directory.set_aside(SetAside("ckpt.pt", "test"))
        world.wait(SetAsideDone)
        world.directory.reinstate(copied)
        world.wait(Reinstated)
        world.directory.delete_local("step-9.pt", inventory["step-9.pt"].fingerprint)
        world.wait(CheckpointVanished, lambda event: event.name == "step-9.pt")
        world.directory.release_hold(linked)
        world.inspect()


def lives(base: Path) -> None:
    for number in range(300):
        place = base / str(number)
        place.mkdir()
        for name, data in FILES.items():
            (place / name).write_bytes(data)
        pid = os.fork()
        if pid == 0:
            live(place, number)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(status, flush=True)
        if status == 0:
            return


if __name__ == "__main__":
    lives(Path(sys.argv[1]))
