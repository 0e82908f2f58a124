"""The configuration file: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spotd.config import (
    InvalidSettings,
    Settings,
    find,
    load,
    parse,
    permission_problem,
    trainer_arguments,
)
from spotd.config.documents import smallest
from spotd.config.schema import KEYS, SECTIONS
from spotd.errors import EXIT_CONFIG, ConfigError
from spotd.units import format_duration, format_size, parse_duration, parse_size

ROOT = Path(__file__).parents[2]


def with_lines(*lines: str) -> str:
    """The smallest configuration, with dotted keys added or replaced."""
    values: dict[str, dict[str, str]] = {
        "": {"run": '"r"'},
        "trainer": {"command": '"python train.py"', "directory": '"/work/dir"'},
        "checkpoints": {"directory": '"out"'},
        "store": {"url": '"s3://my-bucket/training"'},
    }
    for line in lines:
        name, _, value = line.partition(" = ")
        section, _, key = name.rpartition(".")
        values.setdefault(section, {})[key] = value
    return "\n".join(
        (f"[{section}]\n" if section else "") + "\n".join(f"{k} = {v}" for k, v in keys.items())
        for section, keys in values.items()
    )


def read(*lines: str) -> Settings:
    return parse(with_lines(*lines), "/etc/spotd/spotd.toml")


def refused(*lines: str) -> InvalidSettings:
    with pytest.raises(InvalidSettings) as error:
        read(*lines)
    assert error.value.exit_code == EXIT_CONFIG
    return error.value


# --- what is accepted ---


def test_nine_lines_are_enough():
    settings = parse(smallest(), "/etc/spotd/spotd.toml")
    assert settings.run == "mono-to-3d"
    assert settings.trainer.command == ("python", "train.py", "--epochs", "90")
    assert settings.trainer.user == "ubuntu"
    assert settings.checkpoints.directory == Path("/home/ubuntu/mono_to_3d/results/checkpoints")
    assert settings.source_path == Path("/etc/spotd/spotd.toml")


def test_the_defaults_are_those_of_the_contract():
    settings = read()
    assert settings.trainer.user is None
    assert settings.trainer.resume_arguments == ()
    assert settings.trainer.environment == {}
    assert settings.trainer.stop_signal == "SIGTERM"
    assert settings.trainer.signal_target == "auto"
    assert settings.trainer.checkpoint_signal is None
    assert settings.trainer.preflight is None
    assert settings.trainer.preflight_timeout == 120.0
    assert (settings.trainer.backoff_min, settings.trainer.backoff_max) == (1.0, 300.0)
    assert settings.trainer.max_failures == 5
    assert settings.trainer.progress_timeout is None
    assert settings.checkpoints.pattern == ("*",)
    assert settings.checkpoints.complete == "auto"
    assert settings.checkpoints.keep_local is None
    assert settings.store.keep == 5
    assert settings.store.start_timeout == 300.0
    assert settings.imds.endpoint == "http://169.254.169.254"
    assert (settings.imds.poll_interval, settings.imds.timeout) == (5.0, 2.0)
    assert settings.imds.v1_fallback is False
    assert settings.interruption.margin == 10.0
    assert settings.interruption.on_rebalance == "checkpoint"
    assert settings.interruption.on_scheduled_event == "notify"
    assert settings.interruption.not_carried_out_after == 300.0
    assert settings.interruption.stop_timeout == 120.0
    assert settings.completion.action == "keep"
    assert settings.paths.state == Path("/var/lib/spotd")
    assert settings.paths.runtime == Path("/run/spotd")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('trainer.command = ["python", "a b.py", ""]', ("python", "a b.py", "")),
        ("trainer.command = 'python \"a b.py\"'", ("python", "a b.py")),
        ('trainer.resume_arguments = "--resume {checkpoint}"', ("--resume", "{checkpoint}")),
        ('trainer.stop_signal = "SIGINT"', "SIGINT"),
        ('trainer.stop_signal = "usr1"', "SIGUSR1"),
        ('trainer.progress_timeout = "1h 30min"', 5400.0),
        ("trainer.backoff_min = 0.5", 0.5),
        ('trainer.environment = {A = "1", B = 2}', {"A": "1", "B": "2"}),
        ('trainer.environment_file = "train.env"', Path("/work/dir/train.env")),
        ('checkpoints.pattern = ["*.pt", "last"]', ("*.pt", "last")),
        ('checkpoints.pattern = "*.ckpt"', ("*.ckpt",)),
        ('checkpoints.directory = "/scratch/out"', Path("/scratch/out")),
        ('store.url = "s3://my.bucket-1/a/b/"', "s3://my.bucket-1/a/b"),
        ('store.url = "s3://bucket"', "s3://bucket"),
        ('store.url = "file:///mnt/efs/training/"', "file:///mnt/efs/training"),
        ('store.bandwidth_limit = "50MiB"', 50 * 1024**2),
        ('store.bandwidth_limit = "1MB/s"', 1_000_000),
        ('imds.endpoint = "http://[fd00:ec2::254]/"', "http://[fd00:ec2::254]"),
        ('metrics.listen = "[::1]:9464"', "[::1]:9464"),
        ("cost.spot_price = 1", 1.0),
    ],
)
def test_a_value_is_read_as_what_it_means(line, value):
    holder: object = read(line)
    for part in line.partition(" = ")[0].split("."):
        holder = getattr(holder, part)
    assert holder == value
    assert type(holder) is type(value) or isinstance(value, Path)


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        read().run = "other"  # type: ignore[misc]


# --- what is refused, and in which words ---


@pytest.mark.parametrize(
    ("line", "key", "reason", "hint"),
    [
        ('run = "a/b"', "run", "is not a run name", "letters"),
        ('run = ".hidden"', "run", "is not a run name", ""),
        ('run = ""', "run", "is empty", ""),
        (f'run = "{"x" * 101}"', "run", "is not a run name", "1 to 100"),
        ('trainer.command = ""', "trainer.command", "is empty", ""),
        ("trainer.command = []", "trainer.command", "names no program", ""),
        ("trainer.command = 5", "trainer.command", "is a whole number", ""),
        ('trainer.command = ["a", 5]', "trainer.command", "entry (number 2)", ""),
        ("trainer.command = '''a \"b'''", "trainer.command", "cannot be split", ""),
        ('trainer.command = "python a.py > log"', "trainer.command", '">"', "bash"),
        ('trainer.command = "cd x && python a.py"', "trainer.command", '"&&"', "bash"),
        ('trainer.command = "A=1 python a.py"', "trainer.command", "assignment", "environment"),
        ('trainer.command = "~/train"', "trainer.command", '"~"', "write the path out"),
        ('trainer.command = "a\\u0000b"', "trainer.command", "control character", ""),
        ('trainer.directory = "here"', "trainer.directory", "not an absolute path", ""),
        ('trainer.user = "a b"', "trainer.user", "not a user name", ""),
        ('trainer.user = "-x"', "trainer.user", "not a user name", ""),
        ('trainer.stop_signal = "SIGKILL"', "trainer.stop_signal", "cannot be caught", "SIGTERM"),
        ('trainer.stop_signal = "SIGTERN"', "trainer.stop_signal", "not a signal", "SIGTERM"),
        ('trainer.stop_signal = "SIGCHLD"', "trainer.stop_signal", "to save", "SIGINT"),
        ("trainer.stop_signal = 15", "trainer.stop_signal", "15 is a whole number", ""),
        ('trainer.signal_target = "grup"', "trainer.signal_target", "one of auto", "group"),
        ('trainer.backoff_min = "1 fortnight"', "trainer.backoff_min", '"fortnight"', ""),
        ('trainer.backoff_min = "10min"', "trainer.backoff_max", "less than", ""),
        ("trainer.max_failures = 0", "trainer.max_failures", "between 1", ""),
        ("trainer.max_failures = true", "trainer.max_failures", "true or false", ""),
        ("trainer.max_failures = 2.5", "trainer.max_failures", "a whole number is wanted", ""),
        ("trainer.progress_timeout = inf", "trainer.progress_timeout", "duration", ""),
        ("trainer.progress_timeout = nan", "trainer.progress_timeout", "duration", ""),
        ("trainer.progress_timeout = -1", "trainer.progress_timeout", "duration", ""),
        ("trainer.progress_timeout = 2026-11-21", "trainer.progress_timeout", "a date", ""),
        ('trainer.environment = "A=1"', "trainer.environment", "section of names", ""),
        ('trainer.environment = {"A B" = "1"}', "trainer.environment.A B", "not the name", ""),
        ('trainer.environment = {SPOTD_RUN = "1"}', "trainer.environment.SPOTD_RUN", "itself", ""),
        ("trainer.environment = {A = true}", "trainer.environment.A", "text or a number", "text"),
        ("checkpoints.pattern = []", "checkpoints.pattern", "empty list", ""),
        ('checkpoints.pattern = "a/*"', "checkpoints.pattern", '"/"', "directly in"),
        ('checkpoints.complete = "a/b"', "checkpoints.complete", "not a file name", ""),
        ("checkpoints.keep_local = 0", "checkpoints.keep_local", "between 1", ""),
        ('store.url = "my-bucket"', "store.url", "is not a store", "s3://"),
        ('store.url = "gs://bucket"', "store.url", "is not a store", "s3://"),
        ('store.url = "s3://"', "store.url", "names no bucket", ""),
        ('store.url = "s3://My_Bucket/x"', "store.url", "bucket name", "lower-case"),
        ('store.url = "s3://ab"', "store.url", "bucket name", "3 to 63"),
        ('store.url = "s3://10.0.0.1/x"', "store.url", "IP address", "endpoint_url"),
        ('store.url = "s3://bucket/a//b"', "store.url", "empty", ""),
        ('store.url = "s3://bucket/../b"', "store.url", "..", ""),
        ('store.url = "file://host/x"', "store.url", "names a host", "mount"),
        ('store.url = "file:///"', "store.url", "directory of its own", ""),
        ('store.url = "file:///work/dir/out/store"', "store.url", "inside", "of its own"),
        ('store.storage_class = "GLACIER"', "store.storage_class", "hours", ""),
        ('store.storage_class = "STANDART"', "store.storage_class", "one of", "STANDARD"),
        ('store.kms_key_id = "alias/x"', "store.kms_key_id", "KMS", "aws:kms"),
        ("store.bandwidth_limit = 5", "store.bandwidth_limit", "1KiB", "MiB"),
        ('store.bandwidth_limit = "5 MiX"', "store.bandwidth_limit", '"MiX"', ""),
        ('store.endpoint_url = "https://u:p@h"', "store.endpoint_url", "password", ""),
        ('imds.endpoint = "169.254.169.254"', "imds.endpoint", "not an http", ""),
        ('imds.endpoint = "https://169.254.169.254"', "imds.endpoint", "not an http", ""),
        ('imds.endpoint = "http://h:99999"', "imds.endpoint", "not an http", ""),
        ('imds.endpoint = "http://h/latest"', "imds.endpoint", "behind the host", ""),
        ("imds.poll_interval = 0", "imds.poll_interval", "less than 10ms", ""),
        ('imds.poll_interval = "2min"', "imds.poll_interval", "more than 1min", ""),
        ('imds.v1_fallback = "true"', "imds.v1_fallback", "true or false", "quotes"),
        ('interruption.margin = "2min"', "interruption.margin", "more than", ""),
        ('completion.action = "shutdown"', "completion.action", "one of keep", ""),
        ('metrics.textfile = "/x/spotd.txt"', "metrics.textfile", ".prom", "node_exporter"),
        ('metrics.listen = "9464"', "metrics.listen", "ADDRESS:PORT", ""),
        ('metrics.listen = ":70000"', "metrics.listen", "ADDRESS:PORT", ""),
        ('notify.sns_topic_arn = "topic"', "notify.sns_topic_arn", "ARN", "arn:aws:sns"),
        ("cost.spot_price = 0", "cost.spot_price", "no price", ""),
        ("cost.spot_price = nan", "cost.spot_price", "no price", ""),
        ('paths.state = "state"', "paths.state", "absolute", ""),
        ('paths.state = "/run/spotd"', "paths.runtime", "same directory", ""),
        (f'paths.runtime = "/{"r" * 94}"', "paths.runtime", "longer than 94 bytes", ""),
        ('cloud = "aws"', "cloud", "one of auto", ""),
    ],
)
def test_an_impossible_value_is_refused_with_key_reason_and_advice(line, key, reason, hint):
    error = refused(line)
    (problem,) = error.problems
    assert problem.key == key
    assert reason in problem.reason
    assert hint in problem.hint
    assert error.message == f"/etc/spotd/spotd.toml: {key}: {problem.reason}"
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("line", "key", "hint"),
    [
        ('trainer.comand = "x"', "trainer.comand", "trainer.command"),
        ('trainer.keep = "x"', "trainer.keep", "store.keep? It stands below [store]"),
        ("trainer.run = 1", "trainer.run", "run? It stands above the first [section]"),
        ('comand = "x"', "comand", "trainer.command"),
        ('storage.url = "x"', "storage", "store"),
        ('store.URL = "x"', "store.URL", "store.url"),
        ("xyzzy = 1", "xyzzy", "known here: run"),
        ("imds.qqq = 1", "imds.qqq", "known here: endpoint"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_name(line, key, hint):
    (problem,) = refused(line).problems
    assert (problem.key, problem.reason) == (key, "there is no such key")
    assert hint in problem.hint


def test_a_file_store_takes_no_s3_settings():
    error = refused('store.url = "file:///mnt/x"', 'store.storage_class = "STANDARD"')
    assert [p.key for p in error.problems] == ["store.storage_class"]


def test_two_webhooks_contradict_each_other():
    error = refused('notify.webhook_url = "https://h/x"', 'notify.webhook_url_file = "/x"')
    assert [p.key for p in error.problems] == ["notify.webhook_url_file"]


def test_two_signals_cannot_be_one():
    error = refused('trainer.checkpoint_signal = "SIGTERM"')
    assert [p.key for p in error.problems] == ["trainer.checkpoint_signal"]


def test_all_problems_are_found_in_one_go_and_the_first_is_in_the_first_line():
    error = refused("trainer.max_failures = 0", 'store.url = "x"', "imds.tiemout = 1")
    assert [p.key for p in error.problems] == ["imds.tiemout", "trainer.max_failures", "store.url"]
    assert error.message == "/etc/spotd/spotd.toml: imds.tiemout: there is no such key"
    assert error.hint.endswith("2 more problems: trainer.max_failures, store.url")
    assert "did you mean imds.timeout?" in error.hint


def test_an_empty_file_lacks_every_required_key():
    with pytest.raises(InvalidSettings) as error:
        parse("", "x.toml")
    required = [name for name, key in KEYS.items() if key.required]
    assert [p.key for p in error.value.problems] == required
    assert {p.reason for p in error.value.problems} == {"is missing"}


@pytest.mark.parametrize("text", ["trainer = 3", "[[trainer]]\nuser = 'x'", "trainer = 'x'"])
def test_a_section_that_is_none_is_one_problem_not_many(text):
    with pytest.raises(InvalidSettings) as error:
        parse(text, "x.toml")
    assert [p.key for p in error.value.problems if p.key.startswith("trainer")] == ["trainer"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("run = x", "line 1, column 7"),
        ('run = "a"\n[trainer\n', "line 2"),
        ("a = 1\na = 2\n", "line 2"),
        ('run = "a', "line 1"),
    ],
)
def test_a_syntax_error_has_its_line_and_column(text, place):
    with pytest.raises(InvalidSettings, match="is not TOML") as error:
        parse(text, "x.toml")
    assert place in error.value.message


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 50_000, "a = " + "9" * 10_000, "a." * 5000 + "a = 1"]
)
def test_text_that_no_person_wrote_is_refused(text):
    with pytest.raises(InvalidSettings):
        parse(text, "x.toml")


SECRET = "hunter2-T0KEN"


@pytest.mark.parametrize(
    "line",
    [
        f'notify.webhook_url = "htp://{SECRET}"',
        f'notify.webhook_url = "https://h/{SECRET}\\u0007"',
        f'notify.webhook_url = ["{SECRET}"]',
        f'notify.webhook_url = {{ url = "{SECRET}" }}',
        f'trainer.environment = "{SECRET}"',
        f'trainer.command = "KEY={SECRET} python train.py"',
        f'trainer.environment = {{ A = ["{SECRET}"] }}',
        f'trainer.environment = {{ A = "{SECRET}\\u0000" }}',
        f'store.endpoint_url = "https://user:{SECRET}@h/"',
    ],
)
def test_a_secret_is_never_repeated(line):
    error = refused(line)
    assert SECRET not in str(error) + "".join(map(str, error.problems))


def test_a_secret_is_not_in_the_representation():
    settings = read(
        f'notify.webhook_url = "https://h/{SECRET}"', f'trainer.environment = {{ K = "{SECRET}" }}'
    )
    assert SECRET not in repr(settings)


# --- finding and reading the file ---


def test_the_argument_wins_over_the_environment_and_that_over_the_default(monkeypatch):
    monkeypatch.setenv("SPOTD_CONFIG", "/from/environment.toml")
    assert find("/from/argument.toml") == Path("/from/argument.toml")
    assert find(None) == Path("/from/environment.toml")
    monkeypatch.delenv("SPOTD_CONFIG")
    assert find(None) == Path("/etc/spotd/spotd.toml")


def test_a_file_is_loaded_and_its_path_kept(tmp_path, monkeypatch):
    (tmp_path / "spotd.toml").write_bytes(b"\xef\xbb\xbf" + with_lines().encode())
    monkeypatch.chdir(tmp_path)
    assert load("spotd.toml").source_path == tmp_path / "spotd.toml"


def unreadable(tmp_path, kind):
    path = tmp_path / "spotd.toml"
    if kind == "directory":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b'run = "a"\nx = "\xff"\n')
    elif kind == "huge":
        path.write_bytes(b"#" * (1024 * 1024 + 1))
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "no such file"),
        ("directory", "cannot be read"),
        ("binary", "line 2 is not UTF-8"),
        ("huge", "larger than 1MiB"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, kind, said):
    with pytest.raises(ConfigError, match=said) as error:
        load(str(unreadable(tmp_path, kind)))
    assert error.value.exit_code == EXIT_CONFIG
    assert str(tmp_path) in error.value.message


def test_a_path_that_is_none_is_refused():
    with pytest.raises(ConfigError):
        load("a\0b")


def test_the_command_says_everything_that_is_wrong_and_exits_with_78(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(with_lines("trainer.max_failures = 0", "cost.spot_price = 0"))
    done = subprocess.run(
        [sys.executable, "-m", "spotd.config", str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == EXIT_CONFIG
    assert done.stdout == ""
    first, second, _ = done.stderr.splitlines()
    assert first.startswith("trainer.max_failures: ")
    assert second.startswith("cost.spot_price: ")


def test_reading_a_configuration_loads_no_client_of_anything():
    heavy = {"boto3", "requests", "http.client", "ssl", "asyncio", "email", "difflib", "argparse"}
    code = "import sys, spotd.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not heavy & set(done.stdout.split())


# --- what follows from settings ---


def test_the_command_line_has_the_checkpoint_only_when_there_is_one():
    trainer = read(
        """trainer.command = 'train --from={checkpoint} --json "{a}" {checkpoints}'""",
        'trainer.resume_arguments = ["--resume", "{checkpoint}"]',
    ).trainer
    assert trainer_arguments(trainer, None) == (
        "train", "--from=", "--json", "{a}", "{checkpoints}",
    )  # fmt: skip
    assert trainer_arguments(trainer, "/c/a b") == (
        "train", "--from=/c/a b", "--json", "{a}", "{checkpoints}", "--resume", "/c/a b",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "line", "said"),
    [
        (0o644, "trainer.max_failures = 3", None),
        (0o666, "trainer.max_failures = 3", "written by anybody"),
        (0o644, 'notify.webhook_url = "https://h/x"', "notify.webhook_url"),
        (0o640, 'notify.webhook_url = "https://h/x"', None),
        (0o644, 'trainer.environment = { WANDB_API_KEY = "x" }', "WANDB_API_KEY"),
        (0o644, 'trainer.environment = { DB = "mysql://u:p@h/x" }', "environment.DB"),
        (0o644, 'trainer.environment = { THREADS = "4" }', None),
    ],
)
def test_a_mode_that_gives_secrets_or_power_away_is_a_problem(tmp_path, mode, line, said):
    path = tmp_path / "spotd.toml"
    path.write_text("")
    path.chmod(mode)
    problem = permission_problem(path, read(line))
    assert problem is None if said is None else said in (problem or "")


# --- whatever comes ---

NAMES = st.sampled_from([*KEYS, *(f"{name}x" for name in KEYS), "a.b.c", '"".x', '" "'])
TOML = st.recursive(
    st.booleans().map(lambda b: str(b).lower())
    | st.integers(-(10**6), 10**20).map(str)
    | st.floats().map(repr)
    | st.sampled_from(["2026-11-21", "07:32:00", '"1h"', '"s3://a-b/c"', '"x.prom"', '"SIGINT"'])
    | st.text(max_size=20).map(lambda text: '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda v: f"[{', '.join(v)}]")
        | st.lists(inner, max_size=2).map(
            lambda v: "{" + ", ".join(f"k{n} = {e}" for n, e in enumerate(v)) + "}"
        )
    ),
    max_leaves=6,
)


def check(text: str) -> None:
    try:
        settings = parse(text, "x.toml")
    except InvalidSettings as error:
        said = [error.message, error.hint, *map(str, error.problems)]
    else:
        assert isinstance(settings, Settings)
        return
    assert said[0].startswith("x.toml: ")
    assert all("\n" not in line and "\x1b" not in line for line in said)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=300))
def test_any_text_is_settings_or_refused(text):
    check(text)


@settings(max_examples=600, deadline=None)
@given(pairs=st.lists(st.tuples(NAMES, TOML), max_size=6))
def test_any_values_of_any_keys_are_settings_or_refused(pairs):
    check("\n".join(f"{name} = {value}" for name, value in pairs))


@settings(max_examples=600, deadline=None)
@given(name=st.sampled_from(sorted(KEYS)), value=TOML)
def test_any_value_of_one_key_in_a_valid_file_is_its_problem_alone(name, value):
    try:
        parse(with_lines(f"{name} = {value}"), "x.toml")
    except InvalidSettings as error:
        keys = {p.key for p in error.problems}
    else:
        return
    section = name.rpartition(".")[0]
    assert all(key.startswith(section) for key in keys), keys


def test_every_section_of_the_settings_is_in_the_table():
    assert [name for name in SECTIONS if name] == [
        name
        for name in Settings.__dataclass_fields__
        if name not in ("run", "cloud", "source_path")
    ]


# --- units ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90.0), (1.5, 1.5), ("90", 90.0), ("90s", 90.0), ("2min", 120.0), ("1h 30min", 5400.0),
        ("1h30min", 5400.0), (" 1 h ", 3600.0), ("250ms", 0.25), ("1.5h", 5400.0),
        ("2 days", 172800.0),
        (0, 0.0),
    ],
)  # fmt: skip
def test_a_duration_is_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "s", "1x", "-1s", "1h-30min", "1h,30min", "1e3s", "0x10", "१s", None, True,
             [], float("nan"), float("inf"), 10**400, "9" * 16, "1M"]
)  # fmt: skip
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"is|has"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0), (4096, 4096), ("4096", 4096), ("64MiB", 64 * 1024**2), ("64MB", 64_000_000),
        ("64M", 64 * 1024**2), ("1.5 GiB", 1536 * 1024**2), ("10kB", 10_000), ("10KB", 10_000),
        ("1B", 1),
    ],
)  # fmt: skip
def test_a_size_is_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "1 mib", "-1", "1 2", "1PiBx", None, True, 1e30])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"is|has"):
        parse_size(text)


@given(milliseconds=st.integers(0, 10**11))
def test_a_duration_is_written_so_that_it_is_read_back(milliseconds):
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(
        milliseconds / 1000
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1KiB"), (1536, "1.5KiB"), (5 * 1024**4, "5TiB")],
)
def test_a_size_is_written_for_people(size, text):
    assert format_size(size) == text


def test_the_text_of_the_module_example_is_valid():
    example = textwrap.dedent(
        """
        run = "r"
        [trainer]
        command = "python train.py"
        directory = "/d"
        [checkpoints]
        directory = "c"
        [store]
        url = "file:///mnt/efs/training"
        """
    )
    assert parse(example, os.devnull).store.url == "file:///mnt/efs/training"
