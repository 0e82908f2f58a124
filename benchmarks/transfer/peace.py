"""What an upload in peace costs a trainer that keeps all cores busy."""

from __future__ import annotations

import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from servers import step_aside

from spotd.core import actions
from spotd.shell.store.client import StoreClient
from spotd.shell.store.settings import StoreSettings
from spotd.shell.store.source import UploadSource

if TYPE_CHECKING:
    from arena import Arena
    from servers import Sink

_SLICE = 2.0  # seconds
_PAIRS = 10
_SETTLE = 0.7  # seconds at the beginning of a slice that do not count

# Steps of some 15 ms; each line is when one ended and how long it took.
_TRAINER = """
import sys, time
lines = []
end = time.monotonic() + float(sys.argv[1])
start = time.monotonic()
while start < end:
    sum(i * i for i in range(200_000))
    now = time.monotonic()
    lines.append(f"{now} {now - start}")
    start = now
print("\\n".join(lines))
"""


class _Sending:
    """spotd's own client, as the daemon uses it, with one upload after the other."""

    def __init__(self, arena: Arena, server: Sink) -> None:
        self._events: queue.Queue = queue.Queue()
        self.bytes = 0
        self.client = StoreClient(
            StoreSettings("s3://bench/peace", server.url), "run", "i-1", 0, arena.place, None,
            arena.place / "peace", self._events.put,
        )  # fmt: skip
        lease = {"etag": "x", "generation": 1, "acquired": 0.0, "valid_until": 1e12}
        self.client._lease = lease  # noqa: SLF001 - a sink has none to take
        self.client.warm()
        self._place = str(arena.place)
        threading.Thread(target=self._keep_sending, daemon=True).start()

    def _keep_sending(self) -> None:
        sequence = 0
        while True:
            sequence += 1
            action = actions.Upload(f"{sequence:08d}-big.pt", "big.pt", "", 1, 1.0, 1)
            self.client.upload(action, UploadSource(self._place, "big.pt", "file"))
            while True:
                event = self._events.get()
                if type(event).__name__ == "UploadProgressed":
                    self.bytes = max(self.bytes, event.sent)
                if type(event).__name__ == "UploadFailed":
                    raise SystemExit(f"the upload failed: {event.reason}")
                if type(event).__name__ == "Uploaded":
                    break

    def pause(self) -> None:
        os.kill(self.client.worker_pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.client.worker_pid, signal.SIGCONT)


def _cpu_seconds(pid: int) -> float:
    with Path(f"/proc/{pid}/stat").open("rb") as file:
        words = file.read().rpartition(b")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def step_time(arena: Arena, server: Sink) -> None:
    """The slowdown of a process on each core, in turns with and without an upload in peace."""
    step_aside(server.process)
    os.environ.update(arena.environment(server))
    sending = _Sending(arena, server)
    time.sleep(3.0)  # the worker's start is over
    seconds = 2 * _PAIRS * _SLICE
    trainers = [
        subprocess.Popen(
            [sys.executable, "-c", _TRAINER, str(seconds + 1.0)],
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )
        for _ in range(os.cpu_count() or 1)
    ]  # fmt: skip
    time.sleep(0.5)
    slices: list[tuple[float, bool]] = []
    pids = (sending.client.worker_pid, server.process.pid)
    used = [_cpu_seconds(pid) for pid in pids]
    for number in range(2 * _PAIRS):
        on = number % 2 == 1
        (sending.go_on if on else sending.pause)()
        slices.append((time.monotonic(), on))
        time.sleep(_SLICE)
    sending.go_on()
    used = [_cpu_seconds(pid) - before for pid, before in zip(pids, used, strict=True)]
    steps: dict[int, list[float]] = {}
    for trainer in trainers:
        for line in trainer.communicate()[0].splitlines():
            ended, took = map(float, line.split())
            for index, (since, _) in enumerate(slices):
                if since + _SETTLE + took < ended < since + _SLICE:
                    steps.setdefault(index, []).append(took)
    sending.client.close()
    means = {index: statistics.mean(found) for index, found in steps.items()}
    ratios = [means[2 * pair + 1] / means[2 * pair] for pair in range(_PAIRS)]
    share = [each / (_PAIRS * _SLICE * (os.cpu_count() or 1)) for each in used]
    print(
        f"\nstep time of {len(trainers)} CPU-bound processes beside an upload in peace,"
        f" {server.name}\n  {statistics.median(ratios):.3f} x without (at most 1.05; quartiles"
        f" {statistics.quantiles(ratios)[0]:.3f} to {statistics.quantiles(ratios)[2]:.3f});"
        f" the worker took {share[0]:.1%} of the cores, the sink {share[1]:.1%}"
    )
