"""What a configuration value may be: one small parser for each kind of value.

A kind turns what TOML gave into what the program uses, or raises `BadValue`. Its reason
completes the sentence "VALUE ...", and never repeats the value: the caller decides
whether the value may be shown at all.
"""

from __future__ import annotations

import re
import shlex
import signal as signals
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from spotd import units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")
CHECKPOINT_PLACEHOLDER = "{checkpoint}"


class BadValue(ValueError):  # noqa: N818 - it is a value, and it is bad
    """Why a value is refused. `below`: the part of a table that is meant."""

    def __init__(self, reason: str, hint: str = "", *, below: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.below = below


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A kind of value: how the reference calls it, and how it is read.

    `shown`: whether an error may repeat the value; not where people put secrets.
    """

    name: str
    parse: Callable[[object], T]
    shown: bool = True


def type_name(value: object) -> str:
    """What a TOML value is, in the words of the reference."""
    names: tuple[tuple[type, str], ...] = (
        (bool, "true or false"),
        (str, "text"),
        (int, "a whole number"),
        (float, "a number"),
        (list, "a list"),
        (dict, "a section"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "a date")


def nearest(name: str, choices: Iterable[str]) -> str:
    """The choice most like `name`, or "" when none is like it."""
    import difflib  # noqa: PLC0415 - only for those who have mistyped

    found = difflib.get_close_matches(
        name.lower(), {c.lower(): c for c in choices}, n=1, cutoff=0.6
    )
    return next((c for c in choices if c.lower() == found[0]), "") if found else ""


def _text(value: object, wanted: str = "text") -> str:
    if not isinstance(value, str):
        raise BadValue(f"is {type_name(value)}; {wanted} is wanted")
    if not value.strip():
        raise BadValue("is empty")
    if any(c < " " or c == "\x7f" for c in value if c not in "\t\n\r"):
        raise BadValue("holds a control character")
    return value


def line(value: object) -> str:
    """One line of text, neither empty nor with control characters."""
    text = _text(value)
    if "\n" in text or "\r" in text:
        raise BadValue("is more than one line")
    return text


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        hint = "without quotes" if value in ("true", "false") else ""
        raise BadValue(f"is {type_name(value)}; true or false is wanted", hint)
    return value


def _price(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadValue(f"is {type_name(value)}; a number of dollars per hour is wanted")
    if not 0 < value < 100_000:  # noqa: PLR2004 - more than any instance costs; NaN fails too
        raise BadValue("is no price per hour")
    return float(value)


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return _split(_text(value))
    if not isinstance(value, list):
        raise BadValue(f"is {type_name(value)}; text or a list of texts is wanted")
    for number, word in enumerate(value, start=1):
        if not isinstance(word, str):
            raise BadValue(f"has an entry (number {number}) that is {type_name(word)}, not text")
        if "\0" in word:
            raise BadValue(f"has an entry (number {number}) that holds a control character")
    return tuple(value)


def _split(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise BadValue(f"cannot be split into words: {str(error).lower()}") from None


def _command(value: object) -> tuple[str, ...]:
    words = _words(value)
    if not words or not words[0].strip():
        raise BadValue("names no program")
    if isinstance(value, str):
        _refuse_shell(words)
    return words


def _refuse_shell(words: tuple[str, ...]) -> None:
    """No shell runs: what only a shell understands would reach the program as an argument."""
    hint = 'for a shell write ["bash", "-c", "exec ..."]'
    if re.match(r"[A-Za-z_]\w*=", words[0]):
        raise BadValue("begins with an assignment, and no shell runs", "use trainer.environment")
    if words[0].startswith("~"):
        raise BadValue('begins with "~", and no shell runs', "write the path out")
    for word in words:
        if word in ("&&", "||", "|", ";", "&") or re.fullmatch(r"\d?(>>?|<)(&\d)?", word):
            raise BadValue(f'holds "{word}", and no shell runs', hint)


def _run_name(value: object) -> str:
    text = _text(value)
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", text):
        raise BadValue(
            "is not a run name",
            "1 to 100 letters, digits, '.', '_' and '-', not starting with '.'",
        )
    return text


def _user(value: object) -> str:
    text = line(value)
    # What useradd(8) accepts, and the digits of a numeric id.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,255}\$?", text):
        raise BadValue("is not a user name")
    return text


def _environment(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise BadValue(f"is {type_name(value)}; a section of names and texts is wanted")
    found = {}
    for name, entry in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise BadValue("is not the name of an environment variable", below=name)
        if name.startswith("SPOTD_"):
            raise BadValue("is set by spotd itself", below=name)
        if isinstance(entry, bool) or not isinstance(entry, (str, int, float)):
            hint = "write it as text" if isinstance(entry, bool) else ""
            raise BadValue(f"is {type_name(entry)}; text or a number is wanted", hint, below=name)
        if "\0" in str(entry):
            raise BadValue("holds a control character", below=name)
        found[name] = str(entry)
    return found


# What a program can catch and nothing else sends it: not KILL and STOP (nobody can catch
# them), not CHLD, CONT, PIPE, SEGV and the like (they have a meaning of their own).
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU")


def _signal(value: object) -> str:
    text = line(value)
    name = text.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name in SIGNALS:
        return name
    if name in ("SIGKILL", "SIGSTOP"):
        raise BadValue("cannot be caught, so nothing could be saved on it", "SIGTERM is usual")
    if name in signals.Signals.__members__:
        raise BadValue("is not for telling a program to save", f"one of {', '.join(SIGNALS)}")
    close = nearest(name[3:], (known[3:] for known in SIGNALS))
    raise BadValue(
        "is not a signal", f"did you mean SIG{close}?" if close else f"one of {', '.join(SIGNALS)}"
    )


def _patterns(value: object) -> tuple[str, ...]:
    globs = [value] if isinstance(value, str) else value
    if not isinstance(globs, list):
        raise BadValue(f"is {type_name(value)}; a pattern or a list of patterns is wanted")
    if not globs:
        raise BadValue("is an empty list")
    for glob in globs:
        if "/" in line(glob):
            raise BadValue(
                'holds "/"', "patterns are matched against names directly in checkpoints.directory"
            )
    return tuple(globs)


def _marker(value: object) -> str:
    text = line(value)
    if "/" in text or text in (".", ".."):
        raise BadValue("is not a file name", '"auto", or the name of a file inside the checkpoint')
    return text


def _matching(pattern: str, what: str, hint: str = "") -> Callable[[object], str]:
    def parse(value: object) -> str:
        text = line(value)
        if not re.fullmatch(pattern, text):
            raise BadValue(f"is not {what}", hint)
        return text

    return parse


def choice(*names: str, refused: Mapping[str, str] | None = None) -> Kind[str]:
    """One of `names`; `refused` are names that exist and are no good, each with its reason."""

    def parse(value: object) -> str:
        text = _text(value)
        if text in names:
            return text
        if refused and text in refused:
            raise BadValue(refused[text])
        close = nearest(text, names)
        said = f"one of {', '.join(names)}"
        raise BadValue(f"is not {said}", f"did you mean {close}?" if close else "")

    return Kind(", ".join(f"`{name}`" for name in names), parse)


def duration(least: float = 0.0, most: float = 366 * 86400.0) -> Kind[float]:
    """Seconds between `least` and `most`."""

    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise BadValue(f"is {type_name(value)}; a duration is wanted", 'like 90 or "1h 30min"')
        try:
            seconds = units.parse_duration(value)
        except ValueError as error:
            raise BadValue(
                str(error), 'a duration is a number of seconds or like "1h 30min"'
            ) from None
        if seconds < least:
            raise BadValue(f"is less than {units.format_duration(least)}")
        if seconds > most:
            raise BadValue(f"is more than {units.format_duration(most)}")
        return seconds

    return Kind("duration", parse)


def count(least: int = 1, most: int = 1_000_000) -> Kind[int]:
    """A whole number between `least` and `most`."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadValue(f"is {type_name(value)}; a whole number is wanted")
        if not least <= value <= most:
            raise BadValue(f"is not between {least} and {most}")
        return value

    return Kind("whole number", parse)


def _rate(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadValue(f"is {type_name(value)}; a size per second is wanted", 'like "50MiB"')
    try:
        size = units.parse_size(value.removesuffix("/s") if isinstance(value, str) else value)
    except ValueError as error:
        raise BadValue(str(error), 'a size is a number of bytes or like "50MiB"') from None
    if size < 1024:  # noqa: PLR2004 - less is a forgotten unit, not a limit
        raise BadValue("is less than 1KiB each second", 'like "50MiB"')
    return size


TEXT = Kind("text", line)
FLAG = Kind("`true` or `false`", _flag)
PRICE = Kind("dollars per hour", _price)
DISK_PRICE = Kind("dollars per GiB and month", _price)
WORDS = Kind("text (split as a shell does) or list", _words, shown=False)
COMMAND = Kind("text (split as a shell does, no shell runs) or list", _command, shown=False)
RUN_NAME = Kind("name", _run_name)
USER = Kind("user name", _user)
ENVIRONMENT = Kind("section of texts", _environment, shown=False)
SIGNAL = Kind("signal", _signal)
PATTERNS = Kind("pattern or list", _patterns)
MARKER = Kind("`auto` or a file name", _marker)
REGION = Kind("region", _matching(r"[a-z0-9-]{1,64}", "a region", "like us-east-1"))
TOPIC = Kind(
    "topic ARN",
    _matching(
        r"arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]{1,256}",
        "the ARN of an SNS topic",
        "like arn:aws:sns:us-east-1:123456789012:training",
    ),
)
RATE = Kind("size per second", _rate)
