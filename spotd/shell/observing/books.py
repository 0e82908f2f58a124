"""The ledger's files: one for each boot, kept with the run and copied to the store."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from spotd.core.ledger import BootRecord, parse
from spotd.shell.statefile import write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST = 1000  # boots kept on the disk
MOST_SENT = 4  # of the boots before this one: the last of them may not have got out


class Books:
    """This boot's record and those before it.

    Args:
        directory: Where they are; made at the first write.
        fresh: This boot's, if there is none yet.
    """

    def __init__(self, directory: Path, fresh: BootRecord) -> None:
        self._directory = directory
        known = None
        with contextlib.suppress(OSError):
            known = parse((directory / fresh.name).read_bytes(), fresh.run)
        self.open = known or fresh

    def save(self, data: bytes, *, durably: bool) -> None:
        """Writes this boot's record, and lets go of the oldest ones.

        Raises:
            OSError: It cannot be written.
        """
        self._directory.mkdir(mode=0o755, exist_ok=True)
        write(self._directory / self.open.name, data, durably=durably)
        for old in self._files()[:-MOST]:
            old.unlink(missing_ok=True)

    def for_the_store(self, data: bytes) -> dict[str, str]:
        """Returns what the store may lack: name to JSON, this boot's (`data`) last."""
        found = {}
        for path in self._files()[-MOST_SENT - 1 :]:
            with contextlib.suppress(OSError):
                found[path.name] = path.read_text()
        found.pop(self.open.name, None)
        found[self.open.name] = data.decode()
        return found

    def _files(self) -> list[Path]:
        try:
            return sorted(self._directory.glob("*.json"), key=lambda p: p.stat().st_mtime)
        except OSError:
            return []


def read_books(directory: Path, run: str) -> Iterator[BootRecord]:
    """Yields the records in a directory that are whole."""
    for path in sorted(directory.glob("*.json")):
        with contextlib.suppress(OSError):
            record = parse(path.read_bytes(), run)
            if record is not None:
                yield record


def write(path: Path, data: bytes, *, durably: bool) -> None:
    """Replaces a file; `durably` also on the platter.

    Raises:
        OSError: It cannot be written.
    """
    if durably:
        write_durably(path, data)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
