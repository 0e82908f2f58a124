"""Bytes to S3 and back against s5cmd: throughput, CPU and memory, paired in one run.

    python benchmarks/transfer [--size 2048] [--rounds 3] [--only upload,download,...]

Against a sink (sink.c, compiled on the spot: gcc and OpenSSL's headers) that discards and
makes up bytes, so that the client's own cost shows, over plain HTTP and TLS; and against
SeaweedFS, where the server is the limit. Each figure is the median of the rounds; clients
take turns in every round. CPU is user and system seconds per GiB of the client's process.
The peer comes with `pip install --group bench`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from arena import MIB, Arena
from pairs import downloads, many, uploads
from peace import step_time
from servers import Sink, Weed
from trouble import faults, resume

PARTS = ("upload", "download", "many", "resume", "faults", "step")
SERVERS = ("http", "tls", "weed")


def against_sink(arena: Arena, options: argparse.Namespace, *, tls: bool) -> None:
    server = Sink(arena.place, arena.size, tls=tls)
    try:
        if "upload" in options.only:
            uploads(arena, server, options.rounds, fallback=options.fallback)
        if "download" in options.only:
            downloads(arena, server, options.rounds)
        if "many" in options.only:
            many(arena, server, options.rounds, options.files)
        if "step" in options.only:
            step_time(arena, server)
    finally:
        server.close()


def against_seaweed(arena: Arena, options: argparse.Namespace) -> None:
    weed = Weed(arena.place)
    try:
        if "upload" in options.only:
            uploads(arena, weed, options.rounds, fallback=False)
        if "download" in options.only:
            downloads(arena, weed, options.rounds)
        if "many" in options.only:
            many(arena, weed, options.rounds, options.files)
        if "resume" in options.only:
            resume(arena, weed)
        if "faults" in options.only:
            faults(arena, weed)
    finally:
        weed.close()


def some_of(names: tuple[str, ...]):
    def read(text: str) -> set[str]:
        found = set(text.split(","))
        if not found <= set(names):
            raise argparse.ArgumentTypeError(f"choose from {','.join(names)}")
        return found

    return read


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048, help="MiB of the big file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--only", type=some_of(PARTS), default=set(PARTS))
    parser.add_argument("--servers", type=some_of(SERVERS), default=set(SERVERS))
    parser.add_argument("--fallback", action="store_true", help="botocore's transfer as well")
    parser.add_argument("--dir", default=None, help="where the files are; default: /dev/shm")
    options = parser.parse_args()
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=options.dir or shm) as folder:
        arena = Arena(Path(folder).resolve(), options.size * MIB)
        for name, tls in (("http", False), ("tls", True)):
            if name in options.servers:
                against_sink(arena, options, tls=tls)
        if "weed" in options.servers and options.only - {"step"}:
            against_seaweed(arena, options)


if __name__ == "__main__":
    main()
