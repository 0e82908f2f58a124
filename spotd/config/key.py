"""How a setting is declared: as a dataclass field that knows all there is to say about it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spotd.config.kinds import Kind


@dataclass(frozen=True, slots=True)
class Key:
    """What a field's metadata holds under "key".

    `default` is the TOML value that stands for the default, None when the key has none;
    `example` is what the commented default file shows for a key without one.
    """

    kind: Kind[Any]
    doc: str
    default: Any = None
    required: bool = False
    example: Any = None
    secret: bool = False


def declare(
    kind: Kind[Any],
    doc: str,
    *,
    default: Any = None,
    example: Any = None,
    required: bool = False,
    secret: bool = False,
) -> Any:
    """A dataclass field that is a key; see `Key` for the arguments."""
    key = Key(kind, doc, default, required, example, secret)
    value = MISSING if required else None if default is None else kind.parse(default)
    if isinstance(value, dict):  # dataclasses refuse a mutable default
        return field(default_factory=dict, metadata={"key": key}, repr=not secret)
    return field(default=value, metadata={"key": key}, repr=not secret)


def section(cls: type[Any], *, required: bool = False) -> Any:
    """A dataclass field that is a section of the file; `required`: it has required keys."""
    metadata = {"section": cls}
    return field(metadata=metadata) if required else field(default_factory=cls, metadata=metadata)
