"""From a notice to "in the store": a torch.save of 2 GB that goes up while it is written.

    python benchmarks/notice_to_stored.py [--rounds 3] [--size 2000] [--only sink,tls,weed]

The whole daemon, with the metadata service and S3 on loopback; the trainer saves with
torch.save at the stop signal, under a temporary name that it then renames, and ends. In the
same round, one after the other: the save alone (the same trainer, nothing else running),
the upload alone (the same file, all lanes, warm), and from the notice as the daemon saw it
to `checkpoint_stored`. SeaweedFS is a slow store (its MD5 is the limit), the sink a fast one.

Target: at most 1.15 times the longer of save and upload. The save under the daemon against
the save alone says what sending costs the trainer; the second ratio takes that save in place
of the one alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))
from machines import Machine, new_run
from transfer.servers import Sink, Weed

from spotd.testing.imds import MetadataSimulator
from spotd.testing.stage import wait_until

HERE = Path(__file__).resolve().parent
KEYS = {
    "AWS_ACCESS_KEY_ID": "spotd-access",
    "AWS_SECRET_ACCESS_KEY": "spotd-secret",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
TRAINER = """
import os, pathlib, signal, sys, time
import torch
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
d = pathlib.Path(os.environ["SPOTD_CHECKPOINT_DIR"])
megabytes = int(sys.argv[1])
state = {f"layer.{n}": torch.randn(5_000_000) for n in range(megabytes // 20)}
pathlib.Path("ready").touch()
while not asked:
    time.sleep(0.002)
began = time.monotonic()
name = f"step-{time.time_ns()}.pt"
torch.save(state, d / (".tmp-" + name))
(d / (".tmp-" + name)).rename(d / name)
pathlib.Path("took").write_text(repr(time.monotonic() - began))
os._exit(0)
"""


def settle(where: Path, megabytes: int) -> None:
    """The same start for each save: all written, and memory for its pages just given back.

    Memory that a virtual machine has not touched yet costs a fault on the host for each page.
    """
    junk = where / "junk"
    with junk.open("wb") as file:
        for _ in range(megabytes):
            file.write(bytes(1_000_000))
        os.fsync(file.fileno())
    junk.unlink()
    os.sync()
    time.sleep(1.0)


def save_alone(where: Path, megabytes: int) -> tuple[float, Path]:
    """Seconds of the save with nothing else running, and the file."""
    work = where / "alone"
    work.mkdir(exist_ok=True)
    for old in (work / "ready", *work.glob("step-*.pt")):
        old.unlink(missing_ok=True)
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(megabytes)], cwd=work,
        env={**os.environ, "SPOTD_CHECKPOINT_DIR": str(work), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_until((work / "ready").exists, within=120, what="a trainer")
    settle(work, megabytes)
    trainer.send_signal(signal.SIGTERM)
    trainer.wait(120)
    return float((work / "took").read_text()), next(work.glob("step-*.pt"))


def upload_alone(where: Path, server, file: Path) -> float:
    """Seconds of the upload of a file, everything warm."""
    order = {
        "do": "upload", "url": "s3://bench/alone", "endpoint": server.url, "kind": "file",
        "state": str(where / f"state-{time.time_ns()}"), "root": str(file.parent),
        "name": file.name, "id": f"00000001-{file.name}",
    }  # fmt: skip
    os.sync()
    ran = subprocess.run(
        [sys.executable, str(HERE / "transfer" / "child.py"), json.dumps(order)],
        env={**os.environ, **environment(server)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(json.loads(ran.stdout.splitlines()[-1])["seconds"])


def environment(server) -> dict[str, str]:
    extra = {"AWS_CA_BUNDLE": server.certificate, "SSL_CERT_FILE": server.certificate}
    return {**KEYS, **(extra if server.certificate else {})}


def notice(
    machine: Machine, imds: MetadataSimulator, megabytes: int, *, timeline: bool
) -> tuple[float, float, dict]:
    """(notice to stored, the save meanwhile, what was said of it)."""
    (machine.work / "ready").unlink(missing_ok=True)
    machine.boot()
    wait_until((machine.work / "ready").exists, within=120, what=machine.story())
    machine.wait_for_state("running")
    settle(machine.work, megabytes)
    given = time.time()
    imds.give_notice("stop", in_seconds=120)
    stored = machine.wait_for_event("checkpoint_stored", after=given, within=110)
    seen = machine.wait_for_event("interruption_notice", after=given, within=1)
    said = {**stored, "mib": most_memory(machine)}
    machine.wait_for_event("drained", after=given, within=110)
    if timeline:
        for event in machine.events():
            if event["time"] >= given:
                print(f"    {event['time'] - seen['time']:7.2f} {event['event']}")
    machine.power_cut()
    imds.withdraw()
    for old in machine.checkpoints.glob("step-*.pt"):
        old.unlink()
    return stored["time"] - seen["time"], float((machine.work / "took").read_text()), said


def most_memory(machine: Machine) -> int:
    """MiB that the store's worker had at most."""
    for pid in machine.processes():
        with contextlib.suppress(OSError):
            if b"spotd.shell.store.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                text = Path(f"/proc/{pid}/status").read_text()
                return int(text.split("VmHWM:")[1].split()[0]) // 1024
    return 0


def measure(where: Path, server, rounds: int, megabytes: int, *, timeline: bool) -> None:
    where.mkdir()
    with contextlib.ExitStack() as stack:
        imds = stack.enter_context(MetadataSimulator())

        def fresh() -> Machine:
            # The sink keeps nothing, no lease either: each round is a run of its own.
            machine = Machine(
                directory=where / new_run(), run=new_run(), store_url="s3://bench/run",
                command=[sys.executable, "-c", TRAINER, str(megabytes)],
                endpoint_url=server.url, imds_url=imds.url,
                environment={**environment(server), "OMP_NUM_THREADS": "1"},
                sections={"imds": {"poll_interval": 0.2}},
            )  # fmt: skip
            stack.callback(machine.power_cut)
            return machine

        print(f"\n{server.name}, {megabytes} MB")
        print(
            f"{'':<8}{'save':>7}{'upload':>8}{'stored':>8}{'ratio':>7}{'save then':>11}{'ahead':>7}"
        )
        ratios, costs = [], []
        for number in range(1, rounds + 1):
            save, file = save_alone(where, megabytes)
            upload = upload_alone(where, server, file)
            file.unlink()
            stored, meanwhile, said = notice(fresh(), imds, megabytes, timeline=timeline)
            ratios.append(stored / max(save, upload))
            costs.append(meanwhile / save)
            share = said.get("ahead", 0) / said["bytes"]
            second = stored / max(meanwhile, upload)
            print(
                f"round {number:<2}{save:>7.2f}{upload:>8.2f}{stored:>8.2f}{ratios[-1]:>7.2f}"
                f"{meanwhile:>11.2f}{second:>7.2f}{share:>7.0%}{said['mib']:>5}", flush=True,
            )  # fmt: skip
    print(
        f"notice to stored / max(save, upload): median {statistics.median(ratios):.2f},"
        f" target 1.15; the save meanwhile / alone: median {statistics.median(costs):.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=2000, help="megabytes")
    parser.add_argument("--only", default="sink,tls,weed")
    parser.add_argument("--where", help="directory to write in; a disk, not memory")
    parser.add_argument("--timeline", action="store_true", help="what the daemon said, and when")
    chosen = parser.parse_args()
    wanted = chosen.only.split(",")
    with tempfile.TemporaryDirectory(dir=chosen.where) as text:
        where = Path(text)
        makers = {
            "sink": lambda: Sink(where, 1 << 30, tls=False),
            "tls": lambda: Sink(where, 1 << 30, tls=True),
            "weed": lambda: Weed(where),
        }
        for name in wanted:
            server = makers[name]()
            try:
                measure(
                    where / f"{name}.d",
                    server,
                    chosen.rounds,
                    chosen.size,
                    timeline=chosen.timeline,
                )
            finally:
                server.close()


if __name__ == "__main__":
    main()
