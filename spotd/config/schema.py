"""The declarations of `spotd.config.settings` as a table of dotted names."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from spotd.config.settings import Settings

if TYPE_CHECKING:
    from spotd.config.key import Key


@dataclass(frozen=True, slots=True)
class Section:
    """A `[name]` of the file; the keys before the first section are the one named ""."""

    name: str
    doc: str
    settings: type[Any]
    keys: dict[str, Key]

    def dotted(self, key: str) -> str:
        """The full name of a key of this section."""
        return f"{self.name}.{key}" if self.name else key


def _keys_of(cls: type[Any]) -> dict[str, Key]:
    return {f.name: f.metadata["key"] for f in fields(cls) if "key" in f.metadata}


SECTIONS: dict[str, Section] = {
    "": Section("", "Before the first section.", Settings, _keys_of(Settings)),
    **{
        f.name: Section(
            f.name, f.metadata["section"].__doc__ or "", cls := f.metadata["section"], _keys_of(cls)
        )
        for f in fields(Settings)
        if "section" in f.metadata
    },
}

KEYS: dict[str, Key] = {
    section.dotted(name): key for section in SECTIONS.values() for name, key in section.keys.items()
}
