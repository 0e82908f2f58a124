"""Makes durable claims as fast as it can: `python claimant.py KIND FOLDER`.

Prints a claim's number when spotd's own code has returned from making it; what was printed must be
true after a power cut. Kinds: see `CLAIMS`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spotd.shell.statefile import write_durably
from spotd.shell.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Callable


def content(number: int) -> bytes:
    """What claim `number` consists of; a few pages, different for each."""
    return hashlib.sha256(str(number).encode()).digest() * (50 + number % 700)


def record(folder: Path) -> Callable[[int], None]:
    """The daemon's record, replaced at every change."""

    def claim(number: int) -> None:
        text = json.dumps({"number": number, "padding": "x" * (number % 5000)})
        write_durably(folder / "state.json", text.encode())

    return claim


def files(folder: Path) -> Callable[[int], None]:
    """One file after the other."""
    return lambda number: write_durably(folder / str(number), content(number))


def objects(folder: Path) -> Callable[[int], None]:
    """Objects of a store on a file system, in directories that appear with them."""
    (folder / "store").mkdir(exist_ok=True)
    os.sync()  # it stands for a mount that is there; DirectoryStore makes none
    store = DirectoryStore(folder / "store")

    def claim(number: int) -> None:
        store.put(f"run/checkpoints/{number:08d}/file", content(number))

    return claim


def careless(folder: Path) -> Callable[[int], None]:
    """Write and rename, no fsync: what must be seen to fail, or the cut proves nothing."""

    def claim(number: int) -> None:
        (folder / "new").write_bytes(content(number))
        (folder / "new").rename(folder / str(number))

    return claim


CLAIMS = {"record": record, "files": files, "objects": objects, "careless": careless}

if __name__ == "__main__":
    claim = CLAIMS[sys.argv[1]](Path(sys.argv[2]))
    for n in itertools.count(1):
        claim(n)
        os.write(1, b"%d\n" % n)
