"""Why each default is what it is; docs/defaults.md is made of this, and a test wants every key."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Figures are those of docs/measurements.md and docs/transfer.md; "the user guide" is EC2's.
REASONS: Mapping[str, str] = {
    "cloud": "The machine knows best: its firmware names the cloud, so nothing has to be set, and "
    "nothing can be set wrong.",
    # --- trainer
    "trainer.user": "Nobody else is known. Root trains only where you say nothing and run spotd "
    "as root; name the user whose files the trainer writes.",
    "trainer.resume_arguments": "Most trainers find their newest checkpoint by themselves, and an "
    "argument that one does not know ends it with a usage error.",
    "trainer.environment": "What a trainer sees does not depend on who started spotd: the same at "
    "the tenth boot as at the first.",
    "trainer.environment_file": "Secrets are yours to place; nothing is read that you did not "
    "name.",
    "trainer.stop_signal": "What torchrun, Lightning, the Hugging Face Trainer and every "
    "container runtime take for `save and end`.",
    "trainer.signal_target": "`group` kills DataLoader workers first, and the rank dies of that "
    "before it has saved; `main` is a shell or a launcher as often as it is the trainer. `auto` "
    "signals what catches the signal, and takes 3 ms among 73 processes.",
    "trainer.checkpoint_signal": "To a program that does not catch it, a signal is a kill, and no "
    "signal is widely agreed to mean `save and go on`.",
    "trainer.preflight": "What has to be there differs. The file systems of the configured paths "
    "are waited for anyway.",
    "trainer.preflight_timeout": "A GPU driver answers tens of seconds after a boot; a machine "
    "whose driver is broken should not be paid for long before somebody is told.",
    "trainer.backoff_min": "Long enough for sockets and GPU memory of the last attempt to be "
    "given back, short beside the seconds that imports take.",
    "trainer.backoff_max": "A trainer that waits for something (a data set, a license server) "
    "finds it within minutes, and a crash loop costs little.",
    "trainer.max_failures": "Two crashes from one checkpoint put it aside and try the one before; "
    "that leaves a second older one a chance. With the pauses it is over in less than a minute of "
    "waiting: a program that cannot run is told of while you still look.",
    "trainer.progress_timeout": "How long silence is normal (compiling, an epoch without output, "
    "validation) only you know; killing a trainer that works loses what it did.",
    # --- checkpoints
    "checkpoints.pattern": "Trainers agree on no name. What ends like a checkpoint or has a known "
    "writer's marker counts, and parts, logs and temporary names do not.",
    "checkpoints.complete": "Formats and markers of the known writers are looked at; content of "
    "nobody's format has to be quiet for at least 10 s.",
    "checkpoints.keep_local": "Deleting what somebody trained is for that somebody to ask for.",
    # --- store
    "store.endpoint_url": "AWS's own, for the region.",
    "store.region": "The instance knows where it is, and the bucket should be in the same region: "
    "traffic within it is free.",
    "store.keep": "Two for a damaged newest one and the one before it, the rest for the mistake "
    "that is only seen after a few saves. At the price of S3 five checkpoints of 2 GB cost about "
    "$0.25 a month.",
    "store.storage_class": "STANDARD, unless the bucket says otherwise: the cheaper classes bill "
    "30 to 90 days at least for what is replaced within minutes.",
    "store.server_side_encryption": "Every bucket encrypts by itself since 2023; asking again "
    "could only contradict the bucket's own policy.",
    "store.kms_key_id": "The bucket's key, where it has one.",
    "store.bandwidth_limit": "Uploads run at the lowest priority on four connections while "
    "training runs; an upload that is behind is work that a power cut takes.",
    "store.start_timeout": "On an empty disk a store that is silent may hold hours of work, so "
    "starting from scratch at once could train them again. Past five minutes the GPU costs more "
    "than the guess is worth; what is found later is gone back to.",
    # --- imds
    "imds.endpoint": "The address of every EC2 instance.",
    "imds.poll_interval": "What the user guide recommends. A notice is then seen 2.5 s late on "
    "average, of 120 s, for 0.07 % of a core.",
    "imds.timeout": "The service answers in milliseconds. A poll that hangs longer has cost less "
    "than half of the interval, and the next one finds a new connection.",
    "imds.v1_fallback": "IMDSv1 answers whoever can have the machine fetch a URL, and with it go "
    "the role's credentials. New images do not have it.",
    # --- interruption
    "interruption.margin": "The notice's time is approximate, and killing, closing a transfer and "
    "syncing the journal take a second or two: what is not finished 10 s before would not be.",
    "interruption.on_rebalance": "It costs one save, and it is often the only warning that comes "
    "before the two minutes. Without `trainer.checkpoint_signal` it only tells.",
    "interruption.on_scheduled_event": "Such an event is days away, and training until then is "
    "worth more than a save now.",
    "interruption.not_carried_out_after": "EC2 stops a machine within a few minutes of the "
    "deadline, or not at all. Going on sooner would train into the stop; waiting longer pays for "
    "an idle GPU.",
    "interruption.stop_timeout": "What a notice grants: so a stop by hand saves what a notice "
    "would. Under systemd the unit's TimeoutStopSec (150 s) counts.",
    # --- completion, metrics, notify
    "completion.action": "Ending a machine cannot be undone, and what else is on its disk spotd "
    "does not know. An idle GPU costs money, so alert `SpotdCompleteAndRunning` says so.",
    "metrics.textfile": "It only makes sense where node_exporter reads it.",
    "metrics.listen": "A port that nobody asked for is one more thing to guard.",
    "notify.webhook_url": "Nobody is told who is not named.",
    "notify.webhook_url_file": "Nobody is told who is not named.",
    "notify.sns_topic_arn": "Nobody is told who is not named.",
    # --- cost
    "cost.on_demand_price": "AWS's price list knows better than a file that nobody updates.",
    "cost.spot_price": "EC2 keeps every change of 90 days: what was paid, not a guess.",
    "cost.disk_price": "AWS's price list knows better than a file that nobody updates.",
    # --- launch
    "launch.instance_types": "Which GPU your model needs only you know; `spotd launch` asks for "
    "them.",
    "launch.region": "Where your other things are; data that crosses regions is billed.",
    "launch.zones": "Every zone more is one more place with capacity. The instance stays where it "
    "is launched, since its disk does.",
    "launch.subnets": "Each zone's default subnet is there in every account that did not remove "
    "it.",
    "launch.security_groups": "The default group lets nobody in and everything out, which is all "
    "that training needs.",
    "launch.key_name": "Nothing of spotd needs SSH.",
    "launch.instance_profile": "Roles have no name that everybody uses. With an S3 store a launch "
    "without one is refused, because nothing could be stored.",
    "launch.image": "The newest Ubuntu LTS has a Python that spotd runs on, gets fixes until "
    "2029, and is there in every region. It has no GPU driver: `deep-learning` has.",
    "launch.volume_size": "An image with drivers takes tens of GiB; the rest is for code, data "
    "and checkpoints. It costs about $8 a month.",
    "launch.volume_type": "Cheaper than gp2, and its speed does not depend on its size.",
    "launch.valid_for": "A forgotten request starts an instance for ever. A week outlasts a "
    "weekend and most runs; the running instance is not ended by it.",
    "launch.on_demand_fallback": "Two to ten times the price is for you to choose, not for a lack "
    "of capacity.",
    "launch.hop_limit": "One hop keeps containers on the machine from the role's credentials.",
    "launch.package": "The version that launches is the version that will run, so that both read "
    "the same configuration.",
    "launch.package_sha256": "There is nothing to compare without a package.",
    "launch.tags": "`spotd:run` is added anyway: it is all that spotd needs.",
    # --- paths
    "paths.state": "The place the file system standard has for it; on the root volume, so that it "
    "survives a stop.",
    "paths.runtime": "In memory, so that a socket or a lock of an earlier boot cannot be mistaken "
    "for one of this.",
}
