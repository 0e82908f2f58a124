"""Every setting, declared once: its type, its default and what it means.

The parser, docs/configuration.md and the commented default file are all read off these
classes, so a key cannot exist in one of them only. Durations are float seconds, sizes
int bytes, paths absolute where the docstring of the field's kind says so.
"""

# ruff: noqa: RUF009 - a key is declared by a call, and what it returns is not mutable

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from spotd.config import kinds, places
from spotd.config.key import declare, section
from spotd.config.launch import LaunchSettings

if TYPE_CHECKING:
    from collections.abc import Mapping


_LONG = 366 * 86400.0
_ON_WARNING = kinds.choice("checkpoint", "notify", "ignore")
# Objects of these classes must be restored, for minutes to days, before they can be read.
_COLD = dict.fromkeys(
    ("GLACIER", "DEEP_ARCHIVE"), "takes hours to read back, and a resume cannot wait for that"
)


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """The training command, and how it is started, stopped and started again."""

    command: tuple[str, ...] = declare(
        kinds.COMMAND,
        "What trains. `{checkpoint}` in it becomes the path of the checkpoint to resume from, and "
        "nothing at the first start; other braces stay as they are.",
        required=True,
        example="python train.py --epochs 90",
    )
    directory: Path = declare(
        places.ABSOLUTE,
        "Where it is started.",
        required=True,
        example="/home/ubuntu/mono_to_3d",
    )
    user: str | None = declare(
        kinds.USER, "Who it runs as. Without it: the user the daemon runs as.", example="ubuntu"
    )
    resume_arguments: tuple[str, ...] = declare(
        kinds.WORDS,
        "Appended to the command when there is a checkpoint; `{checkpoint}` becomes its path.",
        default=[],
        example=["--resume", "{checkpoint}"],
    )
    environment: Mapping[str, str] = declare(
        kinds.ENVIRONMENT,
        "Added to a clean environment.",
        default={},
        example={"OMP_NUM_THREADS": "8"},
        secret=True,
    )
    environment_file: Path | None = declare(
        places.PATH,
        "A file of `NAME=value` lines, added to a clean environment; the place for secrets. "
        "Relative to `trainer.directory`.",
        example="/etc/spotd/trainer.env",
    )
    stop_signal: str = declare(
        kinds.SIGNAL,
        "Tells it to save and end. `SIGINT` for programs that save on KeyboardInterrupt.",
        default="SIGTERM",
    )
    signal_target: str = declare(
        kinds.choice("auto", "main", "group"),
        "Who gets signals. `auto`: the processes of the trainer's tree that catch the signal, "
        "topmost first, ranks rather than torchrun, never DataLoader workers; `main`: the "
        "command's own process; `group`: all of them. A trainer that does not catch the signal "
        "is not signalled: it trains on to the margin, what it saved last is stored, then it is "
        "killed.",
        default="auto",
    )
    checkpoint_signal: str | None = declare(
        kinds.SIGNAL,
        "Makes it save and go on; sent at a rebalance recommendation and by `spotd checkpoint`.",
        example="SIGUSR1",
    )
    preflight: tuple[str, ...] | None = declare(
        kinds.COMMAND,
        "A command that must succeed before each start.",
        example="nvidia-smi",
    )
    preflight_timeout: float = declare(
        kinds.duration(0.1, 86400.0),
        "How long `trainer.preflight` is tried again before the start counts as failed.",
        default="2min",
    )
    backoff_min: float = declare(
        kinds.duration(0.0, 3600.0), "Pause before the first restart after a crash.", default="1s"
    )
    backoff_max: float = declare(
        kinds.duration(0.0, 86400.0),
        "The pause doubles with each crash up to this; progress resets it.",
        default="5min",
    )
    max_failures: int = declare(
        kinds.count(),
        "Crashes in a row without a new checkpoint or step before it gives up (state `failed`).",
        default=5,
    )
    progress_timeout: float | None = declare(
        kinds.duration(1.0, _LONG),
        "No step, no checkpoint and no output for this long: it is stopped and started again. "
        "Without it: never.",
        example="30min",
    )


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """Where the trainer saves, and what of it is a checkpoint."""

    directory: Path = declare(
        places.PATH,
        "Where the trainer saves. Relative to `trainer.directory`.",
        required=True,
        example="results/checkpoints",
    )
    pattern: tuple[str, ...] = declare(
        kinds.PATTERNS,
        "Which names in the directory are checkpoints; files and directories.",
        default="*",
        example=["*.pt", "checkpoint-*"],
    )
    complete: str = declare(
        kinds.MARKER,
        "How a whole checkpoint is told from half of one: `auto`, or the name of a file whose "
        "presence makes a directory complete.",
        default="auto",
    )
    keep_local: int | None = declare(
        kinds.count(),
        "How many verified, stored checkpoints stay on the disk. Without it: none is deleted.",
        example=3,
    )


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where checkpoints are kept beyond the instance. The run's name is added to the URL."""

    url: str = declare(
        places.STORE_URL,
        "`s3://BUCKET/PREFIX`, or `file:///PATH` for a network file system.",
        required=True,
        example="s3://my-bucket/training",
    )
    endpoint_url: str | None = declare(
        places.BASE_URL,
        "Another S3-compatible service.",
        example="https://s3.example.com",
    )
    region: str | None = declare(
        kinds.REGION,
        "The bucket's region. Without it: what the environment and the instance say.",
        example="us-east-1",
    )
    keep: int = declare(
        kinds.count(), "How many checkpoints stay in the store; the newest always does.", default=5
    )
    storage_class: str | None = declare(
        kinds.choice(
            "STANDARD",
            "STANDARD_IA",
            "ONEZONE_IA",
            "INTELLIGENT_TIERING",
            "GLACIER_IR",
            "REDUCED_REDUNDANCY",
            "EXPRESS_ONEZONE",
            refused=_COLD,
        ),
        "S3 storage class. Without it: the bucket's default.",
        example="STANDARD",
    )
    server_side_encryption: str | None = declare(
        kinds.choice("AES256", "aws:kms", "aws:kms:dsse"),
        "How S3 encrypts. Without it: the bucket's default.",
        example="aws:kms",
    )
    kms_key_id: str | None = declare(
        kinds.TEXT,
        "The KMS key for `aws:kms` and `aws:kms:dsse`: id, alias or ARN.",
        example="alias/training",
    )
    bandwidth_limit: int | None = declare(
        kinds.RATE,
        "Bytes per second that uploads may take while training runs; at a notice there is no "
        "limit. Without it: none.",
        example="50MiB",
    )
    start_timeout: float = declare(
        kinds.duration(0.0, _LONG),
        "How long a first start with nothing on the disk waits for a store that does not answer, "
        "before it trains from scratch.",
        default="5min",
    )


@dataclass(frozen=True, slots=True)
class ImdsSettings:
    """The instance metadata service, where notices appear."""

    endpoint: str = declare(
        places.PLAIN_HTTP,
        "Where it answers; over IPv6 `http://[fd00:ec2::254]`.",
        default="http://169.254.169.254",
    )
    poll_interval: float = declare(
        kinds.duration(0.01, 60.0),
        "Between two polls; AWS recommends 5 s. Google and Azure, whose notices leave 30 s, are "
        "asked every second at least.",
        default="5s",
    )
    timeout: float = declare(
        kinds.duration(0.01, 30.0),
        "The longest the question for a notice may take, its token included; a poll's other "
        "questions together have as long again.",
        default="2s",
    )
    v1_fallback: bool = declare(
        kinds.FLAG,
        "Ask without a token where no token can be had (IMDSv1).",
        default=False,
    )


@dataclass(frozen=True, slots=True)
class InterruptionSettings:
    """What happens when the instance is to be taken away."""

    margin: float = declare(
        kinds.duration(0.0, 90.0),
        "Kept free before the deadline: the trainer is killed, and uploads stop, no later.",
        default="10s",
    )
    on_rebalance: str = declare(
        _ON_WARNING,
        "At a rebalance recommendation: `checkpoint` sends `trainer.checkpoint_signal`, `notify` "
        "only tells.",
        default="checkpoint",
    )
    on_scheduled_event: str = declare(
        _ON_WARNING, "At a scheduled maintenance event; the same values.", default="notify"
    )
    not_carried_out_after: float = declare(
        kinds.duration(0.0, 86400.0),
        "Past the deadline and still running this long: the notice was not carried out, and "
        "training goes on.",
        default="5min",
    )
    stop_timeout: float = declare(
        kinds.duration(0.0, 86400.0),
        "How long spotd itself has after SIGTERM where systemd does not say.",
        default="2min",
    )


@dataclass(frozen=True, slots=True)
class CompletionSettings:
    """What happens when the training is complete."""

    action: str = declare(
        kinds.choice("keep", "stop", "terminate"),
        "What becomes of the instance. `terminate` cancels the Spot request first. Refused until "
        "the last checkpoint is in the store.",
        default="keep",
    )


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Figures for Prometheus."""

    textfile: Path | None = declare(
        places.TEXTFILE,
        "A file for node_exporter's textfile collector.",
        example="/var/lib/prometheus/node-exporter/spotd.prom",
    )
    listen: str | None = declare(
        places.LISTEN, "Address and port of a scrape endpoint.", example="127.0.0.1:9464"
    )


@dataclass(frozen=True, slots=True)
class NotifySettings:
    """Who is told of notices, resumes, completion and giving up."""

    webhook_url: str | None = declare(
        places.WEBHOOK_URL,
        "Gets a POST with a Slack-compatible JSON text. Anybody who reads the URL can post to "
        "it: keep it in `webhook_url_file` where others can read this file.",
        example="https://hooks.example.com/services/...",
        secret=True,
    )
    webhook_url_file: Path | None = declare(
        places.ABSOLUTE, "A file that holds that URL.", example="/etc/spotd/webhook-url"
    )
    sns_topic_arn: str | None = declare(
        kinds.TOPIC,
        "An SNS topic.",
        example="arn:aws:sns:us-east-1:123456789012:training",
    )


@dataclass(frozen=True, slots=True)
class CostSettings:
    """Prices, where they cannot be looked up."""

    on_demand_price: float | None = declare(
        kinds.PRICE, "Dollars per hour on demand. Without it: looked up.", example=1.006
    )
    spot_price: float | None = declare(
        kinds.PRICE, "Dollars per hour as Spot. Without it: looked up.", example=0.42
    )
    disk_price: float | None = declare(
        kinds.DISK_PRICE,
        "Dollars per GiB and month of the volumes. Without it: looked up.",
        example=0.08,
    )


@dataclass(frozen=True, slots=True)
class PathSettings:
    """Where the daemon keeps what is its own."""

    state: Path = declare(
        places.ABSOLUTE, "Durable state; must survive a stop.", default="/var/lib/spotd"
    )
    runtime: Path = declare(
        places.ABSOLUTE, "Control socket, trainer socket, lock.", default="/run/spotd"
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole configuration, valid in itself."""

    run: str = declare(
        kinds.RUN_NAME,
        "Names this training run, here and in the store.",
        required=True,
        example="mono-to-3d",
    )
    trainer: TrainerSettings = section(TrainerSettings, required=True)
    checkpoints: CheckpointSettings = section(CheckpointSettings, required=True)
    store: StoreSettings = section(StoreSettings, required=True)
    cloud: str = declare(
        kinds.choice("auto", "ec2", "gce", "azure"),
        "Whose notices are watched for: Amazon EC2, Google Compute Engine or Azure. `auto` asks "
        "the machine itself.",
        default="auto",
    )
    imds: ImdsSettings = section(ImdsSettings)
    interruption: InterruptionSettings = section(InterruptionSettings)
    completion: CompletionSettings = section(CompletionSettings)
    metrics: MetricsSettings = section(MetricsSettings)
    notify: NotifySettings = section(NotifySettings)
    cost: CostSettings = section(CostSettings)
    launch: LaunchSettings = section(LaunchSettings)
    paths: PathSettings = section(PathSettings)
    source_path: Path = field(default=Path("/etc/spotd/spotd.toml"))
