"""Disks: is there room, and does what lies there survive a stop?

Facts: an instance store's NVMe model is "Amazon EC2 NVMe Instance Storage", an EBS volume's
"Amazon Elastic Block Store" (EC2 user guide, "Identify the device"); mountinfo is
proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from spotd.checks import Finding, Surroundings, failed, ok, warning
from spotd.core.words import megabytes

SYS_BLOCK = Path("/sys/dev/block")
_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_NETWORK = frozenset(
    {"nfs", "nfs4", "lustre", "cifs", "smb3", "ceph", "9p", "glusterfs", "beegfs", "gpfs", "efs"}
)
_LAYERED = frozenset({"overlay", "aufs"})
_EPHEMERAL = re.compile(r"instance storage|ephemeral", re.IGNORECASE)
_STATE_ROOM = 64 << 20  # bytes that state, history and holds' notes never need


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a path lies: the mount's directory, file system type and device, "major:minor"."""

    at: str
    kind: str
    device: str


@dataclass(frozen=True, slots=True)
class Place:
    """A directory that must survive a stop. `models`: of the disks below it, where known."""

    name: str
    path: str
    mount: Mount
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Room:
    """`free` and `size` in bytes, for the user who writes there; `inodes` free, None: no limit."""

    path: str
    free: int
    size: int
    inodes: int | None


def probe(around: Surroundings) -> list[Finding]:
    """Looks at the checkpoint directory, the training's own, and the state's."""
    settings = around.settings
    mounts = read_mounts(Path("/proc/self/mountinfo").read_text())
    wanted = {
        "checkpoints.directory": settings.checkpoints.directory,
        "trainer.directory": settings.trainer.directory,
        "paths.state": settings.paths.state,
    }
    places = []
    for name, path in wanted.items():
        mount = mount_of(str(nearest(path)), mounts)
        places.append(Place(name, str(path), mount, models_of(mount.device)))
    return [
        *judge_survival(places),
        judge_room(room_at(settings.checkpoints.directory), around.newest_size),
        judge_state_room(room_at(settings.paths.state)),
    ]


def nearest(path: Path) -> Path:
    """The path, or the closest parent that is there; links resolved."""
    path = Path(os.path.realpath(path))
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def read_mounts(text: str) -> list[Mount]:
    """Reads mountinfo."""
    found = []
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        words = head.split()
        if separator and len(words) > 4:  # noqa: PLR2004 - id, parent, device, root, directory
            at = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), words[4])
            found.append(Mount(at, tail.split()[0], words[2]))
    return found


def mount_of(path: str, mounts: list[Mount]) -> Mount:
    """The mount a path lies on: the longest that contains it, the last of equal ones."""
    best = Mount("/", "", "")
    for mount in mounts:
        inside = mount.at in ("/", path) or path.startswith(mount.at + "/")
        if inside and len(mount.at) >= len(best.at):
            best = mount
    return best


def models_of(device: str, sys_block: Path = SYS_BLOCK) -> tuple[str, ...]:
    """The models of the disks behind a block device, through partitions, LVM and RAID."""
    start = sys_block / device
    if not device or not start.exists():
        return ()
    found: set[str] = set()
    ahead, seen = [start.resolve()], set()
    while ahead:
        block = ahead.pop()
        if block in seen:
            continue
        seen.add(block)
        below = [s.resolve() for s in (block / "slaves").glob("*")]
        if below:
            ahead += below
        elif (block / "partition").exists():
            ahead.append(block.parent)
        else:
            model = block / "device/model"
            found.add(model.read_text().strip() if model.exists() else "")
    return tuple(sorted(m for m in found if m))


def room_at(path: Path) -> Room:
    """Asks the file system."""
    told = os.statvfs(nearest(path))
    inodes = told.f_favail if told.f_files else None
    return Room(str(path), told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize, inodes)


def judge_survival(places: list[Place]) -> list[Finding]:
    """Decides whether each survives a stop; those that do share a line."""
    found, safe = [], []
    for place in places:
        subject, kind = "survives a stop", place.mount.kind
        where = f"{place.name} {place.path}"
        move = "move it to the EBS root volume, or to one of its own"
        if kind in _MEMORY:
            found.append(failed(subject, f"{where} is in memory ({kind})", move))
        elif any(_EPHEMERAL.search(m) for m in place.models):
            text = f"{where} is on instance store, which a stop erases"
            found.append(failed(subject, text, move))
        elif kind in _LAYERED:
            text = f"{where} is in a container's own layer ({kind})"
            found.append(warning(subject, text, "mount a directory of the host there"))
        elif kind in _NETWORK or kind.startswith("fuse"):
            safe.append(f"{place.name} ({kind})")
        else:
            disk = place.models[0] if place.models else f"{kind}, disk unknown"
            safe.append(f"{place.name} ({disk})")
    if safe:
        found.append(ok("survives a stop", ", ".join(safe)))
    return found


def judge_room(room: Room, newest: int | None) -> Finding:
    """Decides whether there is room for checkpoints: the next one, and one being held."""
    subject = "disk space"
    text = f"{megabytes(room.free)} free of {megabytes(room.size)} for {room.path}"
    advice = "free space, grow the volume, or set checkpoints.keep_local"
    if room.inodes is not None and room.inodes < 1000:  # noqa: PLR2004 - a few directories' worth
        return failed(subject, f"{text}, but only {room.inodes} files more", advice)
    if newest is None:
        return ok(subject, f"{text}; no checkpoint yet to measure it by")
    text = f"{text}; the newest checkpoint has {megabytes(newest)}"
    if room.free < newest:
        return failed(subject, f"{text}: the next one does not fit", advice)
    if room.free < 3 * newest:
        return warning(subject, f"{text}: room for {room.free // newest} more", advice)
    return ok(subject, text)


def judge_state_room(room: Room) -> Finding:
    """Decides whether spotd's own few megabytes fit."""
    text = f"{megabytes(room.free)} free for {room.path}"
    if room.free < _STATE_ROOM:
        return failed("state", text, "free some space: without its state spotd knows less")
    return ok("state", text)
