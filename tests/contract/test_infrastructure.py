"""Templates and policies for AWS and Kubernetes, by checkers that know what those take.

None of them reaches AWS: they hold each file against the schemas that AWS and Kubernetes publish.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
FILLED_IN = {
    "BUCKET": "my-bucket", "PREFIX": "training", '"RUN"': '"mono-to-3d"',
    "TOPIC": "arn:aws:sns:us-east-1:123456789012:training",
    '"ROLE"': '"arn:aws:iam::123456789012:role/spotd"',
}  # fmt: skip
# A service-linked role has no name before it is there.
STARS = ["iam:CreateServiceLinkedRole"]


@pytest.mark.parametrize("name", ["iam-policy.json", "operator-policy.json"])
def test_every_action_exists_and_takes_the_resource_and_the_condition_it_has(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses pkg_resources
        parliament = pytest.importorskip("parliament", reason="needs parliament and setuptools<81")
    text = (PACKAGING / "aws" / name).read_text()
    for placeholder, value in FILLED_IN.items():
        text = text.replace(placeholder, value)
    launching = [
        resource
        for statement in json.loads(text)["Statement"]
        if statement["Action"] == "ec2:RunInstances"
        for resource in statement["Resource"]
    ]
    for finding in parliament.analyze_policy_string(text).findings:
        if finding.issue == "RESOURCE_MISMATCH":
            # RunInstances is allowed by two statements, and the checker looks at one at a time.
            for needed in finding.detail:
                assert needed["action"] == "ec2:RunInstances"
                assert needed["required_format"].replace("arn:*:", "arn:aws:") in launching
        else:
            assert (finding.issue, finding.detail) == ("RESOURCE_STAR", STARS)


def test_a_prefix_is_no_condition_of_the_list_of_uploads():
    """Under one it would be refused always: the key is not in that request."""
    policy = json.loads((PACKAGING / "aws/iam-policy.json").read_text())
    (statement,) = [
        s for s in policy["Statement"] if "s3:ListBucketMultipartUploads" in str(s["Action"])
    ]
    assert "Condition" not in statement


def test_cloudformation_knows_every_property_of_the_template():
    api = pytest.importorskip("cfnlint.api", reason="needs cfn-lint")
    template = (PACKAGING / "aws/cloudformation.yaml").read_text()
    assert api.lint(template, regions=["us-east-1", "eu-central-1"]) == []


@pytest.mark.parametrize("version", ["1.29", None])
def test_kubernetes_knows_every_field_of_the_job(version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    yaml = pytest.importorskip("yaml")
    found = list(yaml.safe_load_all((PACKAGING / "kubernetes/job.yaml").read_text()))
    assert [f["kind"] for f in found] == ["ConfigMap", "Job"]
    for each in found:
        kubernetes_validate.validate(
            each, version or kubernetes_validate.latest_version(), strict=True
        )


def test_the_configuration_in_the_kubernetes_manifest_is_valid():
    yaml = pytest.importorskip("yaml")
    from spotd.config import parse

    config, job = yaml.safe_load_all((PACKAGING / "kubernetes/job.yaml").read_text())
    settings = parse(config["data"]["spotd.toml"], "spotd.toml")
    pod = job["spec"]["template"]["spec"]
    mounted = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    for path in (settings.checkpoints.directory, settings.paths.state, settings.paths.runtime):
        assert str(path) in mounted


def test_terraform_finds_the_files_well_formed():
    if shutil.which("terraform") is None:
        pytest.skip("needs terraform")
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-diff", PACKAGING / "aws/main.tf"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["main.tf", "image.pkr.hcl"])
def test_whatever_a_template_refers_to_is_declared_in_it(name):
    hcl2 = pytest.importorskip("hcl2", reason="needs python-hcl2")
    text = (PACKAGING / "aws" / name).read_text()
    found = hcl2.loads(text)

    def declared(kind):
        blocks = [key.strip('"') for block in found.get(kind, []) for key in block]
        return {b for b in blocks if not b.startswith("__")}

    code = re.sub(r"(?m)#.*$", "", text)
    assert set(re.findall(r"\bvar\.(\w+)", code)) == declared("variable")
    assert set(re.findall(r"\blocal\.(\w+)", code)) <= declared("locals")
    resources = {
        f"{kind.strip(chr(34))}.{one.strip(chr(34))}"
        for block in found.get("resource", [])
        for kind, ones in block.items()
        for one in ones
    }
    used = re.findall(r"\b((?:aws|terraform)_\w+\.\w+)\.", re.sub(r"\bdata\.\S+", "", code))
    assert set(used) <= resources
    assert (name == "main.tf") == bool(used)
