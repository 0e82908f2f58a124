"""What is known of one held checkpoint, in memory and in the note beside its content."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from spotd.core.checkpoint import parse_checkpoint_id

LINK, COPY, REFLINK, NONE = "link", "copy", "reflink", "none"
NOTE = ".hold.json"
_MAX_SLOT = 200  # bytes of a slot's name
# A number that counts, so that the next save has another name; `resnet50.pt` counts nothing.
_COUNTED = re.compile(
    r"(?<![a-z])(?:steps?|iter|iterations?|epochs?|ep|batch|ba|checkpoint|ckpt|round|update)"
    r"[ _=.-]*[0-9]+(?![0-9a-z])|\A[0-9]+(?![^.])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Hold:
    """One held checkpoint.

    Attributes:
        id: Its checkpoint id.
        name: Its name.
        kind: "file" or "directory".
        mode: "reflink", "copy", "link" or "none".
        original: The fingerprint of the original when it was held.
        held: The fingerprint of what is in the slot; "" for mode "none".
        step: What is known of its step.
        declared: The trainer said that it was complete.
    """

    id: str
    name: str
    kind: str
    mode: str
    original: str
    held: str
    step: int | None = None
    declared: bool = False


def slot_of(checkpoint_id: str) -> str:
    """Returns the directory name for an id; ids longer than a name may be are shortened."""
    raw = checkpoint_id.encode()
    if len(raw) <= _MAX_SLOT:
        return checkpoint_id
    digest = hashlib.blake2b(raw, digest_size=8).hexdigest()
    return raw[:_MAX_SLOT].decode("utf-8", "ignore") + "~" + digest


def needs_copy(name: str, *, overwritten: bool, counted: bool) -> bool:
    """Whether a hard link would not do: the trainer may write over this one in place.

    Args:
        name: Of the checkpoint.
        overwritten: It has been written over before.
        counted: Others stand beside it that differ from it only in their numbers.
    """
    return overwritten or not (counted or _COUNTED.search(name))


def guess(slot: str) -> Hold | None:
    """Returns what a slot without a note is about, from its name; None when that is no id."""
    parsed = parse_checkpoint_id(slot)
    if parsed is None:
        return None
    return Hold(slot, parsed[1], "", LINK, "", "")


def as_note(hold: Hold) -> dict[str, object]:
    """Returns the content of the note."""
    return {
        "format": 1,
        "id": hold.id,
        "name": hold.name,
        "kind": hold.kind,
        "mode": hold.mode,
        "original": hold.original,
        "held": hold.held,
        "step": hold.step,
        "declared": hold.declared,
    }


def from_note(note: dict[str, object] | None) -> Hold | None:
    """Reads a note, written by us or by an enemy; None when it cannot be one of ours."""
    if note is None:
        return None
    texts = [note.get(key) for key in ("id", "name", "kind", "mode", "original", "held")]
    step, declared = note.get("step"), note.get("declared")
    words = [text for text in texts if isinstance(text, str)]
    if len(words) != len(texts) or "/" in words[1] or words[1] in ("", ".", ".."):
        return None
    return Hold(
        words[0], words[1], words[2], words[3], words[4], words[5],
        step if isinstance(step, int) else None, declared is True,
    )  # fmt: skip
