"""What a machine holds on to: memory, descriptors, threads; files, parts and objects left over."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from spotd.core.manifest import parse_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spotd.testing.stage import Stage

# What may be more at the end than at the beginning and still be flat. An allocator keeps what it
# once needed; what leaks with every kill or upload is far above this after hundreds of them.
MORE_MEMORY = 6 << 20  # bytes
MORE_DESCRIPTORS = 3
MORE_THREADS = 2
ENOUGH = 6  # samples
TEMPORARY = ("tmp", "partial", ".new", "~")
HOLDS = 4  # the newest few, and the one being stored


@dataclass(frozen=True, slots=True)
class Sample:
    """A daemon at rest: bytes that are its alone, open descriptors, threads."""

    memory: int
    descriptors: int
    threads: int


def sample(pid: int) -> Sample:
    """Looks at a process.

    Raises:
        OSError: It is gone.
    """
    proc = Path(f"/proc/{pid}")
    private = 0
    for line in (proc / "smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            private += int(line.split()[1]) * 1024
    return Sample(private, _count(proc / "fd"), _count(proc / "task"))


def _count(place: Path) -> int:
    return sum(1 for _ in place.iterdir())


def growth(samples: Sequence[Sample]) -> list[str]:
    """Returns what has grown between the first third of the samples and the last, in words.

    Of a few nothing can be told: the sender that comes and goes has descriptors and threads.
    """
    if len(samples) < ENOUGH:
        return []
    third = len(samples) // 3
    found = []
    kinds: tuple[tuple[str, Callable[[Sample], int], int], ...] = (
        ("memory", lambda s: s.memory, MORE_MEMORY),
        ("descriptors", lambda s: s.descriptors, MORE_DESCRIPTORS),
        ("threads", lambda s: s.threads, MORE_THREADS),
    )
    for name, of, allowed in kinds:
        before = median(map(of, samples[:third]))
        after = median(map(of, samples[-third:]))
        if after - before > allowed:
            found.append(f"{name} grew from {before:.0f} to {after:.0f}")
    return found


def left_on_disk(stage: Stage) -> list[str]:
    """Returns what a stopped spotd should not have left behind: temporary files, holds, sockets."""
    found = []
    for root in (stage.disk, stage.runtime):
        for path in sorted(root.rglob("*")):
            inside = path.relative_to(root)
            aside = inside.parts[:1] == ("work",) and ".spotd-aside" in inside.parts
            temporary = any(mark in path.name for mark in TEMPORARY) and not aside
            if temporary or path.is_socket():
                found.append(str(inside))
    holds = stage.checkpoints / ".spotd-hold"
    held = [p for p in holds.iterdir() if p.is_dir()] if holds.exists() else []
    if len(held) > HOLDS:
        found.append(f"{len(held)} holds")
    return found


def left_in_bucket(
    client: Any, bucket: str, prefix: str, *, keep: int, forgotten: int, rejected: set[str]
) -> list[str]:
    """Returns what should not be in the bucket: parts, objects without a manifest, a lease held.

    Parts that are on no record any more, since the disk was lost or full, are for the bucket's
    lifecycle rule, and objects go when something older is deleted: there can be one of these
    for each of the `forgotten` times, but no object older than what is kept. What was
    `rejected` (ids) is never deleted.
    """
    found = []
    for begun in client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", []):
        # One whose id was lost with the answer that carried it holds none, and costs nothing.
        upload = {"Bucket": bucket, "Key": begun["Key"], "UploadId": begun["UploadId"]}
        if client.list_parts(**upload).get("Parts"):
            found.append(f"parts of {begun['Key']}")
    keys = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        keys += [o["Key"].removeprefix(prefix) for o in page.get("Contents", [])]
    checkpoints = {k.split("/")[1] for k in keys if k.startswith("checkpoints/")}
    whole = {k.split("/")[1] for k in keys if k.endswith("/MANIFEST.json")}
    stale = {i for i in checkpoints - whole if i < min(whole, default="")}
    found += [f"{i} without a manifest" for i in sorted(checkpoints - whole - stale)]
    if len(found) <= forgotten:
        found = []
    found += [f"{i} without a manifest, and older than what is kept" for i in sorted(stale)]
    if len(whole - rejected) > keep:
        found.append(f"{len(whole)} checkpoints, where {keep} are to be kept")
    lease = json.loads(client.get_object(Bucket=bucket, Key=f"{prefix}lease.json")["Body"].read())
    if parse_time(lease["expires"]) > parse_time(lease["renewed"]) + 1:
        found.append(f"the lease, until {lease['expires']}")
    return found
