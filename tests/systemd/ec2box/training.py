"""A run on an instance, and what can be known of it from outside."""

from __future__ import annotations

import json
import shutil
import stat
from typing import TYPE_CHECKING, Any

from ec2box.cloud import MARKS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ec2box.cloud import Cloud
    from ec2box.instance import Instance

HOME = "/home/ubuntu"


class Training:
    """`configure`, `boot`, then wait for what should happen.

    Attributes:
        instance: the machine; a new one after `replace`.
        base: the image below the machine.
        run: the run's name, and its prefix in the bucket.
    """

    def __init__(self, cloud: Cloud, launch: Callable[..., Instance], run: str, base: Path) -> None:
        self.base = base
        self.cloud = cloud
        self._launch = launch
        self.run = run
        self.instance = launch()

    # -- before --------------------------------------------------------------------------

    def configuration(
        self, *, arguments: str = "", more: str = "", program: str = "", **sections: str
    ) -> str:
        """spotd.toml: the trainer's further arguments, further lines of sections, whole sections.

        `program` is another `[trainer]` altogether.

        Polls and margins are shortened, so that a scenario lasts seconds.
        """
        lines = {
            "trainer": program
            or f'command = "python3 -u train.py checkpoints {arguments}"\n'
            f'directory = "{HOME}"\nuser = "ubuntu"\n'
            'resume_arguments = ["--resume", "{checkpoint}"]',
            "checkpoints": 'directory = "checkpoints"',
            "store": f'url = "s3://{self.cloud.bucket}/spotd"\n'
            f'endpoint_url = "{self.cloud.s3_url}"\nregion = "eu-central-1"',
            "imds": 'poll_interval = "200ms"\ntimeout = "1s"',
            "interruption": 'margin = "1s"\nnot_carried_out_after = "2s"',
        }
        for name, text in sections.items():
            lines[name] = f"{lines.get(name, '')}\n{text}"
        body = "\n".join(f"[{name}]\n{text}" for name, text in lines.items())
        return f'run = "{self.run}"\ncloud = "ec2"\n{body}\n{more}'

    def configure(self, **options: str) -> None:
        """Writes the configuration onto the disk of a machine that is off."""
        self.instance.mount()
        self.instance.write("/etc/spotd/spotd.toml", self.configuration(**options), 0o640)
        home = self.instance.file(HOME)
        shutil.chown(home, 1000, 1000)
        self.instance.sync()

    def boot(self, **options: str) -> None:
        """Configures and starts the instance, and waits until it trains."""
        self.configure(**options)
        self.instance.start()
        self.until_training()

    def replace(self, **options: str) -> None:
        """EC2 launches another instance with an empty disk."""
        self.instance = self._launch()
        self.configure(**options)

    # -- what can be seen ----------------------------------------------------------------

    def steps(self) -> list[tuple[int, int, int]]:
        """Each step trained: its number, the trainer's pid, the step it had resumed from."""
        path = self.instance.file(f"{HOME}/steps.log")
        if not path.exists():
            return []
        rows = [line.split() for line in path.read_text(errors="replace").splitlines()]
        return [(int(a), int(b), int(c)) for a, b, c in (r for r in rows if len(r) == 3)]

    @property
    def step(self) -> int:
        """The newest step trained."""
        steps = self.steps()
        return steps[-1][0] if steps else 0

    def until_training(self, more: int = 3, patience: float = 30.0) -> int:
        """Waits until `more` steps were trained from now on; returns the step it is at."""
        before = len(self.steps())
        what = f"{more} more steps than {before}"
        self.instance.until(lambda: len(self.steps()) >= before + more, what, patience)
        return self.step

    def stored(self) -> list[dict[str, Any]]:
        """The manifests in the bucket, oldest first: what exists in the store."""
        keys = self.cloud.keys(f"spotd/{self.run}/checkpoints/")
        names = [key for key in keys if key.endswith("/MANIFEST.json")]
        found = [self.cloud.read(key) for key in sorted(names)]
        return [json.loads(text) for text in found if text is not None]  # since deleted

    def stored_step(self) -> int:
        """The step of the newest checkpoint in the store, 0 when there is none."""
        found = self.stored()
        return int(found[-1]["step"] or 0) if found else 0

    def until_stored(self, step: int = 1, patience: float = 30.0) -> None:
        """Waits until a checkpoint of that step or a newer one is in the store."""
        what = f"step {step} in the store"
        self.instance.until(lambda: self.stored_step() >= step, what, patience)

    def status(self) -> dict[str, Any]:
        """`spotd status --json`."""
        said: dict[str, Any] = json.loads(self.instance.run("spotd", "status", "--json"))
        return said

    def until_state(self, state: str, patience: float = 30.0) -> dict[str, Any]:
        """Waits for a state of `spotd status`."""

        def is_there() -> bool:
            text = self.instance.run("spotd", "status", "--json", check=False)
            return text.startswith("{") and json.loads(text)["state"] == state

        self.instance.until(is_there, f"state {state}", patience)
        return self.status()

    def line(self) -> str:
        """What `systemctl status` shows of spotd in its Status: line."""
        return self.instance.show("spotd.service", "StatusText").get("StatusText", "")

    def resumed_at(self) -> list[int]:
        """From which step each trainer began, in order."""
        seen: dict[tuple[int, int], None] = {}
        for _, pid, begin in self.steps():
            seen.setdefault((pid, begin))
        return [begin for _, begin in seen]

    def forget_lost_steps(self) -> None:
        """After a cut: the log of steps is no checkpoint; what is left of it is made readable."""
        path = self.instance.file(f"{HOME}/steps.log")
        if path.exists():
            path.write_text("".join(f"{a} {b} {c}\n" for a, b, c in self.steps()))
            self.instance.sync()

    def secret_marks(self) -> list[str]:
        """Lines of the journal that hold the role's secret key; there must be none."""
        return [e["MESSAGE"] for e in self.instance.journal() if MARKS in str(e.get("MESSAGE"))]


def mode(path: Any) -> str:
    """The permission bits of a file, as ls shows them."""
    return stat.filemode(path.stat().st_mode)
