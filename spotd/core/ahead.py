"""When a checkpoint is sent while the trainer is still writing it.

At a notice the save and the upload would otherwise follow one another, and only the longer
of the two need be waited for. So while an interruption or a rebalance recommendation hangs
over the machine, what is being written goes up as it grows, under the id it will get if it
is whole in the end. Nothing depends on it: a wrong guess of the name or the number, a torn
save or a dead sender only means that the checkpoint goes up when it is whole, as ever.

In peace it would buy nothing and could cost a transfer for a save that is thrown away.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spotd.core import actions as do
from spotd.core import events as on
from spotd.core.checkpoint import checkpoint_id
from spotd.core.names import final_name
from spotd.core.state import Ahead, State

if TYPE_CHECKING:
    from spotd.core.turn import Turn

_ROOM = 1 << 30  # bytes: a checkpoint may grow by so much from one save to the next, and double
_UNKNOWN = 10_000 * (16 << 20)  # bytes: the most there can be in an upload's smallest parts


def advance(t: Turn) -> None:
    """Begins with what has begun to be written, ends what will come to nothing."""
    current = t.state.store.ahead
    if current is not None:
        if not _useless(t.state, current):
            return
        t.do(do.StopAhead(keep=_registered(t.state, current)))
        t.set_store(ahead=None)
    if not _threatened(t.state):
        return
    new = _candidate(t.state)
    if new is None:
        return
    sizes = [k.size for k in t.state.known] + [s.size for s in t.state.store.listed]
    expected = max(sizes, default=0)
    t.do(
        do.UploadAhead(
            id=new.id,
            name=new.name,
            limit=2 * expected + _ROOM if sizes else _UNKNOWN,
            expected=expected,
            urgent=t.state.interruption is not None,
        )
    )
    t.set_store(ahead=new)
    t.mark("upload started")


def on_progress(t: Turn, event: on.AheadProgressed) -> None:
    """So much of it need not be sent any more when it is whole."""
    current = t.state.store.ahead
    if current is not None and current.id == event.id:
        t.set_store(ahead=replace(current, sent=event.sent))


def _registered(state: State, ahead: Ahead) -> bool:
    return any(k.id == ahead.id and not k.unsendable for k in state.known)


def _useless(state: State, ahead: Ahead) -> bool:
    if state.store.halted:
        return True
    if _registered(state, ahead):
        return False  # whole: its upload takes over in a moment
    if state.next_sequence > ahead.sequence:
        return True  # another checkpoint has been given the number
    if state.trainer is None:
        i = state.interruption
        return i is None or i.inspection == "done"
    new = _candidate(state)
    return new is not None and new.id != ahead.id and ahead.name not in state.writing


def _threatened(state: State) -> bool:
    """Whether a save that is going on may be the last before the machine stops."""
    store, trainer = state.store, state.trainer
    if store.status != "open" or store.halted or trainer is None or trainer.superseded:
        return False
    if state.interruption is not None:
        return True
    recommended = state.metadata.rebalance is not None and state.policy.on_rebalance == "checkpoint"
    return recommended and store.upload is None


def _candidate(state: State) -> Ahead | None:
    """Returns what is being written and is not known as whole under its final name."""
    whole = {k.name for k in state.known if k.present}
    for name in state.writing:
        final = final_name(name)
        if final is not None and final not in whole:
            sequence = state.next_sequence
            return Ahead(checkpoint_id(sequence, final), sequence, name)
    return None
