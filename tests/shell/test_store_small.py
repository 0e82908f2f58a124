"""Small objects without botocore: what renews a lease from the daemon itself."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

import psutil
import pytest
from storekit import Daemon, unique_url

from spotd.shell.store.access import Access
from spotd.shell.store.lease import KEY
from spotd.shell.store.protocol import Damaged, NotFound, PreconditionFailed, StoreProblem
from spotd.shell.store.settings import (
    StoreSettings,
    access_to,
    open_store,
    s3_place,
    small_objects,
)
from spotd.shell.store.small import age_of
from spotd.testing.faults import Fault, FaultProxy


@pytest.fixture(params=["http", "https"])
def settings(request, seaweed, monkeypatch):
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    if request.param == "https":
        if seaweed.certificate is None:
            pytest.skip("needs openssl, for a certificate")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(seaweed.certificate))
        return StoreSettings(unique_url(), seaweed.tls_endpoint_url)
    return StoreSettings(unique_url(), seaweed.endpoint_url)


@pytest.fixture
def both(settings):
    """The store as botocore reaches it, and its small objects as we do."""
    store = open_store(settings, "a run")
    access = access_to(store)
    assert access is not None
    small = small_objects(settings, "a run", access)
    yield store, small
    small.close()
    store.close()


def test_what_one_writes_the_other_reads(both):
    store, small = both
    etag = small.put("lease.json", b'{"a": 1}')
    blob = store.get("lease.json", limit=100)
    assert (blob.data, blob.etag) == (b'{"a": 1}', etag)
    etag = store.put("odd/näme +%.json", b"{}")
    found = small.get("odd/näme +%.json", limit=100)
    assert (found.data, found.etag) == (b"{}", etag)
    assert found.age is not None
    assert 0 <= found.age < 60


def test_conditions_hold(both):
    _, small = both
    etag = small.put("x", b"1", if_none_match=True)
    with pytest.raises(PreconditionFailed):
        small.put("x", b"2", if_none_match=True)
    second = small.put("x", b"2", if_match=etag)
    with pytest.raises(PreconditionFailed):
        small.put("x", b"3", if_match=etag)
    assert small.get("x", limit=10).etag == second


def test_what_is_not_there_or_too_long_is_said_to_be(both):
    _, small = both
    with pytest.raises(NotFound):
        small.get("missing", limit=10)
    small.put("long", b"x" * 11)
    assert small.get("long", limit=11).data == b"x" * 11
    with pytest.raises(Damaged):
        small.get("long", limit=10)


def test_wrong_keys_are_a_problem_in_words_that_hold_no_secret(both, settings):
    store, _ = both
    access = access_to(store)
    keys = dataclasses.replace(access.keys, secret_key="wrong-secret")
    wrong = small_objects(settings, "a run", dataclasses.replace(access, keys=keys))
    with pytest.raises(StoreProblem) as caught:
        wrong.put("x", b"1")
    assert "wrong-secret" not in str(caught.value) + repr(access) + repr(keys)
    assert access.keys.secret_key not in repr(access)
    wrong.close()


def test_access_survives_being_told_from_process_to_process(both):
    store, _ = both
    access = access_to(store)
    assert Access.of(json.loads(json.dumps(dataclasses.asdict(access)))) == access


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket/a/b/", ("bucket", "a/b/run")),
        ("s3://bucket", ("bucket", "run")),
        ("file:///mnt/efs", None),
        ("s3:///nothing", None),
    ],
)
def test_a_run_has_its_place_in_a_bucket(url, place):
    assert s3_place(StoreSettings(url), "run") == place


WRITTEN = "Sun, 06 Nov 2026 08:49:37 GMT"


@pytest.mark.parametrize(
    ("date", "written", "age"),
    [
        ("Sun, 06 Nov 2026 08:50:37 GMT", WRITTEN, 59.0),
        ("Fri, 01 Jan 2027 00:00:01 GMT", "Thu, 31 Dec 2026 23:59:59 GMT", 1.0),
        ("Sun, 06 Nov 2026 08:48:37 GMT", WRITTEN, 0.0),
        ("Sun, 06 Nov 2026 08:50:37 GMT", "", None),
        ("today", WRITTEN, None),
        ("Sun, 06 Nov 2026 08:50:37 CET", WRITTEN, None),
        ("Sun, 06 Nov 99999999999999999999 08:50:37 GMT", WRITTEN, None),
        ("Sun, 06 Nov 2026 08:50:99999999999999999999 GMT", WRITTEN, None),
    ],
)
def test_the_age_of_an_object_is_told_by_the_stores_own_clock(date, written, age):
    assert age_of({"date": date, "last-modified": written}) == age


# --- the lease, from the daemon -----------------------------------------------------------


@pytest.fixture
def daemon(settings, tmp_path):
    made = Daemon(tmp_path, settings)
    yield made
    made.client.close()


def told_of_access(daemon):
    """Waits for what a worker says after its answer."""
    deadline = time.monotonic() + 20
    while not daemon.client._renewal.possible:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alone(daemon):
    """Takes the lease and lets the worker go."""
    opened = daemon.open()
    assert type(opened).__name__ == "StoreOpened", opened
    process = daemon.client._process
    told_of_access(daemon)
    with daemon.client._lock:
        daemon.client._let_go(process)
    process.popen.wait(10)


def lease_of(settings):
    store = open_store(settings, "run")
    found = json.loads(store.get(KEY, limit=10_000).data)
    store.close()
    return found


def test_a_lease_is_renewed_without_a_process(daemon, settings):
    alone(daemon)
    before = lease_of(settings)
    children = {child.pid for child in psutil.Process().children()}
    daemon.client.renew_lease()
    renewed = daemon.wait("LeaseRenewed", "LeaseRefused", "StoreFailed")
    assert type(renewed).__name__ == "LeaseRenewed", renewed
    assert {child.pid for child in psutil.Process().children()} <= children
    assert daemon.client.worker_pid is None
    after = lease_of(settings)
    assert after["generation"] == before["generation"]
    assert after["renewed"] >= before["renewed"]
    # And the next worker goes on from there.
    daemon.client.renew_lease()
    daemon.wait("LeaseRenewed")
    assert daemon.open().generation == before["generation"]


def test_somebody_elses_lease_is_noticed_without_a_process(daemon, settings, tmp_path):
    alone(daemon)
    store = open_store(settings, "run")
    taken = lease_of(settings) | {"holder": "i-other", "generation": 9}
    store.put(KEY, json.dumps(taken).encode())
    store.close()
    daemon.client.renew_lease()
    refused = daemon.wait("LeaseRenewed", "LeaseRefused", "StoreFailed")
    assert (type(refused).__name__, refused.holder) == ("LeaseRefused", "i-other")
    daemon.client.renew_lease()
    assert daemon.wait("LeaseRenewed", "LeaseRefused", "StoreFailed").operation == "lease"


def test_a_renewal_under_way_does_not_take_back_what_is_given_back(daemon, settings, monkeypatch):
    alone(daemon)
    began, go_on = threading.Event(), threading.Event()
    renew = daemon.client._renewal.renew

    def slow(lease):
        began.set()
        assert go_on.wait(20)
        return renew(lease)

    monkeypatch.setattr(daemon.client._renewal, "renew", slow)
    daemon.client.renew_lease()
    assert began.wait(20)
    threading.Timer(0.2, go_on.set).start()
    daemon.client.release_lease(wait_seconds=20)
    found = lease_of(settings)
    assert found["expires"] == found["renewed"], "it was not given back, or taken again"


def test_a_defect_in_the_renewal_leaves_it_to_a_worker(daemon, monkeypatch, capfd):
    alone(daemon)

    def defective(_self, _lease):
        raise OverflowError("a number beyond all bounds")

    monkeypatch.setattr("spotd.shell.store.renewal.LeaseKeeper.renew", defective)
    daemon.client.renew_lease()
    renewed = daemon.wait("LeaseRenewed", "LeaseRefused", "StoreFailed")
    assert type(renewed).__name__ == "LeaseRenewed", renewed
    assert "beyond all bounds" in capfd.readouterr().err


def test_a_slow_renewal_does_not_undo_a_lease_taken_anew(daemon, monkeypatch):
    alone(daemon)
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    renew = daemon.client._renewal.renew

    def slow(lease):
        found = renew(lease)
        began.set()
        assert go_on.wait(20)
        return found

    monkeypatch.setattr(daemon.client._renewal, "renew", slow)
    here = daemon.client._renew_here
    monkeypatch.setattr(daemon.client, "_renew_here", lambda lease: (here(lease), ended.set()))
    daemon.client.renew_lease()
    assert began.wait(20)
    with daemon.client._lock:  # as if it had run out meanwhile
        daemon.client._lease = None
    taken = daemon.open()
    go_on.set()
    assert ended.wait(20)
    assert daemon.client._lease["generation"] == taken.generation == 2
    assert daemon.events.empty()  # nor says that we have lost it to ourselves


def test_an_answer_without_an_etag_is_no_condition_to_write_on(both, monkeypatch):
    _, small = both
    small.put("x", b"1")
    ask = small._ask

    def without(*arguments):
        answer, data = ask(*arguments)
        del answer.headers["etag"]
        return answer, data

    monkeypatch.setattr(small, "_ask", without)
    with pytest.raises(StoreProblem):
        small.get("x", limit=10)


def test_keys_that_are_no_longer_good_are_looked_up_again_by_a_worker(daemon, settings):
    alone(daemon)
    access = daemon.client._renewal._access
    keys = dataclasses.replace(access.keys, access_key="AKIAOUTOFDATE")
    daemon.client._renewal._access = dataclasses.replace(access, keys=keys)
    daemon.client.renew_lease()
    renewed = daemon.wait("LeaseRenewed", "LeaseRefused", "StoreFailed")
    assert type(renewed).__name__ == "LeaseRenewed", renewed
    told_of_access(daemon)
    assert daemon.client._renewal._access.keys == access.keys


def test_a_store_that_does_not_answer_is_told_of_once(seaweed, monkeypatch, tmp_path):
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    with FaultProxy(seaweed.port) as proxy:
        daemon = Daemon(tmp_path, StoreSettings(unique_url(), f"http://127.0.0.1:{proxy.port}"))
        alone(daemon)
        proxy.set(Fault("drop"))
        daemon.client.renew_lease()
        failed = daemon.wait("LeaseRenewed", "LeaseRefused", "StoreFailed")
        assert (type(failed).__name__, failed.operation) == ("StoreFailed", "lease")
        daemon.client.close()
