"""What a trainer says on its socket: lines `KEY=VALUE`, taken as if an enemy had written them.

Nothing here can raise: a datagram is understood, or it is not. Source of the form:
sd_notify(3); the keys are those of contracts.md, section 3.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from spotd.core.events import TrainerReported

LARGEST_DATAGRAM = 8192  # bytes; a path may take 4096 of them
_LONGEST_PATH = 4096
_LONGEST_STATUS = 200
_LARGEST_INTEGER = 10**15  # exact as a float too, for whoever reads the JSON
_LARGEST_LOSS = 1e30
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_INTEGER = re.compile(r"[0-9]{1,16}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Said:
    """One datagram.

    Attributes:
        values: Of "step", "total_steps", "epoch", "loss" and "status", those it named.
        checkpoints: Absolute paths that it declared complete.
        not_a_number: The keys of numbers that are none (a loss of NaN); the rest holds.
    """

    values: dict[str, int | float | str] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    not_a_number: list[str] = field(default_factory=list)

    def reported(self) -> TrainerReported:
        """The same as an event."""
        return TrainerReported(**self.values)  # type: ignore[arg-type]


def parse_report(datagram: bytes) -> Said | None:
    """Understands one datagram; None when it is not one of these."""
    if not 0 < len(datagram) <= LARGEST_DATAGRAM or b"\0" in datagram:
        return None
    try:
        lines = datagram.decode().split("\n")
    except UnicodeDecodeError:
        return None
    said = Said()
    for line in lines:
        if line and not _read_line(line, said):
            return None
    return said


def _read_line(line: str, said: Said) -> bool:
    """Adds what the line says; False when it is no line of this kind."""
    key, equals, value = line.partition("=")
    if not equals or not _KEY.fullmatch(key):
        return False
    if key == "CHECKPOINT":
        said.checkpoints.append(value)
        return _is_path(value)
    if key == "LOSS" and _NOT_FINITE.fullmatch(value.strip()):
        said.not_a_number.append(key)
    elif key in _READERS:
        name, read = _READERS[key]
        found = read(value.strip())
        if found is None:
            return False
        said.values[name] = found
    return True


def _is_path(value: str) -> bool:
    return (
        value.startswith("/")
        and len(value.encode()) <= _LONGEST_PATH
        and not _CONTROL.search(value)
    )


def _integer(text: str) -> int | None:
    if not _INTEGER.fullmatch(text):
        return None
    number = int(text)
    return number if number <= _LARGEST_INTEGER else None


def _epoch(text: str) -> int | None:
    """Some count epochs in fractions."""
    return _integer(text.partition(".")[0]) if _loss(text) is not None else None


def _loss(text: str) -> float | None:
    if not _FLOAT.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) and abs(number) <= _LARGEST_LOSS else None


def _status(text: str) -> str:
    return _CONTROL.sub(" ", text)[:_LONGEST_STATUS]


def _stopping(text: str) -> bool | None:
    return True if text == "1" else None


_READERS = {
    "STEP": ("step", _integer),
    "TOTAL_STEPS": ("total_steps", _integer),
    "EPOCH": ("epoch", _epoch),
    "LOSS": ("loss", _loss),
    "STATUS": ("status", _status),
    "STOPPING": ("stopping", _stopping),
}
