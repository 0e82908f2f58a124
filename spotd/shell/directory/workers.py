"""Threads for what may take long, so that it delays nothing else."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Worker:
    """One thread that does one job after the other; started with the first job.

    Args:
        name: Of the thread.
        stop: Set when jobs are to end early; jobs that copy or read look at it.
        failed: Called, in the worker's thread, with what a job let escape.
    """

    def __init__(
        self, name: str, stop: threading.Event, failed: Callable[[BaseException], None]
    ) -> None:
        self._name = name
        self._stop = stop
        self._failed = failed
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # jobs come from the directory's thread and the other worker

    def do(self, job: Callable[[], None]) -> None:
        """Queues a job."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._jobs.put(job)

    def join(self, timeout: float) -> bool:
        """Ends the thread after the job at hand; whether it has ended within `timeout` seconds."""
        thread = self._thread
        if thread is None:
            return True
        self._jobs.put(None)
        thread.join(timeout)
        return not thread.is_alive()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None or self._stop.is_set():
                return
            try:
                job()
            except Exception as error:  # noqa: BLE001 - reported, and the next job still runs
                self._failed(error)
