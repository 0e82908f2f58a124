"""`spotd user-data`: what to paste into a launch template."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import spotd
from spotd.cli.common import add_options, settings_of
from spotd.config.words import secret_in
from spotd.errors import EXIT_DONE, SpotdError
from spotd.user_data import Source, Volume, render

if TYPE_CHECKING:
    import argparse

    from spotd.config import Settings

DEFAULT_PACKAGE = f"spotd=={spotd.__version__}"


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("user-data", help="print cloud-init user data for this configuration")
    add_options(p, as_json=False)
    p.add_argument(
        "--package",
        metavar="WHAT",
        default=DEFAULT_PACKAGE,
        help="s3://BUCKET/KEY or URL of a .deb or .rpm, or what pip installs (%(default)s)",
    )
    p.add_argument("--sha256", metavar="HEX", default="", help="what the .deb or .rpm must hash to")
    p.add_argument("--data-device", metavar="DEVICE", help="format it if it is blank, and mount it")
    p.add_argument("--data-mount", metavar="DIR", default="/data", help="where (default: /data)")


def run(options: argparse.Namespace) -> int:
    """Prints the user data."""
    settings = settings_of(options)
    volume = None
    if options.data_device:
        owner = settings.trainer.user or "root"
        volume = Volume(options.data_device, options.data_mount, owner)
    sys.stdout.write(text_of(settings, options.package, options.sha256, volume))
    return EXIT_DONE


def text_of(settings: Settings, package: str, sha256: str, volume: Volume | None = None) -> str:
    """The user data of a configuration, from its own file.

    Raises:
        SpotdError: It holds a secret, or cannot be made.
    """
    _refuse_secrets(settings)
    source = Source(package, sha256, settings.store.endpoint_url or "")
    text = Path(settings.source_path).read_text(encoding="utf-8-sig")
    return render(text, source=source, volume=volume)


def _refuse_secrets(settings: Settings) -> None:
    """User data can be read by every process of the instance, so it must not hold any.

    Raises:
        SpotdError: The configuration does.
    """
    if name := secret_in(settings):
        raise SpotdError(
            f"{name} looks like a secret, and every process of the instance can read user data",
            hint="put it into trainer.environment_file or notify.webhook_url_file on the instance",
        )
