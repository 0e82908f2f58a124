"""A layer with spotd installed from its own package, as a baked AMI has it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ec2box import image
from ec2box.disk import detach, run

REPOSITORY = Path(__file__).resolve().parents[3]


#: nspawn gives each boot an id of its own by a mount over one file in /proc. The fresh /proc that
#: ProtectProc= and others make shows the host's, and every boot would look like the same one; so
#: spotd is told, as `spotd demo` tells it.
DROP_IN = """[Service]
ExecStartPre=+/bin/sh -c '[ -e /run/boot.env ] || echo \
  "SPOTD_REHEARSED_BOOT=$$(cat /proc/sys/kernel/random/boot_id)@$$(date +%%s)" >/run/boot.env'
EnvironmentFile=-/run/boot.env
"""


def builder() -> Any:
    """packaging/build.py as a module."""
    spec = importlib.util.spec_from_file_location("build", REPOSITORY / "packaging/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bake(folder: Path, root: Path, package: Path) -> Path:
    """Installs `package` over `root` and returns the layer that this makes."""
    layer, work, merged = folder / "ami", folder / "ami-work", folder / "ami-root"
    for path in (layer, work, merged):
        path.mkdir(parents=True)
    options = f"lowerdir={root},upperdir={layer},workdir={work}"
    run("mount", "-t", "overlay", "overlay", "-o", options, str(merged))
    try:
        _install(package, merged)
    finally:
        detach(merged)
    put_trainer(layer)
    drop_in = layer / "etc/systemd/system/spotd.service.d/nspawn.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(DROP_IN)
    return image.without_cloud_init(layer)


def _install(package: Path, root: Path) -> None:
    """By the root's own dpkg; an RPM by the host's rpm, since no Debian has its dependencies."""
    inside = root / f"spotd{package.suffix}"
    shutil.copy(package, inside)
    command = ["chroot", root, "dpkg", "-i", f"/{inside.name}"]
    if package.suffix == ".rpm":
        command = ["rpm", "--root", root, "--install", "--nodeps", inside]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode:
        raise RuntimeError(f"{package.name} cannot be installed: {done.stdout}{done.stderr}")
    inside.unlink()


def put_trainer(layer: Path) -> None:
    """What the user brings: a training script in a home directory."""
    home = layer / "home/ubuntu"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("train.py"), home / "train.py")
    shutil.chown(home, 1000, 1000)
