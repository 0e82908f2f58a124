"""The scenes with the real daemon, a real trainer, a real S3 server and IMDS over HTTP."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scene import SAVE_EVERY, STEPS, Cast, Scene, Seen

from spotd.core.manifest import parse_time
from spotd.testing.faults import Fault, FaultProxy
from spotd.testing.imds import MetadataSimulator
from spotd.testing.stage import Stage, wait_until

TRAINER = Path(__file__).with_name("gated_trainer.py")
WITHIN = 40.0  # seconds for what takes one or two on a quiet machine
DISK = 16 << 20  # bytes of a small disk
BUCKET = "spotd-test"


class RealScene(Scene):
    """Use as a context manager: whatever still runs is killed at the end."""

    def __init__(self, cast: Cast, directory: Path, seaweed: Any, bucket: Any) -> None:
        super().__init__(cast)
        self._stack = contextlib.ExitStack()
        self._bucket = bucket
        self._prefix = f"conformance/{directory.parent.name}-{directory.name}"
        self._network = self._stack.enter_context(FaultProxy(seaweed.port))
        self._imds = [
            self._stack.enter_context(MetadataSimulator(instance_id=f"i-{n}00000000000000{n}"))
            for n in (1, 2)
        ]
        words = [sys.executable, "-S", str(TRAINER), "--steps", STEPS, "--save-every", SAVE_EVERY]
        words += ["--deaf"] * (not cast.catches) + ["--leaves-unsaved"] * (not cast.saves)
        words += ["--in-place"] * cast.in_place
        self._stages = [
            Stage(
                directory=directory / name, command=[str(w) for w in words], run="run",
                store_url=f"s3://{BUCKET}/{self._prefix}", imds_url=imds.url,
                endpoint_url=self._network.endpoint_url, environment=seaweed.environment,
                trainer={
                    **cast.trainer_keys(),
                    "environment": {"OFF_THE_DISK": str(directory / name / "off-the-disk")},
                },
                sections=cast.sections(),
            )
            for name, imds in zip(("one", "two"), self._imds, strict=True)
        ]  # fmt: skip
        self._before: list[dict[str, Any]] = []  # the journal of a disk that is gone
        self._drills: list[subprocess.Popen[bytes]] = []
        for stage in self._stages:
            self._stack.callback(stage.power_cut)
        if cast.small_disk:
            self._mount(self._stages[0].disk)

    def __enter__(self) -> RealScene:  # noqa: PYI034 - typing.Self is of 3.11
        return self

    def __exit__(self, *_: object) -> None:
        for drill in self._drills:
            drill.kill()
            drill.wait()
        self._stack.close()

    def _mount(self, place: Path) -> None:
        place.mkdir(parents=True)
        mount_small_disk(place)
        unmount = ["umount", "-l", str(place)]
        # What is put on the stack last runs first.
        self._stack.callback(subprocess.run, unmount, check=True)
        self._stack.callback(self._stages[0].power_cut)

    def _beside(self, name: str, machine: int = 0) -> Path:
        """A file between trainer and test; it neither fills a disk nor goes with it."""
        place = self._stages[machine].directory / "off-the-disk"
        place.mkdir(exist_ok=True)
        return place / name

    def _lever(self, name: str, text: str | None, machine: int = 0) -> None:
        lever = self._beside(name, machine)
        if text is None:
            lever.unlink(missing_ok=True)
            return
        lever.with_suffix(".new").write_text(text)
        lever.with_suffix(".new").rename(lever)

    def until(self, condition: Any, what: str) -> None:
        try:
            wait_until(condition, within=WITHIN, what=what)
        except TimeoutError as e:
            told = "\n".join(s.story() for s in self._stages if s.log.exists())
            raise AssertionError(f"on the real machine: {e}\n{told}") from None

    # --- the machine -----------------------------------------------------------------

    def boot(self, machine: int = 0) -> None:
        self._stages[machine].boot()

    def cut(self, machine: int = 0) -> None:
        stage = self._stages[machine]
        self.until(lambda: _is_on_record(stage), "the record on the disk")
        stage.power_cut()
        self._beside("step", machine).unlink(missing_ok=True)

    def new_instance(self) -> None:
        self._before = self.events()
        self._stages[0].lose_disk()
        self._lever("gate", None)  # a trainer that starts from scratch would run up to it
        self._imds[0].instance_id = "i-30000000000000003"
        self._imds[0].withdraw()

    def full(self, is_full: bool) -> None:
        filler = self._stages[0].disk / "filler"
        if not is_full:
            filler.unlink()
            return
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as f:
            while True:
                f.write(bytes(4096))

    # --- spotd -----------------------------------------------------------------------

    def stop(self, machine: int = 0) -> None:
        assert self._stages[machine].stop_daemon(WITHIN) == 0

    def kill(self) -> None:
        self._stages[0].kill_daemon()

    def start(self) -> None:
        self._stages[0].start_daemon()

    def drill(self) -> None:
        words = [sys.executable, "-m", "spotd", "drill", "--config", str(self._stages[0].config)]
        self._drills.append(
            subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        )

    # --- the trainer -----------------------------------------------------------------

    def train(self, step: int, machine: int = 0) -> None:
        self._lever("gate", str(step), machine)

        def there() -> bool:
            try:
                return int(self._beside("step", machine).read_text() or 0) >= step
            except FileNotFoundError:
                return False

        self.until(there, f"step {step}")
        self.wait_told(step, machine)

    def train_into_crash(self, step: int) -> None:
        self._lever("gate", str(step))
        self.wait("trainer_exited")

    def trainer_lives(self) -> bool:
        def of_trainer(pid: int) -> bool:
            with contextlib.suppress(OSError):
                return TRAINER.name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
            return False

        return any(map(of_trainer, self._stages[0].processes()))

    def crash(self) -> None:
        self._lever("crash", "")

    def crash_at_start(self, does: bool) -> None:
        self._lever("crash-at-start", "" if does else None)

    def poison(self, name: str) -> None:
        self._lever("poison", name)

    def hold_saves(self, holds: bool) -> None:
        self._lever("hold-in-save", "" if holds else None)

    def wait_in_save(self) -> None:
        self.until(self._beside("in-save").exists, "a save under way")

    # --- the disk --------------------------------------------------------------------

    def tear(self, name: str) -> None:
        path = self._stages[0].checkpoints / name
        with path.open("r+b") as f:
            f.truncate(path.stat().st_size // 2)

    def delete(self, name: str) -> None:
        (self._stages[0].checkpoints / name).unlink()

    # --- EC2 -------------------------------------------------------------------------

    def notice(self, action: str = "stop", seconds: float = 120.0) -> None:
        self._imds[0].give_notice(action, in_seconds=seconds)

    def withdraw(self) -> None:
        self._imds[0].withdraw()

    def rebalance(self) -> None:
        self._imds[0].rebalance()

    def imds(self, works: bool) -> None:
        self._imds[0].mood("well" if works else "503")

    # --- the store -------------------------------------------------------------------

    def store(self, works: bool) -> None:
        self._network.set(Fault() if works else Fault("drop"))

    def _key(self, rest: str) -> str:
        return f"{self._prefix}/run/{rest}"

    def _get(self, rest: str) -> dict[str, Any]:
        body = self._bucket.get_object(Bucket=BUCKET, Key=self._key(rest))["Body"]
        told: dict[str, Any] = json.loads(body.read())
        return told

    def _put(self, rest: str, data: bytes) -> None:
        self._bucket.put_object(Bucket=BUCKET, Key=self._key(rest), Body=data)

    def damage(self, checkpoint_id: str) -> None:
        name = checkpoint_id.partition("-")[2]
        manifest = self._get(f"checkpoints/{checkpoint_id}/MANIFEST.json")
        self._put(f"checkpoints/{checkpoint_id}/{name}", bytes(manifest["size"]))

    def lease_runs_out(self) -> None:
        lease = {**self._get("lease.json"), "expires": "2020-01-01T00:00:00Z"}
        self._put("lease.json", json.dumps(lease).encode())

    # --- looking ---------------------------------------------------------------------

    def events(self, machine: int = 0) -> list[dict[str, Any]]:
        before = [] if machine else self._before
        return before + self._stages[machine].events()

    def status(self, machine: int = 0) -> dict[str, Any]:
        return self._stages[machine].status()

    def _loaded(self, machine: int) -> list[tuple[int, int]]:
        path = self._beside("loaded.jsonl", machine)
        lines = path.read_text().splitlines() if path.exists() else []
        return [(e["attempt"], e["step"]) for e in map(json.loads, lines)]

    def seen(self) -> list[Seen]:
        listing = self._bucket.list_objects_v2(Bucket=BUCKET, Prefix=self._key(""))
        keys = [o["Key"].removeprefix(self._key("")) for o in listing.get("Contents", [])]
        stored = {}
        for key in keys:
            if key.endswith("/MANIFEST.json"):
                manifest = self._get(key)
                stored[manifest["id"]] = (manifest["step"], manifest["generation"])
        found = []
        for n, stage in enumerate(self._stages):
            place = stage.checkpoints
            left = {
                "checkpoints": _names(place),
                "put aside": [n for n in _names(place / ".spotd-aside") if ".why" not in n],
                "held": max(_names(place / ".spotd-hold"), default=""),
                "in the store": stored,
                "complete in the store": "completed.json" in keys,
                "leased": "lease.json" in keys
                and parse_time(self._get("lease.json")["expires"]) > time.time(),
            }
            found.append(Seen(self.events(n), self._loaded(n), left))
        return found


def _is_on_record(stage: Stage) -> bool:
    """Whether what was decided is on the disk by now: a thread of spotd's writes it there."""
    decided = [path.read_bytes() for path in stage.runtime.glob("*.state.json")]
    written = [path.read_bytes() for path in [stage.state / "state.json"] if path.exists()]
    return decided in (written, [])


def _names(place: Path) -> list[str]:
    if not place.exists():
        return []
    return sorted(p.name for p in place.iterdir() if not p.name.startswith("."))


def mount_small_disk(place: Path) -> None:
    """Mounts a small ext4 there: a tmpfs, which no stop survives, is told from it by spotd."""
    image = place.with_name(f"{place.name}.img")
    with image.open("wb") as f:
        f.truncate(DISK)
    commands: list[list[str]] = [
        ["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)],
        ["mount", "-o", "loop", str(image), str(place)],
    ]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)


def can_mount(place: Path) -> bool:
    """Whether a small disk can be made here."""
    if shutil.which("mkfs.ext4") is None or shutil.which("mount") is None:
        return False
    place.mkdir()
    try:
        mount_small_disk(place)
    except subprocess.CalledProcessError:
        return False
    subprocess.run(["umount", str(place)], check=True)
    return True
