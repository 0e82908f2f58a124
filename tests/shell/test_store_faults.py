"""Bytes under every fault: never a wrong object, never a hang, continued and not begun again."""

from __future__ import annotations

import os
import resource
import threading
import time

import pytest
from storekit import MIB, Bench, Daemon, file_settings, unique_url, write_file

from spotd.core import manifest
from spotd.core.manifest import ManifestError
from spotd.shell.store import aws, thin, transfer
from spotd.shell.store.protocol import Cancelled, Damaged, Flow, NotFound, Piece, StoreProblem
from spotd.shell.store.restore import Restore
from spotd.shell.store.settings import StoreSettings
from spotd.shell.store.source import SourceGone, UploadSource
from spotd.shell.store.upload import Upload, UploadOrder
from spotd.testing.faults import Fault, FaultProxy

SIZE = 24 * MIB + 7


@pytest.fixture
def proxy(seaweed):
    with FaultProxy(seaweed.port) as opened:
        yield opened


@pytest.fixture
def bench(request, tmp_path, seaweed, proxy, monkeypatch):
    """An upload path through the proxy, with small parts and short time-outs."""
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(transfer, "PART_SIZE", 5 * MIB)
    monkeypatch.setattr(thin, "PROGRESS_TIMEOUT", 1.0)
    monkeypatch.setattr(aws, "PROGRESS_TIMEOUT", 1.5)
    monkeypatch.setattr(aws, "COMPLETE_TIMEOUT", 3.0)
    monkeypatch.setattr(transfer, "BACKOFF", 0.1)
    made = Bench(tmp_path, StoreSettings(unique_url(), proxy.endpoint_url))
    yield made
    made.close()


def restored(bench, checkpoint, *, flow=None, patience=20.0):
    """Fetches into a fresh directory; returns it."""
    target = bench.directory.parent / f"restored-{time.monotonic_ns()}"
    target.mkdir()
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        manifest = bench.checkpoints.manifest(checkpoint)
        Restore(
            bench.store, bench.lanes, flow or Flow(), bench.state, None,
            lambda *_: None, patience,
        ).into(root, manifest)  # fmt: skip
    finally:
        os.close(root)
    return target


def objects(bench):
    return [entry.key for entry in bench.store.list("checkpoints/")]


def open_multiparts(bench):
    client, store = bench.store.aws.client, bench.store
    page = client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.key(""))
    return [each["UploadId"] for each in page.get("Uploads", ())]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("answer", status=503, code="SlowDown", times=8),
        Fault("answer", status=500, code="InternalError", times=4),
        Fault("answer", status=400, code="ExpiredToken", times=2),
        Fault("answer", status=400, code="RequestTimeout", times=2),
        Fault("cut", after=3 * MIB, times=3),
        Fault("truncate", after=40, times=2),
        Fault("flip", after=2 * MIB, times=1, direction="up"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.code}" if fault.kind == "answer" else fault.kind,
)
def test_an_upload_survives_a_fault_that_strikes_and_ends(bench, proxy, fault):
    content = write_file(bench.directory / "a.pt", SIZE)
    bench.store.warm()
    proxy.set(fault)
    bench.upload(1, "a.pt")
    assert proxy.struck == fault.times
    proxy.set(Fault())
    assert (restored(bench, "00000001-a.pt") / "a.pt").read_bytes() == content
    # One whose id got lost with the answer may stay; it holds no parts and costs nothing.
    for upload in open_multiparts(bench):
        assert bench.store.surviving("checkpoints/00000001-a.pt/a.pt", upload, {}) == {}


@pytest.mark.parametrize("kind", ["drop", "stall", "swallow"])
def test_an_upload_survives_an_outage_and_says_that_it_waits(bench, proxy, kind):
    content = write_file(bench.directory / "a.pt", SIZE)
    bench.store.warm()
    proxy.set(Fault(kind))
    timer = threading.Timer(2.5, proxy.set, [Fault()])
    timer.start()
    bench.upload(1, "a.pt")
    timer.join()
    assert bench.troubles or kind == "stall"
    assert (restored(bench, "00000001-a.pt") / "a.pt").read_bytes() == content


def test_a_black_hole_ends_at_the_deadline_and_keeps_what_was_sent(bench, proxy):
    write_file(bench.directory / "a.pt", SIZE)
    flow = Flow()
    # Everything up to the third part's beginning gets through, then nothing more does.
    arrived = threading.Event()
    bench.progress = Watched(arrived, 5 * MIB)
    caught = []

    def upload():
        try:
            bench.upload(1, "a.pt", flow=flow)
        except Cancelled as error:
            caught.append(error)

    proxy.set(Fault("throttle", rate=20e6))
    thread = threading.Thread(target=upload)
    thread.start()
    assert arrived.wait(30)
    proxy.set(Fault("swallow"))
    started = time.monotonic()
    flow.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert caught
    assert time.monotonic() - started < 3
    proxy.set(Fault())
    assert bench.upload(1, "a.pt").sent <= SIZE - 5 * MIB


class Watched(list):
    """A list of progress that says when enough has arrived."""

    def __init__(self, event, enough):
        super().__init__()
        self._event, self._enough = event, enough

    def append(self, item):
        super().append(item)
        if item[0] >= self._enough:
            self._event.set()


def test_in_peace_an_upload_gives_up_when_the_store_is_silent_for_long(bench, proxy):
    write_file(bench.directory / "a.pt", SIZE)
    bench.store.warm()
    proxy.set(Fault("drop"))
    with pytest.raises(StoreProblem) as caught:
        bench.upload(1, "a.pt", patience=0.3)
    assert "no answer" in caught.value.message


@pytest.mark.parametrize(
    "fault",
    [
        Fault("answer", status=503, code="SlowDown", times=5),
        Fault("truncate", after=100_000, times=3),
        Fault("flip", after=200_000, times=1, direction="down"),
        Fault("cut", after=100, times=2),
    ],
    ids=lambda fault: fault.kind,
)
def test_a_fetch_survives_a_fault_that_strikes_and_ends(bench, proxy, fault):
    content = write_file(bench.directory / "a.pt", SIZE)
    bench.upload(1, "a.pt")
    manifest = bench.checkpoints.manifest("00000001-a.pt")
    bench.checkpoints = Answers(manifest)  # the fault is for the bytes
    proxy.set(fault)
    target = restored(bench, "00000001-a.pt")
    assert proxy.struck >= 1
    assert (target / "a.pt").read_bytes() == content


class Answers:
    """Has the manifest already."""

    def __init__(self, manifest):
        self._manifest = manifest

    def manifest(self, _checkpoint):
        return self._manifest


def test_a_fetch_that_was_cut_is_continued(bench, proxy, monkeypatch):
    from spotd.shell.store import restore

    monkeypatch.setattr(restore, "PIECE", 2 * MIB)
    content = write_file(bench.directory / "a.pt", SIZE)
    bench.upload(1, "a.pt")
    target = bench.directory.parent / "target"
    target.mkdir()
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    manifest = bench.checkpoints.manifest("00000001-a.pt")
    flow, got = Flow(), []

    def report(received, _size):
        got.append(received)
        if received > SIZE // 2:
            flow.stop()

    with pytest.raises(Cancelled):
        Restore(bench.store, bench.lanes, flow, bench.state, None, report, 20).into(root, manifest)
    assert not (target / "a.pt").exists()
    before = proxy.passed_down
    second = Flow()
    Restore(bench.store, bench.lanes, second, bench.state, None, report, 20).into(root, manifest)
    assert proxy.passed_down - before < 0.6 * SIZE
    assert (target / "a.pt").read_bytes() == content
    assert [path.name for path in target.iterdir()] == ["a.pt"]
    os.close(root)


@pytest.mark.parametrize("size", [1000, SIZE])
def test_a_bit_flipped_in_the_bucket_is_found_and_named(bench, size):
    content = bytearray(write_file(bench.directory / "a.pt", size))
    bench.upload(1, "a.pt")
    content[size // 2] ^= 4
    bench.store.put("checkpoints/00000001-a.pt/a.pt", bytes(content))
    with pytest.raises(Damaged) as caught:
        restored(bench, "00000001-a.pt")
    assert "a.pt" in caught.value.message
    assert "checksum" in caught.value.message


def test_a_missing_object_is_found_and_named(bench):
    write_file(bench.directory / "a.pt", 1000)
    bench.upload(1, "a.pt")
    bench.store.delete(["checkpoints/00000001-a.pt/a.pt"])
    with pytest.raises(NotFound) as caught:
        restored(bench, "00000001-a.pt")
    assert "a.pt" in caught.value.message


def test_an_object_cut_short_in_the_bucket_is_damage(bench):
    content = write_file(bench.directory / "a.pt", 2000)
    bench.upload(1, "a.pt")
    bench.store.put("checkpoints/00000001-a.pt/a.pt", content[:1000])
    with pytest.raises(Damaged):
        restored(bench, "00000001-a.pt")


def test_a_source_written_in_mid_upload_never_becomes_visible(bench, proxy):
    path = bench.directory / "a.pt"
    write_file(path, SIZE)
    arrived = threading.Event()
    bench.progress = Watched(arrived, 5 * MIB)
    caught = []

    def upload():
        try:
            bench.upload(1, "a.pt")
        except SourceGone as error:
            caught.append(error)

    proxy.set(Fault("throttle", rate=20e6))
    thread = threading.Thread(target=upload)
    thread.start()
    assert arrived.wait(30)
    with path.open("r+b") as file:
        file.seek(SIZE - 100)
        file.write(b"written over")
    proxy.set(Fault())
    thread.join(30)
    assert caught
    assert objects(bench) == []
    assert open_multiparts(bench) == []
    assert list((bench.state / "uploads").iterdir()) == []


def test_a_source_that_is_not_what_was_meant_is_not_sent(bench):
    write_file(bench.directory / "a.pt", 1000)
    with pytest.raises(SourceGone):
        bench.upload(1, "a.pt", fingerprint="0" * 32)
    assert objects(bench) == []


@pytest.mark.parametrize("trick", ["link", "link-inside", "fifo", "manifest"])
def test_what_must_not_be_followed_or_stored_is_refused(bench, tmp_path, trick):
    (tmp_path / "secret").write_bytes(b"secret")
    folder = bench.directory / "a"
    if trick == "link":
        folder.symlink_to(tmp_path / "secret")
    else:
        folder.mkdir()
        write_file(folder / "weights", 100)
        if trick == "link-inside":
            (folder / "x").symlink_to(tmp_path / "secret")
        if trick == "fifo":
            os.mkfifo(folder / "x")
        if trick == "manifest":
            (folder / "MANIFEST.json").write_text("{}")
    kind = "file" if trick == "link" else "directory"
    with pytest.raises(SourceGone):
        bench.upload(1, "a", kind=kind)
    assert objects(bench) == []


def cut_upload(bench, proxy, enough=12 * MIB):
    """Uploads a.pt and cuts it when that much has arrived."""
    flow, arrived = Flow(), threading.Event()
    bench.progress = Watched(arrived, enough)
    proxy.set(Fault("throttle", rate=20e6))

    def run():
        with pytest.raises(Cancelled):
            bench.upload(1, "a.pt", flow=flow)

    thread = threading.Thread(target=run)
    thread.start()
    assert arrived.wait(30)
    flow.stop()
    thread.join(20)
    assert not thread.is_alive()
    proxy.set(Fault())
    bench.progress = []


def test_an_upload_is_continued_where_it_was_cut(bench, proxy):
    content = write_file(bench.directory / "a.pt", SIZE)
    cut_upload(bench, proxy)
    stored = bench.upload(1, "a.pt")
    assert stored.size == SIZE
    assert stored.sent <= SIZE - 10 * MIB
    assert (restored(bench, "00000001-a.pt") / "a.pt").read_bytes() == content


def test_parts_the_store_has_are_found_though_the_record_lost_them(bench, proxy):
    content = write_file(bench.directory / "a.pt", SIZE)
    cut_upload(bench, proxy)
    [record] = (bench.state / "uploads").glob("*.upload")
    lines = [line for line in record.read_text().splitlines() if '"part":' not in line]
    record.write_text("\n".join(lines) + '\n{"part": "a.pt", "numb')
    assert bench.upload(1, "a.pt").sent <= SIZE - 10 * MIB
    assert (restored(bench, "00000001-a.pt") / "a.pt").read_bytes() == content


def test_an_upload_somebody_aborted_begins_again(bench, proxy):
    content = write_file(bench.directory / "a.pt", SIZE)
    cut_upload(bench, proxy)
    [upload] = open_multiparts(bench)
    bench.store.abort("checkpoints/00000001-a.pt/a.pt", upload)
    assert bench.upload(1, "a.pt").sent == SIZE
    assert (restored(bench, "00000001-a.pt") / "a.pt").read_bytes() == content


def test_a_source_replaced_between_two_attempts_begins_again(bench, proxy):
    write_file(bench.directory / "a.pt", SIZE)
    cut_upload(bench, proxy)
    content = write_file(bench.directory / "a.pt", SIZE)
    assert bench.upload(1, "a.pt").sent == SIZE
    assert (restored(bench, "00000001-a.pt") / "a.pt").read_bytes() == content
    assert open_multiparts(bench) == []


@pytest.mark.parametrize("several_in_a_lane", [False, True])
def test_a_directory_of_many_files_is_continued_too(bench, proxy, several_in_a_lane):
    if several_in_a_lane:
        bench.lanes.close()
        bench.lanes = transfer.Lanes(2, tiny=2)
    folder = bench.directory / "step-1"
    folder.mkdir()
    for number in range(60):
        write_file(folder / f"{number:03}", 200_000)
    flow, arrived = Flow(), threading.Event()
    bench.progress = Watched(arrived, 20 * 200_000)
    proxy.set(Fault("throttle", rate=5e6))

    def run():
        with pytest.raises(Cancelled):
            bench.upload(1, "step-1", kind="directory", flow=flow)

    thread = threading.Thread(target=run)
    thread.start()
    assert arrived.wait(30)
    flow.stop()
    thread.join(20)
    proxy.set(Fault())
    stored = bench.upload(1, "step-1", kind="directory")
    assert stored.sent <= 41 * 200_000
    found = restored(bench, "00000001-step-1") / "step-1"
    assert all((found / each.name).read_bytes() == each.read_bytes() for each in folder.iterdir())


def test_files_that_did_not_change_are_copied_inside_the_store(bench):
    folder = bench.directory / "step-1"
    folder.mkdir()
    frozen = write_file(folder / "frozen.bin", MIB)
    large = write_file(folder / "large.bin", SIZE)
    write_file(folder / "moving.bin", MIB)
    bench.upload(1, "step-1", kind="directory")
    following = bench.directory / "step-2"
    following.mkdir()
    os.link(folder / "large.bin", following / "large.bin")
    (following / "frozen.bin").write_bytes(frozen)  # another inode, the same bytes
    moved = write_file(following / "moving.bin", MIB)
    stored = bench.upload(2, "step-2", kind="directory")
    assert stored.sent == MIB
    assert stored.copied == MIB + SIZE
    target = restored(bench, "00000002-step-2") / "step-2"
    assert (target / "large.bin").read_bytes() == large
    assert (target / "moving.bin").read_bytes() == moved
    assert (target / "frozen.bin").read_bytes() == frozen


def test_what_retention_deleted_is_sent_and_not_copied(bench):
    folder = bench.directory / "step-1"
    folder.mkdir()
    write_file(folder / "frozen.bin", MIB)
    bench.upload(1, "step-1", kind="directory")
    bench.checkpoints.delete(["00000001-step-1"])
    stored = bench.upload(2, "step-1", kind="directory")
    assert (stored.sent, stored.copied) == (MIB, 0)


def test_abandoned_multiparts_of_this_machine_are_cleaned_up_and_others_never(bench, proxy):
    write_file(bench.directory / "a.pt", SIZE)
    cut_upload(bench, proxy)
    others = bench.store.begin("checkpoints/00000000-other/x")
    write_file(bench.directory / "b.pt", 1000)
    bench.upload(0, "b.pt")
    assert len(open_multiparts(bench)) == 2, "what is newer than what was stored goes on"
    bench.upload(2, "b.pt")
    assert open_multiparts(bench) == [others]
    assert not list((bench.state / "uploads").glob("*.upload"))


def test_deleting_a_checkpoint_drops_what_was_sent_of_it(bench, proxy):
    write_file(bench.directory / "a.pt", SIZE)
    cut_upload(bench, proxy)
    bench.checkpoints.delete(["00000001-a.pt"])
    assert open_multiparts(bench) == []
    assert objects(bench) == []


def test_what_never_was_whole_goes_with_the_next_deletion_and_nothing_else(tmp_path):
    daemon = Daemon(tmp_path, file_settings(tmp_path))
    try:
        daemon.open()
        for n in (2, 3, 5):
            write_file(daemon.directory / f"{n}.pt", 1000)
            daemon.stored(n, f"{n}.pt")
        run = tmp_path / "store" / "run" / "checkpoints"
        for n in (1, 4, 6):  # of lost disks; what is newer than all may be on its way
            (run / f"{n:08}-{n}.pt").mkdir()
            (run / f"{n:08}-{n}.pt" / f"{n}.pt").write_bytes(b"never whole")
        (run / "00000002-2.pt" / "MANIFEST.json").write_text("not believed, not deleted")
        daemon.client.delete(("00000003-3.pt",))
        daemon.wait("DeletedFromStore")
    finally:
        daemon.client.close()
    bench = Bench(tmp_path, file_settings(tmp_path))
    bench.checkpoints.clear(["00000005-5.pt"])  # nothing newer is whole: nothing may go
    bench.close()
    left = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert left == {
        f"{n:08}-{n}.pt/{x}" for n, x in (
            (2, "2.pt"), (2, "MANIFEST.json"), (5, "5.pt"), (5, "MANIFEST.json"), (6, "6.pt"),
        )
    }  # fmt: skip


def test_the_manifest_is_not_written_when_the_lease_is_lost(tmp_path):
    bench = Bench(tmp_path, file_settings(tmp_path))
    write_file(bench.directory / "a.pt", 1000)
    listing = bench.checkpoints.listing(bench.lanes)
    assert listing.stored == ()
    from spotd.shell.store.transfer import Transfer
    from spotd.shell.store.upload import Upload, UploadOrder, UploadSource

    def lost():
        raise StoreProblem("the lease is lost")

    order = UploadOrder(
        "00000001-a.pt", 1, 1, 1.0, UploadSource(str(bench.directory), "a.pt", "file")
    )
    moving = Transfer(bench.store, bench.lanes, Flow(), 5.0)
    with pytest.raises(StoreProblem):
        Upload(bench.checkpoints, moving, order, lambda *_: None, lost).run()
    listing = bench.checkpoints.listing(bench.lanes)
    assert (listing.stored, listing.top_sequence) == ((), 1)
    bench.close()


def test_a_manifest_that_was_held_up_is_not_written_under_a_lease_that_ran_out(
    tmp_path, monkeypatch
):
    bench = Bench(tmp_path, file_settings(tmp_path))
    write_file(bench.directory / "a.pt", 1000)
    put, asked = bench.store.put, []

    def down(key, data, **conditions):
        if not asked[1:]:
            raise StoreProblem("S3 is busy", retriable=True)
        return put(key, data, **conditions)

    def ours():
        asked.append(True)
        if len(asked) > 1:  # while the store did not answer another machine took over
            raise StoreProblem("the lease of this run is not ours any more")

    monkeypatch.setattr(bench.store, "put", down)
    source = UploadSource(str(bench.directory), "a.pt", "file")
    order = UploadOrder("00000001-a.pt", 1, None, time.time(), source)
    under = transfer.Transfer(bench.store, bench.lanes, Flow())
    with pytest.raises(StoreProblem) as caught:
        Upload(bench.checkpoints, under, order, lambda *_: None, ours).run()
    assert "not ours" in caught.value.message
    assert bench.checkpoints.listing(bench.lanes).stored == ()
    bench.close()


def test_a_manifest_that_lies_is_listed_as_damaged_and_never_restored(tmp_path):
    bench = Bench(tmp_path, file_settings(tmp_path))
    write_file(bench.directory / "a.pt", 1000)
    bench.upload(1, "a.pt")
    key = "checkpoints/00000001-a.pt/MANIFEST.json"
    data = bench.store.get(key, limit=MIB).data
    bench.store.put(key, data.replace(b'"path": "a.pt"', b'"path": "../../evil"'))
    listing = bench.checkpoints.listing(bench.lanes)
    assert listing.stored == ()
    assert [each[0] for each in listing.damaged] == ["00000001-a.pt"]
    with pytest.raises(ManifestError):
        restored(bench, "00000001-a.pt")
    assert not (tmp_path / "evil").exists()
    bench.close()


def test_what_arrived_of_a_damaged_checkpoint_does_not_stay_on_the_disk(tmp_path):
    bench = Bench(tmp_path, file_settings(tmp_path))
    content = write_file(bench.directory / "a.pt", 2 * MIB)
    bench.upload(1, "a.pt")
    bench.store.put("checkpoints/00000001-a.pt/a.pt", content[:-1] + bytes([content[-1] ^ 1]))
    (bench.directory / "a.pt").unlink()
    with pytest.raises(Damaged):
        restored(bench, "00000001-a.pt")
    (target,) = tmp_path.rglob("restored-*")
    assert list(target.rglob("*")) == []
    bench.close()


def test_receiving_into_a_piece_writes_nowhere_else(bench):
    content = write_file(bench.directory / "a.pt", 3 * MIB)
    bench.upload(1, "a.pt")
    target = bench.directory / "target"
    target.write_bytes(b"." * (3 * MIB))
    descriptor = os.open(target, os.O_RDWR)
    piece = Piece(descriptor, MIB, MIB)
    bench.store.receive("checkpoints/00000001-a.pt/a.pt", piece, Flow(), bench.store.algorithm)
    os.close(descriptor)
    expected = b"." * MIB + content[MIB : 2 * MIB] + b"." * MIB
    assert target.read_bytes() == expected


def test_a_manifest_that_is_too_large_to_be_one_keeps_nobody_from_the_others(tmp_path, monkeypatch):
    bench = Bench(tmp_path, file_settings(tmp_path))
    write_file(bench.directory / "a.pt", 1000)
    write_file(bench.directory / "b.pt", 1000)
    bench.upload(1, "a.pt")
    bench.upload(2, "b.pt")
    size = len(bench.store.get("checkpoints/00000001-a.pt/MANIFEST.json", limit=MIB).data)
    bench.store.put("checkpoints/00000002-b.pt/MANIFEST.json", b" " * (2 * size))
    monkeypatch.setattr(manifest, "MAX_BYTES", size)
    listing = bench.checkpoints.listing(bench.lanes)
    assert [each.id for each in listing.stored] == ["00000001-a.pt"]
    assert [each[0] for each in listing.damaged] == ["00000002-b.pt"]
    bench.close()


def test_with_no_space_for_its_record_a_checkpoint_goes_up_and_leaves_no_parts(bench):
    write_file(bench.directory / "step-1.pt", SIZE)
    bench.checkpoints.uploads.mkdir(parents=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # every write to a file is refused
    try:
        stored = bench.upload(1, "step-1.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stored.size == SIZE
    assert list(bench.checkpoints.uploads.iterdir()) == []
    found = restored(bench, "00000001-step-1.pt")
    assert (found / "step-1.pt").read_bytes() == (bench.directory / "step-1.pt").read_bytes()
