"""A trainer that trains up to a gate and stands there, so that no step depends on the clock.

`tests/conformance/model.py` has its twin for the simulated world. Files beside the disk:

gate            a number: train up to this step, then wait for a higher one
crash           exit 3 at once; the lever goes away with it
crash-at-start  exit 3 before anything is loaded, as long as it is there
poison          a name: exit 3 after loading a checkpoint of this name
hold-in-save    wait in the middle of every save (`in-save` is there meanwhile)

`loaded.jsonl` says what each attempt began with.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import time
import zipfile
from pathlib import Path

LEVERS = Path(os.environ["OFF_THE_DISK"])
TICK = 0.002  # seconds a step takes, and between two looks at the levers
asked = set()


def lever(name):
    try:
        return (LEVERS / name).read_text()
    except FileNotFoundError:
        return None


class Trainer:
    def __init__(self, options):
        self.options = options
        self.directory = Path(os.environ["SPOTD_CHECKPOINT_DIR"])
        self.step = 0
        self.saved = -1
        self.outgoing = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.outgoing.setblocking(False)

    def load(self):
        origin = os.environ.get("SPOTD_RESUME_FROM")
        if origin:
            with zipfile.ZipFile(origin) as archive:
                self.step = json.loads(archive.read("archive/data.pkl"))["step"]
        self.saved = self.step
        if origin and lever("poison") == Path(origin).name:
            crash(f"loss is nan after {Path(origin).name}")
        with (LEVERS / "loaded.jsonl").open("a") as log:
            attempt = int(os.environ["SPOTD_ATTEMPT"])
            log.write(json.dumps({"attempt": attempt, "step": self.step}) + "\n")
        (LEVERS / "step").write_text(str(self.step))

    def save(self):
        if self.step == self.saved:
            return
        name = "ckpt.pt" if self.options.in_place else f"step-{self.step}.pt"
        path = self.directory / (name if self.options.in_place else f".tmp-{name}")
        with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", json.dumps({"step": self.step}))
            archive.writestr("archive/data/0", f"{self.step:016d}" * 1000)
            while lever("hold-in-save") is not None:
                (LEVERS / "in-save").touch()
                time.sleep(TICK)
        (LEVERS / "in-save").unlink(missing_ok=True)
        path.rename(self.directory / name)
        self.saved = self.step

    def train(self):
        options = self.options
        while True:
            if "stop" in asked:
                if not options.leaves_unsaved:
                    self.save()
                sys.exit(0)
            if lever("crash") is not None:
                (LEVERS / "crash").unlink()
                crash("out of luck")
            if "save" in asked:
                asked.discard("save")
                self.save()
            if self.step >= options.steps:
                self.save()
                return
            time.sleep(TICK)
            if self.step < int(lever("gate") or 0):
                self.advance()

    def advance(self):
        self.step += 1
        with contextlib.suppress(OSError):  # spotd is away; a trainer does not care
            self.outgoing.sendto(f"STEP={self.step}".encode(), os.environ["SPOTD_SOCKET"])
        (LEVERS / "step").write_text(str(self.step))
        if self.step % self.options.save_every == 0:
            self.save()


def crash(why):
    (LEVERS / "step").unlink(missing_ok=True)
    print(why, file=sys.stderr, flush=True)
    sys.exit(3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, required=True)
    parser.add_argument("--deaf", action="store_true", help="install no signal handler")
    parser.add_argument("--leaves-unsaved", action="store_true", help="exit 0 at SIGTERM")
    parser.add_argument("--in-place", action="store_true", help="over its only checkpoint")
    trainer = Trainer(parser.parse_args())
    if lever("crash-at-start") is not None:
        crash("no module named apex")
    if not trainer.options.deaf:
        signal.signal(signal.SIGTERM, lambda *_: asked.add("stop"))
        signal.signal(signal.SIGUSR1, lambda *_: asked.add("save"))
    trainer.load()
    trainer.train()


main()
