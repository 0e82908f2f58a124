"""One transfer in a process of its own: `child.py JSON`; prints what it took."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

from spotd.core.manifest import Manifest, ManifestFile
from spotd.shell.store.checkpoints import CheckpointStore
from spotd.shell.store.checksum import default
from spotd.shell.store.protocol import Flow
from spotd.shell.store.restore import Restore
from spotd.shell.store.sender import BotocoreSender
from spotd.shell.store.settings import StoreSettings, open_store
from spotd.shell.store.source import UploadSource
from spotd.shell.store.transfer import PATIENCE, TINY_LANES, Lanes, Transfer, lane_count
from spotd.shell.store.upload import Upload, UploadOrder

MIB = 1024 * 1024


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
    store.close()  # a second process that received ends here, and its time counts
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    result["warm"] = time.process_time() - used + others.ru_utime + others.ru_stime
    print(json.dumps(result), flush=True)
    os._exit(0)


def made_up(order: dict):
    state, pattern = 12345, bytearray(MIB)
    for index in range(MIB):
        state = (state * 1103515245 + 12345) & 0xFFFFFFFF
        pattern[index] = (state >> 16) & 0xFF
    algorithm = default()
    one = algorithm.update(pattern, 0)
    total = algorithm.join((one, MIB) for _ in range(order["size"] // MIB))
    file = ManifestFile(order["name"], order["size"], 0o644, 1, algorithm.label(total))
    return Manifest(
        "run", order["id"], 1, 1, order["name"], "file", 1, 1.0, "i", order["size"], (file,)
    )


if __name__ == "__main__":
    child(json.loads(sys.argv[1]))
