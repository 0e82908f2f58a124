"""The one who looks on: takes announcements and states, and does slow things in peace.

`announced` and `saw` are called by the deciding loop and return at once. Files, figures and
messages are this class's own thread's; that it is slow, or that it fails, is nobody's trouble.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING

from spotd.core.actions import Announce
from spotd.core.curve import Point
from spotd.core.ledger import BootRecord
from spotd.core.metrics import families, render
from spotd.core.tally import Tally
from spotd.shell.messages.messenger import Messenger
from spotd.shell.messages.words import Teller
from spotd.shell.observing.books import Books, write
from spotd.shell.observing.curve import Curve
from spotd.shell.observing.exposing import Endpoint, write_textfile
from spotd.shell.statefile import read_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spotd.config import Settings
    from spotd.core.state import Now, State
    from spotd.shell.boot import Boot
    from spotd.shell.clouds import InstanceIdentity

PAUSE = 15.0  # seconds between two looks when nothing is announced
SETTLE_TICK = 0.1  # seconds
AFTER_DEFECT = 1.0  # seconds
SAVE_EVERY = 60.0  # seconds between two writes of what may be lost
SHORTEST_SAMPLE = 1.0  # seconds between two points of the curve
# After these a power cut may come: what was counted is written at once.
_URGENT = frozenset({"interruption_notice", "drained", "completed", "gave_up", "trainer_exited"})


class Observer:
    """Looks on at one run.

    Args:
        settings: Returns the configuration in force.
        own: The run's own directory.
        instance_id: This machine's.
        boot: This boot.
        identity: Returns what is known of the instance by now.
        clock: This moment.
        announce: Takes a line about trouble; it comes back here like any other.
    """

    def __init__(  # noqa: PLR0917 - the daemon gives them by name
        self,
        settings: Callable[[], Settings],
        own: Path,
        instance_id: str,
        boot: Boot,
        identity: Callable[[], InstanceIdentity],
        clock: Callable[[], Now],
        announce: Callable[[Announce], None],
    ) -> None:
        self._settings = settings
        self._own = own
        self._identity = identity
        self._clock = clock
        self._announce = announce
        self._queue: queue.SimpleQueue[tuple[Announce, float] | threading.Event | None]
        self._queue = queue.SimpleQueue()
        self._instance_id = instance_id
        self._lock = threading.Lock()  # over tally and book: the endpoint reads them
        self._state: State | None = None
        memory = read_json(own / "observed.json") or {}
        self._tally = Tally.from_json(memory.get("tally"))
        teller = Teller(settings().run)
        teller.remember(memory.get("teller"), alive=self._tally.seen)
        self._messenger = Messenger(lambda: settings().notify, own / "messages", teller, announce)
        now = clock().wall
        fresh = BootRecord(
            run=settings().run, instance_id=instance_id, boot_id=boot.id,
            booted=boot.began, began=now, seen=now,
        )  # fmt: skip
        self._books = Books(own / "ledger", fresh)
        self._for_the_store: dict[str, str] = {}
        self._crashes_before: int | None = None
        self._imds_failures = self._store_failures = 0  # the deciding loop's
        self._imds_counted = self._store_counted = 0  # this class's own thread's
        self._curve = Curve(own / "curve.jsonl")
        self._points: queue.SimpleQueue[Point] = queue.SimpleQueue()
        self._sampled = float("-inf")
        self._endpoint: Endpoint | None = None
        self._troubles: dict[str, str] = {}
        self._saved_at = time.monotonic()
        self._ending = False
        self._defects: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    # --- called by the daemon --------------------------------------------------------

    def start(self) -> None:
        """Begins to look."""
        listen = self._settings().metrics.listen
        if listen is not None:
            try:
                self._endpoint = Endpoint(listen, self.figures)
                self._endpoint.start()
            except OSError as error:
                self._report("listen", f"metrics.listen {listen}: {error.strerror or error}")
        self._thread.start()

    def announced(self, line: Announce, wall: float) -> None:
        """Takes a line; from any thread."""
        self._queue.put((line, wall))

    def saw(self, state: State, now: Now) -> None:
        """Takes a new state; from the deciding loop alone."""
        old, self._state = self._state, state
        trainer = state.trainer
        sampled = now.mono - self._sampled
        if trainer is not None and trainer.step is not None and sampled >= SHORTEST_SAMPLE:
            self._sampled = now.mono
            self._points.put(Point(now.wall, trainer.attempt, trainer.step, trainer.loss))
        if old is not None:
            # Each failure raises these by one; success sets them back to nothing.
            self._imds_failures += max(0, state.metadata.failures - old.metadata.failures)
            self._store_failures += max(0, state.store.failures - old.store.failures)

    def ledger(self) -> dict[str, str]:
        """Returns records that the store may lack: name to JSON. Never waits."""
        return self._for_the_store

    def figures(self) -> str:
        """Returns the text of a scrape; from any thread."""
        state = self._state
        if state is None:
            return ""
        with self._lock:
            return render(families(state, self._tally, self._clock()))

    def settle(self, timeout: float) -> None:
        """Waits until everybody has been told of what was announced, or for that long."""
        deadline = time.monotonic() + timeout
        taken = threading.Event()
        self._queue.put(taken)
        taken.wait(timeout)
        while self._messenger.spool.waiting() and time.monotonic() < deadline:
            time.sleep(SETTLE_TICK)

    def close(self, timeout: float = 3.0) -> None:
        """Writes out what there is, and ends."""
        self._ending = True
        self._queue.put(None)
        self._thread.join(timeout)
        if self._endpoint is not None:
            self._endpoint.close()

    # --- its own thread --------------------------------------------------------------

    def _run(self) -> None:
        while self._safely():
            continue

    def _safely(self) -> bool:
        try:
            return self._turn()
        except Exception as error:  # noqa: BLE001 - who looks on must not fall silent
            text = f"{error!r}\n{traceback.format_exc(limit=-4)}"
            if repr(error) not in self._defects:  # said once: it may come with every turn
                self._defects.add(repr(error))
                self._announce(Announce("defect", f"a defect in spotd: observer: {text}", 3))
            time.sleep(AFTER_DEFECT)
            return not self._ending

    def _turn(self) -> bool:
        """Takes in what has been announced, for a while; False when it is time to end."""
        urgent, news, going = False, False, True
        with contextlib.suppress(queue.Empty):
            entry = self._queue.get(timeout=min(PAUSE, self._messenger.tick()))
            while True:
                if entry is None:
                    urgent, going = True, False
                elif isinstance(entry, threading.Event):
                    entry.set()
                else:
                    self._take(*entry)
                    news = True
                    urgent = urgent or entry[0].name in _URGENT
                entry = self._queue.get_nowait()
        self._keep_book()
        self._plot()
        self._expose()
        if news or urgent or time.monotonic() - self._saved_at >= SAVE_EVERY:
            self._save(durably=urgent)
        return going

    def _take(self, line: Announce, wall: float) -> None:
        with self._lock:
            book = self._books.open
            self._tally.count(line.name, line.fields, wall)
            book.book(line.name, line.fields, wall)
            if line.name == "trainer_started" and self._tally.last_lost is not None:
                book.lost_seconds = (book.lost_seconds or 0.0) + self._tally.last_lost
        self._messenger.take(line, wall, self._identity(), self._instance_id)

    def _keep_book(self) -> None:
        """What no announcement says: that spotd lives, what the instance is, what it costs."""
        state, told, prices = self._state, self._identity(), self._settings().cost
        wall = self._clock().wall
        with self._lock:
            book = self._books.open
            self._tally.alive(wall)
            imds, store = self._imds_failures, self._store_failures
            self._tally.imds_failures += imds - self._imds_counted
            self._tally.store_failures += store - self._store_counted
            self._imds_counted, self._store_counted = imds, store
            book.alive(wall)
            book.instance_type = told.instance_type or book.instance_type
            book.zone, book.region = told.az or book.zone, told.region or book.region
            book.life_cycle = told.life_cycle or book.life_cycle
            book.spot_price, book.on_demand_price = prices.spot_price, prices.on_demand_price
            if state is not None:
                if self._crashes_before is None:
                    self._crashes_before = state.counts.crashes - book.crashes
                book.crashes = max(0, state.counts.crashes - self._crashes_before)

    def _plot(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                point = self._points.get_nowait()
                self._curve.add(point)
                with self._lock:
                    self._books.open.plot(point)

    def _expose(self) -> None:
        path = self._settings().metrics.textfile
        if path is None or self._state is None:
            return
        try:
            write_textfile(path, self.figures())
        except OSError as error:
            self._report("textfile", f"metrics.textfile {path}: {error.strerror or error}")
        else:
            self._troubles.pop("textfile", None)

    def _save(self, *, durably: bool) -> None:
        self._saved_at = time.monotonic()
        with self._lock:  # not while the disk is waited for: a scrape would wait too
            parts = {"tally": self._tally.to_json(), "teller": asdict(self._messenger.teller)}
            memory = json.dumps(parts).encode()
            record = self._books.open.to_bytes()
        self._for_the_store = self._books.for_the_store(record)
        try:
            self._books.save(record, durably=durably)
            write(self._own / "observed.json", memory, durably=durably)
            self._curve.save()
        except OSError as error:
            self._report("files", f"figures are not kept: {error.strerror or error}")
        else:
            self._troubles.pop("files", None)

    def _report(self, what: str, reason: str) -> None:
        """Tells of trouble once, and again when the reason is another."""
        if self._troubles.get(what) != reason:
            self._troubles[what] = reason
            self._announce(Announce("metrics_failed", f"{reason}. Training is untouched", 4))
