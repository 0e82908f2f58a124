"""The second process that receives over TLS: the same bytes, the same refusals, no late writes."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
from storekit import MIB, unique_url

from spotd.shell.store import thin
from spotd.shell.store import twin as twin_module
from spotd.shell.store.protocol import Cancelled, Damaged, Flow, NotFound, Piece
from spotd.shell.store.settings import StoreSettings, open_store

SIZE = 24 * MIB


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


class Bucket:
    """One object in a store over TLS, and the file it is fetched into."""

    def __init__(self, settings, tmp_path):
        self.store = open_store(settings, "run")
        self.content = os.urandom(SIZE)
        (tmp_path / "source").write_bytes(self.content)
        source = os.open(tmp_path / "source", os.O_RDONLY)
        self.crc = self.store.send_whole("big", Piece(source, 0, SIZE), Flow()).crc
        os.close(source)
        self.target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
        self.sender = self.store.sender

    def receive(self, key="big", offset=0, length=SIZE, flow=None):
        piece = Piece(self.target, offset, length)
        return self.store.receive(key, piece, flow or Flow(), self.store.algorithm)

    def written(self):
        return os.pread(self.target, SIZE, 0)

    def start_twin(self):
        """From here on every range of a MiB goes to the twin."""
        self.receive(length=MIB)
        wait_until(lambda: self.sender._twin is not None and self.sender._twin.free is not None)
        self.sender._receiving = 100
        return self.sender._twin


@pytest.fixture
def bucket(seaweed, tmp_path, monkeypatch):
    if seaweed.certificate is None:
        pytest.skip("needs openssl for a certificate")
    if (os.cpu_count() or 1) == 1:
        pytest.skip("one core has no use for a second process")
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(seaweed.certificate))
    monkeypatch.setattr(thin, "_WORTH_A_TWIN", 0)
    made = Bucket(StoreSettings(unique_url(), seaweed.tls_endpoint_url), tmp_path)
    yield made
    made.store.close()
    os.close(made.target)


def test_what_the_twin_receives_is_what_was_sent(bucket):
    twin = bucket.start_twin()
    flow = Flow()
    assert bucket.receive(flow=flow) == bucket.crc
    assert bucket.written() == bucket.content
    assert flow.wire == SIZE
    assert not twin.over


def test_what_the_server_refuses_is_the_same_problem(bucket):
    bucket.start_twin()
    with pytest.raises(NotFound):
        bucket.receive("missing")
    with pytest.raises(Damaged):
        bucket.receive(offset=SIZE - MIB, length=2 * MIB)


def test_a_twin_that_was_killed_is_done_without_and_comes_back(bucket):
    twin = bucket.start_twin()
    twin._popen.kill()
    assert bucket.receive() == bucket.crc
    assert bucket.written() == bucket.content
    wait_until(lambda: twin.over)
    bucket.receive(length=MIB)
    assert bucket.start_twin() is not twin


def test_a_twin_that_meets_what_nobody_thought_of_keeps_nobody_waiting(bucket, capfd):
    twin = bucket.start_twin()
    waiting = twin_module._Waiting()
    with twin._lock:
        twin._waiting[7] = waiting
    # No descriptor came with it, as when it has too many open.
    twin._socket.send(json.dumps([7, 0, MIB, bucket.store.algorithm.label(0), "GET /"]).encode())
    assert waiting.done.wait(20)
    assert waiting.answer is None  # Lost: this process does it itself
    assert "IndexError" in capfd.readouterr().err


def test_a_stopped_transfer_writes_nothing_more(bucket):
    twin = bucket.start_twin()
    flow, ended = Flow(), []

    def fetch():
        try:
            while True:
                bucket.receive(flow=flow)
        except Cancelled:
            ended.append(True)

    fetching = threading.Thread(target=fetch)
    fetching.start()
    wait_until(lambda: bucket.written()[:MIB] == bucket.content[:MIB])
    flow.stop()
    fetching.join(10.0)
    assert ended
    assert twin.over or twin.free == 0


def test_the_twin_ends_with_whoever_asked_for_it(bucket):
    twin = bucket.start_twin()
    bucket.store.close()
    wait_until(lambda: twin._popen.poll() is not None)
