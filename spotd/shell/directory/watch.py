"""Hears that something below the checkpoint directory changed; costs nothing while nothing does.

inotify(7) on the directory and on the newest subdirectories. No MODIFY events: a save of
gigabytes would be a storm of them, and closing or renaming tells all that matters.
Network filesystems say nothing of what other machines do: there, scanning has to do.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from inotify_simple import INotify, flags

from spotd.shell.directory.tree import open_without_links, opened_directory

MAX_WATCHED = 256  # subdirectories, the newest
MIN_RESCAN, MAX_RESCAN = 10.0, 120.0  # seconds
_RESCAN_SHARE = 0.001  # of one core
_BLIND_MIN, _BLIND_MAX, _BLIND_SHARE = 1.0, 30.0, 0.01
_MASK = (
    flags.CREATE | flags.CLOSE_WRITE | flags.MOVED_FROM | flags.MOVED_TO | flags.DELETE
    | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR | flags.EXCL_UNLINK
)  # fmt: skip
_ABOVE = flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.CREATE | flags.ONLYDIR
_BLIND_FILESYSTEMS = (
    "nfs", "cifs", "smb", "fuse", "lustre", "ceph", "9p", "afs", "gpfs", "beegfs", "glusterfs",
    "ocfs2", "gfs2", "virtiofs",
)  # fmt: skip


@dataclass(slots=True)
class Changes:
    """What was heard since the last time.

    Attributes:
        names: Entries of the checkpoint directory in which something changed, in the order
            in which it did.
        finished: Of these, files closed after writing, or moved here.
        lost: Events were dropped: look at everything.
        gone: Something became of the directory itself: deleted, moved away, replaced.
    """

    names: dict[str, None] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    lost: bool = False
    gone: bool = False


def rescan_interval(cost: float, *, blind: bool) -> float:
    """Returns seconds until the next look at everything, from what the last one cost.

    Args:
        cost: Seconds of CPU.
        blind: There is nothing but scanning on this filesystem.
    """
    if blind:
        return min(max(cost / _BLIND_SHARE, _BLIND_MIN), _BLIND_MAX)
    return min(max(cost / _RESCAN_SHARE, MIN_RESCAN), MAX_RESCAN)


def is_blind(root: int) -> bool:
    """Whether inotify misses changes on the filesystem of this descriptor."""
    kind = filesystem_of(os.fstat(root).st_dev)
    return kind.startswith(_BLIND_FILESYSTEMS)


def filesystem_of(device: int) -> str:
    """Returns the type of a mounted filesystem, "" when unknown (proc(5), mountinfo)."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            fields, _, rest = line.partition(" - ")
            if fields.split(" ", 3)[2] == wanted:
                return rest.split(" ", 1)[0]
    return ""


class Ears:
    """Watches one directory, and subdirectories on demand.

    Args:
        root: Descriptor of the directory. It keeps the directory alive when it is deleted,
            and then nothing is heard from the directory itself.
        path: Its path: what becomes of its name is heard from its parent.

    Raises:
        OSError: No more inotify instances or watches are to be had.
    """

    def __init__(self, root: int, path: str) -> None:
        self._root = root
        self._notify = INotify(nonblocking=True)
        try:
            self._top = self._notify.add_watch(f"/proc/self/fd/{root}", _MASK)
            parent, _, self._own_name = path.rpartition("/")
            self._above = self._watch_above(parent or "/")
        except OSError:
            self._notify.close()
            raise
        self._names: OrderedDict[int, tuple[str, str]] = OrderedDict()

    def _watch_above(self, parent: str) -> int:
        descriptor = open_without_links(parent)
        try:
            return int(self._notify.add_watch(f"/proc/self/fd/{descriptor}", _ABOVE))
        finally:
            os.close(descriptor)

    def fileno(self) -> int:
        """The descriptor to poll."""
        return int(self._notify.fileno())

    def close(self) -> None:
        """Stops listening."""
        self._notify.close()

    def watch_below(self, name: str, directories: tuple[str, ...]) -> None:
        """Listens in an entry and in the directories inside it; the oldest give way."""
        for path in (name, *(f"{name}/{inner}" for inner in directories[:MAX_WATCHED])):
            with contextlib.suppress(OSError), opened_directory(self._root, path) as descriptor:
                watch = self._notify.add_watch(f"/proc/self/fd/{descriptor}", _MASK)
                self._names[watch] = (name, path)
                self._names.move_to_end(watch)
        while len(self._names) > MAX_WATCHED:
            watch, _ = self._names.popitem(last=False)
            with contextlib.suppress(OSError):
                self._notify.rm_watch(watch)

    def hear(self) -> Changes:
        """Returns what happened since the last call, without waiting."""
        changes = Changes()
        for event in self._notify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                changes.lost = True
            elif event.wd == self._above:
                changes.gone = changes.gone or event.name == self._own_name
            elif event.wd == self._top:
                self._at_top(event.mask, event.name, changes)
            elif event.wd in self._names:
                changes.names[self._names[event.wd][0]] = None
                if event.mask & (flags.IGNORED | flags.DELETE_SELF):
                    self._names.pop(event.wd, None)
        return changes

    @staticmethod
    def _at_top(mask: int, name: str, changes: Changes) -> None:
        if mask & (flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED | flags.UNMOUNT):
            changes.gone = True
        elif name:
            changes.names[name] = None
            if mask & (flags.CLOSE_WRITE | flags.MOVED_TO) and not mask & flags.ISDIR:
                changes.finished.add(name)
