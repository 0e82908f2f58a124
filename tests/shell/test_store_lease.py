"""The lease: of any number of machines one trains, and everybody else is told which."""

from __future__ import annotations

import dataclasses
import json
import threading

import pytest
from storekit import file_settings, unique_url

from spotd.core.manifest import parse_time, render_time
from spotd.shell.store import aws, worker
from spotd.shell.store.lease import KEY, TTL, LeaseHeld, LeaseKeeper
from spotd.shell.store.protocol import StoreProblem
from spotd.shell.store.settings import StoreSettings, open_store


@pytest.fixture(params=["s3", "file"])
def store(request, tmp_path, monkeypatch):
    if request.param == "file":
        settings = file_settings(tmp_path)
    else:
        server = request.getfixturevalue("seaweed")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        settings = StoreSettings(unique_url(), server.endpoint_url)
    opened = open_store(settings, "run")
    yield opened
    opened.close()


class Clock:
    """Everybody's clock. S3 has its own, which `Aged` moves along."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


class Aged:
    """A store in which time passes with `clock`."""

    def __init__(self, store, clock):
        self._store = store
        self._clock = clock
        self._written = {}

    @property
    def location(self):
        return self._store.location

    def put(self, key, data, **conditions):
        etag = self._store.put(key, data, **conditions)
        self._written[key] = self._clock.now
        return etag

    def get(self, key, *, limit):
        blob = self._store.get(key, limit=limit)
        if blob.age is None:
            return blob
        return dataclasses.replace(blob, age=blob.age + self._clock.now - self._written[key])


@pytest.fixture
def clock():
    return Clock()


def document(store):
    return json.loads(store.get(KEY, limit=10_000).data)


def test_a_new_lease_says_who_and_until_when(store, clock):
    lease = LeaseKeeper(store, "run", "i-1", clock=clock).acquire()
    assert lease.generation == 1
    assert TTL - 5 < lease.seconds_left() <= TTL
    assert document(store) == {
        "format": 1,
        "run": "run",
        "node": 0,
        "holder": "i-1",
        "generation": 1,
        "acquired": render_time(clock.now),
        "renewed": render_time(clock.now),
        "expires": render_time(clock.now + TTL),
    }


def test_of_sixteen_machines_at_once_one_gets_it_and_the_others_learn_who(store):
    keepers = [LeaseKeeper(store, "run", f"i-{number}") for number in range(16)]
    barrier, leases, refused, busy = threading.Barrier(16), [], [], []
    if hasattr(store, "aws"):
        store.warm()

    def race(keeper):
        barrier.wait()
        while True:
            try:
                leases.append(keeper.acquire())
            except LeaseHeld as held:
                refused.append(held.holder)
            except StoreProblem as problem:
                busy.append(problem)
                assert problem.retriable  # noqa: PT017
                continue
            return

    threads = [threading.Thread(target=race, args=(keeper,)) for keeper in keepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(leases) == 1
    assert refused == [document(store)["holder"]] * 15


def test_an_expired_lease_may_be_taken_by_one(store, clock):
    store = Aged(store, clock)
    first = LeaseKeeper(store, "run", "i-1", clock=clock)
    first.acquire()
    clock.now += TTL - 1
    second = LeaseKeeper(store, "run", "i-2", clock=clock)
    with pytest.raises(LeaseHeld) as caught:
        second.acquire()
    assert caught.value.holder == "i-1"
    assert caught.value.expires_in == pytest.approx(1, abs=1.5)
    clock.now += 4
    assert second.acquire().generation == 2
    assert document(store)["holder"] == "i-2"


def test_the_same_holder_takes_over_at_once_in_a_new_generation(store):
    keeper = LeaseKeeper(store, "run", "i-1")
    assert [keeper.acquire().generation for _ in range(3)] == [1, 2, 3]


def test_what_a_daemon_holds_it_takes_again_in_the_same_generation(store):
    keeper = LeaseKeeper(store, "run", "i-1")
    lease = keeper.acquire()
    again = keeper.acquire(lease)
    assert (again.generation, again.acquired) == (lease.generation, lease.acquired)
    assert keeper.renew(lease).generation == lease.generation


def test_what_it_holds_no_longer_it_takes_in_a_new_generation(store):
    first = LeaseKeeper(store, "run", "i-1")
    lease = first.acquire()
    other = LeaseKeeper(store, "run", "i-1")  # a second daemon by the same name
    other.acquire()
    assert first.acquire(lease).generation == 3
    ran_out = dataclasses.replace(lease, generation=3, valid_until=0.0)
    assert first.acquire(ran_out).generation == 4


@pytest.mark.parametrize("off", [-7200.0, 7200.0])
def test_a_machine_whose_clock_is_off_takes_nobodys_lease_and_loses_none(seaweed, monkeypatch, off):
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(StoreSettings(unique_url(), seaweed.endpoint_url), "run")
    off_clock, clock = Clock(), Clock()
    off_clock.now += off
    LeaseKeeper(store, "run", "i-1", clock=clock).acquire()
    with pytest.raises(LeaseHeld) as caught:
        LeaseKeeper(store, "run", "i-2", clock=off_clock).acquire()
    assert TTL - 60 < caught.value.expires_in <= TTL
    store.close()


def test_a_renewal_moves_the_end_and_keeps_the_generation(store, clock):
    keeper = LeaseKeeper(store, "run", "i-1", clock=clock)
    lease = keeper.acquire()
    clock.now += 300
    renewed = keeper.renew(lease)
    assert renewed.generation == lease.generation
    assert parse_time(document(store)["expires"]) == clock.now + TTL
    assert parse_time(document(store)["acquired"]) == clock.now - 300


def test_a_renewal_whose_answer_got_lost_is_no_reason_to_stop(store):
    keeper = LeaseKeeper(store, "run", "i-1")
    lease = keeper.acquire()
    keeper.renew(lease)
    assert keeper.renew(lease).generation == lease.generation


def test_a_renewal_after_somebody_took_over_names_the_new_holder(store, clock):
    store = Aged(store, clock)
    first = LeaseKeeper(store, "run", "i-1", clock=clock)
    lease = first.acquire()
    clock.now += TTL + 3
    LeaseKeeper(store, "run", "i-2", clock=clock).acquire()
    with pytest.raises(LeaseHeld) as caught:
        first.renew(lease)
    assert caught.value.holder == "i-2"


def test_an_older_process_of_the_same_machine_cannot_renew(store):
    keeper = LeaseKeeper(store, "run", "i-1")
    old = keeper.acquire()
    keeper.acquire()
    with pytest.raises(LeaseHeld):
        keeper.renew(old)


def test_a_lease_that_ran_out_and_nobody_took_is_renewed(store, clock):
    keeper = LeaseKeeper(store, "run", "i-1", clock=clock)
    lease = keeper.acquire()
    clock.now += TTL * 3
    assert keeper.renew(lease).seconds_left() > 0


def test_a_lease_that_somebody_deleted_is_written_again(store):
    keeper = LeaseKeeper(store, "run", "i-1")
    lease = keeper.acquire()
    store.delete([KEY])
    assert keeper.renew(lease).generation == lease.generation
    assert document(store)["holder"] == "i-1"


def test_a_lease_given_back_is_free_and_remembers_its_generation(store):
    keeper = LeaseKeeper(store, "run", "i-1")
    keeper.release(keeper.acquire())
    assert LeaseKeeper(store, "run", "i-2").acquire().generation == 2


def test_a_renewal_the_releasing_process_has_not_heard_of_keeps_no_lease(store):
    keeper = LeaseKeeper(store, "run", "i-1")
    lease = keeper.acquire()
    keeper.renew(lease)  # by the daemon, say, while a worker was starting
    keeper.release(lease)
    assert LeaseKeeper(store, "run", "i-2").acquire().generation == 2


def test_what_another_has_taken_over_is_not_given_back_for_it(store, clock):
    store = Aged(store, clock)
    keeper = LeaseKeeper(store, "run", "i-1", clock=clock)
    lease = keeper.acquire()
    clock.now += TTL + 5
    LeaseKeeper(store, "run", "i-2", clock=clock).acquire()
    before = document(store)
    keeper.release(lease)
    assert document(store) == before


def test_a_manifest_on_its_way_is_given_up_before_the_lease_it_was_begun_under_is_over():
    assert worker._LEASE_SLACK > aws.CONNECT_TIMEOUT + aws.PROGRESS_TIMEOUT
    assert worker._LEASE_SLACK < TTL / 3  # a renewal that is late by a little is no reason


def test_the_last_generation_is_followed_by_none_that_nobody_could_read(store):
    keeper = LeaseKeeper(store, "run", "i-1")
    keeper.acquire()
    last = document(store) | {"generation": 2**53 - 1}
    store.put(KEY, json.dumps(last).encode())
    with pytest.raises(StoreProblem) as caught:
        keeper.acquire()
    assert "last generation" in caught.value.message
    assert "delete it" in caught.value.hint
    assert document(store) == last


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"run": "other"},
        {"generation": -1},
        {"generation": True},
        {"generation": "1"},
        {"generation": 2**60},
        {"holder": ""},
        {"holder": 7},
        {"holder": "i-\n1"},
        {"holder": "i" * 1000},
        {"expires": "soon"},
        {"expires": None},
        {"acquired": 5},
        {"renewed": "just now"},
    ],
)
def test_a_lease_that_is_none_is_refused_in_words_and_left_alone(tmp_path, change):
    store = open_store(file_settings(tmp_path), "run")
    LeaseKeeper(store, "run", "i-1").acquire()
    data = json.dumps(document(store) | change).encode()
    store.put(KEY, data)
    with pytest.raises(StoreProblem) as caught:
        LeaseKeeper(store, "run", "i-2").acquire()
    assert "lease" in caught.value.message
    assert store.get(KEY, limit=10_000).data == data


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"x" * 20_000])
def test_a_lease_that_is_no_json_is_refused_in_words(tmp_path, data):
    store = open_store(file_settings(tmp_path), "run")
    store.put(KEY, data)
    with pytest.raises(StoreProblem):
        LeaseKeeper(store, "run", "i-2").acquire()
