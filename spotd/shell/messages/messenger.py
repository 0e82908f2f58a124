"""The daemon's side of telling people: keeps messages, starts the helper, tries again.

All of it runs in the observer's thread. What fails is tried again after a second, then two,
four and so on up to five minutes, for a day; a new message is tried at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from spotd.core.actions import Announce
from spotd.shell.messages.send import BUSY, Addresses
from spotd.shell.messages.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spotd.config import NotifySettings
    from spotd.shell.clouds import InstanceIdentity
    from spotd.shell.messages.words import Teller

PATIENCE = 90.0  # seconds a helper may take for all that waits
LONGEST_PAUSE = 300.0  # seconds between two tries
TICK = 0.25  # seconds between two looks at a helper
_NAMES = {"webhook": "the webhook", "sns": "the SNS topic"}


def addresses_of(settings: NotifySettings) -> Addresses:
    """Returns whom the configuration tells."""
    file = settings.webhook_url_file
    return Addresses(settings.webhook_url, None if file is None else str(file),
                     settings.sns_topic_arn)  # fmt: skip


class Messenger:
    """Tells people of one run.

    Args:
        settings: Returns `[notify]` of the configuration in force.
        directory: Of the spool.
        teller: What is told, in which words.
        announce: Takes a line about what was sent, or not.
    """

    def __init__(
        self,
        settings: Callable[[], NotifySettings],
        directory: Path,
        teller: Teller,
        announce: Callable[[Announce], None],
    ) -> None:
        self.teller = teller
        self.spool = Spool(directory)
        self._settings = settings
        self._announce = announce
        self._helper: subprocess.Popen[bytes] | None = None
        self._output = -1
        self._started = 0.0
        self._failures = 0
        self._due: float | None = time.monotonic()  # something may wait from before the boot
        self._failing: dict[str, str] = {}

    def take(self, line: Announce, wall: float, told: InstanceIdentity, instance_id: str) -> None:
        """Keeps a message if people are to be told of this line."""
        text = self.teller.words_for(line, wall, told, instance_id)
        channels = addresses_of(self._settings()).channels
        if text is None or not channels:
            return
        try:
            self.spool.add(line.name, text, wall, channels)
        except OSError as error:
            self._trouble("spool", f"a message cannot be kept: {error.strerror or error}")
            return
        self._due = time.monotonic()
        self._failures = 0

    def tick(self) -> float:
        """Does what is due; returns seconds until it wants to be called again."""
        now = time.monotonic()
        if self._helper is not None:
            status = self._helper.poll()
            if status is None:
                if now - self._started > PATIENCE:
                    self._helper.kill()
                return TICK
            self._ended(status)
        if self._due is None:
            return LONGEST_PAUSE
        if self._due <= now:
            self._due = None
            if self.spool.waiting():
                self._start()
                return TICK
            return LONGEST_PAUSE
        return self._due - now

    def _start(self) -> None:
        orders = {"spool": str(self.spool.directory), **asdict(addresses_of(self._settings()))}
        # The same modules from the same places, whichever way the daemon found them.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._output = os.memfd_create("spotd-messages", os.MFD_CLOEXEC)
        try:
            self._helper = subprocess.Popen(
                [sys.executable, "-m", "spotd.shell.messages.send"],
                stdin=subprocess.PIPE, stdout=self._output, cwd="/", env=environment,
            )  # fmt: skip
            self._started = time.monotonic()
            if self._helper.stdin is not None:
                with self._helper.stdin as pipe:
                    pipe.write(json.dumps(orders).encode())
        except OSError as error:
            self._trouble("helper", f"messages cannot be sent: {error.strerror or error}")
            if self._helper is None:
                self._forget_output()
                self._again()

    def _ended(self, status: int) -> None:
        self._helper = None
        lines = os.pread(self._output, 1 << 20, 0).splitlines()
        self._forget_output()
        for line in lines:
            with contextlib.suppress(ValueError):  # a library's warning, say
                self._tell(json.loads(line))
        if status == 0:
            self._failures = 0
            self._troubles_are_over("helper")
            return
        if status != BUSY and not lines:
            self._trouble("helper", f"the helper that sends messages ended with {status}")
        self._again()

    def _again(self) -> None:
        self._failures += 1
        pause = min(LONGEST_PAUSE, 2.0 ** min(self._failures - 1, 10))
        soon = time.monotonic() + pause
        self._due = soon if self._due is None else min(self._due, soon)

    def _tell(self, line: dict[str, Any]) -> None:
        channel, event = str(line.get("channel")), str(line.get("event"))
        who = _NAMES.get(channel, channel)
        if line.get("dropped"):
            text = f"gave up telling {who} of {event} after a day"
            self._announce(Announce("message_failed", text, 4, {"told_of": event}))
        elif line.get("ok"):
            self._troubles_are_over(channel)
            text = f"told {who} of {event}"
            self._announce(Announce("message_sent", text, 6, {"told_of": event}))
        else:
            hint = f". {line['hint']}" if line.get("hint") else ""
            self._trouble(channel, f"{who} was not told of {event}: {line.get('reason')}{hint}")

    def _trouble(self, what: str, reason: str) -> None:
        """Said once for each channel until it works again: it is tried often."""
        if what not in self._failing:
            self._announce(Announce("message_failed", f"{reason}. It is tried again", 4))
        self._failing[what] = reason

    def _troubles_are_over(self, what: str) -> None:
        self._failing.pop(what, None)

    def _forget_output(self) -> None:
        os.close(self._output)
        self._output = -1
