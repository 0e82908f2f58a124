"""The configuration file: read once, checked whole, never half believed.

    settings = load(None)

`load` finds and reads the file, `parse` reads text. Both return a `Settings` that is
valid in itself, or raise `InvalidSettings` with every problem of the file; whether the
user, the directory or the bucket exist is a question for `spotd check`.

Python's tomllib does the reading: TOML 1.0, https://toml.io/en/v1.0.0.
"""

from __future__ import annotations

import os
from pathlib import Path

from spotd.config.launch import LaunchSettings
from spotd.config.reader import InvalidSettings, Problem, parse
from spotd.config.settings import (
    CheckpointSettings,
    CompletionSettings,
    CostSettings,
    ImdsSettings,
    InterruptionSettings,
    MetricsSettings,
    NotifySettings,
    PathSettings,
    Settings,
    StoreSettings,
    TrainerSettings,
)
from spotd.config.words import permission_problem, trainer_arguments
from spotd.errors import ConfigError

__all__ = [
    "DEFAULT_PATH",
    "CheckpointSettings",
    "CompletionSettings",
    "CostSettings",
    "ImdsSettings",
    "InterruptionSettings",
    "InvalidSettings",
    "LaunchSettings",
    "MetricsSettings",
    "NotifySettings",
    "PathSettings",
    "Problem",
    "Settings",
    "StoreSettings",
    "TrainerSettings",
    "find",
    "load",
    "parse",
    "permission_problem",
    "trainer_arguments",
]

DEFAULT_PATH = "/etc/spotd/spotd.toml"
_LARGEST = 1024 * 1024


def find(path: str | None) -> Path:
    """Where the configuration is: the argument, else $SPOTD_CONFIG, else /etc/spotd/spotd.toml."""
    return Path(path or os.environ.get("SPOTD_CONFIG") or DEFAULT_PATH).absolute()


def load(path: str | None) -> Settings:
    """Read and check the configuration file.

    Raises:
        ConfigError: It cannot be read.
        InvalidSettings: It was read and cannot be used.
    """
    source = find(path)
    try:
        with source.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"{source}: there is no such file",
            hint="write one (docs/getting-started.md and docs/configuration.md show how), "
            "or name another with --config or $SPOTD_CONFIG",
        ) from None
    except OSError as error:
        hint = "use sudo" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
        raise ConfigError(f"{source}: cannot be read: {error.strerror}", hint=hint) from None
    except ValueError:  # a NUL in the path
        raise ConfigError("the configuration's path is no path") from None
    if len(content) > _LARGEST:
        raise ConfigError(f"{source}: is larger than 1MiB, so it is no configuration")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source}: line {line} is not UTF-8", hint="save it as UTF-8") from None
    return parse(text, str(source))
