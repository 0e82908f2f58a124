"""The record in two places: at once where it survives the daemon, soon where it survives power.

A record that says "about to signal" must be there before the signal, or a daemon killed in
between would not know. That needs no fsync, which on a disk busy with a checkpoint takes
seconds of the two minutes: it needs a file that outlives a process. So `save` replaces a
file in the runtime directory (a tmpfs, microseconds) and leaves the durable copy to a
thread, newest record only. A power cut in between loses what the durable copy had not:
an attempt's number, an id whose objects the store then lists, nothing that could not be
found again by looking.
"""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

from spotd.shell.statefile import make_public, read_json, write_durably

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class StateStore:
    """Keeps one run's record.

    Args:
        durable: File on the disk.
        volatile: File that survives the daemon but need not survive the boot.
        trouble: Called with a reason when writing begins to fail, with "" when all works again;
            from the caller's thread and from the writing one.
    """

    def __init__(self, durable: Path, volatile: Path, trouble: Callable[[str], None]) -> None:
        self._durable = durable
        self._volatile = volatile
        self._trouble = trouble
        self._failing: set[Path] = set()
        self._reporting = threading.Lock()
        self._wanted: bytes | None = None
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._write_out, name="state", daemon=True)
        self._thread.start()

    def load(self, boot_id: str) -> dict[str, Any] | None:
        """Returns the newest record: of this boot the volatile one, else the durable one."""
        record = read_json(self._volatile)
        if record is not None and record.get("boot_id") == boot_id:
            return record
        return read_json(self._durable)

    def save(self, record: dict[str, object]) -> None:
        """Writes the record; returns when it survives the daemon."""
        data = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
        try:
            try:
                self._replace_volatile(data)
            except FileNotFoundError:  # somebody has emptied /run
                make_public(self._volatile.parent)
                self._replace_volatile(data)
        except OSError as e:
            self._report(self._volatile, f"cannot write {self._volatile}: {e.strerror}")
        else:
            self._report(self._volatile, "")
        with self._changed:
            self._wanted = data
            self._changed.notify()

    def _replace_volatile(self, data: bytes) -> None:
        temporary = self._volatile.with_suffix(".tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
        temporary.replace(self._volatile)

    def close(self, timeout: float = 5.0) -> None:
        """Writes out what is waiting, and ends."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(timeout)

    def _write_out(self) -> None:
        while True:
            with self._changed:
                while self._wanted is None and not self._ending:
                    self._changed.wait()
                data, self._wanted = self._wanted, None
                if data is None:
                    return
            try:
                write_durably(self._durable, data)
            except OSError as e:
                self._report(self._durable, f"cannot write {self._durable}: {e.strerror}")
            else:
                self._report(self._durable, "")

    def _report(self, path: Path, reason: str) -> None:
        """Says once that a file cannot be written, and once that both can again."""
        with self._reporting:
            if bool(reason) == (path in self._failing):
                return
            self._failing ^= {path}
            told = bool(reason) or not self._failing
        if told:
            self._trouble(reason)
