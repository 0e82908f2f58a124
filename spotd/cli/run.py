"""`spotd run`: the daemon, in the foreground."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, settings_of
from spotd.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from spotd.config import Settings


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("run", help="the daemon, in the foreground")
    add_options(p, as_json=False)


def run(options: argparse.Namespace) -> int:
    """Runs the daemon until it is asked to stop."""
    from spotd.shell.store.early import begin, spawn  # noqa: PLC0415 - and it imports little

    begun = None
    if os.getpid() != 1:
        # It gets ready while we do. It knows nothing and asks nobody until the configuration
        # has been found good, and ends with us.
        with contextlib.suppress(OSError):  # tried again, and told of, when it is needed
            begun = begin()
    settings = _good_settings(options)
    if os.getpid() == 1:
        from spotd.shell.init import become_init  # noqa: PLC0415

        status = become_init()
        if status is not None:
            return status
    from spotd.shell.store.settings import StoreSettings  # noqa: PLC0415

    worker = None
    with contextlib.suppress(OSError):
        worker = spawn(StoreSettings.of(settings.store), settings.run, early=True, begun=begun)
    from spotd.shell.daemon import Daemon  # noqa: PLC0415

    return Daemon(settings, worker).run()


def _good_settings(options: argparse.Namespace) -> Settings:
    """Reads the configuration: a wrong one starts nothing, and is said to systemd.

    Raises:
        ConfigError: It cannot be used.
    """
    from spotd.config import permission_problem  # noqa: PLC0415
    from spotd.shell.notify import Notifier  # noqa: PLC0415

    try:
        settings = settings_of(options)
        if problem := permission_problem(settings.source_path, settings):
            raise ConfigError(problem)  # noqa: TRY301 - shown like any other
    except ConfigError as e:
        Notifier().status(f"configuration: {e.message}")  # the line `systemctl status` shows
        raise
    return settings
