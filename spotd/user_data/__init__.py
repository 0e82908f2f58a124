"""User data for cloud-init: what a fresh instance needs to train under spotd.

    text = render(configuration, source=Source("s3://bucket/spotd.deb"))

The result is cloud-config. It writes the configuration, formats and mounts a data volume if asked,
installs spotd and starts the unit. That is all it does: resuming at later boots is the enabled
unit's business, because cloud-init runs most of this once per instance id.

It can run twice without harm, and after a power cut it does: cloud-init marks each of its modules
as done on a disk that has not yet seen what they wrote, so that a cut within seconds of the first
boot would leave an empty configuration that is never written again. `bootcmd`, which runs at every
boot, removes those marks until the setup has said durably that it is done.

No secrets are in it: anybody on the instance can read user data. The instance's role is its
credentials.
"""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from spotd.errors import SpotdError

#: Bytes; EC2 user guide, "Run commands when you launch an EC2 instance".
LIMIT = 16 * 1024
_PACKAGES = (".deb", ".rpm")
_DEVICE = re.compile(r"/dev/[A-Za-z0-9/._-]+")


@dataclass(frozen=True, slots=True)
class Source:
    """Where spotd itself comes from.

    Args:
        package: `s3://BUCKET/KEY` or a URL of a .deb or .rpm; else what pip installs: a
            requirement (`spotd==0.1.0`) or the URL of a wheel.
        sha256: Hex digest of a .deb or .rpm; "": not checked.
        endpoint_url: S3-compatible service for `s3://`; "": S3 itself.
    """

    package: str
    sha256: str = ""
    endpoint_url: str = ""

    @property
    def is_package(self) -> bool:
        """A file for dpkg or rpm, fetched first; else pip gets it."""
        return self.package.endswith(_PACKAGES)


@dataclass(frozen=True, slots=True)
class Volume:
    """A data volume: formatted when it is blank, mounted at `mount`, given to `owner`."""

    device: str
    mount: str
    owner: str = "root"


def render(configuration: str, *, source: Source, volume: Volume | None = None) -> str:
    """The user data.

    Args:
        configuration: The text of spotd.toml, valid. Its comments stay where there is room.
        source: Where spotd comes from.
        volume: A data volume, or None.

    Raises:
        SpotdError: What was asked for cannot be, or is larger than user data may be.
    """
    _check(source, volume)
    text = _assemble(configuration, source, volume)
    if len(text.encode()) >= LIMIT:
        text = _assemble(_without_comments(configuration), source, volume)
    if len(text.encode()) >= LIMIT:
        raise SpotdError(
            f"the user data would have {len(text.encode())} bytes, EC2 takes less than {LIMIT}",
            hint="shorten the configuration",
        )
    return text


def _assemble(configuration: str, source: Source, volume: Volume | None) -> str:
    files = [("/etc/spotd/spotd.toml", "0640", configuration)]
    if source.is_package:
        files.append(("/usr/local/lib/spotd-setup/fetch.py", "0644", _fetcher()))
    else:
        files.append(("/usr/local/lib/spotd-setup/spotd.service", "0644", _unit()))
    files.append(("/usr/local/sbin/spotd-setup", "0755", _setup(source, volume)))
    return _HEAD + "write_files:\n" + "".join(_file(*file) for file in files) + _TAIL


def _without_comments(configuration: str) -> str:
    """The same settings in fewer lines; a text in which that cannot be told is left as it is."""
    lines = configuration.splitlines(keepends=True)
    if '"""' in configuration or "'''" in configuration:
        return configuration
    return "".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _check(source: Source, volume: Volume | None) -> None:
    if source.package.startswith("s3://") and not source.is_package:
        raise SpotdError(
            f"{source.package} is neither a .deb nor a .rpm",
            hint="from S3 comes a package; pip takes a requirement or a URL",
        )
    if source.sha256 and not re.fullmatch("[0-9a-f]{64}", source.sha256):
        raise SpotdError("the sha256 is not 64 hex digits", hint="sha256sum FILE prints it")
    if source.sha256 and not source.is_package:
        raise SpotdError("a sha256 goes with a .deb or a .rpm, not with what pip installs")
    if volume and not _DEVICE.fullmatch(volume.device):
        raise SpotdError(f"{volume.device} is no device", hint="like /dev/nvme1n1")
    if volume and (not re.fullmatch(r"/[A-Za-z0-9/._-]+", volume.mount)):
        raise SpotdError(f"{volume.mount} is no place to mount at", hint="like /data")


def _file(path: str, mode: str, content: str) -> str:
    body = textwrap.indent(content.rstrip("\n") + "\n", "      ")
    return f"  - path: {path}\n    permissions: '{mode}'\n    content: |2\n{body}"


def _fetcher() -> str:
    """The program that fetches the package: it is tested, and sent, as one file."""
    return Path(__file__).with_name("fetch.py").read_text(encoding="utf-8")


def _unit() -> str:
    """The unit, for what pip installs has no place for one.

    Raises:
        SpotdError: This spotd was itself installed without one.
    """
    package = Path(__file__).resolve().parent.parent
    for candidate in (
        package.parent / "systemd/spotd.service",
        Path(sys.prefix) / "share/spotd/spotd.service",
        Path("/usr/lib/systemd/system/spotd.service"),
        Path("/etc/systemd/system/spotd.service"),
    ):
        if candidate.is_file():
            lines = candidate.read_text(encoding="utf-8").splitlines(keepends=True)
            return "".join(line for line in lines if not line.startswith("#"))
    raise SpotdError(
        "this spotd has no spotd.service to send along",
        hint="name a .deb or a .rpm instead: it carries its own",
    )


def _setup(source: Source, volume: Volume | None) -> str:
    steps = [_SETUP_HEAD]
    if volume:
        names = {"DEVICE": volume.device, "MOUNT": volume.mount, "OWNER": volume.owner}
        steps.append("".join(f"{k}={shlex.quote(v)}\n" for k, v in names.items()) + _VOLUME)
    if source.is_package:
        suffix = source.package[-4:]
        fetch = [source.package, f"/var/cache/spotd-setup/spotd{suffix}"]
        fetch += ["--sha256", source.sha256] if source.sha256 else []
        fetch += ["--endpoint-url", source.endpoint_url] if source.endpoint_url else []
        steps.append(f"python3 /usr/local/lib/spotd-setup/fetch.py {shlex.join(fetch)}\n")
        steps.append(_DEB if suffix == ".deb" else _RPM)
    else:
        steps.append(_PIP.replace("@PACKAGE@", shlex.quote(source.package)))
    return "".join([*steps, _SETUP_TAIL])


_HEAD = """\
#cloud-config
# Printed by `spotd user-data`. May run twice; holds no secrets: the instance's role has them.
bootcmd:
  # Until the setup below is durably done, cloud-init forgets that it has run. The sync is for
  # what cloud-init itself has written by now: an empty file of its own stops it at every boot.
  - [sh, -c, 'cd /var/lib/cloud/instance/sem && [ ! -s ../spotd-ready ] &&
      rm -f config_write?files config_runcmd config_scripts?user; sync']
"""

_TAIL = """\
runcmd:
  - [sync]
  - [/usr/local/sbin/spotd-setup]
  - [sync]
"""

_SETUP_HEAD = """\
#!/bin/sh
# Installs spotd and starts it. Runs once per instance, and again if that did not come to its end.
set -eu
export DEBIAN_FRONTEND=noninteractive
[ -s /etc/spotd/spotd.toml ]
"""

_VOLUME = """\
for _ in $(seq 60); do [ -b "$DEVICE" ] && break; sleep 1; done
# Only what holds nothing at all is formatted.
blank=0
blkid -p "$DEVICE" >/dev/null || blank=$?
[ "$blank" != 2 ] || mkfs.ext4 -q -L spotd-data "$DEVICE"
UUID=$(blkid -s UUID -o value "$DEVICE")
[ -n "$UUID" ]
mkdir -p "$MOUNT"
grep -q "^UUID=$UUID " /etc/fstab || {
    echo "UUID=$UUID $MOUNT auto defaults,nofail,x-systemd.before=spotd.service 0 2" >>/etc/fstab
    systemctl daemon-reload
}
mountpoint -q "$MOUNT" || mount "$MOUNT"
chown "$OWNER": "$MOUNT"
"""

_DEB = """\
dpkg --configure -a
dpkg -i /var/cache/spotd-setup/spotd.deb || { apt-get update -q && apt-get install -y -q -f; }
"""

_RPM = """\
dnf install -y -q /var/cache/spotd-setup/spotd.rpm
"""

_PIP = """\
for python in python3.13 python3.12 python3.11 python3.10 python3; do
    command -v $python >/dev/null && break
done
$python -m venv /opt/spotd || { apt-get update -q && apt-get install -y -q python3-venv; }
[ -x /opt/spotd/bin/pip ] || $python -m venv /opt/spotd
/opt/spotd/bin/python -m pip install -q --upgrade @PACKAGE@
ln -sf /opt/spotd/bin/spotd /usr/local/bin/spotd
install -m 644 /usr/local/lib/spotd-setup/spotd.service /etc/systemd/system/
"""

_SETUP_TAIL = """\
systemctl daemon-reload
systemctl enable spotd.service
systemctl reset-failed spotd.service || :
systemctl reload-or-restart --no-block spotd.service
sync
echo done >/var/lib/cloud/instance/spotd-ready
sync
"""
