"""What the core knows of a checkpoint, on the disk and in the store.

Two identities, never to be mixed up. A `LocalCheckpoint` is what stands in the
trainer's directory under a *name*; the trainer may overwrite or delete it at any
time, so a *fingerprint* says which content was meant. A *checkpoint id*,
`<sequence, 8 digits>-<name>`, is given by spotd once, when the content has been
found whole, and never means anything else afterwards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ID = re.compile(r"(?P<sequence>[0-9]{8})-(?P<name>[^/\x00]+)", re.DOTALL)
_LAST_NUMBER = re.compile(r"[0-9]+(?=[^0-9]*\Z)")
_STEP_WORD = re.compile(
    r"(?:global[_-]?step|steps?|iter(?:ation)?|checkpoint|ckpt|ba)[_=-]?(?P<step>[0-9]+)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """A whole checkpoint in the trainer's directory.

    Attributes:
        name: Its file or directory name in the checkpoint directory.
        kind: "file" or "directory".
        size: Bytes in all files together.
        mtime_ns: Of its newest file, nanoseconds since the epoch.
        fingerprint: Changes when any file in it is written, replaced, added or removed.
        step: Parsed from the name or told by the trainer; None when unknown.
        declared: The trainer said on its socket that it is complete.
    """

    name: str
    kind: str
    size: int
    mtime_ns: int
    fingerprint: str
    step: int | None = None
    declared: bool = False


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint whose manifest is in the store: it exists there, whole.

    Attributes:
        id: `<sequence>-<name>`.
        sequence: Its place in the order of the run.
        generation: Of the lease under which it was stored.
        name: The name it has in the trainer's directory.
        kind: "file" or "directory".
        size: Bytes in all files together.
        step: None when unknown.
        created: Seconds since the epoch.
        mtime_ns: Of its newest file, as the manifest says.
        instance_id: Which instance stored it.
    """

    id: str
    sequence: int
    generation: int
    name: str
    kind: str
    size: int
    step: int | None
    created: float
    mtime_ns: int
    instance_id: str = ""


def checkpoint_id(sequence: int, name: str) -> str:
    """Returns the id of a checkpoint; listing ids in order lists them by age."""
    return f"{sequence:08d}-{name}"


def parse_checkpoint_id(text: str) -> tuple[int, str] | None:
    """Returns (sequence, name), or None when the text is not a checkpoint id."""
    match = _ID.fullmatch(text)
    return (int(match["sequence"]), match["name"]) if match else None


def step_from_name(name: str) -> int | None:
    """Guesses the step a name carries: `epoch=3-step=200.ckpt` is 200, `checkpoint-500` is 500.

    A number behind a word that means step wins; otherwise the last number in the
    name, which for `epoch_7.pt` is the epoch: good enough to order names of one
    family, and never compared across families (see `spotd.core.resume`).
    """
    stem = re.sub(r"(\.[A-Za-z][A-Za-z0-9]*)+\Z", "", name)
    words = _STEP_WORD.findall(stem)
    if words:
        return int(words[-1])
    last = _LAST_NUMBER.search(stem)
    return int(last.group()) if last else None


def name_family(name: str) -> str:
    """Returns the name with its numbers blanked: names of one family can be ordered by step."""
    return re.sub(r"[0-9]+", "#", name)
