"""Everything that can happen in the world, as values.

Every event is frozen and complete: what the core needs to decide is in it. Seconds
are floats; `*_in` fields are durations from the moment the event is handled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from spotd.core.checkpoint import LocalCheckpoint, StoredCheckpoint


# --- the daemon itself ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrainerFound:
    """A trainer of an earlier daemon that still lives (`pid` opened as a pidfd by the shell)."""

    pid: int
    attempt: int
    started: float  # wall clock, seconds since the epoch


@dataclass(frozen=True, slots=True)
class Started:
    """The daemon has read its record and looked for a living trainer.

    `record` is what the last `Persist` carried, already parsed, or None. `boot` is one of
    "first", "same-boot", "reboot", "interrupted", "power-loss", "new-instance".
    """

    record: dict[str, object] | None
    boot: str
    boot_id: str
    instance_id: str
    trainer: TrainerFound | None = None
    booted: float = 0.0  # wall clock: when this machine booted


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; nothing else happened."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """SIGTERM to the daemon. `restart`: the unit is only restarting, the trainer is to live on."""

    seconds: float
    restart: bool = False


@dataclass(frozen=True, slots=True)
class Reloaded:
    """SIGHUP, and the configuration on disk was valid; `settings` is the new policy."""

    policy: object


@dataclass(frozen=True, slots=True)
class DrillRequested:
    """`spotd drill`; answered by its number."""

    request: int


@dataclass(frozen=True, slots=True)
class CheckpointRequested:
    """`spotd checkpoint`; answered by its number."""

    request: int


# --- instance metadata ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetadataAnswered:
    """One poll that worked.

    `action` is "stop", "terminate" or "hibernate", or None when there is no notice;
    `time` is the notice's time (wall clock, seconds) or None when missing or no time;
    `rebalance` is the recommendation's `noticeTime` as text, or None;
    `events` are the (id, code, not_before) of active scheduled events, text as it came.
    """

    action: str | None = None
    time: float | None = None
    rebalance: str | None = None
    events: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class MetadataFailed:
    """One poll that did not work; `reason` is one line, `hint` what to do about it."""

    reason: str
    hint: str = ""


# --- the trainer ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PreflightPassed:
    """What the trainer needs is there."""


@dataclass(frozen=True, slots=True)
class PreflightFailed:
    """Not yet; `reason` is the last line it printed."""

    reason: str


@dataclass(frozen=True, slots=True)
class TrainerStarted:
    """It runs; `pid` is of the command itself."""

    pid: int


@dataclass(frozen=True, slots=True)
class TrainerStartFailed:
    """Nothing was started. Waiting may help (a mount, a user that comes with a service)."""

    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class TrainerExited:
    """All of the trainer's tree is gone. Both None: an adopted trainer, status unknowable."""

    status: int | None = None
    signal: int | None = None
    last_lines: tuple[str, ...] = ()
    reason: str = ""  # "out of memory" and the like, where the shell has evidence


@dataclass(frozen=True, slots=True)
class TrainerReported:
    """What a datagram on SPOTD_SOCKET said; None where it said nothing.

    `stopping`: it is about to end though it is not finished (another rank was told to).
    """

    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    loss: float | None = None
    status: str | None = None
    stopping: bool | None = None


@dataclass(frozen=True, slots=True)
class SignalSent:
    """`targets` is empty when no process of the trainer catches the signal."""

    purpose: str  # "stop" or "checkpoint"
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ActivityMeasured:
    """A number that grows while the trainer writes anything anywhere."""

    counter: int


# --- the checkpoint directory --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeldCheckpoint:
    """A checkpoint spotd holds (`.spotd-hold/<id>/`), whatever became of the original."""

    id: str
    checkpoint: LocalCheckpoint


@dataclass(frozen=True, slots=True)
class LocalInventory:
    """The answer to `Inspect`: what is whole, what is torn, what is held.

    `torn` is (name, reason). Only an inspection made while no trainer runs names torn
    ones: while one runs, what is not whole is not whole *yet*.
    """

    checkpoints: tuple[LocalCheckpoint, ...] = ()
    torn: tuple[tuple[str, str], ...] = ()
    held: tuple[HeldCheckpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckpointSeen:
    """The watcher found one whole (or changed and whole again)."""

    checkpoint: LocalCheckpoint


@dataclass(frozen=True, slots=True)
class CheckpointVanished:
    """A whole one is no longer under its name: deleted by the trainer's rotation, or replaced."""

    name: str


@dataclass(frozen=True, slots=True)
class SavesInProgress:
    """What is being written right now; sent when it changes."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """The content is safe from rotation and overwriting, under the id. `mode` says how."""

    id: str
    mode: str  # "reflink", "copy", "link" or "none" (no space: sent from the original)


@dataclass(frozen=True, slots=True)
class HoldFailed:
    """It was gone, or changed, before it could be held."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Durable:
    """Every file of it, and the directories that name it, have been fsynced."""

    id: str


@dataclass(frozen=True, slots=True)
class SetAsideDone:
    """It is out of the way, under the name `to`."""

    name: str
    to: str


@dataclass(frozen=True, slots=True)
class Reinstated:
    """A held checkpoint stands under its own name again."""

    id: str
    checkpoint: LocalCheckpoint


@dataclass(frozen=True, slots=True)
class ReinstateFailed:
    """It could not be put back under its name."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class DirectoryTrouble:
    """The checkpoint directory cannot be used: missing, not writable, full, on instance store."""

    reason: str
    hint: str = ""


# --- the store -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoreOpened:
    """The lease is ours and this is what the store has, oldest first (whole ones only)."""

    generation: int
    lease_in: float
    stored: tuple[StoredCheckpoint, ...] = ()
    completed: bool = False
    top_sequence: int = 0  # highest sequence in use, those without a manifest included
    damaged: tuple[tuple[str, str], ...] = ()  # (id, reason): their manifests are not believed


@dataclass(frozen=True, slots=True)
class LeaseRefused:
    """Another machine trains this run. Also the answer to a renewal that came too late."""

    holder: str
    expires_in: float


@dataclass(frozen=True, slots=True)
class LeaseRenewed:
    """Ours for another `lease_in` seconds."""

    lease_in: float


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """An operation on the store failed for now. `operation`: open, lease, delete, complete."""

    operation: str
    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class UploadProgressed:
    """Bytes on their way so far."""

    id: str
    sent: int
    size: int


@dataclass(frozen=True, slots=True)
class AheadProgressed:
    """`sent` bytes of what is still being written are in the store; nobody can see them."""

    id: str
    sent: int


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The manifest is in the store: the checkpoint exists there."""

    id: str
    size: int
    sent: int  # bytes that really went over the wire; less than size when continued
    seconds: float
    rate: float | None = None  # bytes per second while nothing held it back; None: not measured
    ahead: int = 0  # bytes of those sent that went up while it was still being written


@dataclass(frozen=True, slots=True)
class UploadFailed:
    """`gone`: the source changed or vanished, so this id can never be stored."""

    id: str
    reason: str
    hint: str = ""
    gone: bool = False


@dataclass(frozen=True, slots=True)
class UploadsStopped:
    """The answer to `StopUploads`: nothing is being sent any more."""


@dataclass(frozen=True, slots=True)
class FetchProgressed:
    """Bytes that have arrived so far."""

    id: str
    received: int
    size: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """Verified, durable and under its own name in the checkpoint directory."""

    id: str
    checkpoint: LocalCheckpoint


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """`damaged`: what is in the store does not match its manifest; trying again cannot help."""

    id: str
    reason: str
    hint: str = ""
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class DeletedFromStore:
    """These are gone, manifest first."""

    ids: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class CompletionStored:
    """`completed.json` is in the store."""


Event = Union[  # noqa: UP007 - a table reads better than forty bars
    Started, Tick, StopRequested, Reloaded, DrillRequested, CheckpointRequested,
    MetadataAnswered, MetadataFailed,
    PreflightPassed, PreflightFailed, TrainerStarted, TrainerStartFailed, TrainerExited,
    TrainerReported, SignalSent, ActivityMeasured,
    LocalInventory, CheckpointSeen, CheckpointVanished, SavesInProgress, Held, HoldFailed,
    Durable, SetAsideDone, Reinstated, ReinstateFailed, DirectoryTrouble,
    StoreOpened, LeaseRefused, LeaseRenewed, StoreFailed, UploadProgressed, AheadProgressed,
    Uploaded,
    UploadFailed, UploadsStopped, FetchProgressed, Fetched, FetchFailed, DeletedFromStore,
    CompletionStored,
]  # fmt: skip
