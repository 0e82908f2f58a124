"""`spotd check` as a person calls it: against a metadata service, EC2 and S3 on loopback."""

from __future__ import annotations

import json
import uuid

import pytest

from spotd.cli import main
from spotd.testing.imds import MetadataSimulator


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a configuration that is right but for what is given; returns its path."""
    (tmp_path / "work").mkdir()
    (tmp_path / "store").mkdir()

    def make(*, imds, store=None, extra=""):
        path = tmp_path / "spotd.toml"
        path.write_text(
            f"""
            run = "{uuid.uuid4().hex[:12]}"
            {extra}
            [trainer]
            command = "sh -c true"
            directory = "{tmp_path}/work"
            [checkpoints]
            directory = "checkpoints"
            [imds]
            endpoint = "{imds}"
            timeout = 0.5
            [store]
            {store or f'url = "file://{tmp_path}/store"'}
            [paths]
            state = "{tmp_path}/state"
            runtime = "{tmp_path}/run"
            """
        )
        path.chmod(0o600)
        return path

    return make


def check(path, capsys):
    """Returns (exit status, {subject: finding})."""
    status = main(["check", "--json", "--config", str(path)])
    told = json.loads(capsys.readouterr().out)
    return status, {f["subject"]: f for f in told["findings"]}


def test_everything_in_order_on_a_persistent_spot_instance_that_stops(
    write,
    account,
    capsys,
    tmp_path,
):
    instance, request = account.spot_instance()
    with MetadataSimulator(instance_id=instance) as imds:
        status, found = check(write(imds=imds.url), capsys)
    assert status == 0, found
    assert found["metadata"]["level"] == "ok"
    assert found["life cycle"]["level"] == "ok"
    assert found["root volume"]["level"] == "ok"
    assert found["spot request"]["level"] == "ok"
    assert request in found["spot request"]["found"]
    assert found["store"]["level"] == "ok"
    left = [p for p in (tmp_path / "store").rglob("*") if p.is_file()]
    assert {p.name for p in left} <= {".spotd-lock"}
    assert not (tmp_path / "state").exists(), "nothing but the probe object is written"


def test_a_one_time_request_fails(write, account, capsys):
    instance, _ = account.spot_instance(kind="one-time", behaviour="terminate")
    with MetadataSimulator(instance_id=instance) as imds:
        status, found = check(write(imds=imds.url), capsys)
    assert status == 1
    assert found["spot request"]["level"] == "failed"


def test_a_missing_permission_is_named_with_its_resource(
    write,
    account,
    capsys,
    monkeypatch,
):
    instance, _ = account.spot_instance()
    for name, value in account.user_who_may("ec2:DescribeInstances").items():
        monkeypatch.setenv(name, value)
    account.policies_count()
    with MetadataSimulator(instance_id=instance) as imds:
        status, found = check(write(imds=imds.url), capsys)
    assert status == 0, "not being allowed to look is no failure"
    assert found["root volume"]["level"] == "ok"
    assert found["spot request"]["level"] == "warning"
    assert "ec2:DescribeSpotInstanceRequests on *" in found["spot request"]["advice"]


def test_a_hop_limit_that_is_too_low_is_told_from_a_dead_service(write, capsys):
    with MetadataSimulator(hop_limit=1, hops=2) as imds:
        status, found = check(write(imds=imds.url), capsys)
    assert status == 1
    assert found["metadata"]["level"] == "failed"
    assert "http-put-response-hop-limit 2" in found["metadata"]["advice"]


def test_a_store_that_is_not_mounted_fails_with_what_to_do(write, account, capsys, tmp_path):
    with MetadataSimulator() as imds:
        path = write(imds=imds.url, store=f'url = "file://{tmp_path}/elsewhere"')
        status, found = check(path, capsys)
    assert status == 1
    assert found["store"]["level"] == "failed"
    assert found["store"]["advice"]


def test_real_s3_is_written_read_listed_and_emptied_again(
    write,
    account,
    capsys,
    seaweed,
    monkeypatch,
):
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    place = f"s3://spotd-test/check-{uuid.uuid4().hex[:8]}"
    store = f'url = "{place}"\nendpoint_url = "{seaweed.endpoint_url}"'
    with MetadataSimulator() as imds:
        _, found = check(write(imds=imds.url, store=store), capsys)
    assert found["store"]["level"] == "ok", found
    assert found["credentials"]["level"] == "warning", "only this shell sees them"
    assert "measured just now" in found["two minutes"]["found"]


def test_a_secret_key_that_s3_does_not_accept_is_told(write, account, capsys, seaweed, monkeypatch):
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = f'url = "s3://spotd-test/x"\nendpoint_url = "{seaweed.endpoint_url}"'
    with MetadataSimulator() as imds:
        status, found = check(write(imds=imds.url, store=store), capsys)
    assert status == 1
    assert found["store"]["level"] == "failed"
    assert "credentials" in found["store"]["found"]


def test_every_problem_of_a_wrong_configuration_has_a_line_and_nothing_else_is_looked_at(
    write, capsys
):
    path = write(imds="http://127.0.0.1:1", extra='runn = "x"\nfrobnicate = 1')
    status = main(["check", "--json", "--config", str(path)])
    told = json.loads(capsys.readouterr().out)
    assert status == 78
    assert {f["subject"] for f in told["findings"]} == {"configuration"}
    assert len(told["findings"]) == 2


def test_as_text_each_line_says_how_bad_what_and_what_to_do(write, capsys):
    with MetadataSimulator() as imds:
        imds.life_cycle = "on-demand"
        main(["check", "--config", str(write(imds=imds.url))])
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("warning  life cycle"))
    assert lines[at + 1].strip().startswith("-> ")
    assert lines[-1].endswith("failed")
