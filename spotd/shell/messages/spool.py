"""Messages that wait: one small file each, oldest first, gone when all channels have it.

Who still lacks a message is in its file's name, so that noting a delivery is a rename: it
needs no space, and on a full disk nobody is told twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.shell.statefile import read_json, sync_directory, write_durably

if TYPE_CHECKING:
    from pathlib import Path

CHANNELS = ("webhook", "sns")
MOST = 100  # messages; the oldest go first: nobody reads a hundred
LONGEST_WAIT = 24 * 3600.0  # seconds after which a message is old news
_NAME = re.compile(r"(\d{20}-[0-9a-f]{6})\.([a-z]+(?:\+[a-z]+)*)\.json")


@dataclass(frozen=True, slots=True)
class Message:
    """`key` is its own for ever; `time` of what it tells, in seconds; `to`: who lacks it."""

    key: str
    event: str
    text: str
    time: float
    to: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its file's."""
        return f"{self.key}.{'+'.join(self.to)}.json"


class Spool:
    """A directory of messages."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def add(self, event: str, text: str, wall: float, to: tuple[str, ...]) -> None:
        """Keeps a message so that it survives a power cut.

        Raises:
            OSError: It cannot be kept.
        """
        self.directory.mkdir(mode=0o700, exist_ok=True)
        key = f"{int(wall * 1e6):020d}-{os.urandom(3).hex()}"
        message = Message(key, event, text, wall, to)
        value = {"event": event, "text": text, "time": wall}
        write_durably(self.directory / message.name, json.dumps(value).encode())
        for old in self._names()[:-MOST]:
            (self.directory / old).unlink(missing_ok=True)

    def waiting(self) -> list[Message]:
        """Returns the messages, oldest first; what is none is passed over."""
        found = []
        for name in self._names():
            match = _NAME.fullmatch(name)
            value = read_json(self.directory / name) or {}
            event, text, time = value.get("event"), value.get("text"), value.get("time")
            sound = isinstance(event, str) and isinstance(text, str)
            if match and sound and isinstance(time, (int, float)):
                to = tuple(match[2].split("+"))
                found.append(Message(match[1], str(event), str(text), float(time), to))
        return found

    def delivered(self, message: Message, channel: str) -> Message:
        """Notes that one channel has it, or wants it no more; returns what is left of it.

        Raises:
            OSError: It cannot be noted: it would be told twice.
        """
        to = tuple(c for c in message.to if c != channel)
        rest = Message(message.key, message.event, message.text, message.time, to)
        if to:
            (self.directory / message.name).replace(self.directory / rest.name)
        else:
            self.drop(message)
        sync_directory(self.directory)
        return rest

    def drop(self, message: Message) -> None:
        """Forgets a message."""
        with contextlib.suppress(FileNotFoundError):
            (self.directory / message.name).unlink()

    def _names(self) -> list[str]:
        try:
            names = os.listdir(self.directory)  # noqa: PTH208 - names are what is wanted
        except FileNotFoundError:
            return []
        return sorted(n for n in names if _NAME.fullmatch(n))
