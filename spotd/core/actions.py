"""Everything spotd does to the world, as values, in the order in which it must happen.

The shell carries out one action after the other and never reorders them: when
`Persist` stands before `SignalTrainer`, the record is on the disk before the signal
is sent. What an action leads to comes back as an event; each says which.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Union

# --- the daemon itself ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """Write the record durably before anything that follows. Failing is reported, not fatal."""

    record: dict[str, object]


@dataclass(frozen=True, slots=True)
class Announce:
    """One line in the journal, one in the history: something changed.

    `name` is the event's (snake_case, `spotd.core.journal_events`), `message` one readable
    line, `fields` go along as SPOTD_<KEY>.
    """

    name: str
    message: str
    priority: int = 6  # syslog: 3 error, 4 warning, 5 notice, 6 info
    fields: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SyncJournal:
    """Have journald write out what it keeps in memory (up to five minutes of it)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer, or one more line of the answer, to a person waiting at the control socket."""

    request: int
    ok: bool
    message: str
    data: dict[str, object] = field(default_factory=dict)
    final: bool = True


@dataclass(frozen=True, slots=True)
class Exit:
    """End the daemon. The trainer, if it lives, lives on."""

    status: int


# --- the trainer ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunPreflight:
    """-> PreflightPassed | PreflightFailed."""


@dataclass(frozen=True, slots=True)
class StartTrainer:
    """-> TrainerStarted (later TrainerExited) | TrainerStartFailed.

    `resume_from` is a name in the checkpoint directory, or None at a first start.
    `grace` is what SPOTD_STOP_GRACE promises, in seconds.
    """

    attempt: int
    resume_from: str | None
    grace: float


@dataclass(frozen=True, slots=True)
class SignalTrainer:
    """-> SignalSent. To the right processes, once. `purpose`: "stop" or "checkpoint"."""

    signal: str
    purpose: str


@dataclass(frozen=True, slots=True)
class KillTrainer:
    """SIGKILL to every process of the trainer's tree -> TrainerExited."""

    reason: str


@dataclass(frozen=True, slots=True)
class MeasureActivity:
    """-> ActivityMeasured."""


# --- the checkpoint directory --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Inspect:
    """-> LocalInventory | DirectoryTrouble.

    `settled`: no trainer runs, so what is not whole is torn. `contents`: read the content
    once (zip CRCs) of whatever is not in `trusted` (fingerprints called durable before):
    after a power loss.
    """

    settled: bool
    contents: bool = False
    trusted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hold:
    """-> Held, later Durable | HoldFailed. Keep this content whatever the trainer does."""

    id: str
    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ReleaseHold:
    """What is held under this id is no longer needed."""

    id: str


@dataclass(frozen=True, slots=True)
class SetAside:
    """Move it to `.spotd-aside/`, where the trainer's own search cannot find it -> SetAsideDone."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class BringBack:
    """Undo a `SetAside` of this name, unless something stands under the name by now."""

    name: str


@dataclass(frozen=True, slots=True)
class Reinstate:
    """Put a held checkpoint under its own name again -> Reinstated | ReinstateFailed."""

    id: str


@dataclass(frozen=True, slots=True)
class DeleteLocal:
    """`checkpoints.keep_local`: delete it, if it still is what `fingerprint` says."""

    name: str
    fingerprint: str


# --- the store -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WarmStore:
    """The sender will be wanted in a moment: start it now."""


@dataclass(frozen=True, slots=True)
class OpenStore:
    """-> StoreOpened | LeaseRefused | StoreFailed("open"). Takes the lease, then lists."""


@dataclass(frozen=True, slots=True)
class RenewLease:
    """-> LeaseRenewed | LeaseRefused | StoreFailed("lease")."""


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Let another machine take the run at once. Nothing comes back."""


@dataclass(frozen=True, slots=True)
class Upload:
    """-> UploadProgressed..., Uploaded | UploadFailed. `urgent`: take the whole machine.

    At most one at a time; the shell refuses a second. The same one again, urgent, makes the
    one under way take the whole machine.
    """

    id: str
    name: str
    fingerprint: str
    step: int | None
    created: float
    generation: int
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class UploadAhead:
    """Send what is being written under `name`, as far as it has grown, for the id it will get.

    Nothing comes back and nothing becomes visible: `Upload` of the same id takes over what is
    there by then, once the checkpoint is whole. One at a time; another takes its place.
    `limit`: bytes beyond which it is not followed. `expected`: bytes it will probably have.
    """

    id: str
    name: str
    limit: int
    expected: int
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class StopAhead:
    """What `UploadAhead` began and no `Upload` took over is dropped, or (`keep`) kept for it."""

    keep: bool = False


@dataclass(frozen=True, slots=True)
class StopUploads:
    """Stop sending now; keep what is needed to continue -> UploadsStopped."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """-> FetchProgressed..., Fetched | FetchFailed."""

    id: str


@dataclass(frozen=True, slots=True)
class StopFetch:
    """A notice came while restoring. What has arrived is kept; nothing comes back."""


@dataclass(frozen=True, slots=True)
class DeleteFromStore:
    """-> DeletedFromStore | StoreFailed("delete"). Manifest first, then the objects."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoreCompletion:
    """-> CompletionStored | StoreFailed("complete")."""


@dataclass(frozen=True, slots=True)
class FinishInstance:
    """`completion.action`: stop or terminate this instance, the Spot request first."""

    action: str


Action = Union[  # noqa: UP007 - a table reads better than forty bars
    Persist, Announce, SyncJournal, Reply, Exit,
    RunPreflight, StartTrainer, SignalTrainer, KillTrainer, MeasureActivity,
    Inspect, Hold, ReleaseHold, SetAside, BringBack, Reinstate, DeleteLocal,
    WarmStore, OpenStore, RenewLease, ReleaseLease, Upload, UploadAhead, StopAhead, StopUploads,
    Fetch, StopFetch, DeleteFromStore, StoreCompletion, FinishInstance,
]  # fmt: skip
