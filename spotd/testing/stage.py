"""A Spot instance on one machine, for the demo, the tests and the benchmarks.

The parts are real: the daemon is a process of its own, so is the trainer; S3 is a server
on loopback, and so is the metadata service. What is played is the machine: its disk is a
directory, a boot is a new boot id and an empty runtime directory, a power cut is SIGKILL
to everything that was started on it. (What a real power cut does to unwritten pages is
tested with a real file system, under tests/systemd.)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.errors import SpotdError
from spotd.shell import history
from spotd.shell.boot import OVERRIDE
from spotd.shell.control import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MARK = "REHEARSED_MACHINE"  # in the environment of everything that runs on the played machine
TICK = 0.02  # seconds between looks while waiting for something


def wait_until(
    condition: Callable[[], Any], *, within: float, what: str, tick: float = TICK
) -> Any:
    """Waits for a condition with a deadline; returns what it returned.

    Raises:
        TimeoutError: It did not come true in time.
    """
    end = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise TimeoutError(f"not within {within:.0f} s: {what}")
        time.sleep(tick)


@dataclass
class Stage:
    """One instance.

    Attributes:
        directory: Everything of it: `disk/`, `run/`, logs, configuration.
        command: The trainer's command.
        store_url: `s3://...` or `file://...`.
        imds_url: Of the metadata service.
        endpoint_url: Of S3, when it is on loopback.
        environment: For the daemon (credentials of the S3 on loopback, say).
        trainer: More keys of `[trainer]`, likewise `sections` for any other section.
    """

    directory: Path
    command: Sequence[str]
    store_url: str
    imds_url: str
    run: str = "demo"
    endpoint_url: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    boots: int = 0
    daemon: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._booted = time.time()
        self.directory = self.directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)

    # --- places ----------------------------------------------------------------------

    @property
    def disk(self) -> Path:
        """The instance's root volume."""
        return self.directory / "disk"

    @property
    def checkpoints(self) -> Path:
        """The trainer's checkpoint directory."""
        return self.disk / "work" / "checkpoints"

    @property
    def runtime(self) -> Path:
        """`paths.runtime`; gone with each boot."""
        return self.directory / "run"

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.directory / "spotd.toml"

    @property
    def log(self) -> Path:
        """What the daemon wrote to standard error, all boots together."""
        return self.directory / "daemon.log"

    @property
    def state(self) -> Path:
        """The run's durable state."""
        return self.disk / "state" / self.run

    def trainer_log(self) -> str:
        """Returns the trainer's output."""
        with contextlib.suppress(OSError):
            return (self.state / "trainer.log").read_text(errors="replace")
        return ""

    # --- life ------------------------------------------------------------------------

    def configure(self) -> None:
        """Writes the configuration."""
        (self.disk / "work").mkdir(parents=True, exist_ok=True)
        trainer: dict[str, Any] = {
            "command": list(self.command),
            "directory": str(self.disk / "work"),
            "environment": {MARK: self._mark},
        }
        environment = {**trainer["environment"], **self.trainer.get("environment", {})}
        trainer = {**trainer, **self.trainer, "environment": environment}
        store: dict[str, Any] = {"url": self.store_url}
        if self.endpoint_url is not None:
            store["endpoint_url"] = self.endpoint_url
        document: dict[str, dict[str, Any]] = {
            "trainer": trainer,
            "checkpoints": {"directory": "checkpoints"},
            "store": store,
            "imds": {"endpoint": self.imds_url},
            "paths": {"state": str(self.disk / "state"), "runtime": str(self.runtime)},
        }
        for name, keys in self.sections.items():
            document[name] = {**document.get(name, {}), **keys}
        self.config.write_text(f"run = {json.dumps(self.run)}\n\n{toml(document)}")

    def boot(self) -> None:
        """Boots the machine: a new boot id, nothing in the runtime directory, the daemon."""
        self.boots += 1
        self._booted = time.time()
        shutil.rmtree(self.runtime, ignore_errors=True)
        self.configure()
        self.start_daemon()

    def start_daemon(self) -> None:
        """Starts the daemon in this boot; returns at once."""
        environment = {
            **os.environ,
            **self.environment,
            MARK: self._mark,
            OVERRIDE: f"boot-{self._mark}-{self.boots}@{self._booted}",
        }
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "spotd", "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def kill_daemon(self) -> None:
        """Ends the daemon alone, with kill -9; the trainer lives on."""
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()

    def stop_daemon(self, within: float = 150.0) -> int:
        """SIGTERM, as `systemctl stop` sends it; returns the exit status."""
        if self.daemon is None:
            raise SpotdError("there is no daemon to stop")
        self.daemon.terminate()
        return self.daemon.wait(within)

    def power_cut(self) -> None:
        """SIGKILL to everything on the machine, all at once, until nothing is left."""
        needle = f"{MARK}={self._mark}".encode()
        end = time.monotonic() + 10
        while pids := _marked(needle):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.daemon is not None:
                self.daemon.poll()
            if time.monotonic() > end:
                raise TimeoutError(f"processes survive SIGKILL: {pids}")
        if self.daemon is not None:
            self.daemon.wait()
            self.daemon = None

    def processes(self) -> list[int]:
        """Returns the pids of everything that runs on the machine."""
        return _marked(f"{MARK}={self._mark}".encode())

    def lose_disk(self) -> None:
        """A new machine: nothing of the old disk is left."""
        shutil.rmtree(self.disk)

    # --- looking ---------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Returns what `spotd status --json` shows; {} while no daemon answers."""
        try:
            answer = next(ask(self.runtime / "control.sock", "status"))
        except SpotdError:
            return {}
        data: dict[str, Any] = answer["data"]
        return data

    def events(self) -> list[dict[str, Any]]:
        """Returns the run's history on this disk."""
        return list(history.read(self.state / "history.jsonl"))

    def wait_for_event(
        self, name: str, *, after: float = 0.0, within: float = 60.0, **fields: object
    ) -> dict[str, Any]:
        """Waits for a line in the history, newer than `after` (wall clock seconds)."""

        def find() -> dict[str, Any] | None:
            for e in self.events():
                wanted = all(e.get(k) == v for k, v in fields.items())
                if e.get("event") == name and e["time"] > after and wanted:
                    return e
            return None

        try:
            found: dict[str, Any] = wait_until(find, within=within, what=f"the event {name}")
        except TimeoutError as e:
            raise TimeoutError(f"{e}\n{self.story()}") from None
        return found

    def wait_for_state(self, *names: str, within: float = 60.0) -> dict[str, Any]:
        """Waits until the daemon is in one of these states; returns its status."""

        def find() -> dict[str, Any] | None:
            status = self.status()
            return status if status.get("state") in names else None

        try:
            found: dict[str, Any] = wait_until(find, within=within, what=f"state {names}")
        except TimeoutError as e:
            raise TimeoutError(f"{e}\n{self.story()}") from None
        return found

    def story(self) -> str:
        """Returns the end of the daemon's and the trainer's logs, for an error message."""
        daemon = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"--- daemon ---\n{daemon[-4000:]}\n--- trainer ---\n{self.trainer_log()[-2000:]}"


def _marked(needle: bytes) -> list[int]:
    pids = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = Path(entry.path, "environ").read_bytes()
            state = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()[0]
        except OSError:
            continue
        if needle in environment.split(b"\0") and state != b"Z":
            pids.append(int(entry.name))
    return pids


def toml(document: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a document of sections with plain values as TOML."""
    lines = []
    for name, keys in document.items():
        lines.append(f"[{name}]")
        for key, value in keys.items():
            if value is not None:
                lines.append(f"{key} = {_value(value)}")
        lines.append("")
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items())
        return "{ " + inner + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, Path):
        return json.dumps(str(value))
    return json.dumps(value)
