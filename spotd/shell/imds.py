"""Watches the instance metadata service, in a thread that waits for nothing else.

The pace is that of a monotonic clock, without drift: a poll that took long does not move
the next one, and a missed one is not made up for. A notice is posted before anything else
is asked. Whatever goes wrong is posted as `MetadataFailed`, once for each poll; telling
people only of the change is the core's business.

The HTTP client is spotd's own: see `spotd.shell.clouds.http` for why.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from spotd.core.events import MetadataAnswered, MetadataFailed
from spotd.shell.clouds import DMI, InstanceIdentity, MetadataTrouble, NoticeSource, make_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spotd.config import ImdsSettings

__all__ = ["InstanceIdentity", "MetadataWatcher"]

_LONGEST_PAUSE = 30.0
_LONGEST_IDENTITY_PAUSE = 300.0
MetadataEvent = MetadataAnswered | MetadataFailed


class MetadataWatcher:
    """Polls and posts what it learned.

    The pace is `settings.poll_interval`, or faster where the cloud's notices are short.

    Args:
        settings: The `[imds]` section.
        post: Called in the watcher's thread; must return at once (a queue's put).
        cloud: "auto", "ec2", "gce" or "azure".
        source: Whom to ask instead, for tests.
        dmi: Where the firmware's words are.

    Raises:
        ValueError: The endpoint is no `http://HOST[:PORT]`.
    """

    def __init__(
        self,
        settings: ImdsSettings,
        post: Callable[[MetadataEvent], None],
        *,
        cloud: str = "auto",
        source: NoticeSource | None = None,
        dmi: Path = DMI,
    ) -> None:
        self._settings = settings
        self._post = post
        self._source = source or make_source(cloud, settings, dmi)
        self._interval = min(settings.poll_interval, self._source.longest_interval)
        self._changed = threading.Condition()
        self._stopping = False
        self._poke = False
        self._thread: threading.Thread | None = None
        self._identity = InstanceIdentity(instance_id=self._firmware_instance_id())
        self._identified = False
        self._identity_failures = 0
        self._identity_due = 0.0
        self._last_action: str | None = None
        self._throttled = 0

    # --- for the daemon's other threads ---

    def start(self) -> None:
        """Begin to poll, at once."""
        self._thread = threading.Thread(target=self._run, name="imds", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Post nothing more; does not wait for a poll under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def join(self, timeout: float) -> bool:
        """Whether the thread has ended within `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def poll_soon(self) -> None:
        """Poll now, and keep the pace after it."""
        with self._changed:
            self._poke = True
            self._changed.notify_all()

    def identity(self) -> InstanceIdentity:
        """What is known of the instance so far; never waits."""
        with self._changed:
            return self._identity

    def wait_for_identity(self, timeout: float) -> InstanceIdentity:
        """What the instance is, after at most `timeout` seconds of waiting for it to be known."""
        with self._changed:
            self._changed.wait_for(lambda: self._identified or self._stopping, timeout)
            return self._identity

    # --- the watcher's own thread ---

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping:
            try:
                self._poll()
                self._identify()
            except Exception as error:  # noqa: BLE001 - a watcher that died is blind in silence
                reason = f"the watcher failed: {type(error).__name__}: {error}"
                self._tell(MetadataFailed(reason, "this is a bug in spotd; it goes on polling"))
            due = next_due(due, time.monotonic(), self._interval)
            self._wait_until(due + self._pause())

    def _wait_until(self, due: float) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or self._poke, max(0.0, due - time.monotonic())
            )
            self._poke = False

    def _pause(self) -> float:
        """What is added to the interval when the service wants fewer questions."""
        if not self._throttled:
            return 0.0
        return min(_LONGEST_PAUSE, self._interval * float(2 ** min(self._throttled - 1, 10)))

    def _poll(self) -> None:
        told: list[MetadataAnswered] = []

        def early(answer: MetadataAnswered) -> None:
            told.append(answer)
            self._tell(answer)

        try:
            answer = self._source.poll(self._settings.timeout, early)
        except MetadataTrouble as trouble:
            self._trouble(trouble)
        else:
            self._throttled = 0
            if told != [answer]:
                self._tell(answer)

    def _trouble(self, trouble: MetadataTrouble) -> None:
        self._throttled = (
            self._throttled + 1 if trouble.throttled and not trouble.notices_seen else 0
        )
        if trouble.notices_seen and self._last_action is not None:
            # The notice is gone: that must be known, whatever else is not.
            self._tell(MetadataAnswered())
        else:
            self._tell(MetadataFailed(trouble.reason, trouble.hint))

    def _tell(self, event: MetadataEvent) -> None:
        if isinstance(event, MetadataAnswered):
            self._last_action = event.action
        if not self._stopping:
            self._post(event)

    def _identify(self) -> None:
        if self._identified or self._stopping or time.monotonic() < self._identity_due:
            return
        try:
            found = self._source.identity(self._settings.timeout)
        except MetadataTrouble:
            # Not reported: what is not known shows as unknown, and the polls tell of trouble.
            # Asked again, less and less often: it is five questions, and nothing waits for it.
            pause = min(_LONGEST_IDENTITY_PAUSE, self._interval * 2**self._identity_failures)
            self._identity_failures = min(self._identity_failures + 1, 10)
            self._identity_due = time.monotonic() + pause
            return
        with self._changed:
            self._identity, self._identified = found, True
            self._changed.notify_all()

    def _firmware_instance_id(self) -> str | None:
        known = getattr(self._source, "firmware_instance_id", None)
        return known() if known is not None else None


def next_due(due: float, now: float, interval: float) -> float:
    """The first multiple of `interval` after `due` that is still to come.

    Whatever the poll took, polls stay on the grid that the first one began; those missed
    are not made up for.
    """
    missed = max(0.0, (now - due) // interval)
    return due + (missed + 1) * interval
