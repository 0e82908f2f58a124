"""The trainer: its user, its directory, its command; whether it caught the last signal."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spotd.checks import Finding, Surroundings, failed, ok, warning
from spotd.shell.history import read
from spotd.shell.trainer.account import Account, StartRefused, clean_environment, find_account

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spotd.config import Settings

SUBJECT = "trainer"


@dataclass(frozen=True, slots=True)
class Facts:
    """`refused` and `hint`: why it cannot be this user. `program`: where the command was found."""

    user: str
    refused: str = ""
    hint: str = ""
    directory: Path = Path()
    directory_there: bool = True
    command: str = ""
    program: str | None = None
    caught: bool | None = None


def probe(around: Surroundings) -> list[Finding]:
    """Looks."""
    settings = around.settings
    trainer = settings.trainer
    caught = signal_was_caught(
        e.get("event", "") for e in read(settings.paths.state / settings.run / "history.jsonl")
    )
    directory = trainer.directory
    try:
        account = find_account(trainer.user)
    except StartRefused as refusal:
        return judge(Facts(trainer.user or "", refusal.reason, refusal.hint))
    return judge(
        Facts(
            user=account.name,
            directory=directory,
            directory_there=directory.is_dir(),
            command=trainer.command[0],
            program=_find(settings, account),
            caught=caught,
        )
    )


def _find(settings: Settings, account: Account) -> str | None:
    """Where the trainer's user would find the command; as execvp(3), mode bits and all."""
    name = settings.trainer.command[0]
    path = settings.trainer.environment.get("PATH", clean_environment(account)["PATH"])
    folders = [""] if "/" in name else path.split(":")
    for folder in folders:
        candidate = settings.trainer.directory / folder / name
        try:
            status = candidate.stat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and _may_execute(status, account):
            return str(candidate)
    return None


def _may_execute(status: os.stat_result, account: Account) -> bool:
    if account.uid == 0:
        return bool(status.st_mode & 0o111)
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    groups = account.groups or tuple(os.getgroups())
    if status.st_gid in (account.gid, *groups):
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def signal_was_caught(events: Iterable[str]) -> bool | None:
    """Whether the trainer caught the last stop signal meant for it; None before the first."""
    caught = None
    for event in events:
        if event in ("stop_signal_sent", "stop_signal_uncaught"):
            caught = event == "stop_signal_sent"
    return caught


def judge(facts: Facts) -> list[Finding]:
    """Decides."""
    if facts.refused:
        return [failed(SUBJECT, facts.refused, facts.hint)]
    if not facts.directory_there:
        advice = "make it, mount it, or correct trainer.directory"
        return [failed(SUBJECT, f"trainer.directory {facts.directory} is not there", advice)]
    if facts.program is None:
        advice = "write its whole path in trainer.command, or set PATH in trainer.environment"
        text = f"user {facts.user} finds no program {facts.command!r}"
        return [failed(SUBJECT, text, advice)]
    found = [ok(SUBJECT, f"{facts.program} as user {facts.user} in {facts.directory}")]
    if facts.caught is False:
        advice = "let it save more often, or install a handler for the signal (docs/trainer.md)"
        text = "it caught no stop signal the last time: what follows its last save is lost"
        found.append(warning("stop signal", text, advice))
    elif facts.caught:
        found.append(ok("stop signal", "the trainer caught the last one"))
    return found
