"""A soak: real processes, a real S3 server, a real torch trainer, and hundreds of misfortunes.

    python -m spotd.rehearsal.soak --minutes 10 --seed 1

A machine trains while spotd, the trainer and both together are killed, notices are given and
carried out or not, files torn, disks filled and lost, and the way to S3 spoiled; in the last
two fifths of the time one daemon lives through whatever does not kill it. In the end the
training must have come to the very weights of one that was left alone, no two trainers may
have trained at once, and nothing may have piled up: memory, descriptors, threads, temporary
files, parts of uploads, leases.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from spotd.errors import SpotdError
from spotd.rehearsal.demo import digest
from spotd.rehearsal.soak_census import Sample, growth, left_in_bucket, left_on_disk, sample
from spotd.rehearsal.soak_trail import Trail, read_trail
from spotd.rehearsal.soak_weather import PATIENCE, Weather
from spotd.testing.stage import Stage, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BUCKET = "spotd-soak"
KEEP = 3
DEADLY_SHARE = 0.6  # of the time; in the rest one daemon lives
AHEAD = 200  # steps between the order to finish and the last step: nobody may be past it
DISK = 1 << 30  # bytes of the small disk
REST_EVERY = 4  # misfortunes between two looks at a daemon at rest


class Soak:
    """One soak.

    Args:
        directory: Where everything goes.
        minutes: How long misfortunes happen; the start and the end come on top.
        width: Of the model: a checkpoint has about 900 times as many bytes.
        say: Takes each line.
    """

    def __init__(
        self,
        directory: Path,
        *,
        minutes: float = 10.0,
        seed: int = 1,
        width: int = 20_000,
        say: Callable[[str], None] = print,
    ) -> None:
        self.directory = directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.seconds = 60.0 * minutes
        self.seed, self.width, self.say = seed, width, say
        self.samples: list[Sample] = []
        self.wrong: list[str] = []
        self._began = time.monotonic()

    def tell(self, text: str) -> None:
        """Prints one line of the timeline."""
        self.say(f"{time.monotonic() - self._began:7.1f} s  {text}")

    def _trainer(self, name: str, *words: str) -> list[str]:
        return [
            sys.executable, "-m", "spotd.rehearsal.soak_trainer", "--width", str(self.width),
            "--finish", str(self.directory / "finish"),
            "--weights", str(self.directory / f"{name}.weights"), *words,
        ]  # fmt: skip

    @property
    def _trail_path(self) -> Path:
        return self.directory / "trail"

    def _stage(self, s3: Any, network: Any, imds: Any) -> Stage:
        words = ("--trail", str(self._trail_path), "--tick", "0.005", "--save-every", "50")
        return Stage(
            directory=self.directory / "instance",
            command=self._trainer("soaked", *words),
            store_url=f"s3://{BUCKET}/soak",
            endpoint_url=network.endpoint_url,
            imds_url=imds.url,
            run="soak",
            environment=s3.environment,
            trainer={
                "backoff_min": 0.1, "backoff_max": 1.0, "max_failures": 1_000_000,
                "checkpoint_signal": "SIGUSR1", "environment": {"OMP_NUM_THREADS": "1"},
            },
            sections={
                "imds": {"poll_interval": 0.3, "timeout": 1.0},
                "interruption": {"margin": 1.0, "not_carried_out_after": 0.5},
                "store": {"keep": KEEP},
            },
        )  # fmt: skip

    # --- the story -------------------------------------------------------------------

    def run(self) -> bool:
        """Runs it; returns whether all is as it should be."""
        from spotd.testing.faults import FaultProxy  # noqa: PLC0415 - with the soak only
        from spotd.testing.imds import MetadataSimulator  # noqa: PLC0415 - likewise
        from spotd.testing.seaweed import Seaweed  # noqa: PLC0415 - likewise

        with contextlib.ExitStack() as stack:
            s3 = Seaweed(self.directory / "s3")
            s3.start()
            stack.callback(s3.kill)
            s3.make_bucket(BUCKET)
            network = stack.enter_context(FaultProxy(s3.port))
            imds = stack.enter_context(MetadataSimulator())
            self.stage = self._stage(s3, network, imds)
            small_disk = self._small_disk(stack)
            stack.callback(self.stage.power_cut)
            self.weather = Weather(
                self.stage, imds, network, s3,
                Random(self.seed),  # noqa: S311 - weather, not secrets
                small_disk=small_disk, wipe=self._wipe, tell=self.tell,
            )  # fmt: skip
            self.tell(f"seed {self.seed}: {self.seconds:.0f} s of misfortunes")
            self.stage.boot()
            self._rest(look=False)
            self._strike_for(DEADLY_SHARE * self.seconds, daemon_lives=False)
            self.tell("from here on one daemon must live")
            self._rest(look=True)
            self._strike_for((1 - DEADLY_SHARE) * self.seconds, daemon_lives=True)
            last = self._finish()
            self._look_for_leftovers(s3)
        return self._verdict(last)

    def _small_disk(self, stack: contextlib.ExitStack) -> bool:
        """Puts the machine's disk on a file system that can be full; False where it cannot be."""
        disk = self.stage.disk
        disk.mkdir(parents=True)
        words = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)]
        if os.geteuid() != 0 or shutil.which("mount") is None:
            self.tell("not root: the disk never becomes full")
            return False
        if subprocess.run(words, capture_output=True, check=False).returncode:
            self.tell("nothing can be mounted here: the disk never becomes full")
            return False
        unmount = ["umount", "-l", str(disk)]
        stack.callback(subprocess.run, unmount, check=False, capture_output=True)
        return True

    def _wipe(self) -> None:
        for path in self.stage.disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _strike_for(self, seconds: float, *, daemon_lives: bool) -> None:
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end:
            self.weather.strike(daemon_lives=daemon_lives)
            count += 1
            self._check_alive()
            self.weather.pause(0.0, 1.5)
            if count % REST_EVERY == 0:
                self._rest(look=daemon_lives)

    def _check_alive(self) -> None:
        daemon = self.stage.daemon
        if daemon is not None and daemon.poll() is not None:
            raise SpotdError(f"spotd ended by itself ({daemon.returncode})\n{self.stage.story()}")

    def _rest(self, *, look: bool) -> None:
        """All troubles end, and it must come to rest: training, all stored."""
        self.weather.all_is_well()
        trained = self._trail().steps
        wanted, since = "", time.time()

        def at_rest() -> bool:
            nonlocal wanted
            self._check_alive()
            status = self.stage.status()
            if status.get("state") != "running" or self._trail().steps <= trained:
                return False
            newest = status["checkpoint"]["newest"]
            if newest is None:
                return False
            # On busy cores an upload in peace takes longer than the next save: what is the
            # newest now may never be stored, but what was at first is, or a newer one.
            wanted = wanted or newest["id"]
            return newest["stored"] or self._is_stored(wanted, since)

        try:
            wait_until(at_rest, within=PATIENCE, what="rest", tick=0.1)
        except TimeoutError as error:
            status = json.dumps(self.stage.status(), indent=1)
            raise TimeoutError(f"{error}\n{status}\n{self.stage.story()}") from None
        if look and self.stage.daemon is not None:
            self.samples.append(sample(self.stage.daemon.pid))
        self._report()

    def _is_stored(self, at_least: str, since: float) -> bool:
        return any(
            e["time"] > since
            and e.get("event") == "checkpoint_stored"
            and e.get("checkpoint", "") >= at_least
            for e in self.stage.events()
        )

    def _report(self) -> None:
        trail, kills = self._trail(), self.weather.kills
        self.tell(
            f"at rest at step {trail.last}: {sum(kills.values())} kills, "
            f"{sum(self.weather.happened.values())} misfortunes"
        )

    def _trail(self) -> Trail:
        return read_trail(self._trail_path)

    def _finish(self) -> int:
        """Lets it train to an end; returns the last step."""
        self.weather.all_is_well()
        last = max(last for _, _, last in self._trail().lives) + AHEAD
        path = self.directory / "finish"
        path.with_suffix(".new").write_text(str(last))
        path.with_suffix(".new").rename(path)
        self.stage.wait_for_state("completed", within=PATIENCE)
        wait_until(
            lambda: "complete and stored" in self.stage.status().get("reason", ""),
            within=PATIENCE, what=f"completed.json\n{self.stage.story()}",
        )  # fmt: skip
        status = self.stage.stop_daemon(PATIENCE)
        if status != 0:
            self.wrong.append(f"spotd ended with status {status}")
        return last

    # --- what came of it -------------------------------------------------------------

    def _look_for_leftovers(self, s3: Any) -> None:
        import botocore.session  # noqa: PLC0415 - with the soak only

        self.wrong += [f"left running: {pid}" for pid in self.stage.processes()]
        self.wrong += [f"left on the disk: {x}" for x in left_on_disk(self.stage)]
        client = botocore.session.Session().create_client(
            "s3", region_name="us-east-1", endpoint_url=s3.endpoint_url,
            aws_access_key_id=s3.access_key, aws_secret_access_key=s3.secret_key,
        )  # fmt: skip
        prefix = "soak/soak/"
        happened = self.weather.happened
        forgotten = 2 * happened["new disk"] + happened["disk full"]
        events = self.stage.events()
        rejected = {e.get("checkpoint", "") for e in events if e["event"] == "checkpoint_rejected"}
        found = left_in_bucket(
            client, BUCKET, prefix, keep=KEEP, forgotten=forgotten, rejected=rejected
        )
        self.wrong += [f"left in the bucket: {x}" for x in found]
        client.close()
        defects = {e["message"] for e in events if e["event"] == "defect"}
        log = self.stage.log.read_text(errors="replace")
        self.wrong += [f"a defect: {x}" for x in sorted(defects)]
        if not defects and ("Traceback" in log or "a defect in spotd" in log):
            self.wrong.append(f"a traceback in {self.stage.log}")

    def _uninterrupted(self) -> str:
        self.tell("the same training, uninterrupted, for comparison")
        checkpoints = {"SPOTD_CHECKPOINT_DIR": str(self.directory / "alone")}
        subprocess.run(
            self._trainer("alone"),
            check=True, capture_output=True, env={**os.environ, **checkpoints},
        )  # fmt: skip
        return digest(self.directory / "alone.weights")

    def _verdict(self, last: int) -> bool:
        soaked, alone = digest(self.directory / "soaked.weights"), self._uninterrupted()
        if soaked != alone:
            self.wrong.append("THE WEIGHTS DIFFER")
        trail = self._trail()
        self.wrong += trail.wrong
        self.wrong += growth(self.samples)
        self.say("")
        for name, count in self.weather.happened.most_common():
            self.say(f"{count:6} {name}")
        self.say("")
        kills = ", ".join(f"{n} of {who}" for who, n in self.weather.kills.most_common())
        self.say(f"kills: {kills}")
        again = trail.steps - last
        self.say(f"steps: {last}, by {len(trail.lives)} trainers; {again} trained again")
        self._say_samples(self.samples)
        for name, checksum in (("soaked", soaked), ("alone", alone)):
            self.say(f"weights {name:<7} sha256 {checksum}")
        for what in self.wrong:
            self.say(f"WRONG: {what}")
        seconds = time.monotonic() - self._began
        verdict = "NOT AS IT SHOULD BE" if self.wrong else "the same weights, and nothing piled up"
        self.say(f"verdict: {verdict} ({seconds:.0f} s, seed {self.seed})")
        return not self.wrong

    def _say_samples(self, samples: Sequence[Sample]) -> None:
        if not samples:
            return
        memory = [s.memory / 2**20 for s in samples]
        self.say(
            f"one daemon, {len(samples)} times at rest: {memory[0]:.1f} MiB at first, "
            f"{max(memory):.1f} at most, {memory[-1]:.1f} at last; descriptors "
            f"{samples[0].descriptors} to {samples[-1].descriptors}, threads "
            f"{samples[0].threads} to {samples[-1].threads}"
        )


def main(argv: list[str] | None = None) -> int:
    """Runs a soak; 0 if all was as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m spotd.rehearsal.soak", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of misfortunes (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="of what happens when (default: 1)")
    parser.add_argument("--width", type=int, default=20_000,
                        help="of the model; 20000 are checkpoints of 18 MB")  # fmt: skip
    parser.add_argument("--directory", type=Path, help="keep everything there")
    options = parser.parse_args(argv)

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    with contextlib.ExitStack() as stack:
        place = options.directory
        if place is None:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="spotd-soak-"))
            place = Path(name)
        soak = Soak(place, minutes=options.minutes, seed=options.seed, width=options.width, say=say)
        try:
            return 0 if soak.run() else 1
        except (SpotdError, TimeoutError) as e:
            say(f"WRONG: {e}")
            return 1


if __name__ == "__main__":
    sys.exit(main())
