"""A trainer of a hundred lines without torch: starts in 50 ms, saves what torch would.

Each step adds a line to `steps.jsonl`. What it does beside training is steered by files in
`levers/`, so that a test decides when, and nothing depends on the speed of the machine:

importing       while it is there nothing has been set up yet, signal handlers included
save            save once, at the next step, and take the lever away
hold-in-save    wait in the middle of every save (`in-save` is there meanwhile)
crash           exit 3 at the next step; its text goes to standard error
finish          end well at the next step
still           do nothing but exist: no steps, no output
"""

import argparse
import contextlib
import io
import json
import os
import signal
import socket
import sys
import time
import zipfile
from pathlib import Path

LEVERS = Path("levers")
asked = set()


def lever(name):
    return (LEVERS / name).exists()


def pull_back(name):
    (LEVERS / name).unlink(missing_ok=True)


def wait_while(name):
    while lever(name):
        time.sleep(0.005)


def content(step, size):
    """What a checkpoint of this step holds; anything else is damage."""
    return (f"{step:016d}" * (size // 16 + 1)).encode()[:size]


def save(options, directory, step):
    name = options.name.format(step=step)
    target = directory / name
    path = target if options.in_place else directory / f".tmp-{name}"
    if options.as_directory:
        save_directory(options, directory / name, step)
        return
    with path.open("wb") as file:
        file.write(as_zip(step, options.size)[: options.size // 2])
        file.flush()
        if lever("hold-in-save"):
            Path("in-save").touch()
            wait_while("hold-in-save")
            Path("in-save").unlink()
        if options.save_takes:
            time.sleep(options.save_takes)
        file.seek(0)
        file.write(as_zip(step, options.size))
    if not options.in_place:
        path.rename(target)


def as_zip(step, size):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # laid out as torch.save does
        archive.writestr("archive/data.pkl", json.dumps({"step": step}))
        archive.writestr("archive/data/0", content(step, size))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def save_directory(options, target, step):
    """Files with modes of their own in two levels, the marker last."""
    (target / "rng").mkdir(parents=True, exist_ok=True)
    (target / "model.bin").write_bytes(content(step, options.size))
    (target / "rng" / "state_0").write_bytes(b"4")
    (target / "rng" / "state_0").chmod(0o600)
    (target / "launch.sh").write_text("#!/bin/sh\n")
    (target / "launch.sh").chmod(0o750)
    if lever("hold-in-save"):
        Path("in-save").touch()
        wait_while("hold-in-save")
    (target / "trainer_state.json").write_text(json.dumps({"global_step": step}))


def load(path):
    """The step of a checkpoint; dies of one that is not what was saved."""
    path = Path(path)
    if path.is_dir():
        return json.loads((path / "trainer_state.json").read_text())["global_step"]
    with zipfile.ZipFile(path) as archive:
        step = json.loads(archive.read("archive/data.pkl"))["step"]
        data = archive.read("archive/data/0")
    if data != content(step, len(data)):
        sys.exit(f"{path} is damaged")
    return step


def newest(directory):
    found = [p for p in directory.glob("step-*") if "tmp" not in p.name]
    return max(found, key=lambda p: int(p.stem.rpartition("-")[2]), default=None)


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--tick", type=float, default=0.01)
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--name", default="step-{step}.pt")
    parser.add_argument("--save-takes", type=float, default=0.0)
    parser.add_argument("--in-place", action="store_true")
    parser.add_argument("--as-directory", action="store_true")
    parser.add_argument("--deaf", action="store_true", help="install no signal handler")
    parser.add_argument("--leaves-unsaved", action="store_true", help="exit 0 at SIGTERM")
    parser.add_argument("--silent", action="store_true", help="say nothing on the socket")
    parser.add_argument("--search", action="store_true", help="look for the newest by itself")
    parser.add_argument("--crash-from", default="", help="crash when resuming from this name")
    parser.add_argument("--resume", default="")
    return parser.parse_args()


def report(options, outgoing, **values):
    to = os.environ.get("SPOTD_SOCKET")
    if options.silent or to is None:
        return
    with contextlib.suppress(OSError):  # spotd is away; a trainer does not care
        outgoing.sendto("\n".join(f"{k}={v}" for k, v in values.items()).encode(), to)


def main():
    options = parse()
    wait_while("importing")
    if not options.deaf:
        signal.signal(signal.SIGTERM, lambda *_: asked.add("stop"))
        signal.signal(signal.SIGUSR1, lambda *_: asked.add("save"))
    directory = Path(os.environ["SPOTD_CHECKPOINT_DIR"])
    directory.mkdir(parents=True, exist_ok=True)
    origin = newest(directory) if options.search else os.environ.get("SPOTD_RESUME_FROM")
    step = load(origin) if origin else 0
    if origin and options.crash_from and options.crash_from in str(origin):
        sys.exit(f"cannot go on from {Path(origin).name}")
    attempt = int(os.environ["SPOTD_ATTEMPT"])
    outgoing = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    outgoing.setblocking(False)
    with Path("steps.jsonl").open("a", buffering=1) as log:
        while step < options.steps:
            wait_while("still")
            time.sleep(options.tick)
            step += 1
            line = {"attempt": attempt, "step": step, "pid": os.getpid(), "at": time.monotonic()}
            log.write(json.dumps(line) + "\n")
            report(options, outgoing, STEP=step, LOSS=1 / step)
            if lever("crash"):
                text = (LEVERS / "crash").read_text()
                print(text or "out of luck", file=sys.stderr, flush=True)
                pull_back("crash")
                sys.exit(3)
            if "stop" in asked:
                if not options.leaves_unsaved:
                    save(options, directory, step)
                sys.exit(0)
            due = options.save_every and step % options.save_every == 0
            if due or "save" in asked or lever("save"):
                asked.discard("save")
                pull_back("save")
                save(options, directory, step)
            if lever("finish"):
                break
    save(options, directory, step)
    print("trained to the end", flush=True)


main()
