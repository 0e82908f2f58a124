"""From the start of spotd to the exec of the trainer, with a good checkpoint on the disk.

    python benchmarks/start_to_exec.py [--rounds 10]

S3 is reachable. Measured on a boot after a notice, on one after a power cut (the checkpoint
is 100 MB and on record as durable) and on a start after `systemctl stop`, which gave the
lease back, so that the store has to be heard first. The peer is what cannot be undercut: a
Python of this version that starts, imports nothing, and execs the same command.

Target: under 0.5 s.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))
from machines import Machine, new_run

from spotd.testing.imds import MetadataSimulator
from spotd.testing.seaweed import Seaweed
from spotd.testing.stage import wait_until

TRAINER = """
import time
at = time.clock_gettime(time.CLOCK_MONOTONIC)
import os, pathlib, signal, sys
def stop(*_):
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
d = pathlib.Path(os.environ.get("SPOTD_CHECKPOINT_DIR", "."))
if not list(d.glob("step-*")):
    import zipfile
    with zipfile.ZipFile(d / ".tmp", "w") as z:
        z.writestr("archive/data.pkl", b"x")
        z.writestr("archive/data/0", os.urandom(100_000_000))
        z.writestr("archive/version", "3")
    (d / ".tmp").rename(d / "step-1.pt")
pathlib.Path("began.tmp").write_text(repr(at))
pathlib.Path("began.tmp").rename("began")
while True:
    time.sleep(1)
"""


def began(path: Path) -> float:
    wait_until(path.exists, within=60, what="a trainer")
    at = float(path.read_text())
    path.unlink()
    return at


def now() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def through_spotd(machine: Machine, imds: MetadataSimulator, kind: str) -> float:
    if kind == "notice":
        imds.give_notice("stop", in_seconds=120)
        machine.wait_for_state("drained")
        machine.power_cut()
        imds.withdraw()
    elif kind == "stop and start":
        machine.stop_daemon()
    else:
        machine.power_cut()
    (machine.work / "began").unlink(missing_ok=True)
    if kind == "stop and start":
        at = now()
        machine.start_daemon()
    else:
        machine.configure()
        at = now()
        machine.boot()
    taken = began(machine.work / "began") - at
    machine.wait_for_state("running")
    return taken


def bare(where: Path) -> float:
    at = now()
    command = [sys.executable, "-S", "-c", TRAINER]
    script = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", script, *command], cwd=where)
    taken = began(where / "began") - at
    process.kill()
    process.wait()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        s3 = Seaweed(where / "s3")
        s3.start()
        stack.callback(s3.kill)
        s3.make_bucket("start")
        imds = stack.enter_context(MetadataSimulator())
        machine = Machine(
            directory=where / "machine", command=[sys.executable, "-S", "-c", TRAINER],
            run=new_run(), store_url="s3://start/run", endpoint_url=s3.endpoint_url,
            environment=s3.environment, imds_url=imds.url,
            sections={"imds": {"poll_interval": 0.2}},
        )  # fmt: skip
        stack.callback(machine.power_cut)
        machine.boot()
        began(machine.work / "began")
        machine.wait_stored()
        kinds = ("notice", "power cut", "stop and start")
        rows = {kind: [through_spotd(machine, imds, kind) for _ in range(chosen.rounds)]
                for kind in kinds}  # fmt: skip
        (where / "bare").mkdir()
        (where / "bare" / "step-").touch()
        rows["bare exec (peer)"] = [bare(where / "bare") for _ in range(chosen.rounds)]
    peer = statistics.median(rows["bare exec (peer)"])
    print(f"{'start to exec, s':<24} {'median':>8} {'worst':>8} {'x peer':>8}")
    for name, found in rows.items():
        middle = statistics.median(found)
        print(f"{name:<24} {middle:>8.3f} {max(found):>8.3f} {middle / peer:>8.1f}")
    print(f"{'target':<24} {'0.500':>8}")


if __name__ == "__main__":
    main()
