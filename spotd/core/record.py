"""What survives the daemon: the state's durable part, as plain JSON values.

Written before anything that depends on it, read by the next daemon. A field that is
missing or of the wrong type (an older spotd, a damaged file) falls back to its default:
a record can always be read, at worst as "nothing known".
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from spotd.core.checkpoint import parse_checkpoint_id
from spotd.core.state import Counts, Interruption, Known

if TYPE_CHECKING:
    from spotd.core.state import State

FORMAT = 1
LARGEST = 10**19  # nothing here is larger (a time in nanoseconds has 19 digits)
KNOWN_FIELDS = tuple(f.name for f in fields(Known))
COUNTS_FIELDS = tuple(f.name for f in fields(Counts))
KEEP_KNOWN = 64  # checkpoints remembered; more than any retention keeps


def to_record(state: State) -> dict[str, object]:
    """Returns the durable part of the state."""
    trainer = state.trainer
    i = state.interruption
    return {
        "format": FORMAT,
        "run": state.run,
        "instance_id": state.instance_id,
        "boot_id": state.boot_id,
        "attempt": state.attempt,
        "next_sequence": state.next_sequence,
        "known": [_flat(k, KNOWN_FIELDS) for k in state.known[-KEEP_KNOWN:]],
        "trainer": None
        if trainer is None
        else {
            "attempt": trainer.attempt,
            "resumed_from": trainer.resumed_from,
            "resumed_step": trainer.resumed_step,
            "blind": trainer.blind,
            "first_sequence": trainer.first_sequence,
            "superseded": trainer.superseded,
            "stop": trainer.stop,
            "killed": trainer.killed,
            "progressed": trainer.progressed,
            "step": trainer.step,
            "total_steps": trainer.total_steps,
        },
        "interruption": None
        if i is None
        else {
            "source": i.source,
            "action": i.action,
            "seen_wall": i.seen_wall,
            "deadline_wall": i.seen_wall + (i.deadline - i.seen),
            "resume_wall": None if i.resume_at is None else i.seen_wall + (i.resume_at - i.seen),
            "killable": i.kill_at is not None,
        },
        "counts": _flat(state.counts, COUNTS_FIELDS),
        "lost_steps": state.lost_steps,
        "best_step": state.best_step,
        "last_step": state.last_step,
        "failures": state.failures,
        "blamed": list(state.blamed),
        "rejected": sorted(state.rejected),
        "void_since": state.void_since,
        "crashes_from": list(state.crashes_from) if state.crashes_from else None,
        # A run whose last checkpoint a power cut could still take is not complete yet.
        "completed": state.completed and state.completion_safe,
        "completion_stored": state.completion_stored,
        "finished": state.finished,
        "lease_until_wall": state.lease_until_wall,
        "lease_generation": state.lease_generation,
        "rate": state.store.rate,
        "save_seconds": state.save_seconds,
        "contents_checked": state.contents_checked,
    }


def _flat(value: Known | Counts, names: tuple[str, ...]) -> dict[str, object]:
    return {name: getattr(value, name) for name in names}


def integer(value: object, default: int = 0) -> int:
    """Returns the value if it is a number that can be counted to, else the default."""
    found = optional_integer(value)
    return default if found is None else found


def optional_integer(value: object) -> int | None:
    """Returns the value if it is an integer of at most 19 digits, else None."""
    ok = isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
    return value if ok else None  # type: ignore[return-value]


def number(value: object, default: float = 0.0) -> float:
    """Returns the value if it is a finite number, else the default."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return default
    return float(value) if abs(value) < LARGEST else default


def text(value: object, default: str = "") -> str:
    """Returns the value if it is text, else the default."""
    return value if isinstance(value, str) else default


def texts(value: object) -> tuple[str, ...]:
    """Returns the texts in a list; what is no text is dropped."""
    return tuple(x for x in value if isinstance(x, str)) if isinstance(value, list) else ()


def mapping(value: object) -> dict[str, Any]:
    """Returns the value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def known_from(value: object) -> tuple[Known, ...]:
    """Reads the checkpoints of a record; entries that do not fit are dropped."""
    found: dict[str, Known] = {}
    for entry in value if isinstance(value, list) else []:
        k = _known(mapping(entry))
        if k is not None:
            found[k.id] = k
    return tuple(sorted(found.values(), key=lambda k: k.sequence))


def _known(m: dict[str, Any]) -> Known | None:
    parsed = parse_checkpoint_id(text(m.get("id")))
    if parsed is None or not text(m.get("name")) or not text(m.get("fingerprint")):
        return None
    return Known(
        id=text(m["id"]),
        sequence=parsed[0],
        name=text(m["name"]),
        kind=text(m.get("kind"), "file"),
        size=max(0, integer(m.get("size"))),
        mtime_ns=optional_integer(m.get("mtime_ns")) or 0,
        fingerprint=text(m["fingerprint"]),
        step=optional_integer(m.get("step")),
        created=number(m.get("created")),
        present=m.get("present") is True,
        # What could not be held is known by name only to the daemon that tried: asked for again.
        hold=None if m.get("hold") == "none" else text(m.get("hold")) or None,
        durable=m.get("durable") is True,
        stored=m.get("stored") is True,
        unsendable=m.get("unsendable") is True,
    )


def counts_from(value: object) -> Counts:
    """Reads the counters of a record."""
    m = mapping(value)
    return Counts(**{f.name: integer(m.get(f.name)) for f in fields(Counts)})


def interruption_from(value: object, mono: float, wall: float) -> Interruption | None:
    """Reads an interruption of this boot, with its times turned back into `mono`."""
    m = mapping(value)
    if text(m.get("source")) != "notice":
        return None  # a stop or a drill ends with the daemon that did it
    seen = mono - (wall - number(m.get("seen_wall"), wall))
    deadline = mono + (number(m.get("deadline_wall"), wall) - wall)
    resume = m.get("resume_wall")
    return Interruption(
        source="notice",
        action=text(m.get("action"), "stop"),
        seen=seen,
        seen_wall=number(m.get("seen_wall"), wall),
        deadline=deadline,
        kill_at=deadline if m.get("killable") else None,
        resume_at=None if resume is None else mono + (number(resume) - wall),
    )
