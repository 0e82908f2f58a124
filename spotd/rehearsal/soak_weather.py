"""What happens to the machine in a soak: one method a misfortune, chosen by a seed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from spotd.core.deadline import PLANNED
from spotd.errors import SpotdError
from spotd.testing.faults import Fault
from spotd.testing.stage import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    from spotd.testing.faults import FaultProxy
    from spotd.testing.imds import MetadataSimulator
    from spotd.testing.seaweed import Seaweed
    from spotd.testing.stage import Stage

PATIENCE = 90.0  # seconds for whatever must come by itself
FILLER = "filler"  # the file that fills the disk
FAULTS = (
    Fault("drop"), Fault("stall"), Fault("swallow"), Fault("throttle", rate=300_000.0),
    Fault("answer"), Fault("answer", status=500, code="InternalError"),
    Fault("cut", after=100_000), Fault("truncate", after=2_000), Fault("flip", after=3_000),
    Fault("flip", after=50_000, direction="up"),
)  # fmt: skip
MOODS = ("503", "404", "garbage", "hang", "closed", "reset", "truncated")


class Weather:
    """Each method is one thing that happens; when it returns, the daemon is there again.

    Args:
        stage: The machine.
        small_disk: Whether its disk is one that can become full.
        wipe: Empties the disk.
        tell: Takes one line.
    """

    def __init__(
        self,
        stage: Stage,
        imds: MetadataSimulator,
        network: FaultProxy,
        s3: Seaweed,
        random: Random,
        *,
        small_disk: bool,
        wipe: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self.stage, self.imds, self.network, self.s3 = stage, imds, network, s3
        self.random = random
        self.wipe = wipe
        self.tell = tell
        self.happened: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        # Those of which the daemon dies, and those it must live through.
        self.deadly: dict[Callable[[], None], int] = {
            self.kill_daemon: 20, self.kill_daemon_again_and_again: 14, self.power_cut: 8,
            self.torn_by_a_power_cut: 5, self.new_disk: 2, self.notice_and_stop: 6,
            self.notice_and_early_stop: 4, self.notice_and_killed_daemon: 4, self.stop_and_start: 3,
        }  # fmt: skip
        self.mild: dict[Callable[[], None], int] = {
            self.kill_trainer: 8, self.end_trainer: 3, self.notice_not_carried_out: 4,
            self.outage: 8, self.outage_and_killed_trainer: 3, self.s3_killed: 1,
            self.imds_in_a_mood: 3, self.rebalance: 2, self.drill: 1, self.daemon_stands_still: 2,
        }  # fmt: skip
        if small_disk:
            self.mild[self.disk_full] = 3

    def strike(self, *, daemon_lives: bool) -> str:
        """Has something happen; returns what."""
        kinds = self.mild if daemon_lives else {**self.deadly, **self.mild}
        what = self.random.choices(list(kinds), list(kinds.values()))[0]
        name: str = what.__name__.replace("_", " ")
        self.happened[name] += 1
        self.tell(name)
        what()
        return name

    def pause(self, least: float, most: float) -> None:
        """Lets time pass: so that what follows comes at any moment of what goes on."""
        time.sleep(self.random.uniform(least, most))

    def all_is_well(self) -> None:
        """Every trouble ends."""
        self.network.set(Fault())
        self.imds.well()
        self.imds.withdraw()
        (self.stage.disk / FILLER).unlink(missing_ok=True)

    # --- spotd -----------------------------------------------------------------------

    def kill_daemon(self) -> None:
        """It is killed with -9; systemd starts it again."""
        self.stage.kill_daemon()
        self.kills["spotd"] += 1
        self.pause(0.0, 0.3)
        self.stage.start_daemon()

    def kill_daemon_again_and_again(self) -> None:
        """Before it has come far."""
        for _ in range(self.random.randint(4, 10)):
            self.kill_daemon()
            self.pause(0.02, 0.7)

    def stop_and_start(self) -> None:
        """`systemctl stop`, `systemctl start`."""
        status = self.stage.stop_daemon(PATIENCE)
        if status not in (0, -signal.SIGTERM):  # the latter where it had hardly begun
            raise SpotdError(f"spotd ended with status {status}\n{self.stage.story()}")
        self.stage.start_daemon()

    def daemon_stands_still(self) -> None:
        """A machine that swaps."""
        if self.stage.daemon is not None:
            self.stage.daemon.send_signal(signal.SIGSTOP)
            self.pause(0.2, 1.5)
            self.stage.daemon.send_signal(signal.SIGCONT)

    # --- the trainer -----------------------------------------------------------------

    def _signal_trainer(self, number: int) -> None:
        pid = self.stage.status().get("trainer", {}).get("pid")
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                self.kills["trainer"] += 1

    def kill_trainer(self) -> None:
        """The kernel is out of memory."""
        self._signal_trainer(signal.SIGKILL)

    def end_trainer(self) -> None:
        """Somebody's `kill`, which is not spotd's."""
        self._signal_trainer(signal.SIGTERM)

    # --- power -----------------------------------------------------------------------

    def _cut(self) -> None:
        self.stage.power_cut()
        self.kills["both"] += 1
        self.imds.withdraw()

    def power_cut(self) -> None:
        """SIGKILL to everything at once."""
        self._cut()
        self.stage.boot()

    def torn_by_a_power_cut(self) -> None:
        """What was not written out is missing: an end, a middle, a bit."""
        self._cut()
        found = sorted(self.stage.checkpoints.glob("step-*"), key=_modified)
        if found:
            self._tear(found[-1])
        self.stage.boot()

    def _tear(self, place: Path) -> None:
        files = [place] if place.is_file() else [p for p in place.rglob("*") if p.is_file()]
        if not files:
            return
        path = self.random.choice(sorted(files))
        size = path.stat().st_size
        how = self.random.choice(("truncated", "zeroed", "flipped"))
        with path.open("r+b") as f:
            if how == "truncated":
                f.truncate(self.random.randrange(size + 1))
            elif how == "zeroed":
                f.seek(size // 2)
                f.write(bytes(size - size // 2))
            elif size:
                f.seek(self.random.randrange(size))
                byte = f.read(1)
                f.seek(-1, os.SEEK_CUR)
                f.write(bytes([byte[0] ^ 1]))

    def new_disk(self) -> None:
        """Nothing is left but what is in the store."""
        self._cut()
        self.wipe()
        self.stage.boot()

    # --- EC2 -------------------------------------------------------------------------

    def notice_and_stop(self) -> None:
        """As it should be: saved and stored in time."""
        given = time.time()
        self.imds.give_notice("stop", in_seconds=60)
        self.stage.wait_for_event("drained", after=given, within=PATIENCE)
        self.power_cut()

    def notice_and_early_stop(self) -> None:
        """The stop comes when it likes."""
        self.imds.give_notice("stop", in_seconds=60)
        self.pause(0.0, 2.5)
        self.power_cut()

    def notice_and_killed_daemon(self) -> None:
        """The daemon dies in the middle of a drain."""
        given = time.time()
        self.imds.give_notice("stop", in_seconds=60)
        self.pause(0.0, 1.5)
        self.kill_daemon()
        self.stage.wait_for_event("drained", after=given, within=PATIENCE)
        self.power_cut()

    def notice_not_carried_out(self) -> None:
        """EC2 thinks better of it."""
        wait_until(self.stage.status, within=PATIENCE, what="a daemon that answers")
        given = time.time()
        self.imds.give_notice("stop", in_seconds=5)
        self.stage.wait_for_event("interruption_notice", after=given, within=PATIENCE)
        # A time that is over when it is first seen, on a slow machine, is not believed.
        self.stage.wait_for_event("not_carried_out", after=given, within=PATIENCE + PLANNED)
        self.imds.withdraw()

    def rebalance(self) -> None:
        """A recommendation."""
        self.imds.rebalance()

    def imds_in_a_mood(self) -> None:
        """The metadata service is not itself."""
        self.imds.mood(self.random.choice(MOODS))
        self.pause(0.5, 3.0)
        self.imds.well()

    def drill(self) -> None:
        """`spotd drill`."""
        self.stage.wait_for_state("running", within=PATIENCE)
        words = [sys.executable, "-m", "spotd", "drill", "--config", str(self.stage.config)]
        subprocess.run(words, capture_output=True, timeout=PATIENCE, check=False)

    # --- the store and the disk ------------------------------------------------------

    def outage(self) -> None:
        """The way to S3 is bad for a while."""
        with self.network.during(self.random.choice(FAULTS)):
            self.pause(0.3, 4.0)

    def outage_and_killed_trainer(self) -> None:
        """Both at once."""
        with self.network.during(self.random.choice(FAULTS)):
            self.pause(0.1, 2.0)
            self.kill_trainer()
            self.pause(0.1, 2.0)

    def s3_killed(self) -> None:
        """A power cut in the cloud."""
        self.s3.kill()
        self.pause(0.5, 2.0)
        self.s3.start()

    def disk_full(self) -> None:
        """Nothing can be written for a while."""
        path = self.stage.disk / FILLER
        with contextlib.suppress(OSError), path.open("wb", buffering=0) as f:
            while f.write(bytes(1 << 16)):
                pass
        self.pause(0.5, 3.0)
        path.unlink()


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns
