"""What every object store must do: one suite, run against S3 (SeaweedFS) and a directory."""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path

import pytest

from spotd.shell.store.aws import S3Options
from spotd.shell.store.directory import DirectoryStore
from spotd.shell.store.protocol import (
    Cancelled,
    Damaged,
    Flow,
    NotFound,
    Part,
    Piece,
    PreconditionFailed,
    StoreProblem,
)
from spotd.shell.store.s3 import S3Store
from spotd.shell.store.sender import BotocoreSender

MIB = 1024 * 1024
PART = 5 * MIB  # S3's smallest


@pytest.fixture(params=["s3", "s3-tls", "s3-botocore", "directory"])
def store(request, tmp_path, monkeypatch):
    if request.param == "directory":
        yield DirectoryStore(tmp_path / "store" / "run", tmp_path)
        return
    server = request.getfixturevalue("seaweed")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = server.endpoint_url
    if request.param == "s3-tls":
        if server.certificate is None:
            pytest.skip("needs openssl for a certificate")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(server.certificate))
        url = server.tls_endpoint_url
    opened = S3Store(
        "spotd-test",
        f"contract/{secrets.token_hex(6)}",
        S3Options(endpoint_url=url),
        sender=BotocoreSender if request.param == "s3-botocore" else None,
    )
    yield opened
    opened.close()


@pytest.fixture
def file(tmp_path):
    """Makes a file of random bytes; returns (descriptor, content)."""
    opened = []

    def make(size: int) -> tuple[int, bytes]:
        path = tmp_path / f"file{len(opened)}"
        content = os.urandom(size)
        path.write_bytes(content)
        opened.append(os.open(path, os.O_RDWR))
        return opened[-1], content

    yield make
    for descriptor in opened:
        os.close(descriptor)


def keys(store, prefix, **options):
    return [entry.key for entry in store.list(prefix, **options)]


def test_what_was_put_is_got_back(store):
    etag = store.put("a/b.json", b"{}")
    blob = store.get("a/b.json", limit=100)
    assert blob.data == b"{}"
    assert blob.etag == etag


def test_putting_again_replaces(store):
    store.put("k", b"1")
    store.put("k", b"2")
    assert store.get("k", limit=10).data == b"2"


def test_a_missing_object_is_not_found(store):
    with pytest.raises(NotFound):
        store.get("nothing/here", limit=10)


def test_an_object_over_the_limit_is_refused(store):
    store.put("k", b"12345")
    with pytest.raises(Damaged):
        store.get("k", limit=4)


def test_a_new_object_is_made_only_once(store):
    store.put("k", b"first", if_none_match=True)
    with pytest.raises(PreconditionFailed):
        store.put("k", b"second", if_none_match=True)
    assert store.get("k", limit=10).data == b"first"


def test_a_write_on_condition_succeeds_while_nobody_else_wrote(store):
    etag = store.put("k", b"1")
    etag = store.put("k", b"2", if_match=etag)
    store.put("k", b"3", if_match=etag)
    assert store.get("k", limit=10).data == b"3"


def test_a_write_on_condition_fails_after_somebody_else_wrote(store):
    etag = store.put("k", b"1")
    store.put("k", b"other")
    with pytest.raises(PreconditionFailed):
        store.put("k", b"2", if_match=etag)
    assert store.get("k", limit=10).data == b"other"


def test_a_write_on_condition_fails_when_the_object_is_gone(store):
    etag = store.put("k", b"1")
    store.delete(["k"])
    with pytest.raises((PreconditionFailed, NotFound)):
        store.put("k", b"2", if_match=etag)


def test_of_sixteen_that_make_an_object_at_once_one_wins(store):
    store.put("warm", b"")
    barrier, won, lost = threading.Barrier(16), [], []

    def race(number: int) -> None:
        barrier.wait()
        try:
            store.put("race", str(number).encode(), if_none_match=True)
            won.append(number)
        except StoreProblem:  # a server may also say: a conflict, try again
            lost.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 15
    assert store.get("race", limit=10).data == str(won[0]).encode()


def test_listing_is_in_order_and_only_below_the_prefix(store):
    for key in ("b/2", "b/1", "a/1", "b/10/x", "c"):
        store.put(key, b"x")
    assert keys(store, "b/") == ["b/1", "b/10/x", "b/2"]
    assert keys(store, "") == ["a/1", "b/1", "b/10/x", "b/2", "c"]
    assert keys(store, "nothing/") == []


def test_listing_with_a_delimiter_shows_one_level(store):
    for key in ("b/2", "b/1/deep/x", "b/1/y", "c"):
        store.put(key, b"xyz")
    assert keys(store, "b/", delimiter=True) == ["b/1/", "b/2"]
    assert [entry.size for entry in store.list("b/", delimiter=True)] == [0, 3]


def test_names_with_odd_characters_come_back_as_they_are(store):
    odd = "epoch=3-step=200 (1) +ä%2F&?#.ckpt"
    store.put(f"d/{odd}", b"x")
    assert keys(store, "d/") == [f"d/{odd}"]
    assert store.get(f"d/{odd}", limit=10).data == b"x"


def test_deleting_is_complete_and_what_is_not_there_is_fine(store):
    for key in ("d/1", "d/2/x"):
        store.put(key, b"x")
    store.delete(["d/1", "d/2/x", "d/never"])
    assert keys(store, "") == []


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 17])
def test_a_file_sent_in_one_request_comes_back_the_same(store, file, size):
    source, content = file(size)
    flow = Flow()
    part = store.send_whole("d/one file.bin", Piece(source, 0, size), flow)
    assert part.size == flow.wire == size
    assert part.crc == store.algorithm.update(content, 0)
    target, _ = file(0)
    if size:
        crc = store.receive("d/one file.bin", Piece(target, 0, size), Flow(), store.algorithm)
        assert crc == part.crc
    assert os.pread(target, size + 1, 0) == content


def send_parts(store, source, size, upload, numbers=None, *, key="d/big.bin"):
    parts = {}
    for number in numbers or range(1, -(-size // PART) + 1):
        offset = (number - 1) * PART
        piece = Piece(source, offset, min(PART, size - offset))
        parts[number] = store.send_part(key, upload, number, piece, Flow())
    return parts


def test_a_file_sent_in_parts_becomes_visible_whole_when_completed(store, file):
    size = 2 * PART + 99
    source, content = file(size)
    upload = store.begin("d/big.bin")
    parts = send_parts(store, source, size, upload)
    assert keys(store, "d/") == []
    crc = store.algorithm.join((part.crc, part.size) for _, part in sorted(parts.items()))
    assert crc == store.algorithm.update(content, 0)
    store.complete("d/big.bin", upload, parts, crc)
    assert [(entry.key, entry.size) for entry in store.list("d/")] == [("d/big.bin", size)]
    target, _ = file(0)
    middle = Piece(target, PART - 10, PART + 20)
    got = store.receive("d/big.bin", middle, Flow(), store.algorithm)
    assert os.pread(target, PART + 20, PART - 10) == content[PART - 10 : 2 * PART + 10]
    assert got == store.algorithm.update(content[PART - 10 : 2 * PART + 10], 0)


def test_parts_survive_the_process_and_a_part_sent_again_replaces(store, file):
    size = 2 * PART + 99
    source, content = file(size)
    upload = store.begin("d/big.bin")
    parts = send_parts(store, source, size, upload, [1, 2])
    survived = store.surviving("d/big.bin", upload, parts)
    assert survived == parts
    parts |= send_parts(store, source, size, upload, [2, 3])
    crc = store.algorithm.update(content, 0)
    store.complete("d/big.bin", upload, parts, crc)
    assert [entry.size for entry in store.list("d/")] == [size]


def test_an_upload_that_was_aborted_is_not_found_and_leaves_nothing(store, file):
    source, _ = file(PART + 1)
    upload = store.begin("d/big.bin")
    parts = send_parts(store, source, PART + 1, upload, [1])
    store.abort("d/big.bin", upload)
    store.abort("d/big.bin", upload)
    with pytest.raises(NotFound):
        store.surviving("d/big.bin", upload, parts)
    assert keys(store, "") == []


def test_an_object_is_copied_inside_the_store_while_it_is_what_it_was(store, file):
    source, content = file(MIB)
    part = store.send_whole("old/x", Piece(source, 0, MIB), Flow())
    store.copy("old/x", "new/x", part)
    target, _ = file(0)
    crc = store.receive("new/x", Piece(target, 0, MIB), Flow(), store.algorithm)
    assert crc == part.crc
    assert os.pread(target, MIB, 0) == content


def test_an_object_that_has_changed_is_not_copied(store, file):
    source, _ = file(MIB)
    part = store.send_whole("old/x", Piece(source, 0, MIB), Flow())
    other, _ = file(MIB)
    store.send_whole("old/x", Piece(other, 0, MIB), Flow())
    with pytest.raises((PreconditionFailed, NotFound)):
        store.copy("old/x", "new/x", part)
    with pytest.raises(NotFound):
        store.copy("gone", "new/y", part)
    assert keys(store, "new/") == []


def test_an_object_shorter_than_asked_for_is_damage_not_data(store, file):
    source, _ = file(1000)
    store.send_whole("x", Piece(source, 0, 1000), Flow())
    target, _ = file(0)
    with pytest.raises(Damaged):
        store.receive("x", Piece(target, 0, 2000), Flow(), store.algorithm)


def test_a_missing_object_cannot_be_fetched(store, file):
    target, _ = file(0)
    with pytest.raises(NotFound):
        store.receive("x", Piece(target, 0, 10), Flow(), store.algorithm)


def test_a_source_that_became_shorter_is_damage_and_nothing_becomes_visible(store, file):
    source, _ = file(2 * MIB)
    os.ftruncate(source, MIB)
    with pytest.raises(StoreProblem):
        store.send_whole("x", Piece(source, 0, 2 * MIB), Flow())
    assert keys(store, "") == []


def test_a_cancelled_transfer_stops(store, file):
    source, _ = file(2 * MIB)
    flow = Flow()
    flow.cancel.set()
    with pytest.raises(Cancelled):
        store.send_whole("x", Piece(source, 0, 2 * MIB), flow)
    assert keys(store, "") == []


class TestOnlyS3:
    """What the directory has nothing to check with."""

    @pytest.fixture(autouse=True)
    def _only(self, store):
        if isinstance(store, DirectoryStore):
            pytest.skip("a directory has no server that checks")

    def test_the_server_refuses_to_complete_an_object_with_another_checksum(self, store, file):
        size = PART + 5
        source, _ = file(size)
        upload = store.begin("big")
        parts = send_parts(store, source, size, upload, key="big")
        with pytest.raises(StoreProblem):
            store.complete("big", upload, parts, 12345)
        assert keys(store, "") == []

    def test_completing_again_after_a_lost_answer_finds_the_object(self, store, file):
        size = PART + 5
        source, content = file(size)
        upload = store.begin("big")
        parts = send_parts(store, source, size, upload, key="big")
        crc = store.algorithm.update(content, 0)
        first = store.complete("big", upload, parts, crc)
        again = store.complete("big", upload, parts, crc)
        assert again.strip('"') == first.strip('"')

    def test_completing_what_is_gone_is_not_found(self, store, file):
        upload = store.begin("big")
        store.abort("big", upload)
        with pytest.raises(NotFound):
            store.complete("big", upload, {1: Part("x", 1, 1)}, 1)

    def test_the_object_carries_its_checksum_for_others_to_see(self, store, file):
        source, content = file(MIB)
        store.send_whole("x", Piece(source, 0, MIB), Flow())
        head = store.head("x")
        assert head["ContentLength"] == MIB
        field = f"Checksum{store.algorithm.name.upper()}"
        assert head[field] == store.algorithm.encode(store.algorithm.update(content, 0))

    def test_pages_are_followed(self, store, monkeypatch):
        for number in range(7):
            store.put(f"p/{number}", b"x")
        original = store.aws.client.list_objects_v2
        monkeypatch.setattr(
            store.aws.client, "list_objects_v2", lambda **kw: original(**kw, MaxKeys=3)
        )
        assert keys(store, "p/") == [f"p/{number}" for number in range(7)]


def test_a_server_nobody_vouches_for_is_refused_in_words(seaweed, file, monkeypatch):
    if seaweed.certificate is None:
        pytest.skip("needs openssl for a certificate")
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    store = S3Store("spotd-test", "untrusted", S3Options(endpoint_url=seaweed.tls_endpoint_url))
    source, _ = file(1000)
    tries = [
        lambda: store.put("x", b""),
        lambda: store.send_whole("x", Piece(source, 0, 1000), Flow()),
    ]
    for attempt in tries:
        with pytest.raises(StoreProblem) as caught:
            attempt()
        assert "certificate" in caught.value.message
        assert "AWS_CA_BUNDLE" in caught.value.hint
        assert not caught.value.retriable
    store.close()


def test_the_directory_refuses_keys_that_climb(tmp_path):
    store = DirectoryStore(tmp_path / "run", tmp_path)
    for key in ("../x", "/etc/passwd", "a//b", "a/./b"):
        with pytest.raises(StoreProblem):
            store.put(key, b"x")
    assert not Path(tmp_path / "x").exists()


def test_the_directory_says_when_it_is_not_mounted(tmp_path):
    store = DirectoryStore(tmp_path / "mnt" / "run", tmp_path / "mnt")
    with pytest.raises(StoreProblem) as caught:
        store.put("lease.json", b"{}")
    assert "is it mounted?" in caught.value.hint
    with pytest.raises(StoreProblem):
        list(store.list("checkpoints/", delimiter=True))
