"""All checks, in the order in which they build on each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spotd.checks import (
    Finding,
    Surroundings,
    configuration,
    disk,
    failed,
    metadata,
    request,
    store,
    trainer,
    unit,
    window,
)
from spotd.core.record import known_from, number
from spotd.shell.statefile import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spotd.config import Settings

    Probe = Callable[[Surroundings], list[Finding]]

PROBES: tuple[tuple[str, Probe], ...] = (
    ("configuration", configuration.probe),
    ("trainer", trainer.probe),
    ("metadata", metadata.probe),
    ("spot request", request.probe),
    ("store", store.probe),
    ("disk", disk.probe),
    ("two minutes", window.probe),
    ("unit", unit.probe),
)


def surroundings(settings: Settings) -> Surroundings:
    """What the daemon has on record of checkpoints and their speed."""
    record = read_json(settings.paths.state / settings.run / "state.json") or {}
    known = known_from(record.get("known"))
    return Surroundings(
        settings=settings,
        newest_size=known[-1].size if known else None,
        rate=number(record.get("rate")) or None,
    )


def check(settings: Settings) -> Iterator[Finding]:
    """Yields what each probe found, as it is found. A probe that fails is a finding itself."""
    around = surroundings(settings)
    for subject, probe in PROBES:
        yield from _safely(subject, probe, around)


def _safely(subject: str, probe: Probe, around: Surroundings) -> list[Finding]:
    try:
        return probe(around)
    except Exception as error:  # noqa: BLE001 - one defect must not hide the other lines
        text = f"could not be looked at: {type(error).__name__}: {error}"
        return [failed(subject, text, "please report it")]
