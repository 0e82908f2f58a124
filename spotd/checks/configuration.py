"""The configuration beyond its syntax: what it names must be there and be kept well."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from spotd.checks import Finding, Surroundings, failed, ok, warning
from spotd.config.words import permission_problem

if TYPE_CHECKING:
    from pathlib import Path

    from spotd.config import InvalidSettings
    from spotd.errors import ConfigError

SUBJECT = "configuration"


def judge_invalid(error: ConfigError) -> list[Finding]:
    """One line for each problem of a configuration that cannot be used."""
    problems = getattr(error, "problems", ())
    if not problems:
        return [failed(SUBJECT, error.message, error.hint)]
    invalid: InvalidSettings = error  # type: ignore[assignment]
    return [
        failed(SUBJECT, f"{invalid.source}: {p.key}: {p.reason}" if p.key else p.reason, p.hint)
        for p in problems
    ]


def probe(around: Surroundings) -> list[Finding]:
    """Looks at the file, and at the files it names."""
    settings = around.settings
    found = []
    text = permission_problem(settings.source_path, settings)
    if text:
        found.append(failed(SUBJECT, text, "or use trainer.environment_file, webhook_url_file"))
    else:
        found.append(ok(SUBJECT, f"{settings.source_path}, run {settings.run}"))
    for key, path in (("notify.webhook_url_file", settings.notify.webhook_url_file),):
        if path is not None:
            found += judge_secret(key, path, _mode(path))
    if settings.metrics.textfile is not None:
        found += judge_folder("metrics.textfile", settings.metrics.textfile.parent)
    return found


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except OSError:
        return None


def judge_secret(key: str, path: Path, mode: int | None) -> list[Finding]:
    """Decides about a file that holds a secret; `mode` None: it is not there."""
    if mode is None:
        return [failed(key, f"{path} is not there", "write it, root's own, mode 0600")]
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        return [warning(key, f"others can read {path}", f"chmod 600 {path}")]
    return [ok(key, f"{path} is there, and for nobody else")]


def judge_folder(key: str, path: Path) -> list[Finding]:
    """Decides about a directory that must be there."""
    if not path.is_dir():
        return [failed(key, f"{path} is not there", f"make it: sudo mkdir -p {path}")]
    if not os.access(path, os.W_OK):
        return [failed(key, f"{path} cannot be written to", "correct its owner, or run as root")]
    return []
