"""A checkpoint directory under test, and real writers that write into it."""

from __future__ import annotations

import io
import json
import os
import queue
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from spotd.core.actions import Hold, Inspect
from spotd.core.checkpoint import LocalCheckpoint, checkpoint_id
from spotd.core.events import CheckpointSeen, Durable, Event, Held, LocalInventory
from spotd.shell.directory.directory import CheckpointDirectory
from spotd.shell.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE = 20.0  # seconds; only a broken test waits that long
T = TypeVar("T", bound=Event)
ME = Owner(os.getuid(), os.getgid(), tuple(os.getgroups()))


def content(seed: int = 0, size: int = 5000) -> bytes:
    """A whole checkpoint in the format of torch.save; the same bytes for the same seed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a/data.pkl"), bytes([seed]) * size)
    return out.getvalue()


class Nursery:
    """Saves with the real libraries, in real processes that die when told to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                 "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        self._imported: set[str] = set()

    def save(self, writer: str, path: Path, size: int = 200_000, **death: int) -> int:
        """Saves; returns the wait status of the process: 0, or how it died."""
        library = {"trainer": "transformers.trainer", "lightning": "lightning.pytorch"}.get(writer)
        if library and library not in self._imported:
            self._imported.add(library)
            self._ask(writer="import", path=library)
        return self._ask(writer=writer, path=str(path), size=size, **death)

    def _ask(self, **job: object) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


class World:
    """A `CheckpointDirectory` with everything it posts."""

    def __init__(self, path: Path, **more: object) -> None:
        self.path = path
        self.posted: list[Event] = []
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        more.setdefault("owner", ME)
        self.directory = CheckpointDirectory(path, post=self._queue.put, **more)  # type: ignore[arg-type]

    def wait(self, kind: type[T], test: Callable[[T], bool] = lambda _: True) -> T:
        """Returns the next event of a kind that passes the test."""
        deadline = time.monotonic() + DEADLINE
        seen: list[Event] = []
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = self._queue.get(timeout=left)
            except queue.Empty:
                break
            seen.append(event)
            self.posted.append(event)
            if isinstance(event, kind) and test(event):
                return event
        message = f"no {kind.__name__} came, but {seen}"
        raise AssertionError(message)

    def inspect(self, *, settled: bool = True, **more: object) -> LocalInventory:
        self.directory.inspect(Inspect(settled=settled, **more))  # type: ignore[arg-type]
        return self.wait(LocalInventory)

    def seen(self, name: str) -> LocalCheckpoint:
        return self.wait(CheckpointSeen, lambda event: event.checkpoint.name == name).checkpoint

    def hold(self, checkpoint: LocalCheckpoint, sequence: int = 1) -> tuple[str, str]:
        """Holds and waits until it is durable; returns (id, mode)."""
        held = checkpoint_id(sequence, checkpoint.name)
        self.directory.hold(Hold(held, checkpoint.name, checkpoint.fingerprint))
        mode = self.wait(Held, lambda event: event.id == held).mode
        self.wait(Durable, lambda event: event.id == held)
        return held, mode

    def content_of(self, held: str) -> bytes:
        """What would be sent for an id."""
        source = self.directory.source_of(held)
        assert source is not None
        return Path(source.root, source.name).read_bytes()

    def nothing_seen(self) -> None:
        """No whole checkpoint has been reported up to now."""
        self.inspect(settled=False)  # the answer comes after all that was noticed before
        assert not [event for event in self.posted if isinstance(event, CheckpointSeen)]

    def names(self, inventory: LocalInventory) -> set[str]:
        return {checkpoint.name for checkpoint in inventory.checkpoints}


@contextmanager
def a_world(path: Path, **more: object) -> Iterator[World]:
    world = World(path, **more)
    world.directory.start()
    try:
        yield world
    finally:
        world.directory.stop()


def eventually(condition: Callable[[], bool]) -> None:
    """Waits for a condition, with a deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
