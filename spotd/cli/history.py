"""`spotd history`: what happened to the run on this machine, and what it cost in time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, print_json, settings_of
from spotd.core.status import age
from spotd.core.words import readable, readable_lines
from spotd.errors import EXIT_DONE
from spotd.shell.history import read

if TYPE_CHECKING:
    import argparse

# What the short form leaves out: it happens all the time, or explains another line.
_DETAILS = frozenset({"checkpoint_seen", "boot_classified", "checkpoint_requested", "training"})
_GONE = frozenset({"trainer_exited", "trainer_killed"})


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("history", help="what happened to the run")
    add_options(p)
    p.add_argument("--all", action="store_true", help="every line, not only the changes")


def run(options: argparse.Namespace) -> int:
    """Prints the history of the run."""
    settings = settings_of(options)
    entries = list(read(settings.paths.state / settings.run / "history.jsonl"))
    if options.json:
        print_json(entries)
        return EXIT_DONE
    if not entries:
        print(f"nothing has happened to run {settings.run} on this machine yet")
        return EXIT_DONE
    for entry in entries:
        if options.all or entry.get("event") not in _DETAILS:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["time"]))
            event, message = str(entry.get("event", "")), str(entry.get("message", ""))
            print(f"{stamp}  {readable(event):<22} {readable_lines(message)}")
    print()
    print(summary(entries))
    return EXIT_DONE


def summary(entries: list[dict[str, Any]]) -> str:
    """Returns how long it trained, how long it did not, and what was lost."""
    training = idle = 0.0
    since: float | None = None
    gone: float | None = None
    lost = 0
    for entry in entries:
        event, at = entry.get("event"), entry["time"]
        if event in ("trainer_started", "trainer_adopted"):
            if gone is not None:
                idle += at - gone
                gone = None
            since = at if since is None else since
        elif event in _GONE and since is not None:
            training += at - since
            since, gone = None, at
        elif event == "daemon_started" and since is not None and gone is None:
            # Nobody saw it end: what lies between is training up to the last line before.
            continue
        elif event == "steps_lost" and isinstance(entry.get("lost_steps"), int):
            lost += entry["lost_steps"]
    if since is not None:
        training += entries[-1]["time"] - since
    return f"trained {age(training)}, between attempts {age(idle)}, {lost} steps trained again"
