"""The main job on real input: a GPT learns text while its machine is taken away.

Two trainings of the same thing run at the same time. One is left alone. The other runs
under spotd and meets a notice, a power cut, a torn checkpoint and a lost disk. In the end
their weights must be the same, byte for byte. The daemon, the trainer, the S3 server and
the metadata protocol are real; the machine that goes away is played
(`spotd.testing.stage`).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spotd.core.words import megabytes
from spotd.errors import SpotdError
from spotd.testing.stage import Stage, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BUCKET = "spotd-demo"
PATIENCE = 120.0  # seconds for anything in the story
MODEL = ("--layers", "2", "--heads", "2", "--width", "64", "--context", "64", "--batch", "8")


@dataclass
class Interruption:
    """One chapter: what happened, and what it cost.

    Attributes:
        name: What a person calls it.
        at: Seconds since the story began.
        step_before: The last step trained before.
        step_after: The first step trained after.
        notice_to_stored: Seconds, None without a notice.
        boot_to_step: Seconds from boot to the next step.
    """

    name: str
    at: float
    step_before: int
    step_after: int = 0
    notice_to_stored: float | None = None
    boot_to_step: float = 0.0

    @property
    def lost(self) -> int:
        """Steps that had to be trained again."""
        return max(0, self.step_before - self.step_after + 1)


@dataclass
class Demo:
    """The story.

    Attributes:
        directory: Where everything goes; the picture and the logs stay.
        steps: Of training.
        say: Takes each line of the timeline.
    """

    directory: Path
    steps: int = 2400
    save_every: int = 100
    say: Callable[[str], None] = print
    chapters: list[Interruption] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory = self.directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()

    def tell(self, text: str) -> None:
        """Prints one line of the timeline."""
        self.say(f"{time.monotonic() - self._began:7.1f} s  {text}")

    # --- the two trainings -----------------------------------------------------------

    def _trainer(self, name: str) -> list[str]:
        return [
            sys.executable, "-m", "spotd_trainer.reference", *MODEL,
            "--steps", str(self.steps), "--seed", "7", "--log-every", "200", "--eval-every", "0",
            "--out-weights", str(self.directory / f"{name}.weights"),
            "--log-jsonl", str(self._losses(name)),
        ]  # fmt: skip

    def _losses(self, name: str) -> Path:
        return self.directory / f"{name}.jsonl"

    def _start_uninterrupted(self) -> subprocess.Popen[bytes]:
        with (self.directory / "uninterrupted.log").open("wb") as log:
            return subprocess.Popen(
                [*self._trainer("uninterrupted"), "--save-every", "never", "--checkpoint-dir",
                 str(self.directory / "uninterrupted.checkpoints")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def _steps_trained(self) -> list[int]:
        return [int(e["step"]) for e in read_losses(self._losses("interrupted"))]

    def _wait_for_step(self, step: int) -> None:
        wait_until(
            lambda: max(self._steps_trained(), default=0) >= step,
            within=PATIENCE,
            what=f"step {step}\n{self.stage.story()}",
            tick=0.1,
        )

    # --- the story -------------------------------------------------------------------

    def run(self) -> bool:
        """Tells the story; returns whether the weights are the same."""
        from spotd.testing.imds import MetadataSimulator  # noqa: PLC0415 - with the demo only
        from spotd.testing.seaweed import Seaweed  # noqa: PLC0415 - likewise

        for name in ("interrupted", "uninterrupted"):
            self._losses(name).unlink(missing_ok=True)
            (self.directory / f"{name}.weights").unlink(missing_ok=True)
        self.tell("starting an S3 server and a metadata service on loopback")
        with Seaweed(self.directory / "s3") as s3, MetadataSimulator() as imds:
            s3.make_bucket(BUCKET)
            self.imds = imds
            self.stage = Stage(
                directory=self.directory / "instance",
                command=[*self._trainer("interrupted"), "--save-every", str(self.save_every)],
                store_url=f"s3://{BUCKET}/training",
                endpoint_url=s3.endpoint_url,
                imds_url=imds.url,
                environment=s3.environment,
            )
            alone = self._start_uninterrupted()
            self.tell("the same training, uninterrupted, runs beside it")
            try:
                self._chapters()
                self._finish(alone)
            finally:
                alone.kill()
                alone.wait()
                self.stage.power_cut()
                s3.kill()  # its own way to end takes ten seconds
        same = self._verdict()
        self._picture()
        return same

    def _chapters(self) -> None:
        stage = self.stage
        stage.boot()
        self.tell("the instance boots; spotd starts the trainer")
        self._wait_for_step(self.steps // 6)
        stage.wait_for_event("checkpoint_stored", within=PATIENCE)
        self.tell("checkpoints go to S3 while it trains")
        self._chapter("notice, stop, start", self.steps // 5, self._notice)
        self._chapter("power cut", 2 * self.steps // 5, lambda _: None)
        self._chapter("power cut, newest torn", 3 * self.steps // 5, self._tear)
        self._chapter("disk lost", 4 * self.steps // 5, self._lose_disk)

    def _chapter(self, name: str, step: int, damage: Callable[[Interruption], None]) -> None:
        self._wait_for_step(step)
        chapter = Interruption(name, time.monotonic() - self._began, 0)
        if name.startswith("notice"):
            damage(chapter)
            self.stage.power_cut()
        else:
            self.stage.power_cut()
            self.tell(f"{name}: SIGKILL to everything on the machine")
            damage(chapter)
        trained = self._steps_trained()
        chapter.step_before = trained[-1]
        booted = time.monotonic()
        self.stage.boot()
        self.tell(f"the machine boots again; it had trained to step {chapter.step_before}")
        count = len(trained)
        wait_until(
            lambda: len(self._steps_trained()) > count,
            within=PATIENCE,
            what=f"a step after {name}\n{self.stage.story()}",
        )
        chapter.boot_to_step = time.monotonic() - booted
        chapter.step_after = self._steps_trained()[count]
        self.chapters.append(chapter)
        self.tell(
            f"training goes on at step {chapter.step_after} after {chapter.boot_to_step:.1f} s: "
            f"{chapter.lost} steps lost"
        )

    def _notice(self, chapter: Interruption) -> None:
        given = time.time()
        self.imds.give_notice("stop", in_seconds=120)
        self.tell("EC2 gives notice: stop in two minutes")
        self.stage.wait_for_event("interruption_notice", after=given)
        self.tell("spotd has seen it and signalled the trainer")
        drained = self.stage.wait_for_event("drained", after=given, within=PATIENCE)
        stored = [
            e for e in self.stage.events()
            if e["event"] == "checkpoint_stored" and e["time"] > given
        ]  # fmt: skip
        chapter.notice_to_stored = (stored[-1] if stored else drained)["time"] - given
        self.tell(f"drained: {drained['message']}")
        self.imds.withdraw()
        self.tell("EC2 stops the instance")

    def _tear(self, _: Interruption) -> None:
        newest = max(self.stage.checkpoints.glob("step-*.pt"), key=lambda p: p.name)
        size = newest.stat().st_size
        with newest.open("r+b") as f:
            f.truncate(size // 2)
        self.tell(f"the power cut tore {newest.name}: {megabytes(size // 2)} of {megabytes(size)}")

    def _lose_disk(self, _: Interruption) -> None:
        self.stage.lose_disk()
        self.tell("and the disk is gone: nothing is left but what is in S3")

    def _finish(self, alone: subprocess.Popen[bytes]) -> None:
        self.stage.wait_for_state("completed", within=PATIENCE)
        wait_until(
            lambda: "stored" in self.stage.status().get("reason", ""),
            within=PATIENCE,
            what=f"completed.json in the store\n{self.stage.story()}",
        )
        self.tell("the run is complete, and stored")
        if alone.poll() is None:
            self.tell("waiting for the uninterrupted training, which still has steps to do")
        try:
            alone.wait(PATIENCE)
        except subprocess.TimeoutExpired as e:
            raise SpotdError("the uninterrupted training does not end") from e
        if alone.returncode != 0:
            log = (self.directory / "uninterrupted.log").read_text(errors="replace")
            raise SpotdError(f"the uninterrupted training failed: {log[-500:]}")
        status = self.stage.status()
        self.tell(status.get("line", ""))
        self.stage.stop_daemon()

    # --- what came of it -------------------------------------------------------------

    def _verdict(self) -> bool:
        sums = {
            n: digest(self.directory / f"{n}.weights") for n in ("uninterrupted", "interrupted")
        }
        same = sums["uninterrupted"] == sums["interrupted"]
        self.say("")
        self.say(
            f"{'interruption':<24} {'steps lost':>10} {'notice to stored':>17} {'boot to step':>13}"
        )
        for c in self.chapters:
            stored = "-" if c.notice_to_stored is None else f"{c.notice_to_stored:.1f} s"
            self.say(f"{c.name:<24} {c.lost:>10} {stored:>17} {c.boot_to_step:>11.1f} s")
        self.say("")
        for name, checksum in sums.items():
            self.say(f"weights {name:<14} sha256 {checksum}")
        verdict = "the same weights, byte for byte" if same else "THE WEIGHTS DIFFER"
        self.say(
            f"verdict: {len(self.chapters)} interruptions, {sum(c.lost for c in self.chapters)} "
            f"steps trained again, {verdict} ({time.monotonic() - self._began:.0f} s)"
        )
        return same

    def _picture(self) -> None:
        try:
            from spotd.rehearsal.picture import draw  # noqa: PLC0415 - matplotlib, if it is there
        except ImportError as e:
            self.say(f"no picture: {e} (pip install 'spotd[demo]')")
            return
        path = self.directory / "loss.png"
        draw(
            path,
            read_losses(self._losses("uninterrupted")),
            read_losses(self._losses("interrupted")),
            [(c.name, c.step_before, c.lost) for c in self.chapters],
        )
        self.say(f"loss curve: {os.path.relpath(path)}")


def digest(path: Path) -> str:
    """Returns the sha256 of a file, or why there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as e:
        return f"none: {e.strerror}"


def read_losses(path: Path) -> list[dict[str, Any]]:
    """Returns the entries of a loss log; a line that is being written is left out."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # torn by a power cut
        if isinstance(entry, dict) and "step" in entry:
            entries.append(entry)
    return entries
