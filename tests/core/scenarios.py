"""The scenarios: what happens to a world, in order, and how it must end.

Each is written out as a story in `golden/<name>.txt` (rewritten by
`pytest tests/core --golden-update`), and each is run again with the daemon killed before
every single action and event of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spotd.core.state import Phase, Policy
from spotd.simulation.models import Schedule, Setup, StoreModel, TrainerModel, Weather

if TYPE_CHECKING:
    from collections.abc import Callable

    from spotd.simulation.disk import File
    from spotd.simulation.world import World

POLICY = Policy(keep=3, checkpoint_signal="SIGUSR1")
TRAINER = TrainerModel(total_steps=300, step_seconds=1.0, save_every=100)


@dataclass(frozen=True)
class Scenario:
    """`expect` looks at the world afterwards; `after_kill` too when the daemon was killed."""

    name: str
    title: str
    schedule: Schedule
    expect: Callable[[World], None]
    after_kill: Callable[[World], None] | None = None
    fate: Callable[[File], str] | None = None
    kill_anywhere: bool = True
    more: dict = field(default_factory=dict)


def completed(w: World) -> None:
    assert w.bucket.completed
    assert phase(w) is Phase.COMPLETED


def phase(w: World) -> Phase:
    assert w.machine.daemon is not None
    return w.machine.daemon.state.phase


def resumed(*steps: int) -> Callable[[World], None]:
    """The trainer started from these steps, one start after the other, and finished."""

    def expect(w: World) -> None:
        assert [r.step for r in w.oracle.resumes] == list(steps)
        completed(w)

    return expect


def last_is_stored(w: World) -> None:
    assert w.bucket.completed
    assert 300 in {w.bucket.objects[i].step for i in w.bucket.manifests}


def ends_in(wanted: Phase) -> Callable[[World], None]:
    def expect(w: World) -> None:
        assert phase(w) is wanted

    return expect


def both(*expectations: Callable[[World], None]) -> Callable[[World], None]:
    def expect(w: World) -> None:
        for one in expectations:
            one(w)

    return expect


def said(*names: str) -> Callable[[World], None]:
    """These journal events were written."""

    def expect(w: World) -> None:
        assert set(names) <= set(w.announced)

    return expect


def no_step_lost(w: World) -> None:
    assert sum(r.lost for r in w.oracle.resumes) == 0


def replied(ok: bool, words: str) -> Callable[[World], None]:
    def expect(w: World) -> None:
        assert [r for r in w.replies if r.ok is ok and words in r.message], w.replies

    return expect


SCENARIOS: list[Scenario] = []


def story(
    name: str,
    title: str,
    weather: list[tuple] = (),
    expect: Callable[[World], None] = completed,
    *,
    until: float = 900.0,
    settle: float = 300.0,
    policy: dict | None = None,
    trainer: dict | None = None,
    store: dict | None = None,
    after_kill: Callable[[World], None] | None = None,
    fate: Callable[[File], str] | None = None,
    kill_anywhere: bool = True,
    **setup: object,
) -> None:
    from dataclasses import replace

    made = Setup(
        policy=replace(POLICY, **(policy or {})),
        trainer=replace(TRAINER, **(trainer or {})),
        store=replace(StoreModel(lease_seconds=600.0), **(store or {})),
        **setup,
    )
    happens = tuple(Weather(at, what, *how) for at, what, *how in weather)
    SCENARIOS.append(
        Scenario(
            name,
            title,
            Schedule(made, happens, until, settle),
            expect,
            after_kill if after_kill is not None else completed,
            fate,
            kill_anywhere,
        )
    )


def lose_everything(_: File) -> str:
    return "lost"


def garble_everything(file: File) -> str:
    return "torn" if file.torn else "garbled"


def tear_everything(_: File) -> str:
    return "torn"


# --- notices ---------------------------------------------------------------------------

story("first-start", "A first start, three checkpoints, completion", [], resumed(0))
story(
    "notice-with-emergency-save",
    "A notice; the trainer saves and ends; the instance is stopped and comes back",
    [(160, "notice")],
    both(resumed(0, 141), no_step_lost),
)
story(
    "notice-trainer-catches-nothing",
    "The trainer catches no signal: it trains on, what it saves is stored, killed at the margin",
    [(160, "notice")],
    both(resumed(0, 200), said("stop_signal_uncaught", "trainer_killed")),
    trainer={"catches": False},
)
story(
    "notice-exits-0-without-saving",
    "The trainer exits 0 on the signal without having saved: an interruption, not the end",
    [(160, "notice")],
    resumed(0, 100),
    trainer={"saves": False},
)
story(
    "notice-not-carried-out",
    "The notice's time passes and nothing happens: training goes on",
    [(160, "notice", {"stop": "none"})],
    both(resumed(0, 141), said("not_carried_out"), no_step_lost),
)
story(
    "notice-uncaught-not-carried-out",
    "The trainer catches nothing and the notice is not carried out",
    [(160, "notice", {"stop": "none"})],
    both(completed, said("not_carried_out")),
    trainer={"catches": False},
    until=1200,
)
story(
    "notice-withdrawn",
    "The notice disappears from the metadata: training goes on at the time on record",
    [(160, "notice", {"stop": "none"}), (200, "withdraw")],
    both(resumed(0, 141), said("notice_withdrawn", "not_carried_out")),
)
story(
    "notice-withdrawn-and-real",
    "A notice is withdrawn, and a second one is meant",
    [(160, "notice", {"stop": "none"}), (200, "withdraw"), (400, "notice", {"seconds": 240.0})],
    both(completed, no_step_lost),
    until=1300,
)
story(
    "notice-slides",
    "The notice's time slides at every poll: one notice is one notice",
    [(160, "notice", {"slides": True})],
    both(resumed(0, 141), lambda w: w.announced["interruption_notice"] == 1),
)
story(
    "notice-absurd-time",
    "The notice's time is missing: planned with 100 seconds",
    [(160, "notice", {"time": False, "late": -10.0})],
    both(resumed(0, 141), no_step_lost),
)
story(
    "notice-hibernate",
    "Hibernation starts at once; nobody is killed",
    [(160, "notice", {"action": "hibernate", "seconds": 0.0, "stop": "none"})],
    both(completed, no_step_lost),
    until=1200,
)
story(
    "notice-terminate",
    "Terminated: a new instance with an empty disk goes on from the store",
    [(160, "notice", {"action": "terminate", "stop": "replace"})],
    both(resumed(0, 141), no_step_lost, said("restore_finished")),
)
story(
    "notice-orderly-shutdown",
    "EC2 presses the power button: the orderly shutdown finds everything drained",
    [(160, "notice", {"stop": "orderly"})],
    both(resumed(0, 141), no_step_lost),
)
story(
    "notice-too-short",
    "Ten seconds instead of two minutes, a slow save: killed at the margin, steps are lost",
    [(160, "notice", {"seconds": 12.0, "late": 0.0})],
    resumed(0, 100),
    trainer={"save_seconds": 15.0},
)
story(
    "notice-and-power-cut-at-once",
    "The machine goes ten seconds after the notice: saved, not yet stored, durable on the disk",
    [(160, "notice", {"late": -110.0})],
    both(resumed(0, 141), no_step_lost),
    store={"bandwidth": 5e6},
)
story(
    "notice-during-restore",
    "A notice while a checkpoint is being fetched",
    [(160, "notice", {"action": "terminate", "stop": "replace"}), (418, "notice")],
    completed,
    store={"bandwidth": 10e6},
    until=1300,
)
story(
    "notice-during-save",
    "A notice while the trainer saves: that save is the one",
    [(117, "notice")],
    both(completed, no_step_lost),
)
story(
    "notice-during-upload",
    "A notice while an older checkpoint is being sent: the newer one goes first",
    [(125, "notice")],
    both(completed, no_step_lost),
    store={"bandwidth": 5e6},
)
story(
    "notice-during-back-off",
    "A notice while the trainer is waiting to be started again",
    [(130, "crash"), (132, "notice")],
    completed,
    policy={"backoff_min": 20.0},
)
story(
    "notice-while-starting",
    "A notice while the trainer imports torch and catches nothing yet",
    [(12, "notice")],
    both(completed, no_step_lost),
    trainer={"import_seconds": 20.0},
)
story(
    "notice-before-first-checkpoint",
    "A notice right at the boot, with nothing saved",
    [(2, "notice", {"seconds": 60.0})],
    completed,
)
story(
    "notice-twice",
    "Stop, then terminate: the earlier deadline counts",
    [
        (160, "notice", {"stop": "none"}),
        (180, "notice", {"action": "terminate", "seconds": 60.0, "stop": "replace"}),
    ],
    both(completed, no_step_lost),
)
story(
    "notice-stale-after-restart",
    "The old notice is still in the metadata after the restart: history",
    [(160, "notice")],
    both(resumed(0, 141), said("notice_ignored")),
    clears_notice=False,
)
story(
    "notice-second-with-new-time",
    "An old notice stays in the metadata; a new time in it is a new notice",
    [(160, "notice", {"stop": "none"}), (700, "notice", {"down": 60.0})],
    both(completed, no_step_lost),
    trainer={"total_steps": 600},
    until=1800,
)
story(
    "rebalance-then-notice",
    "A rebalance recommendation asks for a checkpoint; the notice comes later",
    [(60, "rebalance"), (160, "notice")],
    both(completed, said("rebalance_recommended", "checkpoint_requested"), no_step_lost),
    trainer={"catches_request": True},
)
story(
    "scheduled-event",
    "Maintenance is scheduled: asked for a checkpoint where the policy says so",
    [(60, "scheduled")],
    both(completed, said("scheduled_event", "checkpoint_requested")),
    policy={"on_scheduled_event": "checkpoint"},
    trainer={"catches_request": True},
)

# --- stops, restarts, adoption ----------------------------------------------------------

story(
    "stop-by-user",
    "systemctl stop, later start: saved, stored, resumed",
    [(160, "stop"), (300, "start")],
    both(resumed(0, 141), no_step_lost),
)
story(
    "stop-by-user-uncaught",
    "systemctl stop of a trainer that catches nothing: what it saved is stored, then it is killed",
    [(160, "stop"), (300, "start")],
    resumed(0, 200),
    trainer={"catches": False},
)
story(
    "stop-during-notice",
    "A notice, then the shutdown stops spotd too",
    [(160, "notice"), (161, "stop", {"seconds": 60.0})],
    both(completed, no_step_lost),
)
story(
    "stop-while-restoring",
    "systemctl stop while a checkpoint is being fetched",
    [(250, "replace"), (325, "stop"), (345, "start")],
    both(resumed(0, 200), said("restore_finished")),
    store={"bandwidth": 10e6, "lease_seconds": 60.0},
)
story(
    "stop-when-complete",
    "systemctl stop of a spotd whose run is complete",
    [(400, "stop"), (410, "start")],
    both(completed, lambda w: len(w.oracle.resumes) == 1),
)
story(
    "stop-while-waiting",
    "systemctl stop while the trainer backs off",
    [(130, "crash"), (135, "stop"), (200, "start")],
    completed,
    policy={"backoff_min": 20.0},
)
story(
    "restart-with-adoption",
    "systemctl restart spotd: the trainer lives on and is adopted",
    [(160, "restart_daemon")],
    both(resumed(0, 300), said("trainer_adopted"), no_step_lost),
    after_kill=completed,
)
story(
    "kill-9-with-adoption",
    "kill -9 of spotd: no step is missed, and the checkpoint saved meanwhile is found",
    [(114.9, "kill_daemon")],
    both(said("trainer_adopted"), no_step_lost),
    after_kill=completed,
    restart_seconds=8.0,
)
story(
    "restart-in-the-middle-of-a-notice",
    "spotd is killed in the middle of draining and goes on with the same notice",
    [(160, "notice"), (161, "kill_daemon")],
    both(completed, no_step_lost),
)
story(
    "watchdog",
    "The deciding loop hangs; the watchdog kills spotd; the trainer does not notice",
    [(150, "hang_daemon", {"seconds": 100.0})],
    both(said("trainer_adopted"), no_step_lost),
    after_kill=completed,
)
story(
    "reboot",
    "Somebody reboots the machine in good order",
    [(160, "reboot")],
    both(resumed(0, 141), no_step_lost),
)

# --- crashes ----------------------------------------------------------------------------

story(
    "crash-and-back-off",
    "The trainer crashes once and goes on from its newest checkpoint",
    [(160, "crash")],
    resumed(0, 100),
)
story(
    "crash-before-it-is-known",
    "The out-of-memory killer takes the trainer right after its start",
    [(10.22, "oom")],
    completed,
)
story(
    "crash-before-it-is-known-and-give-up",
    "The end of the trainer overtakes the news of its start, and one crash is enough",
    [(10.22, "oom")],
    ends_in(Phase.FAILED),
    after_kill=lambda w: None,
    policy={"max_failures": 1},
    kill_anywhere=False,
)
story(
    "failed-then-hibernated",
    "A hibernation that is not carried out, after spotd has given up, with S3 away",
    [
        (110, "store", {"seconds": 400.0}),
        (130, "crash"),
        (140, "notice", {"action": "hibernate", "seconds": 0.0, "stop": "none"}),
    ],
    both(ends_in(Phase.FAILED), said("gave_up", "not_carried_out")),
    after_kill=lambda w: None,
    policy={"max_failures": 1, "not_carried_out_after": 60.0},
    trainer={"reports": False},
)
story(
    "failed-then-notice-not-carried-out",
    "A notice that is not carried out does not undo that spotd has given up",
    [(130, "crash"), (140, "notice", {"stop": "none"})],
    both(ends_in(Phase.FAILED), said("gave_up", "not_carried_out")),
    after_kill=lambda w: None,
    policy={"max_failures": 1},
)
story(
    "blame-a-checkpoint",
    "Two crashes in a row from one checkpoint: it is put aside and the one before it is tried",
    [(225, "poison"), (226, "crash")],
    both(completed, said("checkpoint_rejected"), lambda w: w.oracle.resumes[-1].step == 100),
    trainer={"total_steps": 400},
)
story(
    "give-up",
    "Every start crashes: given up, and what was put aside is brought back",
    [(250, "poison"), (251, "crash"), *((t, "crash") for t in range(260, 500, 4))],
    both(ends_in(Phase.FAILED), said("gave_up"), lambda w: len(w.machine.disk.aside) == 0),
    after_kill=lambda w: None,
    settle=0,
    until=520,
    trainer={"import_seconds": 30.0},
)
story(
    "failed-then-restarted",
    "Given up; somebody mends it and restarts spotd",
    [*((t, "crash") for t in range(20, 80, 2)), (90, "stop"), (100, "start")],
    both(completed, said("gave_up")),
    policy={"max_failures": 3},
    trainer={"import_seconds": 30.0},
)
story(
    "failed-then-notice",
    "A notice while spotd has given up",
    [*((t, "crash") for t in range(20, 80, 2)), (90, "notice")],
    both(completed, said("gave_up")),
    policy={"max_failures": 3},
    trainer={"import_seconds": 30.0},
)
story(
    "hang",
    "No step and no output for a minute: stopped and started again",
    [(150, "hang")],
    both(resumed(0, 100), said("trainer_hung")),
    policy={"progress_timeout": 60.0},
)
story(
    "hang-then-notice",
    "A notice while a hung trainer is being stopped",
    [(150, "hang"), (240, "notice")],
    both(completed, said("trainer_hung")),
    policy={"progress_timeout": 60.0},
    until=1300,
)
story(
    "start-trouble",
    "The user of the trainer does not exist yet",
    [(0, "start_trouble", {"seconds": 60.0})],
    both(resumed(0), said("trainer_start_failed")),
)
story(
    "preflight",
    "nvidia-smi fails for a minute after the boot",
    [(0, "preflight", {"seconds": 60.0})],
    resumed(0),
    policy={"preflight": True},
)
story(
    "preflight-never",
    "The preflight fails longer than its time-out: said, and tried again",
    [(0, "preflight", {"seconds": 300.0})],
    both(resumed(0), said("trainer_start_failed")),
    policy={"preflight": True, "preflight_timeout": 60.0},
)
story(
    "directory-missing",
    "The checkpoint directory is a mount that comes late",
    [(0, "directory", {"seconds": 40.0})],
    both(resumed(0), said("directory_trouble")),
)

# --- power cuts, torn files, lost disks ---------------------------------------------------

story(
    "power-cut",
    "A power cut without a word: the newest durable checkpoint is resumed from",
    [(180, "cut")],
    resumed(0, 100),
    fate=lose_everything,
)
story(
    "power-cut-garbles",
    "A power cut leaves a full-length file with garbage in it: found by its CRC and put aside",
    [(221.4, "cut")],
    both(resumed(0, 100), said("checkpoint_rejected")),
    fate=garble_everything,
    trainer={"searches": True},
)
story(
    "power-cut-garbles-what-is-held",
    "A held checkpoint turns out to be garbage after a power cut: it is not resumed from later "
    "in that boot either (seed 128027)",
    [(119.3, "cut"), (240, "oom")],
    both(resumed(0, 0, 0), said("checkpoint_rejected")),
    fate=garble_everything,
    hold="link",
    trainer={"size": 1_000_000_000},
)
story(
    "what-is-held-is-let-go-meanwhile",
    "While a checkpoint cannot be put back, on a full disk, the hold of the one before it is let "
    "go: it is not asked for for ever (seed 173160)",
    [
        (71, "store", {"mood": "lying", "seconds": 1500.0}),
        (88, "reboot", {"seconds": 10.0}),
        (138, "disk_full", {"seconds": 100.0}),
    ],
    completed,
    after_kill=lambda w: None,
    trainer={
        "step_seconds": 0.5, "save_every": 60, "total_steps": 257, "size": 1_000_000_000,
        "writes": "in-place",
    },
    store={"bandwidth": 10e6, "lease_seconds": 60.0},
    policy={"checkpoint_signal": None},
    until=400.0,
    settle=3600.0,
)  # fmt: skip
story(
    "complete-elsewhere-in-a-drain-and-restarted",
    "The run is completed elsewhere while this machine drains, and spotd is restarted "
    "(seed 336086)",
    [
        (184, "notice", {"time": False, "down": 300.0}),
        (188, "complete_elsewhere"),
        (200, "hang_daemon", {"seconds": 60.0}),
        (238, "restart_daemon"),
    ],
    completed,
    after_kill=lambda w: None,
    trainer={"catches": False, "save_every": 60, "total_steps": 500},
    store={"bandwidth": 2e6, "lease_seconds": 60.0},
    policy={"checkpoint_signal": None},
    until=560.0,
)
story(
    "completed-in-a-drain-without-the-directory",
    "The run ends in a drain, and its directory cannot be looked at just then (seed 253145)",
    [(300, "notice", {"stop": "none"}), (324.4, "directory", {"seconds": 100.0})],
    completed,
    trainer={"catches": False},
)
story(
    "store-answers-during-a-blind-preflight",
    "A fresh disk, and the store answers only after starting from scratch was decided, while "
    "the preflight command still fails: nothing is trained again (seed 5000420)",
    [
        (230, "replace", {"down": 30.0}),
        (255, "store", {"mood": "down", "seconds": 60.0}),
        (256, "preflight", {"seconds": 90.0}),
    ],
    both(resumed(0, 200), said("blind_start", "restore_finished")),
    policy={"preflight": True, "start_timeout": 30.0},
)
story(
    "torn-after-it-came-back-while-the-preflight-fails",
    "What came back from the store is torn on the disk while the preflight command still "
    "fails: looked at again before anything starts (seed 60127791)",
    [
        (230, "replace", {"down": 5.0}),
        (800, "preflight", {"seconds": 100.0}),
        (850, "tear"),
    ],
    both(resumed(0, 200), said("checkpoint_rejected", "restore_finished")),
    policy={"preflight": True},
)
story(
    "further-than-the-store-under-the-same-number",
    "A fresh disk trains on without the store, is rebooted, and finds that the other machine had "
    "stored less under the same number: what goes further is resumed from (seed 60640619)",
    [
        (25, "notice", {"stop": "none"}),
        (125, "replace", {"down": 60.0}),
        (143, "network", {"seconds": 300.0}),
        (340, "reboot", {"seconds": 10.0}),
    ],
    both(resumed(0, 0, 100, 100), said("blind_start", "lease_refused")),
    policy={"start_timeout": 30.0},
    hold="none",
)
story(
    "torn-link-is-not-sent-at-the-next-boot",
    "A power cut tears what was held by a link a moment ago; at the boot the notice still stands, "
    "and the store answers before the disk has been looked at (seed 20058965)",
    [(160, "notice"), (163.64, "cut", {"down": 5.0})],
    resumed(0, 100),
    after_kill=completed,
    fate=garble_everything,
    hold="link",
    clears_notice=False,
    store={"latency": 0.01, "bandwidth": 5e6},
)
story(
    "torn-without-a-hold-is-not-sent-at-the-next-boot",
    "The same where nothing could be held: what is on record as whole has its size and times",
    [(160, "notice"), (163.64, "cut", {"down": 5.0})],
    resumed(0, 100),
    after_kill=completed,
    fate=garble_everything,
    hold="none",
    clears_notice=False,
    store={"bandwidth": 5e6},
)
story(
    "overwritten-unseen-after-the-clock-was-set-back",
    "A file is overwritten while spotd is away, and bears an older time than the one before it "
    "(seed 20059225)",
    [
        (100, "clock_jump", {"seconds": -90000.0}),
        (120, "kill_daemon"),
        (160, "replace", {"down": 5.0}),
    ],
    resumed(0, 100),
    trainer={"save_every": 50, "writes": "in-place"},
    restart_seconds=5.0,
)
story(
    "complete-while-the-trainer-is-being-started",
    "The store says that the run is complete between the start of a trainer and its pid: it is "
    "stopped all the same (seed 20064676)",
    [
        (8, "complete_elsewhere"),
        (183, "notice", {"stop": "none", "slides": True}),
        (378, "notice", {"action": "terminate", "stop": "none", "time": False}),
    ],
    completed,
    after_kill=lambda w: None,
    trainer={"step_seconds": 5.0, "save_every": 60, "total_steps": 80},
    store={"lease_seconds": 60.0},
    policy={"not_carried_out_after": 60.0},
    boot_seconds=3.0,
)
story(
    "complete-with-its-last-checkpoint-behind-a-late-mount",
    "The run is complete, its last checkpoint durable and not stored; after a reboot the directory "
    "is mounted late: nothing is sent, and the instance not ended, before it has been looked at",
    [
        (325, "store", {"mood": "down", "seconds": 60.0}),
        (340, "reboot", {"seconds": 10.0}),
        (341, "directory", {"seconds": 60.0}),
    ],
    last_is_stored,
    after_kill=lambda w: None,
    policy={"completion_action": "stop"},
)
story(
    "superseded-trainer-catches-nothing-and-finishes",
    "A trainer started without the store turns out to be another machine's, catches no signal, and "
    "exits 0: the run is not complete by that, and is trained on (seed 20146977)",
    [(30, "network", {"seconds": 30.0}), (35, "replace", {"down": 5.0, "keep_disk": True})],
    both(completed, said("lease_refused"), lambda w: w.bucket.completed),
    trainer={
        "step_seconds": 0.5, "save_every": 20, "total_steps": 47, "catches": False,
        "import_seconds": 1.0,
    },
    store={"bandwidth": 10e6, "lease_seconds": 60.0},
)  # fmt: skip
story(
    "stopped-then-power-cut",
    "spotd is stopped in good order, then the power fails before all is written out",
    [(220.9, "stop"), (229.0, "cut")],
    both(resumed(0, 200), said("restore_finished"), no_step_lost),
    fate=garble_everything,
    copy_bandwidth=50e6,
)
story(
    "power-cut-in-mid-save",
    "A power cut in the middle of writing a directory: torn, put aside before the trainer looks",
    [(219.7, "cut")],
    both(resumed(0, 100), said("checkpoint_rejected")),
    fate=tear_everything,
    trainer={"writes": "directory", "searches": True},
)
story(
    "torn-in-place",
    "A crash in the middle of overwriting the only checkpoint: put back from the hold",
    [(219.7, "oom")],
    both(resumed(0, 100), said("restore_finished")),
    trainer={"writes": "in-place"},
)
story(
    "torn-in-place-power-cut",
    "The same by a power cut, with the hold durable",
    [(219.7, "cut")],
    resumed(0, 100),
    fate=tear_everything,
    trainer={"writes": "in-place"},
)
story(
    "newest-torn-on-disk-whole-in-store",
    "The newest is torn on the disk and whole in the store",
    [(230, "tear"), (235, "cut")],
    both(completed, lambda w: w.oracle.resumes[-1].step == 200),
    hold="none",
)
story(
    "lost-disk",
    "Another instance with an empty disk: everything comes back from the store",
    [(240, "replace")],
    both(resumed(0, 200), said("restore_finished")),
)
story(
    "old-disk-on-a-new-instance",
    "A new instance with the old instance's disk",
    [(240, "replace", {"keep_disk": True})],
    resumed(0, 200),
)
story(
    "damaged-in-store",
    "The newest object in the store has rotted: the one before it",
    [(240, "damage"), (241, "replace")],
    both(resumed(0, 100), said("checkpoint_rejected")),
)
story(
    "disk-full",
    "The disk is full: the save fails, the trainer crashes, space comes back",
    [(150, "disk_full", {"seconds": 120.0})],
    completed,
)
story(
    "rotation",
    "A trainer that keeps one checkpoint cannot take away what is being sent",
    [],
    resumed(0),
    trainer={"keeps": 1, "save_every": 20, "total_steps": 200},
    store={"bandwidth": 4e6},
)
story(
    "rotation-by-link",
    "The same with hard links as holds",
    [(160, "cut")],
    completed,
    trainer={"keeps": 1, "save_every": 20, "total_steps": 200},
    store={"bandwidth": 4e6},
    hold="link",
)
story(
    "no-room-to-put-back",
    "A full disk tears the only checkpoint, and there is no room to put it back yet",
    [(210, "disk_full", {"seconds": 100.0}), (205, "store", {"seconds": 300.0})],
    both(resumed(0, 100), said("checkpoint_rejected", "restore_finished")),
    trainer={"writes": "in-place"},
    store={"bandwidth": 1e6},
)
story(
    "changed-before-it-is-held",
    "Somebody deletes a checkpoint while it is being copied into its hold",
    [(118.7, "vanish")],
    both(resumed(0), said("checkpoint_rejected")),
)
story(
    "no-room-for-holds",
    "No room for holds: sent from the original, which the trainer overwrites",
    [],
    resumed(0),
    trainer={"writes": "in-place", "save_every": 20, "total_steps": 200},
    store={"bandwidth": 15e6},
    hold="none",
)
story(
    "keep-local",
    "checkpoints.keep_local deletes what is stored, never the newest",
    [],
    both(resumed(0), lambda w: len(w.machine.disk.files) <= 3),
    policy={"keep_local": 1},
    trainer={"save_every": 50},
)
story(
    "somebody-deletes-the-newest",
    "The newest checkpoint is deleted from the directory: put back from the hold",
    [(230, "vanish"), (240, "crash")],
    resumed(0, 200),
)

# --- the store --------------------------------------------------------------------------

story(
    "store-down-at-start",
    "S3 is down at the first start: from scratch after store.start_timeout, stored later",
    [(0, "store", {"seconds": 200.0})],
    both(resumed(0), said("store_failed", "blind_start", "store_back")),
    policy={"start_timeout": 60.0},
    until=1000,
)
story(
    "store-down-at-start-with-local",
    "S3 is down after a boot and a good checkpoint is on the disk: start at once",
    [(150, "store", {"seconds": 200.0}), (160, "cut")],
    both(resumed(0, 100), lambda w: w.oracle.resumes[-1].at < 250),
)
story(
    "store-down-while-the-newest-is-there",
    "The disk has only an older one, on record is a newer one in the store: worth waiting for",
    [(225, "store", {"seconds": 100.0}), (226, "tear"), (227, "cut", {"down": 20.0})],
    both(completed, lambda w: w.oracle.resumes[-1].step == 200),
    hold="none",
    store={"lease_seconds": 60.0},
)
story(
    "blind-start-superseded",
    "Started from scratch without the store, which then turns out to have the run",
    [(225, "store", {"seconds": 250.0}), (226, "replace")],
    both(
        completed,
        said("blind_start", "trainer_superseded"),
        lambda w: w.oracle.resumes[-1].step == 200,
    ),
    policy={"start_timeout": 60.0},
    until=1200,
    store={"lease_seconds": 60.0},
)
story(
    "blind-start-superseded-in-place",
    "The same with one file under one name",
    [(225, "store", {"seconds": 250.0}), (226, "replace")],
    both(
        completed,
        said("blind_start", "trainer_superseded"),
        lambda w: w.oracle.resumes[-1].step == 200,
    ),
    policy={"start_timeout": 60.0},
    trainer={"writes": "in-place", "total_steps": 400},
    until=1200,
    store={"lease_seconds": 60.0},
)
story(
    "store-back-confirms-what-it-was-sent",
    "Started without the store, the trainer is not held to be behind what it has stored itself",
    [(130, "store", {"seconds": 250.0}), (250, "crash")],
    resumed(0, 200),
    policy={"keep": 1},
    trainer={"reports": False, "total_steps": 600},
    store={"lease_seconds": 60.0},
    until=1200,
)
story(
    "restart-between-held-and-durable",
    "spotd is restarted while a checkpoint is being fsynced: the next spotd sees to it",
    [(119.0, "restart_daemon")],
    both(completed, no_step_lost),
    store={"bandwidth": 1e6},
)
story(
    "store-slow",
    "S3 is thirty times slower for a while: training is untouched",
    [(100, "store", {"mood": "slow", "seconds": 150.0})],
    resumed(0),
)
story(
    "store-down-during-notice",
    "S3 is down during the two minutes: safe on the disk, stored after the restart",
    [(150, "store", {"seconds": 300.0}), (160, "notice")],
    both(resumed(0, 141), no_step_lost),
)
story(
    "store-lies",
    "S3 says that it has stored what it then does not have",
    [(205, "store", {"mood": "lying", "seconds": 30.0}), (250, "kill_daemon")],
    both(completed, lambda w: w.bucket.restorable(max(w.bucket.manifests))),
)
story(
    "uploads-slower-than-saves",
    "The link is slower than the trainer saves: the newest is next, useless ones are skipped",
    [],
    resumed(0),
    trainer={"save_every": 20},
    store={"bandwidth": 5e6},
)
story(
    "retention",
    "Of eight checkpoints three stay in the store, the newest among them",
    [],
    both(resumed(0), lambda w: len(w.bucket.manifests) == 3),
    trainer={"save_every": 40, "total_steps": 320},
)
story(
    "lease-refused",
    "Another machine trains this run: refused, naming it",
    [(60, "second_machine")],
    both(completed, said("lease_refused")),
    store={"lease_seconds": 60.0},
)
story(
    "lease-taken-over",
    "The first machine goes and does not come back in time: the second one goes on",
    [(60, "second_machine"), (180, "cut", {"down": 400.0})],
    both(lambda w: w.bucket.completed, said("lease_refused", "restore_finished")),
    after_kill=lambda w: None,
    fate=lose_everything,
    until=1300,
    store={"lease_seconds": 60.0},
)
story(
    "lease-lost",
    "Cut off from the store for longer than its lease, the first machine loses the run",
    [(60, "second_machine"), (130, "network", {"seconds": 200.0})],
    both(lambda w: w.bucket.completed, said("lease_refused")),
    after_kill=lambda w: None,
    until=1300,
    store={"lease_seconds": 60.0},
)
story(
    "lease-run-out",
    "The store is away for longer than the lease; nobody took it: ours again",
    [(130, "store", {"seconds": 120.0})],
    resumed(0),
    store={"lease_seconds": 60.0},
)

# --- completion -------------------------------------------------------------------------

story(
    "completed-elsewhere",
    "The store says at the start that the run is complete: nothing is trained",
    [(0, "complete_elsewhere")],
    both(ends_in(Phase.COMPLETED), lambda w: w.oracle.resumes == []),
)
story(
    "completed-elsewhere-while-training",
    "The store was away at the start; the run turns out to be complete",
    [(0, "store", {"seconds": 150.0}), (1, "complete_elsewhere")],
    ends_in(Phase.COMPLETED),
    policy={"start_timeout": 30.0},
)
story(
    "completed-is-remembered",
    "A complete run is never trained again, whatever is restarted",
    [(400, "cut"), (600, "restart_daemon")],
    both(completed, lambda w: len(w.oracle.resumes) == 1),
)
story(
    "completed-then-power-cut",
    "A power cut takes the last checkpoint before it is durable: the run is not complete yet",
    [(319.3, "cut")],
    resumed(0, 200),
    fate=lose_everything,
)
story(
    "completed-then-notice",
    "A notice for a machine whose run is complete",
    [(400, "notice")],
    both(completed, lambda w: len(w.oracle.resumes) == 1),
)
story(
    "completed-during-notice",
    "The trainer finishes by itself in the two minutes",
    [(280, "notice", {"stop": "none"})],
    both(completed, lambda w: len(w.oracle.resumes) == 1),
    trainer={"catches": False},
)
story(
    "completed-during-notice-store-down",
    "The same with S3 down past the deadline",
    [(230, "store", {"seconds": 300.0}), (250, "notice", {"stop": "none"})],
    completed,
    trainer={"catches": False},
    until=1300,
)
story(
    "completed-stop-the-instance",
    "completion.action = stop, and the store is away when the run ends",
    [(300, "store", {"seconds": 120.0})],
    lambda w: w.bucket.completed and w.machine.finished == "stop",
    after_kill=lambda w: w.bucket.completed and w.machine.finished == "stop",
    policy={"completion_action": "stop"},
)

# --- asked for by people ------------------------------------------------------------------

story(
    "drill",
    "A drill: the whole path, a verdict, then training goes on",
    [(160, "drill")],
    both(resumed(0, 141), replied(True, "fits into"), no_step_lost),
)
story(
    "drill-uncaught",
    "A drill with a trainer that catches nothing kills nobody",
    [(160, "drill")],
    both(resumed(0), replied(False, "does not catch")),
    trainer={"catches": False},
)
story(
    "drill-becomes-real",
    "A notice comes during a drill",
    [(162, "drill"), (163, "notice")],
    both(completed, replied(False, "became real"), no_step_lost),
)
story(
    "drill-without-a-trainer",
    "A drill needs a running trainer",
    [(5, "directory", {"seconds": 60.0}), (30, "drill")],
    both(completed, replied(False, "needs a running trainer")),
)
story(
    "checkpoint-verb",
    "spotd checkpoint: answered when it is in the store",
    [(60, "checkpoint")],
    both(completed, replied(True, "is in the store")),
    trainer={"catches_request": True},
)
story(
    "checkpoint-verb-uncaught",
    "spotd checkpoint to a trainer without a handler",
    [(60, "checkpoint")],
    both(completed, replied(False, "does not catch")),
)
story(
    "checkpoint-verb-without-a-signal",
    "spotd checkpoint without trainer.checkpoint_signal",
    [(60, "checkpoint")],
    both(completed, replied(False, "not set")),
    policy={"checkpoint_signal": None},
)
story(
    "reload",
    "SIGHUP takes over a new policy",
    [(60, "reload", {"keep": 1})],
    both(completed, said("configuration_reloaded"), lambda w: len(w.bucket.manifests) == 1),
    kill_anywhere=False,
)

# --- the metadata service and the clock ---------------------------------------------------

story(
    "imds-blind-and-back",
    "The metadata service fails for a minute: said once, and once when it is back",
    [(60, "imds", {"mood": "failing", "seconds": 60.0}), (160, "notice")],
    both(resumed(0, 141), lambda w: w.announced["imds_blind"] == 1 == w.announced["imds_back"]),
)
story(
    "imds-silent",
    "The watcher itself falls silent",
    [(60, "imds", {"mood": "silent", "seconds": 120.0})],
    both(resumed(0), said("imds_blind", "imds_back")),
)
story(
    "clock-jumps-ahead",
    "The wall clock jumps an hour ahead, then a notice",
    [(60, "clock_jump", {"seconds": 3600.0}), (160, "notice")],
    both(resumed(0, 141), no_step_lost),
)
story(
    "clock-jumps-back",
    "The wall clock jumps back two hours; the machine reboots",
    [(130, "clock_jump", {"seconds": -7200.0}), (160, "cut")],
    completed,
)
