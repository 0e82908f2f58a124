"""What the daemon and the store's worker say to each other: lines of JSON.

Daemon to worker: first a line of configuration, then commands `{"number": n, "do": ...}`.
Worker to daemon: `{"reply": n, "events": [...]}` once for each command, `{"events": [...]}`
for what happens in between, and `{"lease": {...}}` whenever the lease has changed: the
daemon keeps it, because a worker lives only while there is something to do.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from spotd.core import events
from spotd.core.checkpoint import LocalCheckpoint, StoredCheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_EVENTS: dict[str, type[Any]] = {
    each.__name__: each
    for each in (
        events.StoreOpened,
        events.LeaseRefused,
        events.LeaseRenewed,
        events.StoreFailed,
        events.UploadProgressed,
        events.AheadProgressed,
        events.Uploaded,
        events.UploadFailed,
        events.UploadsStopped,
        events.FetchProgressed,
        events.Fetched,
        events.FetchFailed,
        events.DeletedFromStore,
        events.CompletionStored,
    )
}


def encode_event(event: events.Event) -> dict[str, Any]:
    """Returns an event as JSON can carry it."""
    return {"type": type(event).__name__, **asdict(event)}


def decode_event(line: dict[str, Any]) -> events.Event:
    """Returns the event in what `encode_event` made."""
    fields = dict(line)
    kind = _EVENTS[fields.pop("type")]
    if kind is events.StoreOpened:
        fields["stored"] = tuple(StoredCheckpoint(**each) for each in fields["stored"])
        fields["damaged"] = tuple((each[0], each[1]) for each in fields["damaged"])
    if kind is events.Fetched:
        fields["checkpoint"] = LocalCheckpoint(**fields["checkpoint"])
    if kind is events.DeletedFromStore:
        fields["ids"] = tuple(fields["ids"])
    event: events.Event = kind(**fields)
    return event


class Channel:
    """One end of the conversation. Sending is safe from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message; raises OSError when nobody is there."""
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            self._socket.sendall(data)

    def messages(self, wait: Callable[[], bool] = lambda: True) -> Iterator[dict[str, Any]]:
        """Yields what the other end says until it is gone, or `wait` says that it is over."""
        buffer = bytearray()
        while wait():
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                return
            if not data:
                return
            buffer += data
            *lines, rest = buffer.split(b"\n")
            buffer = bytearray(rest)
            for line in lines:
                yield json.loads(line)

    def end(self) -> None:
        """Ends the conversation: both ends see it at once. The socket is closed by its reader."""
        with contextlib.suppress(OSError):  # the other end was faster
            self._socket.shutdown(socket.SHUT_RDWR)
