"""The same bytes by s5cmd and by spotd, in turns."""

from __future__ import annotations

import shutil

from arena import MIB, Arena, rounds, show
from servers import Sink


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
