"""What the daemon costs while it waits: memory and CPU of all its processes.

    python benchmarks/idle.py [--seconds 125] [--files 10000]

Two daemons run side by side with the product's own poll interval of 5 s, beside a trainer
that does nothing: one with an empty checkpoint directory, one with many files in it. Each
has one checkpoint in S3 on loopback and keeps its lease; renewals of it fall into the
time, every 40 s. The peer is supervisord's way of doing less: a
Python process that sleeps 5 s at a time (`bare`), and 25 MiB RSS of supervisord itself.

Targets: USS under 30 MiB, under 0.2 % of a core, whatever the directory holds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from cloud import Cloud, cloud
from machines import Machine, little_trainer

TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and its descendants, the trainer's tree left out."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                words = Path(f"/proc/{child}/cmdline").read_bytes()
                if b"little_trainer" not in words:
                    found += family(int(child))
    return found


def uss(pid: int) -> int:
    """Bytes that nobody shares: proc(5), smaps_rollup."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        kb = [int(x.split()[1]) for x in lines if x.startswith(("Private_", "Swap:"))]
        return 1024 * sum(kb)
    return 0


def cpu(pid: int) -> float:
    """Seconds of CPU of a process and of the children it has waited for."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / TICKS
    return 0.0


class Watched:
    """One process family over time."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.pid = name, pid
        self.from_cpu, self.from_time = self.cpu(), time.monotonic()
        self.samples: list[int] = []

    def cpu(self) -> float:
        return sum(cpu(p) for p in family(self.pid))

    def look(self) -> None:
        self.samples.append(sum(uss(p) for p in family(self.pid)))

    def row(self) -> str:
        seconds = time.monotonic() - self.from_time
        share = 100 * (self.cpu() - self.from_cpu) / seconds
        ordered = sorted(self.samples)
        middle, top = ordered[len(ordered) // 2] / 2**20, ordered[-1] / 2**20
        return f"{self.name:<28} {middle:>9.1f} {top:>9.1f} {share:>10.3f}"


def machine(around: Cloud, files: int) -> Machine:
    made = around.machine(f"with-{files}", little_trainer("--tick", 0.01))
    made.configure()
    made.checkpoints.mkdir(parents=True)
    for number in range(files):
        (made.checkpoints / f"metrics-{number}.json").write_text("{}")
    made.boot()
    made.wait_for_steps(2)
    made.saved()
    made.pull("still")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=125.0)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--settle", type=float, default=25.0, help="until the worker is let go")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        around = stack.enter_context(cloud("idle"))
        machines = {}
        for files in (0, chosen.files):
            machines[files] = machine(around, files)
            stack.callback(machines[files].power_cut)
        bare = subprocess.Popen([sys.executable, "-c", "import time\nwhile 1: time.sleep(5)"])
        stack.callback(bare.kill)
        time.sleep(chosen.settle)
        watched = [
            Watched(f"spotd, {files} other files", m.daemon.pid) for files, m in machines.items()
        ]
        watched.append(Watched("bare Python that sleeps", bare.pid))
        end = time.monotonic() + chosen.seconds
        while time.monotonic() < end:
            time.sleep(1.0)
            for one in watched:
                one.look()
        print(f"{'':<28} {'USS MiB':>9} {'most':>9} {'% of core':>10}")
        for one in watched:
            print(one.row())
        print("target                            30.0                0.200")


if __name__ == "__main__":
    main()
