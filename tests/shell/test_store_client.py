"""The daemon's side of the store, with a real worker process and a real S3 server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from storekit import MIB, Daemon, file_settings, unique_url, write_file

from spotd.core import events
from spotd.shell.store import client as client_module
from spotd.shell.store.lease import TTL, TTL_BY_OUR_CLOCKS
from spotd.shell.store.settings import StoreSettings
from spotd.testing.faults import Fault, FaultProxy

ENDS = (events.Uploaded, events.UploadFailed)


@pytest.fixture
def s3(seaweed, monkeypatch):
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    return StoreSettings(unique_url(), seaweed.endpoint_url)


@pytest.fixture
def proxy(seaweed):
    with FaultProxy(seaweed.port) as opened:
        yield opened


@pytest.fixture
def daemon(request, tmp_path):
    """Makes daemons, and lets them go at the end."""
    made = []

    def make(settings, **options):
        made.append(Daemon(tmp_path, settings, **options))
        return made[-1]

    yield make
    for each in made:
        each.client.close()


@pytest.fixture(params=["s3", "file"])
def settings(request, tmp_path):
    if request.param == "file":
        return file_settings(tmp_path)
    return request.getfixturevalue("s3")


def lasts(settings):
    return TTL if settings.url.startswith("s3:") else TTL_BY_OUR_CLOCKS


def until(condition, timeout=20):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.02)


def test_a_lost_disk_comes_back_from_the_store_with_names_modes_and_times(daemon, settings):
    one = daemon(settings)
    assert one.open() == events.StoreOpened(
        generation=1, lease_in=pytest.approx(lasts(settings), abs=5), stored=()
    )
    folder = one.directory / "step-5"
    (folder / "inner").mkdir(parents=True)
    contents = {
        "inner/weights.bin": write_file(folder / "inner" / "weights.bin", 20 * MIB + 3),
        "small": write_file(folder / "small", 100),
        "empty": write_file(folder / "empty", 0),
    }
    (folder / "small").chmod(0o640)
    (folder / "inner").chmod(0o750)
    os.utime(folder / "small", ns=(1, 1_234_567_890_123_456_789))
    os.utime(folder, ns=(1, 987_654_321_000_000_000))
    uploaded = one.stored(7, "step-5", kind="directory", step=5)
    assert isinstance(uploaded, events.Uploaded)
    assert uploaded.size == uploaded.sent == 20 * MIB + 103
    folder.rename(one.directory.parent / "lost")

    fetched = one.fetch("00000007-step-5")
    assert isinstance(fetched, events.Fetched)
    assert (fetched.checkpoint.name, fetched.checkpoint.step) == ("step-5", 5)
    assert fetched.checkpoint.size == uploaded.size
    for path, content in contents.items():
        assert (folder / path).read_bytes() == content
    assert stat.S_IMODE((folder / "small").stat().st_mode) == 0o640
    assert stat.S_IMODE((folder / "inner").stat().st_mode) == 0o750
    assert (folder / "small").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert folder.stat().st_mtime_ns == 987_654_321_000_000_000
    assert sorted(path.name for path in one.directory.iterdir()) == ["step-5"]


def test_what_stands_under_the_name_goes_aside_and_is_not_lost(daemon, tmp_path):
    one = daemon(file_settings(tmp_path))
    one.open()
    content = write_file(one.directory / "a.pt", 1000)
    one.stored(1, "a.pt")
    (one.directory / "a.pt").write_bytes(b"something else")
    assert isinstance(one.fetch("00000001-a.pt"), events.Fetched)
    assert (one.directory / "a.pt").read_bytes() == content
    assert (one.directory / ".spotd-aside" / "a.pt").read_bytes() == b"something else"
    # Once more, where nothing has to be done: it stands there already.
    assert isinstance(one.fetch("00000001-a.pt"), events.Fetched)
    aside = (one.directory / ".spotd-aside").iterdir()
    assert [each.name for each in aside if ".why" not in each.name] == ["a.pt"]


def test_the_store_knows_what_is_whole_which_sequence_is_top_and_that_the_run_is_complete(
    daemon, settings
):
    one = daemon(settings)
    one.open()
    write_file(one.directory / "a.pt", 1000)
    for sequence in (1, 2, 3):
        one.stored(sequence, "a.pt", step=sequence)
    one.client.delete(("00000001-a.pt",))
    assert one.wait("DeletedFromStore", "StoreFailed").ids == ("00000001-a.pt",)
    one.client.store_completion()
    one.wait("CompletionStored")
    opened = one.open()
    assert [each.id for each in opened.stored] == ["00000002-a.pt", "00000003-a.pt"]
    assert (opened.top_sequence, opened.completed, opened.generation) == (3, True, 1)


def test_a_worker_killed_in_mid_upload_is_an_event_and_the_next_continues(daemon, s3, proxy):
    through = StoreSettings(s3.url, proxy.endpoint_url)
    one = daemon(through)
    one.open()
    size = 96 * MIB
    content = write_file(one.directory / "big.pt", size)
    proxy.set(Fault("throttle", rate=25e6))
    one.upload(1, "big.pt", urgent=True)
    while one.wait("UploadProgressed").sent < size // 3:
        pass
    os.kill(one.client.worker_pid, signal.SIGKILL)
    failed = one.wait("UploadFailed", "Uploaded")
    assert isinstance(failed, events.UploadFailed)
    assert "died" in failed.reason
    assert not failed.gone
    proxy.set(Fault())
    uploaded = one.stored(1, "big.pt", urgent=True)
    assert isinstance(uploaded, events.Uploaded)
    assert uploaded.sent <= size * 0.7
    (one.directory / "big.pt").unlink()
    assert isinstance(one.fetch("00000001-big.pt"), events.Fetched)
    assert (one.directory / "big.pt").read_bytes() == content


def test_uploads_stop_at_once_even_when_nothing_moves_and_continue_later(daemon, s3, proxy):
    one = daemon(StoreSettings(s3.url, proxy.endpoint_url))
    one.open()
    size = 64 * MIB
    write_file(one.directory / "big.pt", size)
    proxy.set(Fault("throttle", rate=25e6))
    one.upload(1, "big.pt")
    while one.wait("UploadProgressed").sent == 0:
        pass
    proxy.set(Fault("stall"))
    started = time.monotonic()
    one.client.stop_uploads()
    one.wait("UploadsStopped")
    assert time.monotonic() - started < 5
    proxy.set(Fault())
    uploaded = one.stored(1, "big.pt")
    assert isinstance(uploaded, events.Uploaded)
    assert uploaded.sent < size
    assert not [each for each in one.seen if isinstance(each, events.UploadFailed)]


def test_stopping_when_nothing_is_sent_is_answered_too(daemon, tmp_path):
    one = daemon(file_settings(tmp_path))
    one.client.stop_uploads()
    assert one.wait("UploadsStopped")
    assert one.client.worker_pid is None


def test_a_second_upload_is_refused(daemon, s3, proxy):
    one = daemon(StoreSettings(s3.url, proxy.endpoint_url))
    one.open()
    write_file(one.directory / "a.pt", 20 * MIB)
    proxy.set(Fault("stall"))
    one.upload(1, "a.pt")
    one.upload(2, "a.pt")
    refused = one.wait("UploadFailed")
    assert (refused.id, refused.gone) == ("00000002-a.pt", False)
    one.client.stop_uploads()
    one.wait("UploadsStopped")


def test_an_upload_that_has_become_urgent_goes_on_as_one(daemon, s3, proxy):
    limited = StoreSettings(s3.url, proxy.endpoint_url, bandwidth_limit=2e6)
    one = daemon(limited)
    one.open()
    size = 40 * MIB
    write_file(one.directory / "a.pt", size)
    one.upload(1, "a.pt")
    one.wait("UploadProgressed")
    one.upload(1, "a.pt", urgent=True)
    uploaded = one.wait("Uploaded", "UploadFailed", timeout=15)
    assert isinstance(uploaded, events.Uploaded)


def heard_late(client, word):
    """Waits until the worker has said `word`; whoever holds the client's lock hears it after."""
    process = client._process

    def said():
        with contextlib.suppress(TimeoutError):  # nothing at all yet
            return word in process.connection.recv(1 << 16, socket.MSG_PEEK)

    until(said)


def test_one_that_becomes_urgent_when_it_is_stored_already_does_not_hold_up_the_next(daemon, s3):
    one = daemon(s3)
    one.open()
    write_file(one.directory / "a.pt", 20 * MIB)
    write_file(one.directory / "b.pt", MIB)
    with one.client._lock:  # the notice comes before the daemon has heard that it is stored
        one.upload(1, "a.pt")
        heard_late(one.client, b'"Uploaded"')
        one.upload(1, "a.pt", urgent=True)
        post = one.client._post

        def next_at_once(event):
            post(event)
            if isinstance(event, events.Uploaded) and event.id == "00000001-a.pt":
                one.upload(2, "b.pt", urgent=True)

        one.client._post = next_at_once
    while (uploaded := one.wait("Uploaded", "UploadFailed")).id != "00000002-b.pt":
        assert uploaded.id == "00000001-a.pt"
    assert [type(e).__name__ for e in one.seen if isinstance(e, ENDS)] == ["Uploaded"] * 2
    one.client.stop_uploads()
    one.wait("UploadsStopped")
    until(lambda: not one.client._process.pending)
    assert one.events.empty()


def test_one_that_fails_when_it_becomes_urgent_is_answered_by_the_second_try(daemon, s3, proxy):
    one = daemon(StoreSettings(s3.url, proxy.endpoint_url))
    one.open()
    write_file(one.directory / "a.pt", MIB)
    proxy.set(Fault("answer", status=403, code="AccessDenied"))
    with one.client._lock:
        one.upload(1, "a.pt")
        heard_late(one.client, b'"UploadFailed"')
        proxy.set(Fault())
        one.upload(1, "a.pt", urgent=True)
    assert isinstance(one.wait(*(e.__name__ for e in ENDS)), events.Uploaded)


def test_the_lease_is_renewed_while_an_upload_takes_its_time(daemon, s3):
    slow = StoreSettings(s3.url, s3.endpoint_url, bandwidth_limit=1e6)
    one = daemon(slow)
    one.open()
    write_file(one.directory / "a.pt", 40 * MIB)
    one.upload(1, "a.pt")
    one.wait("UploadProgressed")
    one.client.renew_lease()
    assert one.wait("LeaseRenewed", "Uploaded").lease_in > TTL - 60
    one.client.stop_uploads()
    one.wait("UploadsStopped")


def test_a_second_machine_is_refused_until_the_lease_is_given_back(daemon, settings):
    one, two = daemon(settings), daemon(settings, instance="i-2")
    assert one.open().generation == 1
    refused = two.open()
    assert isinstance(refused, events.LeaseRefused)
    assert refused.holder == "i-1"
    assert lasts(settings) - 60 < refused.expires_in <= lasts(settings)
    one.client.release_lease(wait_seconds=20)
    assert two.open().generation == 2
    one.client.renew_lease()
    assert isinstance(one.wait("StoreFailed", "LeaseRefused"), events.StoreFailed)


def test_a_machine_that_lost_its_lease_stores_nothing_more(daemon, tmp_path):
    settings = file_settings(tmp_path)
    one = daemon(settings)
    one.open()
    lease = tmp_path / "store" / "run" / "lease.json"
    lease.write_text(lease.read_text().replace('"i-1"', '"i-9"'))
    one.client.renew_lease()
    refused = one.wait("LeaseRefused", "LeaseRenewed")
    assert isinstance(refused, events.LeaseRefused)
    assert refused.holder == "i-9"
    write_file(one.directory / "a.pt", 1000)
    failed = one.stored(1, "a.pt")
    assert isinstance(failed, events.UploadFailed)
    assert "lease" in failed.reason
    assert not (tmp_path / "store/run/checkpoints/00000001-a.pt/MANIFEST.json").exists()


def test_the_worker_ends_when_there_is_nothing_to_do(daemon, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "IDLE", 0.2)
    one = daemon(file_settings(tmp_path))
    one.open()
    pid = one.client.worker_pid
    assert pid is not None
    until(lambda: one.client.worker_pid is None)
    until(lambda: not psutil.pid_exists(pid))
    one.client.renew_lease()
    assert isinstance(one.wait("LeaseRenewed", "StoreFailed"), events.LeaseRenewed)


def test_the_worker_dies_with_the_daemon(s3, tmp_path):
    script = textwrap.dedent(f"""
        import queue, os, sys
        from spotd.shell.store.client import StoreClient
        from spotd.shell.store.settings import StoreSettings
        found = queue.Queue()
        client = StoreClient(StoreSettings({s3.url!r}, {s3.endpoint_url!r}), "run", "i-1", 0,
                             {str(tmp_path)!r}, None, {str(tmp_path / "state")!r}, found.put)
        client.open()
        found.get(timeout=60)
        heavy = [name for name in sys.modules if name.startswith(("boto", "awscrt", "urllib3"))]
        print(client.worker_pid, len(heavy), flush=True)
        os.kill(os.getpid(), 9)
    """)
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=90, check=False
    )
    pid, heavy = ran.stdout.split()
    assert heavy == "0", "the daemon must not import boto3"
    until(lambda: not psutil.pid_exists(int(pid)))


def test_a_store_in_a_directory_needs_no_boto3():
    script = textwrap.dedent("""
        import sys
        import spotd.shell.store.worker
        from spotd.shell.store.settings import StoreSettings, open_store
        open_store(StoreSettings("file:///tmp"), "run")
        print([name for name in sys.modules if name.startswith(("boto", "urllib3"))])
    """)
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() == "[]"


def test_wrong_credentials_are_said_in_one_line_with_a_hint(daemon, s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    failed = daemon(s3).open()
    assert isinstance(failed, events.StoreFailed)
    assert failed.operation == "open"
    assert "credentials" in failed.reason
    assert failed.hint
    assert "wrong" not in failed.reason + failed.hint


def test_missing_credentials_are_said_in_one_line_with_a_hint(daemon, s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    failed = daemon(s3).open()
    assert isinstance(failed, events.StoreFailed)
    assert "no AWS credentials" in failed.reason
    assert "instance profile" in failed.hint


@pytest.mark.parametrize(
    ("status", "code", "words", "hint"),
    [
        (403, "AccessDenied", "access denied", "s3:"),
        (404, "NoSuchBucket", "does not exist", "store.url"),
        (403, "RequestTimeTooSkewed", "clock", "chrony"),
        (400, "AuthorizationHeaderMalformed", "another region", "store.region"),
        (400, "ExpiredToken", "expired", "instance profile"),
        (503, "SlowDown", "busy", ""),
    ],
)
def test_what_s3_refuses_is_said_with_what_to_do(  # noqa: PLR0917
    daemon, s3, proxy, status, code, words, hint
):
    proxy.set(Fault("answer", status=status, code=code))
    failed = daemon(StoreSettings(s3.url, proxy.endpoint_url)).open()
    assert isinstance(failed, events.StoreFailed)
    assert words in failed.reason
    assert hint in failed.hint


def test_a_store_that_is_not_there_is_said_and_comes_back(daemon, s3, proxy):
    one = daemon(StoreSettings(s3.url, proxy.endpoint_url))
    proxy.set(Fault("drop"))
    failed = one.open()
    assert isinstance(failed, events.StoreFailed)
    assert "no answer" in failed.reason
    proxy.set(Fault())
    assert isinstance(one.open(), events.StoreOpened)


def test_a_missing_mount_is_said(daemon, tmp_path):
    failed = daemon(StoreSettings((tmp_path / "not-mounted").as_uri())).open()
    assert isinstance(failed, events.StoreFailed)
    assert "mounted" in failed.hint


def test_a_checkpoint_that_is_gone_can_never_be_stored(daemon, tmp_path):
    one = daemon(file_settings(tmp_path))
    one.open()
    failed = one.stored(1, "nothing.pt")
    assert isinstance(failed, events.UploadFailed)
    assert failed.gone


@pytest.mark.parametrize("body", [b"", b"{}", b'{"format": 1, "run": "another"}', b"\xff"])
def test_a_completed_json_that_is_not_this_runs_is_not_believed(tmp_path, body):
    from types import SimpleNamespace

    from spotd.shell.store.api import list_checkpoints

    (tmp_path / "store" / "r").mkdir(parents=True)
    (tmp_path / "store" / "r" / "completed.json").write_bytes(body)
    settings = SimpleNamespace(
        url=f"file://{tmp_path}/store", endpoint_url=None, region=None, storage_class=None,
        server_side_encryption=None, kms_key_id=None, bandwidth_limit=None,
    )  # fmt: skip
    assert list_checkpoints(settings, "r").completed is False
