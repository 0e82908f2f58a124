"""Every kind of journal line: its name, its fixed MESSAGE_ID, and what to tell a person.

The journal catalog (`journalctl -x`) is generated from this table, and a test holds the
core's announcements against it. A name, once published, keeps its id: scripts match on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID, uuid5

_NAMESPACE = UUID("5d1f8a60-3c63-4e0f-9f0e-6a1d5f0c7b21")


@dataclass(frozen=True, slots=True)
class JournalEvent:
    """`subject` heads the catalog entry, `text` explains: what it means, what to do."""

    name: str
    subject: str
    text: str

    @property
    def message_id(self) -> str:
        """32 hex digits, as journald wants them; the same on every machine, for ever."""
        return uuid5(_NAMESPACE, self.name).hex


_TABLE = (
    ("daemon_started", "spotd has started", "spotd has read its configuration and watches."),
    (
        "daemon_restarting",
        "spotd is being restarted",
        "The trainer goes on without it and is adopted by the next spotd.",
    ),
    (
        "boot_classified",
        "What kind of start this is",
        "Told from the boot id, the instance id and what the last spotd left on record.",
    ),
    (
        "stop_requested",
        "spotd was asked to stop",
        "The trainer is asked to save and end, its checkpoint is stored, then spotd ends.",
    ),
    (
        "configuration_reloaded",
        "The configuration was taken over",
        "Keys that only matter at a start of the trainer take effect at its next start.",
    ),
    (
        "reload_refused",
        "The configuration was not taken over",
        "The file is wrong; nothing of it was taken over. `spotd check` names the key.",
    ),
    (
        "restore_started",
        "A checkpoint is being put back",
        "The newest whole checkpoint is not in its place on the disk.",
    ),
    (
        "restore_finished",
        "A checkpoint is back in its place",
        "It was verified against its checksums before it got its name.",
    ),
    (
        "restore_gave_up",
        "A checkpoint could not be fetched",
        "Training goes on from an older one on the disk, so that the machine does not idle.",
    ),
    (
        "checkpoint_rejected",
        "A checkpoint was not used",
        (
            "It is torn, damaged, changed too soon, or the trainer crashed from it. What stands\n"
            "in the checkpoint directory is moved to .spotd-aside/, never deleted."
        ),
    ),
    (
        "blind_start",
        "Training starts without the store",
        (
            "Nothing is on the disk and the store has not answered. When it does and has this\n"
            "run, training is resumed from there."
        ),
    ),
    (
        "trainer_superseded",
        "The store is ahead of the trainer",
        (
            "The trainer was started while the store did not answer. It is stopped and resumed\n"
            "from what the store has."
        ),
    ),
    ("trainer_started", "The trainer was started", "One attempt begins."),
    (
        "trainer_adopted",
        "A living trainer was taken over",
        "spotd was restarted, killed or upgraded; training was not interrupted.",
    ),
    (
        "trainer_start_failed",
        "The trainer could not be started",
        "Tried again, since what is missing may still come. The line says what to mend.",
    ),
    ("trainer_exited", "The trainer has ended", "All processes of its tree are gone."),
    (
        "trainer_hung",
        "The trainer makes no progress",
        "No step, checkpoint or output for trainer.progress_timeout: it is started again.",
    ),
    (
        "trainer_killed",
        "The trainer was killed",
        "It was still running when the margin before the deadline began.",
    ),
    ("training", "Training goes on", "The first step of this attempt was reported."),
    ("steps_lost", "Some steps are trained again", "They were after the newest checkpoint."),
    ("checkpoint_seen", "A checkpoint is whole", "It is held and goes to the store."),
    (
        "checkpoint_requested",
        "The trainer was asked for a checkpoint",
        "By trainer.checkpoint_signal; it saves and goes on.",
    ),
    (
        "checkpoint_stored",
        "A checkpoint is in the store",
        "Its manifest is written: it can be restored from anywhere.",
    ),
    (
        "not_in_time",
        "The newest checkpoint takes longer to store than the notice leaves",
        (
            "What can be finished in time is; the rest is continued after the restart. "
            "`spotd check` says beforehand what fits."
        ),
    ),
    (
        "store_failed",
        "The store does not answer",
        "Training is untouched. Checkpoints stay on the disk and go up when it answers again.",
    ),
    ("store_back", "The store answers again", "What has waited goes up, newest first."),
    (
        "lease_refused",
        "Another machine trains this run",
        "Two machines must not train one run. Stop spotd there, or use another `run` name.",
    ),
    (
        "lease_lost",
        "Another machine has taken this run over",
        "This machine trains on but stores nothing. Stop one of the two.",
    ),
    (
        "interruption_notice",
        "EC2 is going to take this instance",
        "The trainer has been signalled; its checkpoint is stored before the deadline.",
    ),
    (
        "notice_withdrawn",
        "The notice is gone",
        "It is no longer in the metadata. Training goes on at the time on record.",
    ),
    ("notice_ignored", "An old notice", "It is from before this boot, or was never carried out."),
    (
        "rebalance_recommended",
        "EC2 sees an elevated risk of interruption",
        "A checkpoint is asked for if the trainer has a signal for that; training goes on.",
    ),
    (
        "scheduled_event",
        "EC2 has scheduled maintenance",
        (
            "See `aws ec2 describe-instance-status`; interruption.on_scheduled_event says what\n"
            "spotd does about it."
        ),
    ),
    ("stop_signal_sent", "The stop signal was sent", "Once, to the processes that catch it."),
    (
        "stop_signal_uncaught",
        "The trainer catches no stop signal",
        (
            "Sending it would only kill. It trains on to the margin while what it saved is\n"
            "stored. A handler, or spotd_trainer, would save the steps since the last checkpoint."
        ),
    ),
    ("drained", "Safe to stop", "Everything that could be kept is kept. EC2 does the stopping."),
    (
        "not_carried_out",
        "The notice was not carried out",
        "The deadline has passed and the machine still runs: training goes on.",
    ),
    ("drill_started", "A drill has begun", "As at a notice, short of the stop."),
    ("drill_finished", "The drill is over", "Training goes on from the newest checkpoint."),
    (
        "imds_blind",
        "The metadata service does not answer",
        "No notice can be seen until it does. Training goes on.",
    ),
    ("imds_back", "The metadata service answers again", "Notices can be seen again."),
    ("completed", "The run is complete", "It is never started again under this name."),
    (
        "finishing_instance",
        "The instance is being stopped or terminated",
        "completion.action says so, and the last checkpoint is in the store.",
    ),
    (
        "finish_failed",
        "The instance could not be stopped or terminated",
        "The run is complete, but the machine goes on costing money: end it by hand.",
    ),
    (
        "gave_up",
        "spotd has given up on the trainer",
        (
            "It crashed trainer.max_failures times in a row without progress. Its last lines are\n"
            "in `spotd status`. Mend it, then: systemctl restart spotd"
        ),
    ),
    (
        "directory_trouble",
        "The checkpoint directory cannot be used",
        "Looked at again every few seconds; the line says what to mend.",
    ),
    (
        "state_unwritable",
        "spotd cannot write its state",
        "Training goes on, but a restart of spotd would know less. Free some space.",
    ),
    (
        "metrics_failed",
        "Figures cannot be shown or kept",
        (
            "metrics.textfile or metrics.listen cannot be used; the line says why. Nothing else\n"
            "is touched by it."
        ),
    ),
    (
        "message_sent",
        "Somebody was told",
        "The webhook or the SNS topic of [notify] has taken a message.",
    ),
    (
        "message_failed",
        "Nobody could be told",
        (
            "The webhook or the SNS topic of [notify] does not take a message. It is tried again\n"
            "for a day, less and less often, also after a boot. `spotd notify-test` tries it now."
        ),
    ),
    (
        "ranks_apart",
        "Each rank saves a file of its own",
        "Only the newest file is stored. Let all ranks save into a directory for each checkpoint.",
    ),
    (
        "runtime_lost",
        "The runtime directory was emptied",
        "Somebody removed paths.runtime or what was in it. spotd makes its sockets anew at once.",
    ),
    ("defect", "A defect in spotd", "Training is untouched. Please report it with this line."),
)

EVENTS: dict[str, JournalEvent] = {name: JournalEvent(name, *rest) for name, *rest in _TABLE}
