"""A checkpoint goes up while it is being written, and nothing of that is believed or visible."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
import zipfile

import pytest
from storekit import MIB, Bench, Daemon, file_settings, unique_url, write_file

from spotd.core import actions, events
from spotd.shell.store import ahead as ahead_module
from spotd.shell.store import transfer as transfer_module
from spotd.shell.store.ahead import Ahead, AheadOrder
from spotd.shell.store.aheads import Aheads
from spotd.shell.store.protocol import Flow, StoreProblem
from spotd.shell.store.record import open_records
from spotd.shell.store.settings import StoreSettings
from spotd.shell.store.source import SourceGone, UploadSource
from spotd.shell.store.transfer import Lanes, Transfer
from spotd.shell.store.upload import Upload, UploadOrder
from spotd.testing.faults import Fault, FaultProxy

PART = 5 * MIB
TEMPORARY, NAME = ".tmp-step-7.pt-1", "step-7.pt"
ID = f"00000001-{NAME}"


def until(condition, timeout=30):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.01)


class Going:
    """A `Bench` on which something goes up ahead."""

    def __init__(self, bench):
        self.bench = bench
        self.arrived = 0
        self.lanes = Lanes(3)
        self.ahead = None
        self.thread = None
        self.problem = None

    def begin(self, name=TEMPORARY, *, checkpoint=ID, limit=1 << 40, flow=None):
        transfer = Transfer(
            self.bench.store, self.lanes, flow or Flow(), 30.0, self.bench.troubles.append
        )
        order = AheadOrder(checkpoint, str(self.bench.directory), name, limit, 0)
        self.ahead = Ahead(self.bench.checkpoints, transfer, order, self._report)
        self.thread = threading.Thread(target=self._run, args=(self.ahead,), daemon=True)
        self.thread.start()

    def _run(self, ahead):
        try:
            ahead.run()
        except StoreProblem as problem:
            self.problem = problem

    def _report(self, sent):
        self.arrived = sent

    def wait_for(self, parts):
        until(lambda: self.arrived >= parts * PART)

    def ended(self):
        self.thread.join(20)
        assert not self.thread.is_alive()

    def upload(self, name=NAME, *, checkpoint=ID, kind="file"):
        source = UploadSource(str(self.bench.directory), name, kind)
        order = UploadOrder(checkpoint, 1, None, time.time(), source)
        transfer = Transfer(self.bench.store, self.bench.lanes, Flow(), 30.0)
        return Upload(
            self.bench.checkpoints, transfer, order, lambda *_: None, lambda: None, self.ahead
        ).run()

    def visible(self):
        return [entry.key for entry in self.bench.store.list("checkpoints/")]

    def multiparts(self):
        """What is open in the store and costs money."""
        store = self.bench.store
        if hasattr(store, "aws"):
            page = store.aws.client.list_multipart_uploads(
                Bucket=store.bucket, Prefix=store.key("")
            )
            return [each["UploadId"] for each in page.get("Uploads", ())]
        root = self.bench.directory.parent / "store"
        return [p for p in root.rglob(".spotd-*") if p.is_file() and p.name != ".spotd-lock"]

    def records(self):
        return open_records(self.bench.checkpoints.uploads, self.bench.store.location)

    def nothing_is_left(self):
        return not self.visible() and not self.multiparts() and not self.records()

    def stored(self, name=NAME, checkpoint=ID):
        """The bytes of an object."""
        key = f"checkpoints/{checkpoint}/{name}"
        store = self.bench.store
        if hasattr(store, "aws"):
            answer = store.aws.client.get_object(Bucket=store.bucket, Key=store.key(key))
            return answer["Body"].read()
        return (self.bench.directory.parent / "store" / "run" / key).read_bytes()


@pytest.fixture(params=["s3", "file"])
def going(request, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer_module, "PART_SIZE", PART)
    monkeypatch.setattr(transfer_module, "BACKOFF", 0.1)
    monkeypatch.setattr(ahead_module, "MARGIN", MIB)
    if request.param == "s3":
        seaweed = request.getfixturevalue("seaweed")
        for name, value in seaweed.environment.items():
            monkeypatch.setenv(name, value)
        settings = StoreSettings(unique_url(), seaweed.endpoint_url)
    else:
        settings = file_settings(tmp_path)
    bench = Bench(tmp_path, settings)
    made = Going(bench)
    yield made
    if made.ahead is not None:
        made.ahead.end()
    made.lanes.close()
    bench.close()


def test_what_grows_is_there_when_it_is_whole_and_only_its_end_is_sent_then(going):
    content = os.urandom(8 * PART + 1234)
    path = going.bench.directory / TEMPORARY
    with path.open("wb") as file:
        going.begin()
        file.write(content[: 4 * PART])
        file.flush()
        going.wait_for(3)
        assert going.visible() == []
        file.write(content[4 * PART :])
    going.wait_for(8 - 1)
    path.rename(going.bench.directory / NAME)
    stored = going.upload()
    assert going.stored() == content
    assert stored.ahead >= 7 * PART
    assert stored.sent - stored.ahead <= PART + 1234
    assert going.visible() == [f"checkpoints/{ID}/MANIFEST.json", f"checkpoints/{ID}/{NAME}"]
    assert going.multiparts() == []
    assert going.records() == []
    going.ended()


def test_a_header_that_is_written_last_is_sent_again_and_nothing_else(going):
    path = going.bench.directory / NAME
    with path.open("wb") as file:
        going.begin(NAME)
        file.write(os.urandom(6 * PART))
        file.flush()
        going.wait_for(5)
        file.seek(100)
        file.write(b"the header, written last")
    stored = going.upload()
    assert going.stored() == path.read_bytes()
    assert stored.sent - stored.ahead == 2 * PART  # the first, and the last


def test_python_s_zipfile_which_goes_back_to_each_header_arrives_as_it_is_in_the_end(going):
    path = going.bench.directory / NAME
    going_on = os.urandom(MIB)
    with zipfile.ZipFile(path, "w") as archive:
        going.begin(NAME)
        for number in range(3):
            with archive.open(f"data/{number}", "w", force_zip64=True) as entry:
                for _ in range(12):
                    entry.write(going_on)
        archive.fp.flush()
        going.wait_for(4)
    going.upload()
    assert going.stored() == path.read_bytes()


def test_a_writer_that_dies_leaves_nothing_visible_and_nothing_that_costs(going):
    path = going.bench.directory / TEMPORARY
    with path.open("wb") as file:
        going.begin()
        file.write(os.urandom(4 * PART))
        file.flush()
        going.wait_for(2)
    going.ahead.stop(keep=False)
    going.ended()
    assert going.nothing_is_left()


@pytest.mark.parametrize("how", ["deleted", "cut short", "emptied"])
def test_a_file_that_goes_or_shrinks_ends_it_by_itself(going, how):
    path = going.bench.directory / TEMPORARY
    with path.open("wb") as file:
        going.begin()
        file.write(os.urandom(4 * PART))
        file.flush()
        going.wait_for(3)
    if how == "deleted":
        path.unlink()
    else:
        os.truncate(path, PART if how == "cut short" else 0)
    going.ended()
    assert going.nothing_is_left()


def test_another_file_under_the_name_is_stored_as_it_is(going):
    path = going.bench.directory / NAME
    path.write_bytes(os.urandom(5 * PART))
    going.begin(NAME)
    going.wait_for(3)
    other = going.bench.directory / "other"
    content = write_file(other, 4 * PART + 5)
    keeper = going.bench.directory / "keeper"
    keeper.hardlink_to(path)  # or it would end by itself
    other.rename(path)
    going.upload()
    assert going.stored() == content
    assert going.multiparts() == []


def test_a_checkpoint_smaller_than_what_went_up_is_stored_as_it_is(going):
    path = going.bench.directory / NAME
    path.write_bytes(os.urandom(5 * PART))
    going.begin(NAME)
    going.wait_for(3)
    other = going.bench.directory / "other"
    content = write_file(other, 1000)
    (going.bench.directory / "keeper").hardlink_to(path)
    other.rename(path)
    going.upload()
    assert going.stored() == content
    assert going.multiparts() == []
    assert going.records() == []


def test_a_source_that_is_gone_takes_back_what_went_up(going):
    path = going.bench.directory / NAME
    path.write_bytes(os.urandom(5 * PART))
    going.begin(NAME)
    going.wait_for(3)
    (going.bench.directory / "keeper").hardlink_to(path)
    path.unlink()
    with pytest.raises(SourceGone):
        going.upload()
    assert going.nothing_is_left()


def test_what_never_became_a_checkpoint_is_swept_when_the_next_one_is_stored(going):
    path = going.bench.directory / TEMPORARY
    path.write_bytes(os.urandom(4 * PART))
    going.begin()
    going.wait_for(2)
    going.ahead.stop(keep=True)  # as a process that died left it
    going.ended()
    assert going.multiparts()
    going.ahead = None
    write_file(going.bench.directory / "other.pt", 1000)
    going.upload("other.pt", checkpoint="00000001-other.pt")
    assert going.multiparts() == []
    assert going.records() == []


def test_a_checkpoint_is_stored_also_where_what_never_became_one_cannot_be_swept(
    going, monkeypatch
):
    write_file(going.bench.directory / TEMPORARY, 3 * PART)
    going.begin()
    going.wait_for(2)
    going.ahead.stop(keep=True)
    going.ended()
    assert len(going.records()) == 1
    going.ahead = None
    write_file(going.bench.directory / "step-8.pt", 1000)

    def refused(_key, _upload):
        raise StoreProblem("access denied: AbortMultipartUpload")

    monkeypatch.setattr(going.bench.store, "abort", refused)
    stored = going.upload("step-8.pt", checkpoint="00000002-step-8.pt")
    assert stored.size == 1000
    assert len(going.records()) == 1  # another upload comes back to it
    monkeypatch.undo()
    going.bench.checkpoints.sweep(2)
    assert going.multiparts() == []


def test_an_upload_of_a_later_process_takes_over_and_believes_nothing(going):
    path = going.bench.directory / NAME
    path.write_bytes(os.urandom(6 * PART + 9))
    going.begin(NAME)
    going.wait_for(5)
    going.ahead.stop(keep=True)
    going.ended()
    going.ahead = None
    with path.open("r+b") as file:  # the same size, another content of one part
        file.seek(PART + 17)
        file.write(b"changed while nobody looked")
    stored = going.upload()
    assert going.stored() == path.read_bytes()
    assert stored.ahead == 0
    assert PART <= stored.sent <= 2 * PART + 9


def test_a_hole_is_not_sent_before_something_is_in_it(going):
    path = going.bench.directory / NAME
    with path.open("wb") as file:
        file.write(os.urandom(2 * PART + 2 * MIB))
        file.truncate(10_000 * PART)
        file.flush()
        going.begin(NAME)
        going.wait_for(1)
        # Whatever else it does, it has looked at the second part after it had sent the first.
        until(lambda: going.arrived == 2 * PART)
        assert going.ahead.flying(NAME) == frozenset()
    going.ahead.stop(keep=False)
    going.ended()
    assert going.nothing_is_left()


def test_what_grows_past_all_bounds_is_not_followed(going):
    path = going.bench.directory / NAME
    with path.open("wb") as file:
        going.begin(NAME, limit=2 * PART)
        file.write(os.urandom(6 * PART))
        file.flush()
        going.wait_for(2)
        going.ahead.stop(keep=False)
    going.ended()
    assert going.ahead.flow.wire <= 2 * PART
    assert going.nothing_is_left()


@pytest.mark.parametrize("what", ["fifo", "link", "link out", "missing", "socket"])
def test_what_is_no_file_is_never_opened(going, tmp_path, what):
    path = going.bench.directory / NAME
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(4 * PART))
    if what == "fifo":
        os.mkfifo(path)
    elif what == "link":
        (going.bench.directory / "real").write_bytes(os.urandom(4 * PART))
        path.symlink_to("real")
    elif what == "link out":
        path.symlink_to(secret)
    elif what == "socket":
        import socket

        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
            listening.bind(str(path))
    going.begin(NAME)
    going.ended()
    assert going.nothing_is_left()


def test_the_big_files_of_a_directory_go_up_side_by_side(going):
    folder = going.bench.directory / "step-7"
    folder.mkdir()
    contents = {}
    with contextlib.ExitStack() as stack:
        going.begin("step-7", checkpoint="00000001-step-7")
        for rank in range(2):
            contents[f"__{rank}_0.distcp"] = os.urandom(4 * PART + rank)
        files = {name: stack.enter_context((folder / name).open("wb")) for name in contents}
        for name, file in files.items():
            file.write(contents[name])
            file.flush()
        going.wait_for(6)
    contents[".metadata"] = write_file(folder / ".metadata", 100)
    stored = going.upload("step-7", checkpoint="00000001-step-7", kind="directory")
    for name, content in contents.items():
        assert going.stored(name, "00000001-step-7") == content
    assert stored.ahead >= 6 * PART
    assert going.multiparts() == []


def test_a_directory_that_gets_its_final_name_is_not_taken_for_one_that_has_gone(going):
    folder = going.bench.directory / "tmp-step-7"
    folder.mkdir()
    content = os.urandom(4 * PART)
    going.begin("tmp-step-7", checkpoint="00000001-step-7")
    with (folder / "model.bin").open("wb") as file:
        file.write(content)
        file.flush()
        going.wait_for(3)
    folder.rename(going.bench.directory / "step-7")
    going.thread.join(1.0)  # several looks long
    assert going.thread.is_alive()
    stored = going.upload("step-7", checkpoint="00000001-step-7", kind="directory")
    assert going.stored("model.bin", "00000001-step-7") == content
    assert stored.ahead >= 3 * PART
    assert going.multiparts() == []


def test_a_directory_that_has_gone_ends_it(going):
    folder = going.bench.directory / "tmp-step-7"
    folder.mkdir()
    going.begin("tmp-step-7", checkpoint="00000001-step-7")
    write_file(folder / "model.bin", 3 * PART)
    going.wait_for(2)
    shutil.rmtree(folder)
    going.ended()
    assert going.nothing_is_left()


def test_what_an_upload_has_been_asked_of_is_not_dropped_for_the_next_that_grows(going):
    bench = going.bench
    aheads = Aheads(bench.checkpoints, str(bench.directory), None, 3, lambda *_: None)
    content = os.urandom(4 * PART)
    (bench.directory / NAME).write_bytes(content)
    first = {"id": ID, "name": NAME, "limit": 1 << 40, "expected": 0, "urgent": True}
    aheads.begin(first, Flow())
    going.ahead = first["ahead"]
    running = threading.Thread(target=aheads.run, args=(first,))
    running.start()
    until(lambda: sum(len(b.parts) for r in going.records() for b in r.begun.values()) >= 3)
    # Both come in one turn; the thread that uploads has not had its own yet.
    going.ahead = aheads.claim(ID)
    second = {**first, "id": "00000002-step-8.pt", "name": "step-8.pt"}
    aheads.begin(second, Flow())
    running.join(20)
    assert not running.is_alive()
    stored = going.upload()
    assert going.stored() == content
    assert stored.sent - stored.ahead <= PART  # the last part only
    assert going.multiparts() == []


def test_an_upload_in_a_hurry_waits_for_nothing_that_a_limit_holds_up(going):
    content = os.urandom(4 * PART)
    (going.bench.directory / NAME).write_bytes(content)
    flow = Flow(bytes_per_second=MIB / 4)  # a part takes twenty seconds and more
    going.begin(NAME, flow=flow)
    until(lambda: flow.wire >= 2 * MIB)
    going.upload()
    assert going.stored() == content
    assert flow.wire < 3 * PART  # all three lanes were in the middle of one


def test_an_outage_in_the_middle_costs_nothing_but_time(tmp_path, seaweed, monkeypatch):
    monkeypatch.setattr(transfer_module, "PART_SIZE", PART)
    monkeypatch.setattr(transfer_module, "BACKOFF", 0.1)
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    with FaultProxy(seaweed.port) as proxy:
        bench = Bench(tmp_path, StoreSettings(unique_url(), proxy.endpoint_url))
        going = Going(bench)
        path = bench.directory / NAME
        content = os.urandom(8 * PART + 77)
        with path.open("wb") as file:
            going.begin(NAME)
            file.write(content[: 4 * PART])
            file.flush()
            going.wait_for(2)
            proxy.set(Fault("drop"))
            file.write(content[4 * PART :])
        until(lambda: bench.troubles)
        proxy.set(Fault())
        going.upload()
        assert going.stored() == content
        going.ahead.end()
        going.lanes.close()
        bench.close()


@pytest.fixture
def daemon(tmp_path, seaweed, monkeypatch):
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    made = Daemon(tmp_path, StoreSettings(unique_url(), seaweed.endpoint_url))
    made.open()
    yield made
    made.client.close()


def grow(daemon, size, *, name=TEMPORARY):
    """A file of that size of which all full parts but the last have gone up."""
    path = daemon.directory / name
    content = write_file(path, size)
    daemon.client.upload_ahead(actions.UploadAhead(ID, name, 1 << 40, 0, urgent=True))
    while daemon.wait("AheadProgressed").sent < size // 2:
        pass
    return path, content


def test_the_worker_sends_ahead_and_its_upload_takes_over(daemon):
    path, content = grow(daemon, 90 * MIB)
    path.rename(daemon.directory / NAME)
    uploaded = daemon.stored(1, NAME, urgent=True)
    assert isinstance(uploaded, events.Uploaded)
    assert uploaded.ahead >= 45 * MIB
    assert uploaded.sent <= 90 * MIB
    assert uploaded.rate is None, "what was read again would be taken for the link's pace"
    (daemon.directory / NAME).unlink()
    assert isinstance(daemon.fetch(ID), events.Fetched)
    assert (daemon.directory / NAME).read_bytes() == content


def test_a_worker_killed_while_it_sends_ahead_costs_nothing_but_what_was_on_its_way(daemon):
    path, content = grow(daemon, 160 * MIB)
    pid = daemon.client.worker_pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: daemon.client.worker_pid != pid)
    assert not [e for e in daemon.seen if isinstance(e, events.UploadFailed)]
    path.rename(daemon.directory / NAME)
    uploaded = daemon.stored(1, NAME, urgent=True)
    assert isinstance(uploaded, events.Uploaded)
    assert uploaded.sent < 120 * MIB
    (daemon.directory / NAME).unlink()
    assert isinstance(daemon.fetch(ID), events.Fetched)
    assert (daemon.directory / NAME).read_bytes() == content


def test_stopping_when_nothing_goes_up_ahead_asks_nothing_of_anybody(tmp_path):
    one = Daemon(tmp_path, file_settings(tmp_path))
    one.client.stop_ahead(actions.StopAhead())
    assert one.client.worker_pid is None
    one.client.close()
