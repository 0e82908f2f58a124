"""A trainer that knows nothing of spotd, small enough to be watched step by step.

    python3 train.py DIRECTORY [--resume CHECKPOINT] [--steps N] [--import-seconds S] [--deaf]

Each step appends a line to DIRECTORY/../steps.log: what was trained, by which process, from where.
Checkpoints are zip files named step-<N>.pt, written beside their place and renamed, as
`torch.save` users do who have read the manual.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import zipfile
from pathlib import Path

STEP_SECONDS = 0.02
SAVE_EVERY = 25


def save(folder: Path, step: int) -> None:
    """One whole checkpoint, or none."""
    new = folder / f".tmp-{step}"
    with zipfile.ZipFile(new, "w") as archive:
        archive.writestr("archive/data.pkl", str(step))
        archive.writestr("archive/data/0", os.urandom(20000))
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.rename(folder / f"step-{step}.pt")
    for old in sorted(folder.glob("step-*.pt"), key=lambda p: int(p.stem[5:]))[:-4]:
        old.unlink(missing_ok=True)


def load(path: str) -> int:
    """The step a checkpoint was saved at."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return int(archive.read("archive/data.pkl"))


def take_all_memory(asked: Path) -> None:
    """Takes memory until somebody ends it: the next trainer starts with a clean plate."""
    asked.unlink()
    taken = []
    while True:
        taken.append(b"x" * (8 << 20))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume")
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--import-seconds", type=float, default=0.0)
    parser.add_argument("--deaf", action="store_true")
    chosen = parser.parse_args()
    time.sleep(chosen.import_seconds)  # as torch does
    stop = []
    if not chosen.deaf:
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    chosen.folder.mkdir(exist_ok=True)
    begin = load(chosen.resume) if chosen.resume else 0
    print(f"training from step {begin}, umask {os.umask(0o22):04o}", flush=True)
    with (chosen.folder.parent / "steps.log").open("a") as log:
        for step in range(begin + 1, chosen.steps + 1):
            time.sleep(STEP_SECONDS)
            log.write(f"{step} {os.getpid()} {begin}\n")
            log.flush()
            if (chosen.folder.parent / "greedy").exists():
                take_all_memory(chosen.folder.parent / "greedy")
            if step % SAVE_EVERY == 0 or stop or step == chosen.steps:
                save(chosen.folder, step)
            if stop:
                print(f"saved at step {step}, ending", flush=True)
                sys.exit(0)
    print("trained", flush=True)


if __name__ == "__main__":
    main()
