"""What the trainer tells spotd: datagrams of KEY=VALUE lines on `SPOTD_SOCKET`."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("spotd_trainer")


class Reporter:
    """Sends progress to spotd's socket, and never waits for it nor fails because of it.

    Progress is dropped when the socket is full or gone: the next report replaces it. A completed
    checkpoint is sent again with the next report until it got through once.
    """

    def __init__(self, address: str | None = None, *, interval: float = 0.5) -> None:
        """`address` is a path, `@name` for an abstract socket; default: `$SPOTD_SOCKET`."""
        address = address if address is not None else os.environ.get("SPOTD_SOCKET")
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._interval = interval
        self._next = 0.0
        self._owed: list[str] = []
        # The loop reports steps, the saving thread checkpoints.
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.dropped = 0
        self._odd_loss = False
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @property
    def due(self) -> bool:
        """Whether progress would be sent now: at most one report per half second."""
        return self._socket is not None and time.monotonic() >= self._next

    def progress(
        self,
        step: int,
        *,
        total_steps: int | None = None,
        epoch: int | None = None,
        loss: Any = None,
    ) -> None:
        """Report the step; what is None is left out. `loss`: a number or a tensor of one."""
        loss = None if loss is None else self._number(loss)
        values = {"STEP": step, "TOTAL_STEPS": total_steps, "EPOCH": epoch, "LOSS": loss}
        self._next = time.monotonic() + self._interval
        self._send([f"{key}={value}" for key, value in values.items() if value is not None])

    def _number(self, loss: Any) -> float | None:
        try:
            # Of a tensor spread over ranks only the own part: the others do not come here.
            local = loss.to_local() if hasattr(loss, "to_local") else loss
            return float(local.detach() if hasattr(local, "detach") else local)
        except (TypeError, ValueError, RuntimeError) as error:
            # It is read only where there is a socket: a run that trains without spotd trains with.
            if not self._odd_loss:
                log.warning("the loss is not reported: expected one number: %s", error)
            self._odd_loss = True
            return None

    def checkpoint(self, path: Path) -> None:
        """Tell that the checkpoint at `path` is complete and on the disk."""
        with self._lock:
            self._owed = [f"CHECKPOINT={path}"]
        self._send([])

    def status(self, text: str) -> None:
        """One line of free text for a person."""
        self._send(["STATUS=" + " ".join(text.split())[:500]])

    def stopping(self) -> None:
        """Tell that this process saved and is about to exit because it was asked to stop.

        The key is sd_notify's. Under torchrun the exit status is 0, which alone looks like a
        completed run.
        """
        self._send(["STOPPING=1"])

    def close(self) -> None:
        """Send what is still owed, once, and close."""
        if self._socket is not None:
            if self._owed:
                self._send([])
            self._socket.close()
            self._socket = None

    def _send(self, lines: list[str]) -> None:
        with self._lock:
            if self._socket is None or not self._address:
                return
            message = "\n".join(self._owed + lines).encode()
            try:
                self._socket.sendto(message, self._address)
            except OSError as error:
                if not self.dropped:
                    log.info("a report to %s was dropped: %s", self._address.lstrip("\0"), error)
                self.dropped += 1
            else:
                self._owed = []
