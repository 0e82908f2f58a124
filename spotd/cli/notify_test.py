"""`spotd notify-test`: sends a test message to everybody the configuration names."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, print_json, settings_of
from spotd.errors import EXIT_DONE, EXIT_FAILED, SpotdError

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    add_options(verbs.add_parser("notify-test", help="send a test message to webhook and SNS"))


def run(options: argparse.Namespace) -> int:
    """Sends it, waiting for each answer; fails when one was not taken.

    Raises:
        SpotdError: The configuration names nobody.
    """
    from spotd.shell.messages.messenger import addresses_of  # noqa: PLC0415 - only here
    from spotd.shell.messages.send import send  # noqa: PLC0415

    settings = settings_of(options)
    addresses = addresses_of(settings.notify)
    if not addresses.channels:
        raise SpotdError(
            "nobody is to be told: [notify] is empty",
            hint="set notify.webhook_url_file or notify.sns_topic_arn",
        )
    text = f"{settings.run}: a test message from {socket.gethostname()}"
    rows = []
    for channel in addresses.channels:
        row: dict[str, Any] = {"channel": channel, "ok": True, "reason": "", "hint": ""}
        try:
            send(addresses, channel, text, subject="spotd: test", key=f"test-{time.time_ns()}")
        except SpotdError as error:
            row |= {"ok": False, "reason": error.message, "hint": error.hint}
        rows.append(row)
        if not options.json:
            print(f"{channel}: told" if row["ok"] else f"{channel}: NOT told: {row['reason']}")
            if row["hint"]:
                print(f"{'':{len(channel)}}  {row['hint']}")
    good = all(r["ok"] for r in rows)
    if options.json:
        print_json({"ok": good, "channels": rows})
    return EXIT_DONE if good else EXIT_FAILED
