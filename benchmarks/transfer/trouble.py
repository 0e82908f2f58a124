"""What is sent again after a cut, and how long a fault holds an upload up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from arena import CHILD, KEYS, MIB, Arena, measure

from spotd.shell.store.transfer import lane_count
from spotd.testing.faults import Fault, FaultProxy

if TYPE_CHECKING:
    from servers import Weed


def resume(arena: Arena, weed: Weed) -> None:
    """Kills an upload at half, counts what the second attempt sends."""
    with FaultProxy(weed.server.port) as proxy:
        proxy.set(Fault("throttle", rate=40e6))
        order = {
            "do": "upload", "url": "s3://bench/resume", "endpoint": proxy.endpoint_url,
            "kind": "file", "state": str(arena.place / "resume"), "root": str(arena.place),
            "name": "big.pt", "id": "00000001-big.pt",
        }  # fmt: skip
        arguments = [sys.executable, str(CHILD), json.dumps(order)]
        first = subprocess.Popen(arguments, env={**os.environ, **KEYS})
        while proxy.passed_up < arena.size / 2:
            time.sleep(0.02)
        first.kill()
        first.wait()
        proxy.set(Fault())
        before = proxy.passed_up
        measure(arguments, {**os.environ, **KEYS}, arena.place / "log")
        share = (proxy.passed_up - before) / arena.size
    print(f"\nresume after SIGKILL at 50 %: {share:.0%} sent the second time (at most 55 %)")


def faults(arena: Arena, weed: Weed) -> None:
    """An outage of ten seconds of every kind in mid-upload, at 50 MB/s."""
    outage, kinds = 10.0, {
        "none": Fault(),
        "connections dropped": Fault("drop"),
        "silence": Fault("stall"),
        "503 SlowDown": Fault("answer"),
        "500": Fault("answer", status=500, code="InternalError"),
        "black hole": Fault("swallow"),
        "bodies cut": Fault("cut", after=8 * MIB),
        "answers truncated": Fault("truncate", after=60),
    }  # fmt: skip
    small = arena.place / "half.pt"
    with arena.file.open("rb") as source, small.open("wb") as target:
        shutil.copyfileobj(source, target, min(arena.size, 512 * MIB))
        target.truncate(min(arena.size, 512 * MIB))
    print(
        f"\n{small.stat().st_size // MIB} MiB at 50 MB/s, {outage:.0f} s of trouble in the middle"
    )
    undisturbed = 0.0
    for name, fault in kinds.items():
        with FaultProxy(weed.server.port) as proxy:
            # Eight lanes share it: an eighth for each connection.
            pace = Fault("throttle", rate=50e6 / lane_count())
            proxy.set(pace)
            timers = []
            if name != "none":
                timers = [
                    threading.Timer(4.0, proxy.set, [fault]),
                    threading.Timer(4.0 + outage, proxy.set, [pace]),
                ]
            for timer in timers:
                timer.start()

            class Through:
                url, certificate = proxy.endpoint_url, ""

            seconds = arena.ours(Through, "upload", name="half.pt")["seconds"]
        undisturbed = undisturbed or seconds
        bound = (outage if timers else 0) + 1.5 * undisturbed
        verdict = "ok" if seconds <= bound else "TOO LONG"
        print(f"  {name:22} {seconds:6.1f} s (at most {bound:.1f}) {verdict}")
