"""Sends what waits, once: `python -m spotd.shell.messages.send`, its orders on standard input.

On standard input a JSON object: where the spool is and whom to tell; never on the command
line, which everybody can read. On standard output a JSON line for each try. A URL that is a
secret is in neither: reasons are put in words of our own.

It holds a lock on the spool, so that two never send the same message, not even when the
daemon that started one was killed: the next daemon's helper finds the lock taken, and ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.errors import SpotdError
from spotd.shell.messages.spool import LONGEST_WAIT, Message, Spool

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 10.0
LATE = 120.0  # seconds from which a message says when it happened
BUSY = 75  # exit status: another sender is at work (EX_TEMPFAIL of sysexits.h)
_LONGEST_URL = 4096


@dataclass(frozen=True, slots=True)
class Addresses:
    """Whom to tell; `webhook_url_file` is read at each sending, so that it can be changed."""

    webhook_url: str | None = None
    webhook_url_file: str | None = None
    sns_topic_arn: str | None = None

    @property
    def channels(self) -> tuple[str, ...]:
        """Those that are configured."""
        web = self.webhook_url or self.webhook_url_file
        return tuple(
            name for name, there in (("webhook", web), ("sns", self.sns_topic_arn)) if there
        )

    def webhook(self) -> str:
        """Returns the webhook's URL.

        Raises:
            SpotdError: The file that holds it cannot be used.
        """
        if self.webhook_url:
            return self.webhook_url
        path = self.webhook_url_file or ""
        try:
            with open(path, encoding="ascii") as file:  # noqa: PTH123 - only so much of it
                url = file.read(_LONGEST_URL).strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise SpotdError(f"notify.webhook_url_file {path}: {reason}") from None
        if not url.startswith(("https://", "http://")) or len(url.split()) != 1:
            raise SpotdError(f"notify.webhook_url_file {path} holds no URL")
        return url


def send(addresses: Addresses, channel: str, text: str, *, subject: str, key: str) -> None:
    """Tells one channel.

    Args:
        addresses: Whom.
        channel: "webhook" or "sns".
        text: One line.
        subject: For mail that SNS makes of it.
        key: The same for the same message, so that a receiver can tell a repetition.

    Raises:
        SpotdError: It was not taken; the reason holds no secret.
    """
    if channel == "webhook":
        _post(addresses.webhook(), text, key)
    else:
        _publish(str(addresses.sns_topic_arn), text, subject)


def slack(text: str) -> str:
    """Escapes what Slack takes for markup ("Formatting text for app surfaces")."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _post(url: str, text: str, key: str) -> None:
    import requests  # noqa: PLC0415 - only where there is a webhook

    try:
        answer = requests.post(
            url,
            data=json.dumps({"text": slack(text)}),
            headers={
                "Content-Type": "application/json", "User-Agent": "spotd",
                "Idempotency-Key": key,
            },
            timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
            allow_redirects=False,
            stream=True,  # what it answers beyond its status is of no interest
        )  # fmt: skip
        answer.close()
    except requests.exceptions.SSLError:
        raise SpotdError("the webhook's certificate is not accepted") from None
    except requests.exceptions.Timeout:
        raise SpotdError("the webhook does not answer in time") from None
    except requests.exceptions.ConnectionError:
        hint = "check the name, the network and the security group"
        raise SpotdError("the webhook cannot be reached", hint=hint) from None
    except (requests.exceptions.RequestException, ValueError, OSError) as error:
        raise SpotdError(f"the webhook cannot be called: {type(error).__name__}") from None
    if not 200 <= answer.status_code < 300:  # noqa: PLR2004 - HTTP
        raise SpotdError(
            f"the webhook answers {answer.status_code}",
            hint="is the URL still valid? `spotd notify-test` tries it",
        )


def _publish(topic: str, text: str, subject: str) -> None:
    from spotd.shell.account import call, client  # noqa: PLC0415 - boto3

    sns = client("sns", topic.split(":")[3])
    printable = "".join(c for c in subject if " " <= c <= "~")[:100]
    call(
        "sns:Publish",
        topic,
        lambda: sns.publish(TopicArn=topic, Message=text, Subject=printable or "spotd"),
    )


@dataclass(frozen=True, slots=True)
class Delivery:
    """One pass over what waits. `now`: wall clock seconds; `report` takes each try."""

    spool: Spool
    addresses: Addresses
    report: Callable[[dict[str, Any]], None]
    now: float

    def run(self) -> bool:
        """Tries each message at each channel once; whether nothing is left.

        A channel that fails is left alone for the rest: order is kept, and a dead one costs
        one time-out. A channel that is no longer configured is not waited for.
        """
        dead: set[str] = set()
        for message in self.spool.waiting():
            left = message
            for channel in message.to:
                if channel not in self.addresses.channels:
                    left = self.spool.delivered(left, channel)
                elif channel not in dead:
                    after = self._try(left, channel)
                    dead |= {channel} if after is None else set()
                    left = after or left
            if left.to and self.now - left.time > LONGEST_WAIT:
                self.spool.drop(left)
                channels = "+".join(left.to)
                self.report({"event": left.event, "channel": channels, "dropped": True})
        return not self.spool.waiting()

    def _try(self, message: Message, channel: str) -> Message | None:
        """Tells one channel; returns what is left of the message, None when it was refused."""
        text = message.text
        if self.now - message.time > LATE:
            text += time.strftime(" (it was %Y-%m-%d %H:%M UTC)", time.gmtime(message.time))
        said = {"event": message.event, "channel": channel}
        subject = f"spotd: {message.event}"
        try:
            send(self.addresses, channel, text, subject=subject, key=message.key)
        except SpotdError as error:
            self.report({**said, "ok": False, "reason": error.message, "hint": error.hint})
            return None
        left = self.spool.delivered(message, channel)
        self.report({**said, "ok": True})
        return left


def main() -> int:
    """Runs in the helper."""
    orders = json.load(sys.stdin)
    spool = Spool(Path(orders.pop("spool")))
    os.nice(10)  # a save may be under way
    with (spool.directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return BUSY

        def report(line: dict[str, Any]) -> None:
            print(json.dumps(line), flush=True)  # noqa: T201 - the daemon reads it

        delivery = Delivery(spool, Addresses(**orders), report, time.time())
        return 0 if delivery.run() else 1


if __name__ == "__main__":
    sys.exit(main())
