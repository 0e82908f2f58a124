from __future__ import annotations

import os
import uuid

import pytest
from machines import FAST, Machine, little_trainer, new_run

from spotd.testing.imds import MetadataSimulator

BUCKET = "spotd-test"


@pytest.fixture
def imds():
    with MetadataSimulator() as simulator:
        yield simulator


@pytest.fixture
def build(tmp_path, imds, request):
    """Makes machines; whatever still runs on them when the test is over is killed.

    Without `s3=True` the store is a directory beside the machine's disk.
    """
    machines = []
    where = uuid.uuid4().hex[:8]

    def make(*options, name="one", s3=False, endpoint_url=None, command=None, **more):
        sections = {k: dict(v) for k, v in more.pop("sections", {}).items()}
        sections["imds"] = {**FAST, **sections.get("imds", {})}
        trainer = {"backoff_min": 0.1, **more.pop("trainer", {})}
        environment = more.pop("environment", {})
        if s3:
            server = request.getfixturevalue("seaweed")
            environment = {**server.environment, **environment}
            more["store_url"] = f"s3://{BUCKET}/e2e-{where}"
            more["endpoint_url"] = endpoint_url or server.endpoint_url
        else:
            (tmp_path / "store").mkdir(exist_ok=True)
            more.setdefault("store_url", f"file://{tmp_path}/store")
        machine = Machine(
            directory=tmp_path / name,
            command=little_trainer(*options) if command is None else command,
            imds_url=more.pop("imds_url", imds.url),
            run=more.pop("run", None) or new_run(),
            trainer=trainer,
            sections=sections,
            environment=environment,
            **more,
        )
        machines.append(machine)
        return machine

    yield make
    for machine in machines:
        machine.power_cut()


@pytest.fixture(params=["file", "s3"])
def on_both_stores(request, build):
    """`build`, once with a directory as the store and once with S3."""
    return lambda *options, **more: build(*options, s3=request.param == "s3", **more)


@pytest.fixture
def as_root():
    if os.geteuid() != 0:
        pytest.skip("needs root: another user's processes, or a mount of its own")


@pytest.fixture
def network(seaweed):
    """What lies between the machine and S3, and can be spoiled."""
    from spotd.testing.faults import FaultProxy

    with FaultProxy(seaweed.port) as proxy:
        yield proxy


@pytest.fixture
def other_imds():
    """The metadata of another instance."""
    with MetadataSimulator(instance_id="i-0fedcba9876543210") as simulator:
        yield simulator
