"""From the poll answer that carries a notice to the stop signal in the trainer.

    python benchmarks/notice_to_signal.py [--rounds 10]

The simulator notes when it has written the answer, the trainer's handler when it runs,
both on CLOCK_MONOTONIC. Measured in peace, and while a checkpoint of 400 MB is being
written and fsynced by the trainer and held, fsynced and uploaded by spotd. The peer is the
bare path in the same run: the same trainer signalled with os.kill from another process.

Target: under 50 ms, also under load.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from spotd.testing.imds import MetadataSimulator
from spotd.testing.stage import Stage, wait_until

if TYPE_CHECKING:
    from spotd.testing.moody_http import Answer, Question

TRAINER = """
import os, pathlib, signal, sys, time, threading
got = pathlib.Path("got")
def caught(*_):
    at = time.clock_gettime(time.CLOCK_MONOTONIC)
    got.with_suffix(".tmp").write_text(repr(at))
    got.with_suffix(".tmp").rename(got)
    os._exit(0)
signal.signal(signal.SIGTERM, caught)
pathlib.Path("ready").touch()
d = pathlib.Path(os.environ.get("SPOTD_CHECKPOINT_DIR", "."))
block = os.urandom(1 << 20)
def save():
    for n in range(10**6):
        if not pathlib.Path("busy").exists():
            time.sleep(0.05)
            continue
        with open(d / f".tmp-{n}", "wb") as f:
            for _ in range(int(sys.argv[1])):
                f.write(block)
            f.flush()
            os.fsync(f.fileno())
        os.rename(d / f".tmp-{n}", d / f"step-{n}.ckpt")
        for old in list(d.glob("step-*.ckpt"))[:-2]:
            old.unlink()
threading.Thread(target=save, daemon=True).start()
while True:
    time.sleep(0.001)
"""


class Clocked(MetadataSimulator):
    """Notes when an answer with a notice was ready to be written."""

    answered: float | None = None

    def answer(self, question: Question) -> Answer:
        found = super().answer(question)
        told = question.path.endswith("spot/instance-action") and found.status == 200
        if told and self.answered is None:
            self.answered = time.clock_gettime(time.CLOCK_MONOTONIC)
        return found


class OnTmpfs(Stage):
    """`paths.runtime` in memory, as /run is."""

    @property
    def runtime(self) -> Path:
        base = Path("/dev/shm")
        return (base if base.is_dir() else self.directory) / f"spotd-bench-{os.getpid()}"


def through_spotd(where: Path, rounds: int, *, megabytes: int) -> list[float]:
    """Milliseconds of each round; with megabytes, saves of that size are under way."""
    (where / "store").mkdir(parents=True)
    found = []
    with Clocked() as imds:
        stage = OnTmpfs(
            directory=where / "machine",
            command=[sys.executable, "-S", "-c", TRAINER, str(megabytes)],
            store_url=f"file://{where}/store",
            imds_url=imds.url,
            sections={
                "imds": {"poll_interval": 0.5},
                "interruption": {"margin": 1, "not_carried_out_after": 600},
            },
        )
        work = stage.disk / "work"
        try:
            for _ in range(rounds):
                for name in ("got", "ready"):
                    (work / name).unlink(missing_ok=True)
                imds.withdraw()
                imds.answered = None
                stage.boot()
                wait_until((work / "ready").exists, within=60, what=stage.story())
                stage.wait_for_state("running")
                if megabytes:
                    (work / "busy").touch()
                    wait_until(
                        lambda: list(stage.checkpoints.glob("step-*.ckpt")) and any(
                            p.stat().st_size > 50e6 for p in _temporary(stage.checkpoints)
                        ),
                        within=60, what="a save under way",
                    )  # fmt: skip
                imds.give_notice("stop", in_seconds=120)
                got = wait_until((work / "got").exists, within=60, what=stage.story())
                found.append(1000 * (float((work / "got").read_text()) - imds.answered))
                assert got
                (work / "busy").unlink(missing_ok=True)
                stage.power_cut()
        finally:
            stage.power_cut()
            shutil.rmtree(stage.runtime, ignore_errors=True)
    return found


def _temporary(directory: Path) -> list[Path]:
    found = []
    for path in directory.glob(".tmp-*"):
        with contextlib.suppress(OSError):
            path.stat()
            found.append(path)
    return found


def bare(where: Path, rounds: int) -> list[float]:
    """The peer: os.kill to a process that sleeps, until its handler runs."""
    where.mkdir()
    found = []
    for _ in range(rounds):
        for name in ("got", "ready"):
            (where / name).unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-S", "-c", TRAINER, "0"], cwd=where)
        wait_until((where / "ready").exists, within=60, what="a trainer")
        at = time.clock_gettime(time.CLOCK_MONOTONIC)
        os.kill(process.pid, signal.SIGTERM)
        process.wait()
        found.append(1000 * (float((where / "got").read_text()) - at))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=400)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch)
        rows = {
            "os.kill alone (peer)": bare(where / "bare", chosen.rounds),
            "spotd, in peace": through_spotd(where / "peace", chosen.rounds, megabytes=0),
            "spotd, during a save": through_spotd(
                where / "busy", chosen.rounds, megabytes=chosen.megabytes
            ),
        }
    print(f"{'notice to signal, ms':<28} {'median':>8} {'worst':>8} {'rounds':>7}")
    for name, found in rows.items():
        print(f"{name:<28} {statistics.median(found):>8.1f} {max(found):>8.1f} {len(found):>7}")
    print(f"{'target':<28} {'':>8} {50.0:>8.1f}")


if __name__ == "__main__":
    main()
