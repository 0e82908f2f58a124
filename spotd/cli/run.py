"""`spotd run`: the daemon, in the foreground."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, settings_of
from spotd.config import permission_problem
from spotd.errors import ConfigError
from spotd.shell.init import become_init
from spotd.shell.notify import Notifier

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("run", help="the daemon, in the foreground")
    add_options(p, as_json=False)


def run(options: argparse.Namespace) -> int:
    """Runs the daemon until it is asked to stop."""
    try:
        settings = settings_of(options)
        if problem := permission_problem(settings.source_path, settings):
            raise ConfigError(problem)  # noqa: TRY301 - shown like any other
    except ConfigError as e:
        Notifier().status(f"configuration: {e.message}")  # the line `systemctl status` shows
        raise
    # From here on: a wrong configuration starts nothing.
    if os.getpid() == 1:
        status = become_init()
        if status is not None:
            return status
    from spotd.shell.store.early import spawn  # noqa: PLC0415
    from spotd.shell.store.settings import StoreSettings  # noqa: PLC0415

    worker = None
    with contextlib.suppress(OSError):  # tried again, and told of, when it is needed
        # It gets ready while we do.
        worker = spawn(StoreSettings.of(settings.store), settings.run, early=True)
    from spotd.shell.daemon import Daemon  # noqa: PLC0415

    return Daemon(settings, worker).run()
