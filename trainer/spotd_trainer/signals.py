"""The signals a session listens to. A handler sets a flag and does nothing else."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger("spotd_trainer")


class StopFlag:
    """Remembers that this process was asked to stop, or to save and go on.

    The handlers are Python's, so they run between two bytecodes of the main thread and only
    assign integers: no lock, no file, no torch call can be interrupted half-way by them.
    """

    def __init__(
        self,
        stop: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
        checkpoint: Sequence[signal.Signals] = (signal.SIGUSR1,),
    ) -> None:
        self._stop_signals = tuple(stop)
        self._checkpoint_signals = tuple(checkpoint)
        self._previous: dict[signal.Signals, Any] = {}
        self._process = 0
        self.stop = 0
        """Number of the signal that asked for a stop, 0 while none has."""
        self.checkpoints_asked = 0
        """How many times a checkpoint was asked for."""

    def install(self) -> None:
        """Put the handlers in place. Off the main thread Python allows none: that is logged."""
        if threading.current_thread() is not threading.main_thread():
            log.warning(
                "the session was started off the main thread, where Python installs no signal "
                "handlers: a stop signal will not be seen; call Session.request_stop() instead"
            )
            return
        self._process = os.getpid()
        for number in self._stop_signals:
            self._previous[number] = signal.signal(number, self._on_stop)
        for number in self._checkpoint_signals:
            self._previous[number] = signal.signal(number, self._on_checkpoint)

    def restore(self) -> None:
        """Give the signals back to whoever had them before `install`."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _on_stop(self, number: int, _frame: object) -> None:
        if os.getpid() != self._process:
            # A forked helper of the program: it dies of the signal, as it would without us.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.stop == signal.SIGINT == number:
            # Somebody at the keyboard pressed Ctrl-C again: they do not want to wait for a save.
            raise KeyboardInterrupt
        self.stop = number

    def _on_checkpoint(self, _number: int, _frame: object) -> None:
        self.checkpoints_asked += 1


class Shielded:
    """A `worker_init_fn` that shields the worker and then does what the program wanted done."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then

    def __call__(self, worker_id: int) -> None:
        """Run in the worker."""
        shield_worker(worker_id)
        if self._then is not None:
            self._then(worker_id)


def shield_worker(_worker_id: int = 0) -> None:
    """Make a DataLoader worker outlive the stop signal. Give it to `worker_init_fn`.

    A stop signal sent to a whole process group or unit kills the workers first, the rank then
    dies of "DataLoader worker exited unexpectedly", and its last checkpoint is lost
    (design/measured.md, section 1). So the worker leaves the group, and obeys SIGTERM only from
    its own trainer, which uses it to end workers at exit.
    """
    # Already a leader of its session or group: then no group signal but its own reaches it.
    if os.getpgid(0) != os.getpid() and os.getsid(0) != os.getpid():
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    trainer = os.getppid()
    threading.Thread(target=_obey_only, args=(trainer,), name="spotd-shield", daemon=True).start()


def _obey_only(trainer: int) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == trainer:
            # 0, since torch raises in the trainer for a worker that ends with anything else.
            os._exit(0)
