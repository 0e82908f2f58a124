"""One instance: booted, stopped, started again, or cut off from its power."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ec2box.disk import Disk, detach, is_mounted, run
from ec2box.image import cgroup2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ec2box.cloud import Cloud


NAMESPACES = ("-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")


class Instance:
    """A machine with a disk of its own over shared read-only layers.

    Args:
        cloud: The network it is plugged into.
        folder: Scratch space; the disk lies here and dies with it.
        layers: Root file systems, uppermost first.
        name: Instance id, what IMDS says too.
        binds: Host paths seen read-only inside, by their path there.
        devices: Block devices of the host, and what they are inside: data volumes.
        disk_size: Bytes; the file is sparse.
    """

    def __init__(
        self,
        cloud: Cloud,
        folder: Path,
        layers: Sequence[Path],
        name: str,
        *,
        binds: dict[Path, str] | None = None,
        devices: dict[str, str] | None = None,
        disk_size: int = 2 << 30,
    ) -> None:
        self.name = name
        self._cloud = cloud
        self._folder = folder
        self._layers = list(layers)
        self._binds = binds or {}
        self._devices = devices or {}
        self._root = folder / "root"
        self._root.mkdir(parents=True)
        self.disk = Disk(folder, disk_size)
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._netns = cloud.plug(name)
        self.boots = 0

    # -- power ---------------------------------------------------------------------------

    def start(self, *command: str) -> None:
        """EC2's start: returns when the machine's first process runs.

        With a command it is a container instead, and the command its first process.
        """
        if self._nspawn is not None:
            raise RuntimeError(f"{self.name} runs already")
        self.mount()
        words = ["nsenter", f"--net={self._netns}", "systemd-nspawn", "--quiet"]
        words += ["--kill-signal=SIGTERM"] if command else ["--boot"]
        words += [f"--directory={self._root}", f"--machine={self.name}", "--register=no"]
        words += [f"--network-namespace-path={self._netns}", "--capability=CAP_NET_ADMIN"]
        words += ["--keep-unit", "--resolv-conf=off", "--link-journal=no", "--timezone=off"]
        words += ["--console=pipe", "--hostname=ip-172-31-16-10"]
        words += [f"--bind-ro={source}:{target}" for source, target in self._binds.items()]
        words += [f"--bind={source}:{target}" for source, target in self._devices.items()]
        words += command
        group = self._cgroup()
        with (self._folder / "console").open("ab") as console:
            self._nspawn = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                preexec_fn=lambda: (group / "cgroup.procs").write_text("0"),  # noqa: PLW1509
            )
        self.boots += 1
        self.until(lambda: bool(self.leader), "its first process")

    def power_button(self) -> None:
        """What EC2 does at the end of the two minutes: presses the button."""
        os.kill(self.leader, signal.SIGRTMIN + 4)

    def stop(self, patience: float = 30.0) -> int:
        """An orderly stop; returns nspawn's exit status (0: off, 133: it wants to reboot)."""
        self.power_button()
        return self.wait_off(patience)

    def wait_off(self, patience: float = 30.0) -> int:
        assert self._nspawn is not None
        status = self._nspawn.wait(patience)
        self._nspawn = None
        self._unmount()
        return status

    def cut(self) -> None:
        """The power goes, without a word to anybody."""
        self.disk.cut()
        self._kill()
        self._unmount()

    def retire(self) -> None:
        """Terminated: it is off for good, its network card is free, its disk can be read."""
        self._kill()
        self._unmount()
        self._cloud.unplug(self.name)

    def close(self) -> None:
        self._kill()
        self._unmount()
        self.disk.close()
        self._cloud.unplug(self.name)
        for group in self._cgroup_paths():
            subprocess.run(
                ["find", str(group), "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"],
                check=False,
                capture_output=True,
            )
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- inside --------------------------------------------------------------------------

    @property
    def leader(self) -> int:
        """The pid of the machine's first process as seen from here; 0 when there is none."""
        nspawn = self._nspawn
        if nspawn is None or nspawn.poll() is not None:
            raise RuntimeError(f"{self.name} is off: {self.console()[-2000:]}")
        for child in _children(nspawn.pid):
            if Path(f"/proc/{child}/comm").read_text().strip() not in {"systemd-nspawn", "nsenter"}:
                return child
        return 0

    def command(self, *words: str) -> list[str]:
        """The command line that runs `words` inside, as root."""
        return ["nsenter", "-t", str(self.leader), *NAMESPACES, "--", *words]

    def run(self, *words: str, check: bool = True, timeout: float = 60.0) -> str:
        """Runs a command inside and returns its output, standard error with it.

        Raises:
            RuntimeError: it failed and `check` is set.
        """
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
        done = subprocess.run(
            self.command(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=timeout,
            env=environment,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}: {done.stdout[-3000:]}")
        return done.stdout

    def shell(self, script: str, **options: Any) -> str:
        return self.run("sh", "-ec", script, **options)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Writes a file of the machine; it may be off."""
        target = self.file(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def file(self, path: str) -> Path:
        """A file of the machine, from outside; it may be off."""
        self.mount()
        return self._root / path.lstrip("/")

    def outside(self, pid: int) -> int:
        """Returns the pid by which this machine knows a process of the instance.

        Raises:
            ProcessLookupError: There is no such process.
        """
        namespace = Path(f"/proc/{self.leader}/ns/pid").readlink()
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                line = next(x for x in status.read_text().splitlines() if x.startswith("NSpid:"))
                if line.split()[-1] == str(pid) and Path(status.parent, "ns/pid").readlink() == (
                    namespace
                ):
                    return int(status.parent.name)
        raise ProcessLookupError(pid)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """`systemctl show`: properties of a unit."""
        text = self.run("systemctl", "show", unit, f"--property={','.join(properties)}")
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def booted(self, patience: float = 30.0) -> None:
        """Waits until every job of the boot is done."""
        self.until(
            lambda: (
                self.run("systemctl", "is-system-running", check=False).strip()
                in {"running", "degraded"}
            ),
            "the boot to be over",
            patience,
        )

    # -- journal -------------------------------------------------------------------------

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """The journal as it lies on the disk, oldest first; the machine may be off."""
        folder = self.file("var/log/journal")
        text = run("journalctl", "-q", "-D", str(folder), "-o", "json", "--all", *matches)
        return [json.loads(line) for line in text.splitlines()]

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """spotd's events, oldest first."""
        if self._nspawn is not None:
            self.run("journalctl", "--sync", check=False)  # refused until journald is up
        match = f"SPOTD_EVENT={name}" if name else "SYSLOG_IDENTIFIER=spotd"
        return [entry for entry in self.journal(match) if "SPOTD_EVENT" in entry]

    def until_event(self, name: str, count: int = 1, patience: float = 30.0) -> dict[str, Any]:
        """Waits for the `count`th event of that name and returns it."""
        self.until(lambda: len(self.events(name)) >= count, f"event {name}", patience)
        return self.events(name)[count - 1]

    def console(self) -> str:
        path = self._folder / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, condition: Callable[[], bool], what: str, patience: float = 30.0) -> None:
        """Waits for a condition; fails with the end of the journal."""
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{self.name}: waited {patience:.0f} s for {what}\n{self.tail()}"
                )
            time.sleep(0.05)

    def tail(self, lines: int = 60) -> str:
        """The end of the journal, for a person."""
        if self._nspawn is not None:
            self.run("journalctl", "--sync", check=False)
        folder = str(self.file("var/log/journal"))
        done = subprocess.run(
            ["journalctl", "-q", "-D", folder, "-n", str(lines), "-o", "short-monotonic"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    # -- the insides of this class -------------------------------------------------------

    def mount(self) -> None:
        """Mounts the root without booting it, to prepare or to inspect a disk."""
        if is_mounted(self._root):
            return
        self.disk.mount()
        upper, work = self.disk.path / "upper", self.disk.path / "work"
        upper.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        lower = ":".join(str(layer) for layer in self._layers)
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "overlay", "-o", options, str(self._root))

    def sync(self) -> None:
        """What was written onto the disk from outside is on it."""
        run("sync", "-f", str(self.disk.path))

    def _unmount(self) -> None:
        if is_mounted(self._root):
            detach(self._root)
        self.disk.unmount()

    def _kill(self) -> None:
        nspawn, self._nspawn = self._nspawn, None
        if nspawn is None:
            return
        for child in _children(nspawn.pid):
            os.kill(child, signal.SIGKILL)
        try:
            nspawn.wait(5)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait()

    def _cgroup_paths(self) -> list[Path]:
        unified = cgroup2()
        assert unified is not None
        return [unified / f"spotd-tests-{os.getpid()}-{self.name}"]

    def _cgroup(self) -> Path:
        group = self._cgroup_paths()[0]
        group.mkdir(exist_ok=True)
        return group


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in text.split()]
