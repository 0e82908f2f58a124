"""A package index of one's own, and the Debian packages that pip needs on an instance."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from ec2box import ami, image
from ec2box.disk import run

if TYPE_CHECKING:
    from pathlib import Path

#: What Debian's image lacks for `python3 -m venv`; user data has apt-get install it.
VENV = (
    "python3.11-venv",
    "python3-pip-whl",
    "python3-setuptools-whl",
    "python3-distutils",
    "python3-lib2to3",
)


def venv_layer(folder: Path) -> Path:
    """A layer with venv and pip, as an image has it that one can pip install on.

    Raises:
        RuntimeError: apt-get cannot fetch them.
    """
    folder.chmod(0o755)
    kept = image.cache() / "venv-debs"
    with image.locked("venv-debs"):
        if not kept.exists():
            made = kept.with_suffix(".new")
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            command = ["apt-get", "download", *VENV]
            done = subprocess.run(command, cwd=made, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"apt-get download: {done.stderr[-500:]}")
            made.rename(kept)
    layer = folder / "venv"
    for package in kept.glob("*.deb"):
        run("dpkg-deb", "-x", str(package), str(layer))
    (layer / "etc").mkdir(exist_ok=True)
    return layer


def fill(folder: Path) -> None:
    """Makes `folder` an index (PEP 503) of spotd and of all that it needs, as wheels.

    Raises:
        RuntimeError: pip cannot fetch them.
    """
    wheels = folder.with_name("wheels")
    wheels.mkdir(exist_ok=True)
    builder = ami.builder()
    spotd = builder.wheel(wheels)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check"]
    command += ["-w", str(wheels), str(spotd)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip wheel: {done.stderr[-500:]}")
    for wheel in wheels.glob("*.whl"):
        name = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        shutil.move(wheel, place / wheel.name)
