"""`spotd terminate`: cancels the Spot request, then terminates the instance, in this order."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, print_json, settings_of
from spotd.cli.instances import add_region, entries, render
from spotd.errors import EXIT_DONE, EXIT_FAILED, SpotdError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from spotd.config import Settings
    from spotd.ec2.api import Ec2
    from spotd.ec2.ending import Ended
    from spotd.ec2.launching import Present


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("terminate", help="cancel the Spot request, then terminate the instance")
    add_options(p)
    add_region(p)
    p.add_argument("--yes", action="store_true", help="do not ask")
    p.add_argument(
        "--save", action="store_true",
        help="stop a training instance in good order first, so that its last checkpoint is stored",
    )  # fmt: skip
    p.add_argument(
        "--force", action="store_true",
        help="end it although it is not certain that its last checkpoint is stored",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Ends everything that the run has in EC2."""
    from datetime import datetime, timezone  # noqa: PLC0415

    from spotd.ec2.api import Ec2, region_of  # noqa: PLC0415 - boto3, only here
    from spotd.ec2.ending import Ended, end  # noqa: PLC0415
    from spotd.ec2.launching import present  # noqa: PLC0415

    say = _aside if options.json else print
    settings = settings_of(options)
    ec2 = Ec2(region_of(options.region or settings.launch.region, settings.store.region))
    found = present(ec2, settings.run)
    if not found.living and not found.held:
        say(f"run {settings.run} has no instance and no open request in {ec2.region}")
        return _told(ec2, settings, Ended(), options)
    say(render(entries(found, datetime.now(timezone.utc), ended=False), advice=False))
    training = _looked_at(settings, found, options, say)
    if not options.yes and not _confirmed(found):
        say("nothing was ended")
        _told(ec2, settings, Ended(), options)
        return EXIT_FAILED
    if training:
        _save(ec2, settings, training, say)
    return _told(ec2, settings, end(ec2, settings.run, found, say), options)


def _told(ec2: Ec2, settings: Settings, ended: Ended, options: argparse.Namespace) -> int:
    if options.json:
        print_json({
            "run": settings.run, "region": ec2.region,
            "cancelled": list(ended.requests), "terminated": list(ended.instances),
        })  # fmt: skip
    return EXIT_DONE


def _aside(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _looked_at(
    settings: Settings, found: Present, options: argparse.Namespace, say: Callable[[str], None]
) -> list[str]:
    """Refuses what would lose work; returns which instances are to be stopped in good order first.

    Raises:
        SpotdError: Something may not be stored, or the store cannot say.
    """
    from spotd.ec2.ending import alive, judge  # noqa: PLC0415
    from spotd.ec2.standing import look  # noqa: PLC0415

    try:
        standing = look(settings)
    except SpotdError as error:
        if options.force:
            say(f"the store cannot be looked at: {error}")
            return []
        raise SpotdError(
            f"whether the last checkpoint is stored cannot be seen: {error.message}",
            hint=f"{error.hint}; --force ends it all the same".removeprefix("; "),
            exit_code=error.exit_code,
        ) from error
    living = alive(found)
    verdict = judge(standing, living, time.time())
    say(verdict.kept)
    if verdict.safe or options.force:
        return []
    training = [a.id for a in living if a.state == "running" and standing.trained_by(a.id)]
    if options.save and training:
        return training
    raise SpotdError(verdict.reason, hint=verdict.hint)


def _save(ec2: Ec2, settings: Settings, training: list[str], say: Callable[[str], None]) -> None:
    from spotd.ec2.ending import save  # noqa: PLC0415
    from spotd.ec2.standing import look  # noqa: PLC0415

    save(ec2, training, lambda: look(settings), say)


def _confirmed(found: Present) -> bool:
    names = [i["InstanceId"] for i in found.living]
    names += [r["SpotInstanceRequestId"] for r in found.held]
    if not sys.stdin.isatty():
        raise SpotdError("there is nobody to ask", hint="--yes ends it without a question")
    print(f"End {', '.join(names)} for good, with the disk? [y/N] ", end="", file=sys.stderr)
    sys.stderr.flush()
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False
