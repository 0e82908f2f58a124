"""What the core remembers between two events."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spotd.core.checkpoint import StoredCheckpoint
    from spotd.core.events import HeldCheckpoint, LocalInventory
    from spotd.core.resume import Choice


class Phase(str, Enum):
    """The states a user sees in `spotd status` (contracts.md, section 5)."""

    STARTING = "starting"
    RESTORING = "restoring"
    RUNNING = "running"
    BACKING_OFF = "backing-off"
    DRAINING = "draining"
    DRAINED = "drained"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Now:
    """A moment on two clocks.

    `mono`: seconds of a clock that never jumps and counts suspended time. `wall`: seconds
    since the epoch.
    """

    mono: float
    wall: float


@dataclass(frozen=True, slots=True)
class Policy:
    """The part of the configuration that decisions depend on; durations in seconds."""

    margin: float = 10.0
    on_rebalance: str = "checkpoint"
    on_scheduled_event: str = "notify"
    not_carried_out_after: float = 300.0
    stop_timeout: float = 120.0
    stop_signal: str = "SIGTERM"
    checkpoint_signal: str | None = None
    preflight: bool = False
    preflight_timeout: float = 120.0
    backoff_min: float = 1.0
    backoff_max: float = 300.0
    max_failures: int = 5
    progress_timeout: float | None = None
    keep_local: int | None = None
    keep: int = 5
    start_timeout: float = 300.0
    completion_action: str = "keep"
    poll_interval: float = 5.0


@dataclass(frozen=True)
class Known:
    """A checkpoint that has an id: its content was whole when spotd looked.

    Attributes:
        created: Wall clock seconds at which it was seen.
        present: It stands under its name in the trainer's directory.
        hold: How it is held ("reflink", "copy", "link", "none"), None while it is not.
        durable: Every byte and every name of it has been fsynced.
        stored: Its manifest is in the store.
        unsendable: It can never be stored (the source changed or vanished first, or its
            id was given without knowing what the store has).
    """

    id: str
    sequence: int
    name: str
    kind: str
    size: int
    mtime_ns: int
    fingerprint: str
    step: int | None
    created: float
    present: bool = True
    hold: str | None = None
    durable: bool = False
    stored: bool = False
    unsendable: bool = False


@dataclass(frozen=True)
class Trainer:
    """The trainer that runs, or is just being started (`pid` None).

    `stop` is None, "intended" (on record before the signal), "sent", or "uncaught" (no
    process of it catches the signal, so none was sent). `blind`: started without knowing
    what the store has. What it saves gets sequences from `first_sequence` on.
    """

    attempt: int
    started: float
    started_mono: float
    pid: int | None = None
    adopted: bool = False
    resumed_from: str | None = None
    resumed_step: int | None = None
    blind: bool = False
    first_sequence: int = 0
    stop: str | None = None
    stop_retry_at: float | None = None
    kill_at: float | None = None
    killed: bool = False
    hung: bool = False
    superseded: bool = False
    progressed: bool = False
    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    loss: float | None = None
    status: str | None = None
    stopping: bool | None = None
    last_progress: float = 0.0
    activity: int | None = None
    measuring: bool = False


@dataclass(frozen=True)
class Resuming:
    """The way from "should train" to a started trainer.

    `stage`: "looking" (at disk and store), "fetching", "reinstating", "clearing" (putting
    torn ones aside), "preflight", "starting".
    """

    since: float
    stage: str = "looking"
    local: LocalInventory | None = None
    inspecting: bool = False
    inspect_at: float = 0.0
    choice: Choice | None = None
    clearing: frozenset[str] = frozenset()
    clear_by: float = 0.0
    rejected: frozenset[str] = frozenset()
    retry_at: float | None = None
    preflight_until: float | None = None
    waiting_for: str = ""  # said last, so that it is said once
    announced: str = ""
    failing_since: float | None = None
    blind: bool = False


@dataclass(frozen=True)
class Interruption:
    """A notice, a stop of the daemon, or a drill; from the moment it is seen.

    Times are `Now.mono`. `kill_at` is None where nothing is gained by killing.
    `resume_at` is when the notice counts as not carried out, None for a stop.
    `marks` are (what, seconds since `seen`) for the timeline.
    """

    source: str  # "notice", "stop" or "drill"
    action: str
    seen: float
    seen_wall: float
    deadline: float
    kill_at: float | None
    resume_at: float | None
    exit_after: bool = False
    request: int | None = None
    inspection: str = "none"  # "none", "asked", "done"
    stopped_uploads: bool = False
    drained: bool = False
    saved: bool = False
    marks: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Notice:
    """The notice as IMDS last showed it, so that one notice is one notice."""

    action: str
    time: float | None
    ignored: bool = False  # history, or not carried out
    steady_polls: int = 0


@dataclass(frozen=True)
class Metadata:
    """How well the metadata service answers."""

    last_ok: float | None = None
    last_ok_wall: float | None = None
    failures: int = 0
    blind_since: float | None = None  # wall clock
    reason: str = ""
    announced: bool = False
    notice: Notice | None = None
    rebalance: str | None = None
    scheduled: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Upload:
    """The upload under way."""

    id: str
    sequence: int
    size: int
    since: float
    sent: int = 0
    moved: float | None = None  # when `sent` last grew
    stopping: bool = False
    hurried: float | None = None  # mono: since when it takes the whole machine
    measured: tuple[float, int] | None = None  # (mono, sent) from which its pace is measured
    ahead: bool = False  # it took over what went up while it was written: no measure of the link


@dataclass(frozen=True, slots=True)
class Ahead:
    """What goes up while it is being written under `name`: the id it will get if it is whole."""

    id: str
    sequence: int
    name: str
    sent: int = 0


@dataclass(frozen=True)
class Store:
    """What is known of the store. `status`: "new", "open", "refused", "failed"."""

    status: str = "new"
    opening: bool = False
    generation: int = 0
    lease_until: float | None = None
    renew_at: float | None = None
    renewing: bool = False
    lost: bool = False
    holder: str = ""
    listed: tuple[StoredCheckpoint, ...] = ()
    confirmed: frozenset[str] = frozenset()  # ids that the last listing had
    damaged: tuple[str, ...] = ()  # ids in the store whose manifests are not believed
    ever_listed: bool = False
    failures: int = 0
    reason: str = ""
    hint: str = ""
    announced: bool = False
    retry_at: float | None = None
    asked_at: float | None = None
    upload: Upload | None = None
    ahead: Ahead | None = None
    upload_retry_at: float | None = None
    upload_failures: int = 0
    halted: bool = False
    rate: float | None = None  # bytes per second of the last uploads
    told_late: str = ""  # id of the checkpoint of which was said that it takes too long
    deleting: bool = False
    delete_retry_at: float = 0.0
    deletions_failed: int = 0  # in a row
    completing: bool = False
    complete_retry_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What has been counted since the run began."""

    interruptions: int = 0
    restarts: int = 0
    crashes: int = 0
    not_carried_out: int = 0


@dataclass(frozen=True)
class State:
    """Everything. Frozen: a decision makes a new one."""

    policy: Policy
    run: str
    phase: Phase = Phase.STARTING
    since: float = 0.0  # wall clock: when `phase` was entered
    booted: float = 0.0
    boot: str = ""
    boot_id: str = ""
    instance_id: str = ""
    attempt: int = 0
    attempt_in_boot: int = 0
    start_failures: int = 0
    start_trouble: str = ""
    next_sequence: int = 1
    known: tuple[Known, ...] = ()
    trainer: Trainer | None = None
    resuming: Resuming | None = None
    interruption: Interruption | None = None
    metadata: Metadata = field(default_factory=Metadata)
    store: Store = field(default_factory=Store)
    counts: Counts = field(default_factory=Counts)
    lost_steps: int = 0
    best_step: int | None = None
    last_step: int | None = None
    failures: int = 0
    blamed: tuple[str, ...] = ()  # names put aside because of crashes, newest last
    rejected: frozenset[str] = frozenset()
    void_since: float | None = None  # wall clock: what a superseded trainer wrote is not wanted
    crashes_from: tuple[str, int] | None = None
    retry_at: float | None = None  # end of a back-off
    reason: str = ""  # one line: why the phase is what it is
    last_lines: tuple[str, ...] = ()
    directory_trouble: str = ""
    writing: tuple[str, ...] = ()
    older_on_disk: bool = False
    ranks_apart: bool = False  # files of several ranks were seen, and that has been said
    measure_at: float | None = None
    persisted_at: float = 0.0
    saved_at: float | None = None  # mono: when the newest checkpoint of this trainer was seen
    save_every: float | None = None  # seconds between its last two
    save_seconds: float | None = None  # from the last stop signal to the save it led to
    completed: bool = False
    completion_safe: bool = False  # its last checkpoint would survive a power cut
    completion_stored: bool = False
    completion_inspected: bool = False
    finished: bool = False
    lease_until_wall: float = 0.0
    lease_generation: int = 0
    checkpoint_requests: tuple[tuple[int, int], ...] = ()
    held: tuple[HeldCheckpoint, ...] = ()
    holding: frozenset[str] = frozenset()  # `Hold` was asked for in the life of this daemon
    inspections: int = 0  # asked for and not yet answered
    contents_checked: bool = False  # nothing of this boot's disk can be torn unseen
    disk_seen: bool = False  # an inventory has come since spotd was started
    disk_empty: bool = False  # and nothing was there
    look_at: float | None = None  # the directory could not be looked at: when it is tried again


# Which state may follow which. `spotd.core.lifecycle` says why; the diagram in
# docs/lifecycle.md is drawn from this table, and a test walks it.
P = Phase
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    P.STARTING: frozenset({P.RESTORING, P.RUNNING, P.DRAINING, P.COMPLETED}),
    P.RESTORING: frozenset(
        {P.RUNNING, P.BACKING_OFF, P.DRAINING, P.STOPPING, P.COMPLETED, P.FAILED}
    ),
    P.RUNNING: frozenset(
        {P.RESTORING, P.BACKING_OFF, P.DRAINING, P.STOPPING, P.COMPLETED, P.FAILED}
    ),
    P.BACKING_OFF: frozenset({P.RESTORING, P.DRAINING, P.STOPPING}),
    P.DRAINING: frozenset({P.DRAINED, P.STOPPING, P.RESTORING, P.RUNNING, P.COMPLETED, P.FAILED}),
    P.DRAINED: frozenset({P.RESTORING, P.STOPPING, P.DRAINING, P.COMPLETED, P.FAILED}),
    P.COMPLETED: frozenset({P.STOPPING}),
    P.FAILED: frozenset({P.STOPPING, P.DRAINING}),
    P.STOPPING: frozenset(),
}


def newest_known(state: State) -> Known | None:
    """Returns the newest checkpoint with an id that still exists somewhere, or None."""
    good = [
        k
        for k in state.known
        if (k.present or k.stored or k.hold not in (None, "none"))
        and not ({k.id, k.fingerprint} & state.rejected)
    ]
    return max(good, key=lambda k: k.sequence, default=None)


def unstored(state: State) -> list[Known]:
    """Returns what is newer than everything in the store and could still be stored.

    The newest one counts before it is held: `Hold` is on its way. Of older ones only what
    is held can be sent.
    """
    top = max((s.sequence for s in state.store.listed), default=0)
    last = newest_known(state)
    return [
        k
        for k in state.known
        if not (k.stored or k.unsendable)
        and k.sequence > top
        and (k.hold is not None or (k.present and last is not None and k.id == last.id))
    ]
