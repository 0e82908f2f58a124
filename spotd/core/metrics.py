"""The figures of contracts.md, section 7, as text that Prometheus reads.

The text exposition format is 0.0.4 of "Exposition formats" in Prometheus's documentation.
It is written here and not by `prometheus_client`, which adds 9 MiB to a daemon that may
have 30 for everything; a test has that package's parser read what is written here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd import __version__
from spotd.core.state import Phase, newest_known, unstored
from spotd.core.status import fits_window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from spotd.core.state import Now, State
    from spotd.core.tally import Tally

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ACTIONS = ("stop", "terminate", "hibernate")


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its samples are (labels, value). A counter's name ends in `_total`."""

    name: str
    kind: str  # "counter" or "gauge"
    help: str
    samples: tuple[tuple[dict[str, str], float], ...]


def families(state: State, tally: Tally, now: Now) -> Iterator[Family]:
    """Yields every metric; one whose value is not known has no sample."""
    yield from _of_the_run(state, tally, now)
    yield from _of_checkpoints(state, tally)
    yield from _of_services(state, tally)


def _of_the_run(state: State, tally: Tally, now: Now) -> Iterator[Family]:
    trainer = state.trainer
    states = tuple(({"state": p.value}, float(p is state.phase)) for p in Phase)
    yield Family("spotd_state", "gauge", "1 for the state spotd is in.", states)
    yield _gauge("spotd_info", "The version of spotd.", 1, version=__version__)
    counts = {a: tally.interruptions.get(a, 0) for a in (*ACTIONS, *tally.interruptions)}
    yield Family(
        "spotd_interruptions_total", "counter", "Interruption notices by what they announce.",
        tuple(({"action": a}, float(n)) for a, n in counts.items()),
    )  # fmt: skip
    yield _counter(
        "spotd_not_carried_out_total", "Notices after which the instance was not taken.",
        state.counts.not_carried_out,
    )  # fmt: skip
    yield _counter("spotd_rebalance_total", "Rebalance recommendations.", tally.rebalances)
    yield _counter("spotd_trainer_starts_total", "Attempts: starts of the trainer.", state.attempt)
    yield _counter(
        "spotd_trainer_crashes_total", "Ends of the trainer that nobody asked for.",
        state.counts.crashes,
    )  # fmt: skip
    running = trainer is not None and trainer.pid is not None
    yield _gauge("spotd_trainer_running", "Whether a trainer runs.", float(running))
    step = trainer.step if trainer is not None and trainer.step is not None else state.best_step
    yield _gauge("spotd_step", "The step the trainer has reported.", step)
    yield _gauge(
        "spotd_total_steps", "The steps it will train.", trainer.total_steps if trainer else None
    )
    loss = trainer.loss if trainer is not None else None
    yield _gauge("spotd_loss", "The loss the trainer has reported.", loss)
    yield _counter("spotd_lost_steps_total", "Steps that were trained again.", state.lost_steps)
    yield _counter(
        "spotd_training_seconds_total", "Seconds a trainer has run, repeated work included.",
        tally.trained + (tally.training_seconds(now.wall) - tally.progress),
    )  # fmt: skip
    yield _counter(
        "spotd_seconds_saved_total", "Seconds of training that resumes did not have to repeat.",
        tally.saved,
    )  # fmt: skip
    yield _counter(
        "spotd_seconds_lost_total", "Seconds of training that resumes repeated.", tally.lost
    )
    i = state.interruption
    left = max(0.0, i.deadline - now.mono) if i is not None and i.source == "notice" else None
    yield _gauge("spotd_notice_seconds_left", "Seconds to the deadline of a notice.", left)


def _of_checkpoints(state: State, tally: Tally) -> Iterator[Family]:
    newest = newest_known(state)
    stored = [k.created for k in state.known if k.stored]
    stored += [s.created for s in state.store.listed]
    yield _gauge(
        "spotd_checkpoint_timestamp_seconds", "When the newest checkpoint was seen.",
        newest.created if newest is not None else None,
    )  # fmt: skip
    yield _gauge(
        "spotd_checkpoint_stored_timestamp_seconds",
        "When the newest checkpoint that is in the store was made.",
        max(stored, default=None),
    )
    yield _gauge(
        "spotd_checkpoints_unstored", "Checkpoints that wait for the store.", len(unstored(state))
    )
    yield _counter(
        "spotd_checkpoint_bytes_total", "Bytes of checkpoints that were stored.",
        tally.stored_bytes,
    )  # fmt: skip
    yield _counter("spotd_checkpoints_stored_total", "Checkpoints that were stored.", tally.stored)
    yield _gauge(
        "spotd_notice_to_stored_seconds",
        "Seconds from the last notice to its checkpoint being in the store.",
        tally.notice_to_stored,
    )
    fit = fits_window(state)
    yield _gauge(
        "spotd_checkpoint_store_seconds",
        "Seconds the newest checkpoint would take to store at the rate of the last ones.",
        fit.store if fit is not None else None,
    )


def _of_services(state: State, tally: Tally) -> Iterator[Family]:
    store, imds = state.store, state.metadata
    known = store.status in ("open", "refused") or store.announced
    up = float(store.status == "open" and not store.announced) if known else None
    yield _gauge("spotd_store_up", "Whether the store answers and the lease is ours.", up)
    yield _counter(
        "spotd_store_failures_total", "Requests to the store that failed.", tally.store_failures
    )
    seen = None if imds.last_ok is None and not imds.announced else float(not imds.announced)
    yield _gauge("spotd_imds_up", "Whether the metadata service answers.", seen)
    yield _counter(
        "spotd_imds_failures_total", "Polls of the metadata service that failed.",
        tally.imds_failures,
    )  # fmt: skip


def _gauge(name: str, text: str, value: float | None, **labels: str) -> Family:
    return Family(name, "gauge", text, () if value is None else ((labels, float(value)),))


def _counter(name: str, text: str, value: float) -> Family:
    return Family(name, "counter", text, (({}, float(value)),))


def render(metrics: Iterable[Family]) -> str:
    """Returns the text of a scrape."""
    lines = []
    for m in metrics:
        lines += [f"# HELP {m.name} {_escape(m.help)}", f"# TYPE {m.name} {m.kind}"]
        for labels, value in m.samples:
            inner = ",".join(f'{k}="{_escape(v, quotes=True)}"' for k, v in labels.items())
            lines.append(f"{m.name}{{{inner}}} {_number(value)}" if inner
                         else f"{m.name} {_number(value)}")  # fmt: skip
    return "\n".join(lines) + "\n"


def _escape(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)  # noqa: PLR2004 - exact
