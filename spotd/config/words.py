"""What follows from settings without asking the world: arguments, and who may read them."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from spotd.config.kinds import CHECKPOINT_PLACEHOLDER

if TYPE_CHECKING:
    from spotd.config.settings import Settings, TrainerSettings

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def trainer_arguments(trainer: TrainerSettings, checkpoint: str | None) -> tuple[str, ...]:
    """The command line to execute.

    Args:
        trainer: Its `command`, and `resume_arguments` when there is a checkpoint.
        checkpoint: The absolute path to resume from; None at a first start, when the
            placeholder in the command becomes "".
    """
    words = trainer.command + (trainer.resume_arguments if checkpoint is not None else ())
    return tuple(word.replace(CHECKPOINT_PLACEHOLDER, checkpoint or "") for word in words)


def permission_problem(path: str | os.PathLike[str], settings: Settings) -> str | None:
    """Why the file's mode is dangerous, in one line, or None.

    Whoever may write it decides what runs, as root where the daemon is root; whoever may
    read it reads the secrets in it. Raises OSError when the file cannot be looked at.
    """
    found = Path(path).stat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in (0, os.geteuid()):
        return (
            f"{path} is owned by user {found.st_uid}, who can change what runs (chown root {path})"
        )
    if mode & stat.S_IWOTH:
        return f"{path} can be written by anybody (chmod o-w {path})"
    secret = secret_in(settings)
    if secret and mode & stat.S_IROTH:
        return f"{path} holds {secret} and can be read by anybody (chmod 600 {path})"
    return None


def secret_in(settings: Settings) -> str | None:
    """The name of a setting that looks like a secret, or None."""
    if settings.notify.webhook_url:
        return "notify.webhook_url"
    for name, value in settings.trainer.environment.items():
        if _SECRET_NAME.search(name) or urlsplit_password(value):
            return f"trainer.environment.{name}"
    return None


def urlsplit_password(text: str) -> bool:
    """Whether the text is a URL with a password in it."""
    try:
        return bool(urlsplit(text).password)
    except ValueError:
        return False
