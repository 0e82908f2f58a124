"""The root file system that every instance shares, read-only, below a disk of its own.

It is made once by mmdebstrap and kept in `$SPOTD_TEST_CACHE` (default /var/cache/spotd-tests):
25 to 70 seconds and 330 MB a release.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = (
    "systemd,systemd-sysv,dbus,python3,cloud-init,iproute2,procps,kmod,ca-certificates,"
    "isc-dhcp-client,udev,e2fsprogs,libfaketime"
)
#: Releases without isc-dhcp-client, or that have something better.
NEWER_DHCP = {"trixie", "noble"}
#: Ubuntu's, from its own archive: 24.04 and 22.04. Their key comes in a package of that archive,
#: which is believed by its content: the key in it is F6ECB3762474EDA9D21B7022871920D1991BC93C,
#: "Ubuntu Archive Automatic Signing Key (2018)".
UBUNTU = {"noble", "jammy"}
ARCHIVE = "http://archive.ubuntu.com/ubuntu"
KEYRING = f"{ARCHIVE}/pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb"
KEYRING_SHA256 = "36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8"
#: Raised when the recipe below changes in a way that the package list does not show.
RECIPE = "3"
#: Debian's package for each command that building and booting an instance needs.
HOST_TOOLS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "mkfs.ext4": "e2fsprogs",
    "losetup": "mount",
    "nsenter": "util-linux",
    "dnsmasq": "dnsmasq-base",
    "journalctl": "systemd",
}


def cache() -> Path:
    """The folder that images are kept in between runs; made when it is missing."""
    path = Path(os.environ.get("SPOTD_TEST_CACHE", "/var/cache/spotd-tests"))
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time builds `name`."""
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def missing_tools() -> dict[str, str]:
    return {tool: package for tool, package in HOST_TOOLS.items() if not shutil.which(tool)}


def install_tools() -> None:
    """Installs what is missing; only as root on a Debian, where `apt-get` does it.

    Raises:
        subprocess.CalledProcessError: apt-get refused.
    """
    packages = sorted(set(missing_tools().values()))
    if packages and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with locked("apt"):
            for command in (
                ["update", "-q"],
                ["install", "-y", "-q", "--no-install-recommends", *packages],
            ):
                subprocess.run(
                    ["apt-get", *command], check=True, env=environment, capture_output=True
                )


def unavailable() -> str | None:
    """Why no instance can be booted here, or None when it can."""
    if os.geteuid() != 0:
        return "needs root: it boots a systemd in systemd-nspawn"
    if missing_tools():
        try:
            install_tools()
        except subprocess.CalledProcessError as error:
            return f"apt-get could not install {sorted(missing_tools())}: exit {error.returncode}"
    if missing := missing_tools():
        return f"missing commands: {', '.join(sorted(missing))}"
    if not Path("/dev/loop-control").exists():
        return "no loop devices here"
    if cgroup2() is None:
        return "no cgroup v2 hierarchy is mounted here"
    return None


def cgroup2() -> Path | None:
    """Where the unified hierarchy is mounted: /sys/fs/cgroup, or below it on a hybrid host."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(target)
    return None


def base(suite: str = "bookworm") -> Path:
    """The root of a Debian or Ubuntu release, built when the cache has none of this recipe.

    Raises:
        RuntimeError: mmdebstrap failed; the message ends with what it said.
        OSError: Ubuntu's archive cannot be reached.
    """
    packages = PACKAGES
    if suite in NEWER_DHCP:
        packages = PACKAGES.replace("isc-dhcp-client", "dhcpcd-base")
    key = hashlib.sha256(f"{RECIPE} {packages}".encode()).hexdigest()[:12]
    root = cache() / f"{suite}-{key}"
    with locked(suite):
        if root.exists():
            return root
        with tempfile.TemporaryDirectory(dir=cache(), prefix=f"{suite}-new-") as scratch:
            made = Path(scratch, "root")
            options = ["--variant=minbase", f"--include={packages}"]
            if suite in UBUNTU:
                options += [f"--keyring={_keyring(Path(scratch))}", "--components=main,universe"]
            command = ["mmdebstrap", *options, suite, str(made)]
            command += [ARCHIVE] if suite in UBUNTU else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"mmdebstrap {suite} failed: {done.stderr[-2000:]}")
            _prepare(made)
            made.rename(root)
        for older in cache().glob(f"{suite}-*/"):
            if older != root:  # of an older recipe
                shutil.rmtree(older, ignore_errors=True)
    return root


def _keyring(folder: Path) -> Path:
    """Ubuntu's archive key, which Debian 12 has no package for."""
    with urllib.request.urlopen(KEYRING, timeout=30) as answer:
        content = answer.read(1 << 20)
    if hashlib.sha256(content).hexdigest() != KEYRING_SHA256:
        raise RuntimeError(f"{KEYRING} is not the package that was looked at")
    package = folder / "keyring.deb"
    package.write_bytes(content)
    subprocess.run(["dpkg-deb", "-x", package, folder / "keyring"], check=True)
    folder.chmod(0o755)  # apt reads it as a user of its own
    return folder / "keyring/usr/share/keyrings/ubuntu-archive-keyring.gpg"


def _prepare(root: Path) -> None:
    """What makes the root behave as one of Amazon's images does on its network."""
    (root / "etc/machine-id").write_text("")
    (root / "etc/hostname").unlink(missing_ok=True)
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("nameserver 172.31.16.1\noptions timeout:1 attempts:2\n")
    (root / "var/log/journal").mkdir(exist_ok=True)
    _write(root, "etc/cloud/cloud.cfg.d/99-ec2.cfg", CLOUD_CONFIG)
    dmi = next(root.glob("usr/lib/python3/dist-packages/cloudinit/dmi.py"))
    dmi.write_text(DMI)
    wants = {
        "systemd-networkd.service": "multi-user.target.wants",
        "systemd-networkd-wait-online.service": "network-online.target.wants",
    }
    for unit, folder in wants.items():
        link = root / "etc/systemd/system" / folder / unit
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"/lib/systemd/system/{unit}")
    for unit in ("console-getty.service", "e2scrub_reap.service", "systemd-udevd.service"):
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    subprocess.run(
        ["chroot", root, "useradd", "--uid", "1000", "--create-home", "ubuntu"], check=True
    )


def without_cloud_init(layer: Path) -> Path:
    """A layer for the scenarios that are not about the first boot: up in 0.3 seconds."""
    _write(layer, "etc/cloud/cloud-init.disabled", "")
    _write(layer, "etc/systemd/network/50-ens5.network", NETWORK)
    return layer


def _write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


NETWORK = """[Match]
Name=ens5
[Network]
DHCP=ipv4
IPv6AcceptRA=no
LinkLocalAddressing=no
"""
#: No SSH server is in the image, so its modules have nothing to do. The network is configured once:
#: cloud-init 22.4 does not understand how a kernel newer than it says "address already assigned".
CLOUD_CONFIG = """datasource_list: [Ec2]
locale: false
ssh_deletekeys: false
ssh_genkeytypes: []
no_ssh_fingerprints: true
updates: {network: {when: [boot-new-instance]}}
ssh: {emit_keys_to_console: false}
"""
#: cloud-init's own module answers None in any container, and then it asks for no IMDSv2 token.
DMI = '''"""Stand-in for cloud-init's module of the same name: what it reads on EC2."""
VALUES = {
    "system-uuid": "ec2e1916-9099-7caf-fd21-012345abcdef",
    "system-serial-number": "ec2e1916-9099-7caf-fd21-012345abcdef",
    "system-product-name": "m7i.large",
    "system-manufacturer": "Amazon EC2",
    "chassis-asset-tag": "Amazon EC2",
    "baseboard-asset-tag": "i-0123456789abcdef0",
    "bios-vendor": "Amazon EC2",
}


def read_dmi_data(key):
    return VALUES.get(key)


def sub_dmi_vars(src):
    return src
'''
