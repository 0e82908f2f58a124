"""A virtual machine with a kernel of its own: what a container's kernel cannot be asked to do.

Debian's cloud kernel without an initramfs (NVMe and ext4 are built in), in QEMU's software
emulation. What the guest has not written out is lost when QEMU is killed, as in a power cut; its
memory controller and its kernel's choice whom to sacrifice are real.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ec2box import image
from ec2box.disk import detach, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: The host, as the guest's user-mode network knows it: its loopback is behind this address.
HOST = "10.0.2.2"
AGENT_PORT = 7777
DISK_SIZE = 3 << 30
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "depmod": "kmod"}

FILES = {
    "etc/systemd/network/50-eth0.network": (
        "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n"
        "IPv6AcceptRA=no\nLinkLocalAddressing=no\n"
    ),
    "etc/modules-load.d/net.conf": "virtio_pci\nvirtio_net\n",
    "etc/fstab": "/dev/nvme0n1 / ext4 defaults,noatime 0 1\n",
    "etc/systemd/journald.conf.d/rate.conf": "[Journal]\nRateLimitBurst=0\n",
    # Whoever connects has a root shell: how the tests look inside.
    "etc/systemd/system/agent.socket": (
        f"[Socket]\nListenStream={AGENT_PORT}\nAccept=yes\nMaxConnections=16\n"
        "[Install]\nWantedBy=sockets.target\n"
    ),
    "etc/systemd/system/agent@.service": (
        "[Service]\nExecStart=/bin/sh\nStandardInput=socket\nStandardOutput=socket\n"
        "StandardError=socket\nOOMScoreAdjust=-1000\nMemoryLow=64M\n"
        "Environment=HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8\n"
    ),
}


def unavailable() -> str | None:
    """Why no virtual machine can be run here, or None; installs what is missing."""
    if reason := image.unavailable():
        return reason
    if os.uname().machine != "x86_64":
        return "the virtual machine is an x86_64"
    missing = {package for tool, package in TOOLS.items() if not shutil.which(tool)}
    if missing:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *sorted(missing)]
        if subprocess.run(command, check=False, env=environment, capture_output=True).returncode:
            return f"apt-get could not install {', '.join(sorted(missing))}"
    return None


def kernel() -> Path:
    """A folder with Debian's newest cloud kernel unpacked; kept with the images.

    Raises:
        RuntimeError: apt-get has none.
    """
    told = run("apt-cache", "depends", "linux-image-cloud-amd64")
    name = next(
        (w for w in told.split() if w.startswith("linux-image-") and w[12:13].isdigit()), ""
    )
    if not name:
        raise RuntimeError("apt-cache knows no linux-image-cloud-amd64: apt-get update")
    kept = image.cache() / name
    with image.locked("kernel"):
        if kept.exists():
            return kept
        with tempfile.TemporaryDirectory(dir=image.cache()) as scratch:
            Path(scratch).chmod(0o755)
            done = subprocess.run(
                ["apt-get", "download", name], cwd=scratch, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"apt-get download {name}: {done.stderr[-500:]}")
            package = next(Path(scratch).glob("*.deb"))
            made = Path(scratch, "made")
            run("dpkg-deb", "-x", str(package), str(made))
            run("depmod", "-b", str(made), name.removeprefix("linux-image-"))
            made.rename(kept)
    return kept


def make_disk(folder: Path, layers: Sequence[Path], kept: Path) -> Path:
    """A disk image with the layers, uppermost first, and the kernel's modules on it."""
    layer, work, merged = folder / "vm", folder / "vm-work", folder / "vm-root"
    for path in (layer, work, merged):
        path.mkdir()
    for name, text in FILES.items():
        target = layer / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    units = layer / "etc/systemd/system"
    (units / "sockets.target.wants").mkdir()
    (units / "sockets.target.wants/agent.socket").symlink_to("../agent.socket")
    (units / "systemd-udevd.service").symlink_to("/lib/systemd/system/systemd-udevd.service")
    (layer / "usr/lib").mkdir(parents=True)
    shutil.copytree(kept / "lib/modules", layer / "usr/lib/modules", symlinks=True)
    lower = ":".join(str(path) for path in layers)
    options = f"lowerdir={lower},upperdir={layer},workdir={work}"
    run("mount", "-t", "overlay", "overlay", "-o", options, str(merged))
    disk = folder / "vm.raw"
    try:
        with disk.open("wb") as file:
            file.truncate(DISK_SIZE)
        run("mkfs.ext4", "-q", "-F", "-d", str(merged), str(disk))
    finally:
        detach(merged)
    return disk


class VirtualMachine:
    """One machine with a disk of its own over a shared image.

    Args:
        folder: Scratch space.
        disk: The image, never written to.
        kept: The kernel's folder.
        memory: MiB.
    """

    def __init__(self, folder: Path, disk: Path, kept: Path, memory: int = 1024) -> None:
        self._folder = folder
        self._kernel = next((kept / "boot").glob("vmlinuz-*"))
        self._memory = memory
        self._disk = folder / "machine.qcow2"
        run(
            "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(disk),
            str(self._disk),
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def start(self) -> None:
        """Power on; returns at once."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self._port = taken.getsockname()[1]
        words = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"]
        words += ["-m", str(self._memory), "-nographic", "-no-reboot", "-nodefaults"]
        words += ["-serial", "stdio", "-kernel", str(self._kernel), "-append"]
        words += ["root=/dev/nvme0n1 rw console=ttyS0 net.ifnames=0 mitigations=off panic=-1 quiet"]
        words += ["-drive", f"file={self._disk},if=none,id=d,cache=writeback"]
        words += ["-device", "nvme,drive=d,serial=vol0", "-device", "virtio-rng-pci"]
        forward = f"hostfwd=tcp:127.0.0.1:{self._port}-10.0.2.15:{AGENT_PORT}"
        words += ["-netdev", f"user,id=n,{forward}", "-device", "virtio-net-pci,netdev=n"]
        words += ["-smbios", "type=1,manufacturer=Amazon EC2,product=m7i.large"]
        with (self._folder / "console").open("ab") as console:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )

    def cut(self) -> None:
        """The power goes: kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def close(self) -> None:
        if self._process is not None:
            self.cut()
        self._disk.unlink(missing_ok=True)

    def shell(self, script: str, *, check: bool = True, patience: float = 60.0) -> str:
        """Runs a script inside, as root; returns its output, standard error with it.

        Raises:
            OSError: The machine does not answer (yet).
            RuntimeError: It failed and `check` is set.
        """
        marked = f"{{ {script}\n}} 2>&1\nset -- $?\necho; echo exit=$1\nexit\n"
        with socket.create_connection(("127.0.0.1", self._port), timeout=patience) as line:
            line.sendall(marked.encode())
            text = b""
            while data := line.recv(65536):
                text += data
        said, mark, status = text.decode(errors="replace").rpartition("\nexit=")
        if not mark:
            raise ConnectionError(f"no answer: {text[-200:]!r}")
        if check and status.strip() != "0":
            raise RuntimeError(f"{script}: exit {status.strip()}: {said[-2000:]}")
        return said.removesuffix("\n")

    def asked(self, script: str) -> str:
        """The same where the machine may not answer: then "" ."""
        with contextlib.suppress(OSError, RuntimeError):
            return self.shell(script, check=False, patience=10.0)
        return ""

    def until(self, condition: Callable[[], bool], what: str, patience: float = 180.0) -> float:
        """Waits for a condition; returns the seconds it took."""
        begun = time.monotonic()
        while not condition():
            if self._process is None or self._process.poll() is not None:
                raise AssertionError(f"the machine is off: {self.console()[-3000:]}")
            if time.monotonic() > begun + patience:
                tail = self.asked("journalctl -q -n 60 -o short-monotonic --no-pager")
                text = f"waited {patience:.0f} s for {what}\n{tail}\n{self.console()[-1500:]}"
                raise AssertionError(text)
            time.sleep(0.2)
        return time.monotonic() - begun

    def console(self) -> str:
        path = self._folder / "console"
        return path.read_text(errors="replace") if path.exists() else ""
