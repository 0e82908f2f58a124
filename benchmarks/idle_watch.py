"""What watching an idle checkpoint directory of 10,000 files costs, against scanning it.

    python benchmarks/idle_watch.py [--files 10000] [--seconds 15]

Prints CPU seconds per hour and memory for (a) spotd's watch, (b) the peer: a scan with
stat of every file each 5 seconds, in the same run on the same directory.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import queue
import tempfile
import time
import zipfile
from pathlib import Path

import psutil

from spotd.core.actions import Inspect
from spotd.core.events import LocalInventory
from spotd.shell.directory.directory import CheckpointDirectory
from spotd.shell.directory.watch import rescan_interval
from spotd.shell.owner import Owner

HOUR = 3600.0
PEER_INTERVAL = 5.0  # seconds


def checkpoint() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", bytes(200))
    return out.getvalue()


def fill(path: Path, files: int, name: str) -> None:
    data = checkpoint()
    for number in range(files):
        (path / name.format(number)).write_bytes(data)


def uss() -> int:
    return int(psutil.Process().memory_full_info().uss)


def watch(path: Path, seconds: float) -> dict[str, float]:
    """CPU of a whole process that watches, rescans at their own pace included."""
    events: queue.Queue[object] = queue.Queue()
    gc.collect()
    before_memory = uss()
    directory = CheckpointDirectory(path, owner=Owner(os.getuid(), os.getgid()), post=events.put)
    started = time.process_time()
    directory.start()
    directory.inspect(Inspect(settled=True))
    while not isinstance(events.get(timeout=60), LocalInventory):
        pass
    first_look = time.process_time() - started
    gc.collect()
    memory = uss() - before_memory
    before = time.process_time()
    time.sleep(seconds)
    idle = (time.process_time() - before) / seconds
    # What happens when an event was lost, or after a change of the directory.
    rescanned = time.process_time()
    directory.inspect(Inspect(settled=False))
    while not isinstance(events.get(timeout=60), LocalInventory):
        pass
    cost = time.process_time() - rescanned
    directory.stop()
    return {
        "first look, CPU s": first_look,
        "one full look again, CPU s": cost,
        "after a change at most every, s": rescan_interval(cost, blind=False),
        "idle, CPU s per hour": idle * HOUR,
        "memory, MiB": memory / 2**20,
    }


def scan(path: Path) -> float:
    """CPU per hour of looking at every file each five seconds."""
    before = time.process_time()
    with os.scandir(path) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False).st_mtime_ns for entry in entries}
    assert found
    return (time.process_time() - before) / PEER_INTERVAL * HOUR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=25.0)
    arguments = parser.parse_args()
    for kind, name in (("checkpoints", "step-{}.pt"), ("logs", "line-{}.log")):
        with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as full:
            fill(Path(full), arguments.files, name)
            base = watch(Path(empty), arguments.seconds)
            measured = watch(Path(full), arguments.seconds)
            peer = min(scan(Path(full)) for _ in range(5))
        print(f"{arguments.files} {kind}")
        for key, value in measured.items():
            print(f"  {key:32} {value:10.3f}   (empty directory: {base[key]:.3f})")
        hour = measured["idle, CPU s per hour"]
        print(f"  {'share of a core':32} {hour / HOUR:10.4%}")
        print(f"  {'scan every 5 s, CPU s/h':32} {peer:10.3f}   ratio {peer / hour:.1f}")


if __name__ == "__main__":
    main()
