"""One line per change: to journald with its fields, or to a terminal for people.

The native protocol is a datagram of `KEY=value` lines to /run/systemd/journal/socket
(https://systemd.io/JOURNAL_NATIVE_PROTOCOL/); a value with a newline has a length in
front, and what is too long for a datagram travels as a sealed memory file. Written by
hand: 25 lines cost a tenth of a millisecond and no dependency (structlog, which the
lines on a terminal would need no more of than this, costs 8 MiB of the daemon's 30).
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from spotd.core.journal_events import EVENTS

if TYPE_CHECKING:
    from spotd.core.actions import Announce

SOCKET = "/run/systemd/journal/socket"
_COLOURS = {3: "\x1b[31m", 4: "\x1b[33m", 5: "\x1b[1m"}
_SEALS = 1 | 2 | 4 | 8  # F_SEAL_SEAL, SHRINK, GROW, WRITE; fcntl(2)


def under_journald() -> bool:
    """Whether standard error is a stream to journald (systemd.exec(5), $JOURNAL_STREAM)."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    try:
        stat = os.fstat(2)
    except OSError:
        return False
    return stream == f"{stat.st_dev}:{stat.st_ino}" and Path(SOCKET).exists()


def encode(fields: dict[str, str]) -> bytes:
    """Returns the native-protocol form of one journal entry."""
    parts = []
    for key, value in fields.items():
        data = value.encode("utf-8", "surrogateescape")
        if b"\n" in data:
            parts.append(key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(key.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def fields_of(line: Announce) -> dict[str, str]:
    """Returns the journal fields of an announcement."""
    event = EVENTS.get(line.name)
    fields = {
        "MESSAGE": line.message,
        "PRIORITY": str(line.priority),
        "SYSLOG_IDENTIFIER": "spotd",
        "SPOTD_EVENT": line.name,
    }
    if event is not None:
        fields["MESSAGE_ID"] = event.message_id
    for key, value in line.fields.items():
        fields[f"SPOTD_{key.upper()}"] = str(value)
    return fields


class Journal:
    """Writes announcements to where the daemon's user looks for them."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._colour = sys.stderr.isatty()
        if under_journald():
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    def write(self, line: Announce) -> None:
        """Writes one line; a journal that cannot take it costs the line, nothing else."""
        if self._socket is None:
            self._print(line)
            return
        try:
            self._send(encode(fields_of(line)))
        except OSError:
            self._print(line)  # standard error is a journald stream too

    def _send(self, data: bytes) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(data, SOCKET)
        except OSError as e:
            if e.errno != errno.EMSGSIZE:
                raise
            fd = os.memfd_create("spotd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.write(fd, data)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                self._socket.sendmsg([b""], rights, 0, SOCKET)
            finally:
                os.close(fd)

    def _print(self, line: Announce) -> None:
        stamp = time.strftime("%H:%M:%S")
        colour = _COLOURS.get(line.priority, "") if self._colour else ""
        end = "\x1b[0m" if colour else ""
        # Names of checkpoints are anybody's: what is no character must not steer a terminal.
        text = "".join(c if c.isprintable() else " " for c in line.message)
        try:
            sys.stderr.write(f"{stamp} {colour}{text}{end} [{line.name}]\n")
            sys.stderr.flush()
        except OSError:
            return  # a closed terminal must not end the daemon

    def sync(self) -> None:
        """Has journald write to disk what it keeps in memory, for up to five minutes.

        `journalctl --sync` takes some 20 ms, so it runs beside the deciding loop.
        """
        if self._socket is None:
            return
        try:
            subprocess.Popen(
                ["journalctl", "--sync"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            return  # no journalctl, nothing to sync
