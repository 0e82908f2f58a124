"""What has to be the same in both worlds, and what may differ, and why.

The journal is compared: which events, in which order, with the fields below; then what
each attempt of the trainer began with; then what is left on the disk and in the bucket.

Left out, because a model has its own:
- times, durations and `seconds_left`; process ids; the words of a message, which hold them;
- the step an event carries along, but for the checkpoint's own: the real trainer's reports
  are taken together for half a second, so which of them came last before an event is chance;
- the attempt, in what the directory and the store say: it is the one of that moment, and
  those threads do not wait for the trainer;
- what a power cut cost in steps: it is told from the last report that came to be on record,
  and the real one's reports come late;
- the number of the checkpoint that a trainer is started from: one that was saved a moment before
  may not have been seen yet, and has none;
- events that the shell announces by itself and the core knows nothing of (`SHELLS_OWN`).

Of what is left, an older hold that spotd had no time to let go of before it was stopped does
not count: the next one lets it go.

Allowed to differ in order: two events that two threads of the real daemon hand in without
either waiting for the other (`FREE`). Everything else keeps its order, so two journals are
the same if for every pair of kinds that is not free, the events of the two are in the same
order in both (the journals are equal as Mazurkiewicz traces).
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

from spotd.core.checkpoint import parse_checkpoint_id

if TYPE_CHECKING:
    from scene import Seen

FIELDS = ("checkpoint", "attempt", "boot", "action", "status", "signal", "lost_steps")
STEP_IS_THE_CHECKPOINTS = frozenset({"trainer_started", "checkpoint_seen", "checkpoint_stored"})
SHELLS_OWN = frozenset({"state_unwritable", "metrics_failed", "message_sent", "message_failed"})

# The watcher of the directory, the trainer's host and the store are three threads (and S3 a
# process of its own): each says what it saw when it saw it.
_TRAINER = (
    "trainer_exited", "training", "trainer_started", "completed",
    "stop_signal_sent", "stop_signal_uncaught", "checkpoint_requested",
)  # fmt: skip
_DIRECTORY = ("checkpoint_seen",)
_STORE = ("checkpoint_stored", "store_failed", "store_back")
FREE = frozenset(
    frozenset(pair)
    for one, other in (
        (_TRAINER, _DIRECTORY),
        (_TRAINER, _STORE),
        (_DIRECTORY, ("store_failed", "store_back")),
    )
    for pair in ((a, b) for a in one for b in other)
)

Line = tuple[Any, ...]


def lines(events: list[dict[str, Any]]) -> list[Line]:
    """Returns the events with only what is compared: (name, (field, value)...)."""
    found = []
    after_a_cut = False
    for event in events:
        name = event["event"]
        if name in ("boot_classified", "trainer_started"):
            after_a_cut = event.get("boot") == "power-loss"
        if name in SHELLS_OWN or (name == "steps_lost" and after_a_cut):
            continue
        fields = FIELDS + (("step",) if name in STEP_IS_THE_CHECKPOINTS else ())
        if name in (*_DIRECTORY, *_STORE):
            fields = tuple(f for f in fields if f != "attempt")
        told = {f: event[f] for f in fields if f in event}
        if name == "trainer_started" and "checkpoint" in told:
            numbered = parse_checkpoint_id(told["checkpoint"])
            told["checkpoint"] = numbered[1] if numbered else told["checkpoint"]
        found.append((name, *told.items()))
    return found


def differences(model: Seen, real: Seen) -> str:
    """Returns what is not the same, for a person; "" where the two worlds agree."""
    said = []
    ours, theirs = lines(model.events), lines(real.events)
    out_of_order = _first_difference(ours, theirs)
    if out_of_order:
        said.append(f"the journals differ: {out_of_order}\n{_side_by_side(ours, theirs)}")
        said.append("\n".join(e["message"] for e in real.events))
    if model.loaded != real.loaded:
        said.append(f"(attempt, step resumed from): model {model.loaded}, real {real.loaded}")
    said += [
        f"{what}: model {model.left[what]}, real {real.left[what]}"
        for what in model.left
        if model.left[what] != real.left[what]
    ]
    return "\n".join(said)


def _first_difference(ours: list[Line], theirs: list[Line]) -> str:
    names = sorted({line[0] for line in (*ours, *theirs)})
    for pair in combinations_with_replacement(names, 2):
        if frozenset(pair) in FREE:
            continue
        a, b = ([line for line in all_ if line[0] in pair] for all_ in (ours, theirs))
        for one, other in zip(a, b, strict=False):
            if one != other:
                return f"the model has {_text(one)} where the real one has {_text(other)}"
        if len(a) != len(b):
            longer, who = (a, "the model") if len(a) > len(b) else (b, "the real one")
            return f"only {who} has {_text(longer[min(len(a), len(b))])}"
    return ""


def _text(line: Line) -> str:
    return " ".join([line[0], *(f"{k}={v}" for k, v in line[1:])])


def _side_by_side(ours: list[Line], theirs: list[Line]) -> str:
    left, right = [_text(x) for x in ours], [_text(x) for x in theirs]
    width = max(map(len, left), default=0)
    height = max(len(left), len(right))
    left += [""] * (height - len(left))
    right += [""] * (height - len(right))
    rows = (f"{a:<{width}} | {b}" for a, b in zip(left, right, strict=True))
    return "\n".join((f"{'model':<{width}} | real", *rows))
