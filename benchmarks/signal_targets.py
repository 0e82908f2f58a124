"""From "send the signal" to sent, in a tree of 8 ranks with 8 workers each.

    python benchmarks/signal_targets.py

The peer walks the same tree with psutil, as supervisors do, and reads the same facts.
"""

from __future__ import annotations

import queue
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from spotd.config import TrainerSettings
from spotd.core import actions, events
from spotd.shell.trainer import TrainerHost

RANKS, WORKERS, ROUNDS = 8, 8, 30
PROGRAM = f"""
import os, signal, time
for rank in range({RANKS}):
    if os.fork() == 0:
        os.environ["RANK"] = str(rank)
        code = '''
import os, signal, threading, time
signal.signal(signal.SIGUSR1, lambda *_: None)
for _ in range(16):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
for _ in range({WORKERS}):
    if os.fork() == 0:
        time.sleep(600)
time.sleep(600)
'''
        os.execvp("{sys.executable}", ["{sys.executable}", "-c", code])
time.sleep(600)
"""


def peer(main: int) -> None:
    """The facts a choice needs, through psutil."""
    for process in psutil.Process(main).children(recursive=True):
        process.name()
        process.cmdline()
        process.environ()
        Path(f"/proc/{process.pid}/status").read_bytes()


def milliseconds(call: object) -> float:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        posted: queue.Queue[events.Event] = queue.Queue()
        folder = Path(directory)
        host = TrainerHost(
            TrainerSettings(command=(sys.executable, "-c", PROGRAM), directory=folder, user=None),
            run="benchmark",
            checkpoint_directory=folder,
            runtime_directory=folder,
            state_directory=folder,
            post=posted.put,
        )
        started = milliseconds(
            lambda: (host.start(actions.StartTrainer(1, None, 100.0)), posted.get(timeout=30))
        )
        while len(host.tree()) < 1 + RANKS * (1 + WORKERS):
            time.sleep(0.1)
        running = host._current()  # noqa: SLF001
        assert running is not None
        ours, theirs, sweeps = [], [], []
        for _ in range(ROUNDS):
            ours.append(milliseconds(lambda: host.signal(actions.SignalTrainer("SIGUSR1", "stop"))))
            sent = posted.get(timeout=5)
            assert isinstance(sent, events.SignalSent)
            assert len(sent.targets) == RANKS, sent
            theirs.append(milliseconds(lambda: peer(running.record.pid)))
            sweeps.append(milliseconds(running.tree.sweep))
        host.kill(actions.KillTrainer("done"))
        while not isinstance(posted.get(timeout=30), events.TrainerExited):
            pass
    ours_ms, theirs_ms = statistics.median(ours), statistics.median(theirs)
    size = 1 + RANKS * (1 + WORKERS)
    print(f"start to exec          {started:7.1f} ms")
    print(f"background sweep       {statistics.median(sweeps):7.1f} ms")
    print(f"signal, {size} processes   {ours_ms:7.1f} ms (worst {max(ours):.1f})")
    print(f"psutil, facts alone    {theirs_ms:7.1f} ms")
    print(f"ratio                  {ours_ms / theirs_ms:7.2f}")


if __name__ == "__main__":
    main()
