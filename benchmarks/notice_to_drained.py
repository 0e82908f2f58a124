"""From a notice to `drained`: a save of 3 s, 200 MB, S3 on loopback.

    python benchmarks/notice_to_drained.py [--rounds 3]

The trainer writes a zip as torch.save does, sequentially, spread over 3 s, and ends. The
peer, in the same run and against the same server: one poll, plus the save as the trainer
itself measured it, plus a bare boto3 upload_file of the very same file.

Target: at most 1.3 times the peer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import TYPE_CHECKING

from cloud import cloud

from spotd.testing.stage import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from machines import Machine

    from spotd.testing.imds import MetadataSimulator
    from spotd.testing.seaweed import Seaweed

POLL = 1.0
TRAINER = """
import os, pathlib, signal, sys, time, zipfile
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
d = pathlib.Path(os.environ["SPOTD_CHECKPOINT_DIR"])
size, seconds = int(sys.argv[1]), float(sys.argv[2])
block = os.urandom(1 << 20)
pathlib.Path("ready").touch()
while not asked:
    time.sleep(0.005)
began = time.monotonic()
count = size >> 20
name = f"step-{os.environ['SPOTD_ATTEMPT']}.pt"
with zipfile.ZipFile(d / (".tmp-" + name), "w") as z:
    z.writestr("archive/data.pkl", b"x")
    with z.open("archive/data/0", "w", force_zip64=True) as f:
        for n in range(count):
            f.write(block)
            ahead = began + seconds * (n + 1) / count - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
    z.writestr("archive/version", "3")
(d / (".tmp-" + name)).rename(d / name)
pathlib.Path("took").write_text(repr(time.monotonic() - began))
"""


def bare_upload(s3: Seaweed, path: Path) -> float:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=s3.endpoint_url, region_name="us-east-1",
        aws_access_key_id=s3.access_key, aws_secret_access_key=s3.secret_key,
    )  # fmt: skip
    client.list_objects_v2(Bucket="drain", MaxKeys=1)  # connected, as a fair start
    began = time.monotonic()
    client.upload_file(str(path), "drain", f"bare/{path.name}")
    return time.monotonic() - began


def one_round(machine: Machine, imds: MetadataSimulator, s3: Seaweed) -> tuple[float, float, float]:
    """(notice to drained, the save, the bare upload), in seconds."""
    (machine.work / "ready").unlink(missing_ok=True)
    machine.boot()
    wait_until((machine.work / "ready").exists, within=60, what=machine.story())
    machine.wait_for_state("running")
    given = time.time()
    imds.give_notice("stop", in_seconds=120)
    drained = machine.wait_for_event("drained", after=given, within=110)
    assert drained["message"].endswith("in the store"), drained
    machine.power_cut()
    imds.withdraw()
    newest = max(machine.checkpoints.glob("step-*.pt"), key=os.path.getmtime)
    return (
        drained["time"] - given,
        float((machine.work / "took").read_text()),
        bare_upload(s3, newest),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=200_000_000)
    parser.add_argument("--save", type=float, default=3.0, help="seconds")
    chosen = parser.parse_args()
    with cloud("drain") as around:
        command = [sys.executable, "-S", "-c", TRAINER, str(chosen.size), str(chosen.save)]
        machine = around.machine("machine", command, sections={"imds": {"poll_interval": POLL}})
        try:
            rounds = [one_round(machine, around.imds, around.s3) for _ in range(chosen.rounds)]
        finally:
            machine.power_cut()
    print(f"{'':<8} {'drained':>8} {'poll':>6} {'save':>6} {'upload':>7} {'peer':>7} {'ratio':>6}")
    ratios = []
    for number, (drained, save, upload) in enumerate(rounds, 1):
        peer = POLL + save + upload
        ratios.append(drained / peer)
        print(
            f"round {number:<2} {drained:>8.2f} {POLL:>6.2f} {save:>6.2f} {upload:>7.2f} "
            f"{peer:>7.2f} {ratios[-1]:>6.2f}"
        )
    print(f"median ratio {statistics.median(ratios):.2f}, target 1.30")


if __name__ == "__main__":
    main()
