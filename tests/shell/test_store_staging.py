"""Restoring below a directory that belongs to somebody who may not wish us well."""

from __future__ import annotations

import json
import os
import stat

import pytest
from storekit import Bench, file_settings, write_file

from spotd.errors import SpotdError
from spotd.shell.owner import Owner
from spotd.shell.store import api, staging
from spotd.shell.store.protocol import Flow
from spotd.shell.store.restore import Restore


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path, file_settings(tmp_path))
    yield made
    made.close()


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def restore(bench, target, checkpoint, owner=None):
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return Restore(
            bench.store, bench.lanes, Flow(), bench.state, owner, lambda *_: None, 5.0
        ).into(root, bench.checkpoints.manifest(checkpoint))
    finally:
        os.close(root)


def test_a_planted_staging_directory_that_is_a_link_is_moved_away_and_not_followed(
    bench, target, tmp_path
):
    content = write_file(bench.directory / "a.pt", 1000)
    bench.upload(1, "a.pt")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (target / ".spotd-restore").symlink_to(elsewhere)
    restore(bench, target, "00000001-a.pt")
    assert (target / "a.pt").read_bytes() == content
    assert list(elsewhere.iterdir()) == []
    assert os.path.lexists(target / ".spotd-aside" / ".spotd-restore")


def test_a_link_under_the_checkpoints_name_goes_aside_and_its_target_is_untouched(
    bench, target, tmp_path
):
    content = write_file(bench.directory / "a.pt", 1000)
    bench.upload(1, "a.pt")
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (target / "a.pt").symlink_to(victim)
    restore(bench, target, "00000001-a.pt")
    assert (target / "a.pt").read_bytes() == content
    assert not (target / "a.pt").is_symlink()
    assert victim.read_bytes() == b"untouched"


def test_an_aside_directory_that_is_a_link_is_not_followed(bench, target, tmp_path):
    write_file(bench.directory / "a.pt", 1000)
    bench.upload(1, "a.pt")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (target / ".spotd-aside").symlink_to(elsewhere)
    (target / "a.pt").write_bytes(b"old")
    with pytest.raises(SpotdError):
        restore(bench, target, "00000001-a.pt")
    assert list(elsewhere.iterdir()) == []
    assert (target / "a.pt").read_bytes() == b"old"


def test_set_user_id_in_a_manifest_is_not_restored(bench, target):
    write_file(bench.directory / "a.pt", 1000)
    bench.upload(1, "a.pt")
    key = "checkpoints/00000001-a.pt/MANIFEST.json"
    document = json.loads(bench.store.get(key, limit=10_000).data)
    document["files"][0]["mode"] = 0o6755
    bench.store.put(key, json.dumps(document).encode())
    restore(bench, target, "00000001-a.pt")
    assert stat.S_IMODE((target / "a.pt").stat().st_mode) == 0o755


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_is_restored_belongs_to_the_trainers_user(bench, target):
    folder = bench.directory / "step-1"
    (folder / "inner").mkdir(parents=True)
    write_file(folder / "inner" / "x", 10)
    bench.upload(1, "step-1", kind="directory")
    restore(bench, target, "00000001-step-1", Owner(12345, 54321))
    for path in (target / "step-1", *(target / "step-1").rglob("*")):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


def test_a_disk_that_is_too_full_is_said_before_a_byte_is_fetched(bench, target, monkeypatch):
    write_file(bench.directory / "a.pt", 1000)
    bench.upload(1, "a.pt")
    monkeypatch.setattr(staging, "_RESERVE", 2**62)
    with pytest.raises(SpotdError) as caught:
        restore(bench, target, "00000001-a.pt")
    assert "free" in caught.value.hint
    assert not (target / "a.pt").exists()


def test_a_checkpoint_is_restored_to_any_directory_without_the_daemon(bench, tmp_path):
    content = write_file(bench.directory / "a.pt", 1000)
    bench.upload(1, "a.pt")
    settings = file_settings(tmp_path)
    listing = api.list_checkpoints(settings, "run")
    assert [each.id for each in listing.stored] == ["00000001-a.pt"]
    found = api.fetch_to(settings, "run", "00000001-a.pt", tmp_path / "deep" / "er")
    assert found.name == "a.pt"
    assert (tmp_path / "deep" / "er" / "a.pt").read_bytes() == content
    with pytest.raises(SpotdError) as caught:
        api.fetch_to(settings, "run", "00000009-a.pt", tmp_path / "x")
    assert "is not in" in caught.value.message


def test_a_probe_writes_reads_deletes_and_leaves_nothing(tmp_path):
    settings = file_settings(tmp_path)
    found = api.probe(settings, "run")
    assert found.conditional
    left = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert [path.name for path in left] == [".spotd-lock"]
