"""`spotd terminate`: cancels the Spot request, then terminates the instance, in this order."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, settings_of
from spotd.cli.instances import add_region, entries, render
from spotd.errors import EXIT_DONE, EXIT_FAILED, SpotdError

if TYPE_CHECKING:
    import argparse

    from spotd.config import Settings
    from spotd.ec2.api import Ec2
    from spotd.ec2.launching import Present


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("terminate", help="cancel the Spot request, then terminate the instance")
    add_options(p, as_json=False)
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
    from spotd.ec2.ending import end  # noqa: PLC0415
    from spotd.ec2.launching import present  # noqa: PLC0415

    settings = settings_of(options)
    ec2 = Ec2(region_of(options.region or settings.launch.region, settings.store.region))
    found = present(ec2, settings.run)
    if not found.living and not found.held:
        print(f"run {settings.run} has no instance and no open request in {ec2.region}")
        return EXIT_DONE
    print(render(entries(found, datetime.now(timezone.utc), ended=False), advice=False))
    training = _looked_at(settings, found, options)
    if not options.yes and not _confirmed(found):
        print("nothing was ended")
        return EXIT_FAILED
    if training:
        _save(ec2, settings, training)
    end(ec2, settings.run, found, print)
    return EXIT_DONE


def _looked_at(settings: Settings, found: Present, options: argparse.Namespace) -> list[str]:
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
            print(f"the store cannot be looked at: {error}")
            return []
        raise SpotdError(
            f"whether the last checkpoint is stored cannot be seen: {error.message}",
            hint=f"{error.hint}; --force ends it all the same".removeprefix("; "),
            exit_code=error.exit_code,
        ) from error
    living = alive(found)
    verdict = judge(standing, living, time.time())
    print(verdict.kept)
    if verdict.safe or options.force:
        return []
    training = [a.id for a in living if a.state == "running" and standing.trained_by(a.id)]
    if options.save and training:
        return training
    raise SpotdError(verdict.reason, hint=verdict.hint)


def _save(ec2: Ec2, settings: Settings, training: list[str]) -> None:
    from spotd.ec2.ending import save  # noqa: PLC0415
    from spotd.ec2.standing import look  # noqa: PLC0415

    save(ec2, training, lambda: look(settings), print)


def _confirmed(found: Present) -> bool:
    names = [i["InstanceId"] for i in found.living]
    names += [r["SpotInstanceRequestId"] for r in found.held]
    if not sys.stdin.isatty():
        raise SpotdError("there is nobody to ask", hint="--yes ends it without a question")
    answer = input(f"End {', '.join(names)} for good, with the disk? [y/N] ")
    return answer.strip().lower() in ("y", "yes")
