"""Do save and upload fit into the two minutes?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spotd.checks import Finding, Surroundings, failed, ok, warning
from spotd.checks.store import measure
from spotd.core.deadline import PLANNED
from spotd.core.words import megabytes
from spotd.errors import SpotdError
from spotd.shell.history import read

if TYPE_CHECKING:
    from collections.abc import Iterable

SUBJECT = "two minutes"
_TIGHT = 0.7  # of the time there is: networks and disks have bad days
_DRILL = "run `sudo spotd drill` while it trains: it measures the whole path"


@dataclass(frozen=True, slots=True)
class Facts:
    """Bytes of a checkpoint, bytes per second to the store, seconds from signal to saved.

    `measured`: the rate is from probe objects sent just now, not from past uploads.
    """

    size: int | None
    rate: float | None
    save: float | None
    measured: bool = False
    margin: float = 10.0
    trouble: str = ""


def probe(around: Surroundings) -> list[Finding]:
    """Takes what past saves and uploads took; else sends a few probe objects."""
    settings = around.settings
    history = settings.paths.state / settings.run / "history.jsonl"
    save = seconds_to_save(read(history))
    rate, measured, trouble = around.rate, False, ""
    if rate is None:
        try:
            rate, measured = measure(settings), True
        except SpotdError as error:
            trouble = error.message
    facts = Facts(around.newest_size, rate, save, measured, settings.interruption.margin, trouble)
    return [judge(facts)]


def seconds_to_save(entries: Iterable[dict[str, Any]]) -> float | None:
    """How long the last save that was asked for took, from the stop signal on."""
    signalled, found = None, None
    for entry in entries:
        event = entry.get("event")
        if event == "stop_signal_sent":
            signalled = entry["time"]
        elif event == "checkpoint_seen" and signalled is not None:
            found, signalled = entry["time"] - signalled, None
        elif event in ("drained", "trainer_started", "daemon_started"):
            signalled = None
    return found


def judge(facts: Facts) -> Finding:
    """Decides."""
    there_is = PLANNED - facts.margin
    if facts.rate is None:
        text = f"not known: {facts.trouble or 'nothing has been sent yet'}"
        return warning(SUBJECT, text, _DRILL)
    how = "measured just now" if facts.measured else "from past uploads"
    speed = f"{megabytes(int(facts.rate))}/s to the store, {how}"
    if facts.size is None:
        most = megabytes(int(there_is * facts.rate))
        text = f"{speed}: up to {most} go into {there_is:.0f} s; no checkpoint yet"
        return warning(SUBJECT, text, f"once there is one, {_DRILL}")
    upload = facts.size / facts.rate
    parts = f"store {megabytes(facts.size)} in {upload:.0f} s ({speed})"
    total = upload + (facts.save or 0.0)
    if facts.save is not None:
        parts = f"save in {facts.save:.0f} s, {parts}"
    text = f"{parts}: {total:.0f} of {there_is:.0f} s"
    if total > there_is:
        advice = (
            "it is finished after the restart, if the disk survives; save smaller ones (no "
            "optimizer copies, bf16), use more network, or an S3 endpoint in the VPC"
        )
        return failed(SUBJECT, text, advice)
    if facts.save is None:
        return warning(SUBJECT, f"{text}, and the save, not timed yet", _DRILL)
    if total > _TIGHT * there_is:
        return warning(SUBJECT, f"{text}: tight", "leave room for a slow day: save smaller ones")
    return ok(SUBJECT, text)
