"""Credentials that run out in mid-upload: looked up again, whatever was sent is kept."""

from __future__ import annotations

import threading
import time

import pytest
from storekit import MIB, Bench, unique_url, write_file

from spotd.shell.store import large, transfer
from spotd.shell.store.settings import StoreSettings
from spotd.testing.faults import Fault, FaultProxy


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def keys(seaweed, tmp_path, monkeypatch):
    """Writes the credentials file, with the right secret or a wrong one."""
    environment = dict(seaweed.environment)
    access = environment.pop("AWS_ACCESS_KEY_ID")
    secret = environment.pop("AWS_SECRET_ACCESS_KEY")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def write(*, right):
        text = f"aws_access_key_id={access}\naws_secret_access_key={secret if right else 'no'}\n"
        file.write_text(f"[default]\n{text}")

    write(right=True)
    return write


def test_an_upload_goes_on_with_renewed_credentials(seaweed, tmp_path, monkeypatch, keys):
    size = 22 * MIB
    for module in (transfer, large):
        monkeypatch.setattr(module, "part_size", lambda _size: 5 * MIB)
    monkeypatch.setattr(transfer, "BACKOFF", 0.05)
    with FaultProxy(seaweed.port) as proxy:
        # One lane, so that no request signed before is under way when the new keys are there.
        bench = Bench(tmp_path, StoreSettings(unique_url(), proxy.endpoint_url), lanes=1)
        write_file(bench.directory / "a.pt", size)
        bench.store.warm()
        failed = []

        def upload():
            try:
                bench.upload(1, "a.pt")
            except Exception as error:  # noqa: BLE001 - the assertion below shows it
                failed.append(error)

        proxy.set(Fault("throttle", rate=30e6))
        sending = threading.Thread(target=upload)
        sending.start()
        wait_until(lambda: proxy.passed_up > 6 * MIB)
        keys(right=False)
        proxy.set(Fault("answer", status=400, code="ExpiredToken"))
        wait_until(lambda: any("expired" in str(each) for each in bench.troubles))
        keys(right=True)
        struck = proxy.struck
        wait_until(lambda: proxy.struck >= struck + 3)
        before = proxy.passed_up
        proxy.set(Fault())
        sending.join(60.0)
        assert not sending.is_alive()
        assert not failed
        assert proxy.passed_up - before < size - 4 * MIB, "what was sent before is not sent again"
        bench.close()
