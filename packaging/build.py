#!/usr/bin/env python3
# ruff: noqa: T201 - a command
"""Builds what is installed: `python packaging/build.py deb|rpm|wheel|tree [--output DIR]`.

The .deb and the .rpm carry the same tree. All of spotd's Python lies in /opt/spotd/lib, filled by
`pip install --target` and started by a two-line launcher with `python3 -I`: no Python of the
user's is touched, none is looked at. One tree serves every CPython from 3.10 on, because the
compiled parts are either stable-ABI (`*.abi3.so`) or carry the version in their names, and the
import system picks the fitting one.

Needs: pip, spotd's dependencies (`make venv` has them); for the .deb dpkg-deb, for the .rpm
rpmbuild. Cross-building is only a matter of
`--arch`: nothing is compiled here.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

#: What spotd talks to; the rest of botocore's service models is half of its size. A test holds
#: this against every `client("...")` in the source.
AWS_SERVICES = frozenset({"ec2", "pricing", "s3", "sns", "sso", "sso-oidc", "ssm", "sts"})
#: Pythons that need compiled files of their own beside the stable ABI, and what only they need.
OLDER = {"3.10": ("tomli>=2.0", "typing_extensions>=4")}
BASE_PYTHON = "3.11"
#: Debian's and RPM's word for each machine, and glibc's oldest name for its wheels.
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
GLIBCS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux1")
LAUNCHER = """#!{python} -I
import sys; sys.path.insert(0, "/opt/spotd/lib"); from spotd.cli import main; sys.exit(main())
"""


def version() -> str:
    """The version that spotd itself tells.

    Raises:
        RuntimeError: spotd/__init__.py names none.
    """
    found = re.search(r'__version__ = "([^"]+)"', (ROOT / "spotd/__init__.py").read_text())
    if found is None:
        raise RuntimeError("spotd/__init__.py has no __version__")
    return found[1]


def requirements() -> list[str]:
    """The dependencies that pyproject.toml declares, without those of older Pythons."""
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    if block is None:
        raise RuntimeError("pyproject.toml has no dependencies")
    names = re.findall(r'"([^"]+)"', block[1])
    return [name for name in names if ";" not in name]


def run(*command: str | Path, **options: object) -> None:
    """Runs a command; its output is shown only when it fails."""
    done = subprocess.run(  # type: ignore[call-overload]
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def library(target: Path, arch: str) -> None:
    """Fills `target` with the dependencies, for every supported Python."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as scratch:
        # sdnotify comes as source only: its wheel is pure, so it is made here.
        run(*pip, "wheel", "-q", "--no-deps", "sdnotify", "-w", f"{scratch}/wheels")
        command = [*pip, "install", "-q", "--no-compile", "--only-binary=:all:"]
        command += ["--find-links", f"{scratch}/wheels", "--implementation", "cp"]
        command += [f"--platform={glibc}_{MACHINES[arch]}" for glibc in GLIBCS]
        wanted = requirements()
        run(*command, "--python-version", BASE_PYTHON, "--target", target, *wanted)
        for python, more in OLDER.items():
            other = Path(scratch, python)
            run(*command, "--python-version", python, "--target", other, *wanted, *more)
            _add_missing(other, target)
    shutil.rmtree(target / "bin", ignore_errors=True)
    _trim(target)


def _add_missing(source: Path, target: Path) -> None:
    """Copies what `target` lacks: compiled modules of another version, extra packages."""
    for path in sorted(source.rglob("*")):
        there = target / path.relative_to(source)
        if path.is_file() and not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, there)


def _trim(lib: Path) -> None:
    data = lib / "botocore/data"
    for service in data.iterdir():
        if service.is_dir() and service.name not in AWS_SERVICES:
            shutil.rmtree(service)
    shutil.rmtree(lib / "boto3/examples", ignore_errors=True)
    # Speed-ups for one Python version of modules that are there in pure Python too.
    for compiled in (lib / "charset_normalizer").glob("*.so"):
        compiled.unlink()


def tree(stage: Path, arch: str = "amd64", python: str = "/usr/bin/python3") -> None:
    """Lays out below `stage` every file as it will lie below /."""
    lib = stage / "opt/spotd/lib"
    library(lib, arch)
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "spotd", lib / "spotd", ignore=ignore)
    _write(stage / "opt/spotd/bin/spotd", LAUNCHER.format(python=python), 0o755)
    link = stage / "usr/bin/spotd"
    link.parent.mkdir(parents=True)
    link.symlink_to("/opt/spotd/bin/spotd")
    units = stage / "usr/lib/systemd"
    _write(units / "system/spotd.service", (ROOT / "systemd/spotd.service").read_text())
    _write(units / "catalog/spotd.catalog", (ROOT / "systemd/spotd.catalog").read_text())
    _write(stage / "etc/spotd/spotd.toml.example", (HERE / "spotd.toml").read_text())
    share = stage / "usr/share"
    sys.path.insert(0, str(HERE))
    import documents  # noqa: PLC0415 - needs spotd's dependencies, which --help does not

    _write(share / "bash-completion/completions/spotd", documents.completion())
    manual = gzip.compress(documents.manual().encode(), mtime=0)
    page = share / "man/man8/spotd.8.gz"
    page.parent.mkdir(parents=True)
    page.write_bytes(manual)
    _write(share / "doc/spotd/copyright", COPYRIGHT + (ROOT / "LICENSE").read_text())
    for path in stage.rglob("*"):
        if not path.is_symlink() and "bin" not in path.relative_to(stage).parts[:-1]:
            path.chmod(0o755 if path.is_dir() else 0o644)


COPYRIGHT = """spotd, under the Apache License 2.0 (below). What /opt/spotd/lib carries beside it is
under the licenses in its *.dist-info folders there.

"""


def deb(output: Path, *, arch: str = "amd64", release: str | None = None) -> Path:
    """Builds the Debian package and returns its path.

    Args:
        output: Folder it is put into.
        arch: Debian's name of the machine.
        release: Version, when it is not spotd's own (an upgrade test needs a second one).
    """
    release = release or version()
    with tempfile.TemporaryDirectory() as scratch:
        stage = Path(scratch, "stage")
        tree(stage, arch)
        size = sum(p.lstat().st_size for p in stage.rglob("*") if not p.is_dir()) // 1024
        control = (HERE / "debian/control").read_text()
        for key, value in {"VERSION": release, "ARCH": arch, "SIZE": str(size)}.items():
            control = control.replace(f"@{key}@", value)
        _write(stage / "DEBIAN/control", control)
        _write(stage / "DEBIAN/conffiles", "/etc/spotd/spotd.toml.example\n")
        for script in ("postinst", "prerm", "postrm"):
            _write(stage / "DEBIAN" / script, (HERE / "debian" / script).read_text(), 0o755)
        output.mkdir(parents=True, exist_ok=True)
        package = output / f"spotd_{release}_{arch}.deb"
        run("dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", stage, package)
    return package


def rpm(output: Path, *, arch: str = "amd64", python: str = "/usr/bin/python3.11") -> Path:
    """Builds the RPM, with the Python of Amazon Linux 2023 that is new enough; its path."""
    machine = MACHINES[arch]
    with tempfile.TemporaryDirectory() as scratch:
        stage = Path(scratch, "stage")
        tree(stage, arch, python)
        settings = {"_topdir": scratch, "_rpmdir": scratch, "stage": str(stage)}
        settings |= {"spotd_version": version(), "_build_id_links": "none"}
        defines = [word for k, v in settings.items() for word in ("--define", f"{k} {v}")]
        spec = HERE / "rpm/spotd.spec"
        run("rpmbuild", "-bb", "--target", f"{machine}-linux", *defines, spec)
        built = next(Path(scratch).rglob("*.rpm"))
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(built, output / built.name))


def wheel(output: Path) -> Path:
    """Builds the wheel for pip, pipx and uv."""
    output.mkdir(parents=True, exist_ok=True)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", output, ROOT)
    return max(output.glob("spotd-*.whl"), key=lambda path: path.stat().st_mtime)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("kind", choices=["deb", "rpm", "wheel", "tree"])
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--arch", choices=MACHINES, default="amd64")
    chosen = parser.parse_args()
    os.umask(0o022)
    if chosen.kind == "tree":
        tree(chosen.output, chosen.arch)
        print(chosen.output)
    elif chosen.kind == "wheel":
        print(wheel(chosen.output))
    else:
        build = deb if chosen.kind == "deb" else rpm
        print(build(chosen.output, arch=chosen.arch))


if __name__ == "__main__":
    main()
