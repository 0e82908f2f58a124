"""What is installed, against what it was made from."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd/spotd.service"


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings_of_unit(name: str) -> list[str]:
    lines = UNIT.read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def test_the_journal_catalog_explains_every_event_in_the_words_of_the_code() -> None:
    written = (ROOT / "systemd/spotd.catalog").read_text()
    assert written == load("systemd/catalog.py").catalog(), "python systemd/catalog.py > ..."


def test_journalctl_accepts_the_catalog(tmp_path: Path) -> None:
    if not shutil.which("journalctl"):
        pytest.skip("no journalctl here")
    place = tmp_path / "usr/lib/systemd/catalog"
    place.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(ROOT / "systemd/spotd.catalog", place)
    done = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--update-catalog"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    compiled = (tmp_path / "var/lib/systemd/catalog/database").read_bytes()
    assert b"The run is complete" in compiled


def test_the_unit_is_hardened_to_four_or_better() -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", UNIT],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Overall exposure" not in done.stdout:
        pytest.skip(f"systemd-analyze cannot judge a unit file: {done.stderr.strip()}")
    found = re.search(r"exposure level for spotd.service: ([0-9.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= 4.0


@pytest.mark.parametrize(
    ("taken", "why"),
    [
        ("PrivateDevices", "GPUs"),
        ("PrivateTmp", "an adopted trainer would lose its files"),
        ("ProtectHome", "the trainer's files"),
        ("MemoryDenyWriteExecute", "JIT"),
        ("NoNewPrivileges", "sudo in a training script"),
        ("MemoryMax", "nobody asked for a limit"),
    ],
)
def test_the_unit_takes_nothing_from_the_trainer_that_training_needs(taken: str, why: str) -> None:
    assert settings_of_unit(taken) in ([], ["no"]), why


def test_the_unit_allows_two_minutes_to_stop_and_does_not_wait_for_cloud_init() -> None:
    assert settings_of_unit("TimeoutStopSec") == ["150"]
    assert not [line for line in settings_of_unit("After") if "cloud-" in line]
    assert settings_of_unit("WantedBy") == ["multi-user.target"]


def test_every_aws_service_the_code_talks_to_is_packaged() -> None:
    kept = load("packaging/build.py").AWS_SERVICES
    used: set[str] = set()
    for path in (ROOT / "spotd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if name in {"client", "create_client"} and isinstance(first, ast.Constant):
                used.add(str(first.value))
    assert used <= kept


def test_the_versions_agree() -> None:
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert declared[1] == load("packaging/build.py").version()


def test_every_dependency_is_packaged() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = text.partition("\ndependencies = [")[2].partition("\n]")[0]
    declared = set(re.findall(r'"([A-Za-z0-9_-]+)', block))
    build = load("packaging/build.py")
    older = [name for more in build.OLDER.values() for name in more]
    packaged = {re.split(r"[\[<>=;]", name)[0] for name in [*build.requirements(), *older]}
    assert declared <= packaged


def test_the_man_page_and_the_completion_know_every_verb_and_option() -> None:
    pages = load("packaging/documents.py")
    manual, completion = pages.manual(), pages.completion()
    for verb in pages.available():
        assert f".SS spotd {pages._escape(verb)}\n" in manual
        assert f"        {verb}) words=" in completion
    assert "\\-\\-data\\-device" in manual
    assert "--data-device" in completion
    done = subprocess.run(["bash", "-n"], input=completion, text=True, check=False)
    assert done.returncode == 0


def test_man_finds_nothing_to_complain_about_in_the_man_page() -> None:
    if not shutil.which("groff"):
        pytest.skip("no groff here")
    page = load("packaging/documents.py").manual()
    done = subprocess.run(
        ["groff", "-man", "-ww", "-z"], input=page, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def actions_of(statements: list[dict[str, Any]]) -> set[str]:
    found: set[str] = set()
    for statement in statements:
        action = statement["Action"]
        found |= {action} if isinstance(action, str) else set(action)
    return found


def test_the_iam_policy_says_why_it_wants_each_action() -> None:
    policy = json.loads((ROOT / "packaging/aws/iam-policy.json").read_text())
    table = (ROOT / "packaging/aws/iam-policy.md").read_text()
    explained = re.findall(r"^\| `([a-z0-9]+:[A-Za-z]+)` \| \S", table, re.MULTILINE)
    assert set(explained) == actions_of(policy["Statement"])
    assert len(explained) == len(set(explained))
    assert not [s for s in policy["Statement"] if "*" in str(s["Action"])]


def test_cloudformation_and_terraform_grant_what_the_policy_says() -> None:
    policy = json.loads((ROOT / "packaging/aws/iam-policy.json").read_text())
    wanted = actions_of([s for s in policy["Statement"] if s["Sid"] != "TellSomebody"])
    text = (ROOT / "packaging/aws/cloudformation.yaml").read_text()
    granted = set(re.findall(r"\b((?:s3|ec2|pricing|sns):[A-Z][A-Za-z]+)", text))
    assert granted == wanted
    for name in ("cloudformation.yaml", "main.tf"):
        text = (ROOT / "packaging/aws" / name).read_text()
        assert "persistent" in text
        assert "stop" in text
    assert 'file("${path.module}/iam-policy.json")' in (ROOT / "packaging/aws/main.tf").read_text()


def test_maintainer_scripts_are_valid_shell_and_never_touch_checkpoints() -> None:
    for name in ("postinst", "prerm", "postrm"):
        script = ROOT / "packaging/debian" / name
        done = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    removed = re.findall(r"rm -r?f (.+)", (ROOT / "packaging/debian/postrm").read_text())
    assert set(removed) == {'"${run:?}"', "/run/spotd"}


@pytest.mark.slow
def test_the_wheel_installs_a_command_that_tells_its_version(tmp_path: Path) -> None:
    build = load("packaging/build.py")
    wheel = build.wheel(tmp_path)
    place = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, wheel],
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-m", "spotd", "--version"],
        env={"PYTHONPATH": str(place)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == f"spotd {build.version()}", done.stderr
    assert (place / "share/spotd/spotd.service").read_text() == UNIT.read_text()
