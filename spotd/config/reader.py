"""From TOML text to `Settings`, finding every problem in one go."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.config.kinds import BadValue, nearest, type_name
from spotd.config.schema import KEYS, SECTIONS, Section
from spotd.config.settings import Settings
from spotd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

_SHOWN = 60
_LONGEST_RUNTIME = 107 - len("/control.sock")  # bytes; sun_path of unix(7) without its NUL


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: the dotted key ("" for the file itself), the reason, what to do."""

    key: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        said = f"{self.key}: {self.reason}" if self.key else self.reason
        return f"{said} ({self.hint})" if self.hint else said


class InvalidSettings(ConfigError):  # noqa: N818 - what the caller gets told about
    """A configuration with problems, all of them in `problems`: unknown keys first."""

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        first, *rest = problems
        where = f"{source}: {first.key}: " if first.key else f"{source}: "
        more = ""
        if rest:
            names = ", ".join(dict.fromkeys(p.key for p in rest))
            more = f"{len(rest)} more problem{'s' if len(rest) > 1 else ''}: {names}"
        hint = "; ".join(part for part in (first.hint, more) if part)
        super().__init__(where + first.reason, hint=hint)
        self.source = source
        self.problems = problems


def parse(text: str, source: str) -> Settings:
    """Check TOML text; `source` is the path that errors name.

    Raises:
        InvalidSettings: With every problem there is.
    """
    document = _toml(text, source)
    problems: list[Problem] = list(_unknown(document))
    values: dict[str, Any] = {}
    for section in SECTIONS.values():
        table = document.get(section.name, {}) if section.name else document
        if isinstance(table, dict):  # what is not, is among the unknown
            _read_section(section, table, values, problems)
    _resolve(values)
    problems += _contradictions(values)
    if problems:
        raise InvalidSettings(source, tuple(problems))
    return _build(values, source)


def _toml(text: str, source: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError as error:  # TOMLDecodeError, and a number of thousands of digits
        last = f"at the end, line {text.count(chr(10)) + 1}"
        reason = f"is not TOML: {error}".replace("at end of document", last)
    else:
        return document
    raise InvalidSettings(source, (Problem("", reason, _syntax_hint(reason)),))


def _syntax_hint(reason: str) -> str:
    if "Invalid value" in reason or "Expected newline" in reason:
        return 'text stands in quotes: name = "text"'
    return ""


def _unknown(document: Mapping[str, Any]) -> Iterator[Problem]:
    top = SECTIONS[""]
    for name, value in document.items():
        if name in top.keys:
            continue
        if name not in SECTIONS or not name:
            yield _stray(top, name)
        elif not isinstance(value, dict):
            yield Problem(name, f"is {type_name(value)}; a section is wanted", f"[{name}]")
        else:
            section = SECTIONS[name]
            yield from (_stray(section, key) for key in value if key not in section.keys)


def _stray(section: Section, name: str) -> Problem:
    """A name that means nothing where it stands, and the valid one that was probably meant."""
    dotted = section.dotted(name)
    known = [*section.keys] if section.name else [*section.keys, *(n for n in SECTIONS if n)]
    leaves = {full.rpartition(".")[2]: full for full in reversed(KEYS)}
    close = nearest(name, known)
    if name not in leaves and close:
        hint = f"did you mean {section.dotted(close)}?"
    elif leaf := name if name in leaves else nearest(name, leaves):
        place = leaves[leaf].rpartition(".")[0]
        where = f"below [{place}]" if place else "above the first [section]"
        hint = f"did you mean {leaves[leaf]}? It stands {where}"
    else:
        hint = f"known here: {', '.join(known)}"
    return Problem(_printable(dotted), "there is no such key", hint)


def _read_section(
    section: Section, table: Mapping[str, Any], values: dict[str, Any], problems: list[Problem]
) -> None:
    for name, key in section.keys.items():
        dotted = section.dotted(name)
        if name not in table:
            if key.required:
                example = json.dumps(key.example)
                problems.append(Problem(dotted, "is missing", f"like {name} = {example}"))
            else:
                values[dotted] = None if key.default is None else key.kind.parse(key.default)
            continue
        try:
            values[dotted] = key.kind.parse(table[name])
        except BadValue as error:
            below = f".{_printable(error.below)}" if error.below else ""
            shown = _shown(table[name]) if key.kind.shown else "the value"
            reason = error.reason if below else f"{shown} {error.reason}"
            problems.append(Problem(dotted + below, reason, error.hint))


def _shown(value: object) -> str:
    if isinstance(value, (dict, list)) or (isinstance(value, str) and "@" in value):
        return "the value"
    said = json.dumps(value, ensure_ascii=True, default=str)
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."


def _printable(name: str) -> str:
    said = json.dumps(name)
    plain = said[1:-1] if "\\" not in said else said
    return plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}..."


def _resolve(values: dict[str, Any]) -> None:
    base = values.get("trainer.directory")
    for name in ("checkpoints.directory", "trainer.environment_file"):
        path = values.get(name)
        if base is not None and path is not None:
            # Not resolve(): a link in the path is the user's business and may move.
            values[name] = Path(base, path)


def _contradictions(values: Mapping[str, Any]) -> Iterator[Problem]:
    get = values.get
    if (get("trainer.backoff_min") or 0) > get("trainer.backoff_max", 1e9):
        yield Problem("trainer.backoff_max", "is less than trainer.backoff_min")
    if get("trainer.checkpoint_signal") == get("trainer.stop_signal", ""):
        yield Problem(
            "trainer.checkpoint_signal", "is the same as trainer.stop_signal", "SIGUSR1 is usual"
        )
    if get("notify.webhook_url") and get("notify.webhook_url_file"):
        yield Problem(
            "notify.webhook_url_file", "stands beside notify.webhook_url", "leave one of them out"
        )
    if get("paths.state") == get("paths.runtime", ""):
        yield Problem("paths.runtime", "is the same directory as paths.state")
    runtime = os.fsencode(get("paths.runtime") or "")
    if len(runtime) > _LONGEST_RUNTIME:
        reason = f"is longer than {_LONGEST_RUNTIME} bytes, so no unix socket can be made there"
        yield Problem("paths.runtime", reason)
    yield from _store_contradictions(values)


def _store_contradictions(values: Mapping[str, Any]) -> Iterator[Problem]:
    get = values.get
    url = get("store.url", "")
    if get("store.kms_key_id") and not (get("store.server_side_encryption") or "").startswith(
        "aws:"
    ):
        yield Problem(
            "store.kms_key_id",
            "is used only with KMS encryption",
            'set store.server_side_encryption = "aws:kms"',
        )
    if not url.startswith("file://"):
        return
    for name in ("endpoint_url", "storage_class", "server_side_encryption"):
        if get(f"store.{name}"):
            yield Problem(f"store.{name}", "means nothing for a file:// store", "leave it out")
    place, checkpoints = Path(url.removeprefix("file://")), get("checkpoints.directory")
    if checkpoints is not None and checkpoints in (place, *place.parents):
        yield Problem("store.url", "lies inside checkpoints.directory", "use a place of its own")


def _build(values: Mapping[str, Any], source: str) -> Settings:
    sections = {
        name: section.settings(**{key: values[section.dotted(key)] for key in section.keys})
        for name, section in SECTIONS.items()
        if name
    }
    top = {key: values[key] for key in SECTIONS[""].keys}
    return replace(Settings(**top, **sections), source_path=Path(source))
