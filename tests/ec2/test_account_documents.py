"""What getting-started.md has one type into an account, typed: the real `aws`, moto's account."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_HERE = ("make ", ".venv/bin/python ", "aws service-quotas ")  # builds; and moto has no quotas


def typed(page: str, title: str) -> list[str]:
    section = (ROOT / page).read_text().split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = re.findall(r"(?m)^    (\S.*)$", section)
    return [line for line in lines if not line.startswith(NOT_HERE)]


@pytest.fixture
def type_in(account, tmp_path):
    """Runs a line the way a person would, in a checkout."""
    for tool in ("aws", "jq", "bash"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    (tmp_path / "packaging").symlink_to(ROOT / "packaging")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/spotd_0.1.0_amd64.deb").write_bytes(b"package")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519.pub").write_text(
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea you\n"
    )
    environment = {
        **os.environ, **account.environment, "AWS_ENDPOINT_URL": account.url,
        "HOME": str(tmp_path),
        "PYENV_ROOT": os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv")),  # of a shim
    }  # fmt: skip

    def run(line):
        line = line.replace("$(curl -s https://checkip.amazonaws.com)", "203.0.113.7")
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", line], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stderr}"

    return run


@pytest.mark.slow
def test_the_bucket_the_role_and_the_way_in_are_made_as_the_pages_say(type_in, account):
    lines = typed("docs/getting-started.md", "1. Once an account")
    lines += typed("packaging/aws/iam-policy.md", "Making the role")
    assert len(lines) >= 10
    for line in lines:
        type_in(line)
    iam, ec2, s3 = (account.client(name) for name in ("iam", "ec2", "s3"))
    policy = iam.get_role_policy(RoleName="spotd", PolicyName="spotd")["PolicyDocument"]
    assert not re.search(r"[A-Z]{4,}", json.dumps(policy)), "a placeholder is left"
    assert "arn:aws:s3:::my-bucket/training/*" in json.dumps(policy)
    profile = iam.get_instance_profile(InstanceProfileName="spotd")["InstanceProfile"]
    assert [role["RoleName"] for role in profile["Roles"]] == ["spotd"]
    (group,) = ec2.describe_security_groups(GroupNames=["ssh"])["SecurityGroups"]
    assert group["IpPermissions"][0]["IpRanges"][0]["CidrIp"] == "203.0.113.7/32"
    assert ec2.describe_key_pairs(KeyNames=["laptop"])["KeyPairs"]
    assert s3.head_object(Bucket="my-bucket", Key="training/spotd.deb")["ContentLength"] == 7


def test_the_package_lies_where_the_role_may_read_it():
    page = (ROOT / "docs/getting-started.md").read_text()
    (package,) = set(re.findall(r"s3://my-bucket/\S*\.deb", page))
    assert package.startswith("s3://my-bucket/training/")
    assert 'url = "s3://my-bucket/training"' in page
