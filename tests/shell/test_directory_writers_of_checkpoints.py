"""Every format of the table, saved by its own library, whole, killed and half-way."""

from __future__ import annotations

import os
import shutil
import signal
import time
from typing import TYPE_CHECKING

import pytest
from directory_kit import Nursery, a_world, eventually

from spotd.core.events import CheckpointSeen, SavesInProgress

if TYPE_CHECKING:
    from pathlib import Path

# What the tests call it, the writer, and a name as that writer gives it.
WRITERS = [
    pytest.param("torch", "step-5.pt", id="torch.save"),
    pytest.param("torch", "ckpt.pt", id="nanoGPT's one file"),
    pytest.param("torch", "checkpoint.pth.tar", id="the imagenet example"),
    pytest.param("torch", "ep1-ba20-rank0.pt", id="Composer"),
    pytest.param("torch", "last.pth.tar", id="timm"),
    pytest.param("safetensors", "model-7.safetensors", id="safetensors"),
    pytest.param("dcp", "step-7", id="DCP and torchtitan"),
    pytest.param("accelerate", "checkpoint_3", id="accelerate"),
    pytest.param("trainer", "checkpoint-2", id="HF Trainer"),
    pytest.param("lightning", "epoch=3-step=200.ckpt", id="Lightning"),
]


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def samples(nursery, tmp_path_factory):
    """One whole checkpoint of each writer, made once."""
    made: dict[str, Path] = {}

    def sample(writer: str, name: str) -> Path:
        if writer not in made:
            path = tmp_path_factory.mktemp(writer) / name
            assert nursery.save(writer, path) == 0
            made[writer] = path
        return made[writer]

    return sample


@pytest.fixture
def world(tmp_path):
    with a_world(tmp_path / "checkpoints") as world:
        world.inspect()
        yield world


def copy(sample: Path, to: Path) -> None:
    """Brings a sample in under its final name in one step, times and all."""
    aside = to.parent.parent / f"making-{to.name}"
    if sample.is_dir():
        shutil.copytree(sample, aside)
    else:
        shutil.copy2(sample, aside)
    aside.rename(to)


@pytest.mark.parametrize(("writer", "name"), WRITERS)
def test_what_its_library_saved_while_we_watched_is_seen(nursery, world, writer, name):
    assert nursery.save(writer, world.path / name) == 0
    assert world.seen(name).name == name


@pytest.mark.parametrize(("writer", "name"), WRITERS)
def test_what_is_whole_is_whole_when_no_trainer_lives(samples, world, writer, name):
    copy(samples(writer, name), world.path / name)
    inventory = world.inspect()
    assert world.names(inventory) == {name}
    assert inventory.torn == ()


def kill_points(path: Path) -> list[dict[str, int]]:
    """Bytes of the largest file after which to die, and numbers of files opened before it."""
    if path.is_file():
        size = path.stat().st_size
        return [{"at_byte": max(1, size * part // 100)} for part in (1, 40, 99)]
    largest = max((f.stat().st_size for f in path.rglob("*") if f.is_file()), default=0)
    files = sum(1 for f in path.rglob("*") if f.is_file())
    bytes_ = [{"at_byte": max(1, largest * part // 100)} for part in (10, 99)]
    return bytes_ + [{"at_open": count} for count in range(1, files, 2)]


@pytest.mark.parametrize(("writer", "name"), WRITERS)
def test_a_save_killed_anywhere_is_never_taken_for_whole(nursery, samples, world, writer, name):
    points = kill_points(samples(writer, name))
    if writer == "trainer":
        points = points[1:3]  # half a second each
    whole = set()
    if writer in ("accelerate", "trainer"):  # their directories look alike until the last file
        whole = {name[:-1] + "1"}
        copy(samples(writer, name), world.path / whole.copy().pop())
    died = 0
    for point in points:
        target = world.path / name
        if nursery.save(writer, target, **point) == 0:
            shutil.rmtree(target, ignore_errors=True)  # it died of nothing: no such point
            continue
        died += 1
        inventory = world.inspect()
        assert world.names(inventory) == whole, point
        if target.exists() and (target.is_file() or any(target.iterdir())):
            assert [n for n, _ in inventory.torn] == [name], point
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
    assert died


@pytest.mark.parametrize(("writer", "name"), WRITERS)
def test_what_is_being_written_is_not_seen_before_it_is_closed(samples, world, writer, name):
    """Replays the library's own bytes, in its own order, stopping in every file."""
    sample = samples(writer, name)
    files = [sample] if sample.is_file() else [f for f in sample.rglob("*") if f.is_file()]
    files.sort(key=lambda f: f.stat().st_mtime_ns)
    target = world.path / name
    for file in files:
        to = target if sample.is_file() else target / file.relative_to(sample)
        to.parent.mkdir(parents=True, exist_ok=True)
        content = file.read_bytes()
        with to.open("wb") as stream:
            stream.write(content[: len(content) // 2])
            stream.flush()
            world.nothing_seen()
            stream.write(content[len(content) // 2 :])
            stream.flush()
            world.nothing_seen()  # all the bytes are there, and it is open still
    assert world.seen(name).name == name


def test_while_a_save_goes_on_it_is_said_and_when_it_ends_too(world):
    with (world.path / "step-1.pt").open("wb") as stream:
        stream.write(b"PK\x03\x04half of it")
        stream.flush()
        assert world.wait(SavesInProgress).names == ("step-1.pt",)
        (world.path / "step-1.pt").unlink()
    assert world.wait(SavesInProgress).names == ()


def test_a_legacy_pickle_is_not_judged_but_taken_when_no_trainer_lives(nursery, world):
    assert nursery.save("legacy", world.path / "old-3.pt") == 0
    world.nothing_seen()
    assert world.names(world.inspect()) == {"old-3.pt"}


def test_a_legacy_pickle_is_seen_after_its_quiet_time(nursery, world, monkeypatch):
    monkeypatch.setattr("spotd.core.completeness.MIN_QUIET", 0.3)
    assert nursery.save("legacy", world.path / "old-3.pt") == 0
    assert world.seen("old-3.pt").step == 3


def test_torch_without_checksums_is_whole_even_when_its_contents_are_read(nursery, world):
    assert nursery.save("without_crc", world.path / "a-1.pt") == 0
    assert world.names(world.inspect(contents=True)) == {"a-1.pt"}


def test_a_flipped_bit_is_found_when_contents_are_read_and_not_before(nursery, world):
    path = world.path / "a-1.pt"
    assert nursery.save("torch", path) == 0
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 5] ^= 1
    path.write_bytes(data)
    assert world.names(world.inspect()) == {"a-1.pt"}
    inventory = world.inspect(contents=True)
    assert world.names(inventory) == set()
    assert "checksums" in inventory.torn[0][1]


def test_what_was_durable_before_is_not_read_again(nursery, world):
    path = world.path / "a-1.pt"
    assert nursery.save("torch", path) == 0
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 5] ^= 1
    path.write_bytes(data)
    [checkpoint] = world.inspect().checkpoints
    trusted = world.inspect(contents=True, trusted=(checkpoint.fingerprint,))
    assert world.names(trusted) == {"a-1.pt"}


def test_dcp_saved_again_and_killed_leaves_old_metadata_and_is_torn(nursery, world):
    path = world.path / "step-7"
    assert nursery.save("dcp", path) == 0
    assert world.names(world.inspect()) == {"step-7"}
    assert nursery.save("dcp", path, at_byte=50_000) != 0
    inventory = world.inspect()
    assert [name for name, _ in inventory.torn] == ["step-7"]


def test_composers_latest_link_is_never_a_checkpoint(nursery, world):
    assert nursery.save("torch", world.path / "ep0-ba10-rank0.pt") == 0
    (world.path / "latest-rank0.pt").symlink_to("ep0-ba10-rank0.pt")
    assert world.names(world.inspect()) == {"ep0-ba10-rank0.pt"}


def test_timm_renames_a_temporary_file_over_the_last_one(nursery, world):
    for _ in range(2):
        assert nursery.save("torch", world.path / "tmp.pth.tar") == 0
        (world.path / "last.pth.tar").unlink(missing_ok=True)
        (world.path / "tmp.pth.tar").rename(world.path / "last.pth.tar")
        assert world.seen("last.pth.tar").kind == "file"
    seen = {e.checkpoint.name for e in world.posted if isinstance(e, CheckpointSeen)}
    assert seen == {"last.pth.tar"}


def test_a_torn_overwrite_of_the_only_copy_is_found(nursery, world):
    path = world.path / "ckpt.pt"
    assert nursery.save("torch", path) == 0
    world.seen("ckpt.pt")
    assert os.WTERMSIG(nursery.save("torch", path, at_byte=60_000)) == signal.SIGXFSZ
    inventory = world.inspect()
    assert inventory.torn == (("ckpt.pt", "its end record is missing"),)


def test_orbax_is_whole_once_it_has_its_final_name(world):
    temporary = world.path / "100.orbax-checkpoint-tmp-1"
    (temporary / "params").mkdir(parents=True)
    (temporary / "params" / "a").write_bytes(b"x" * 100)
    (temporary / "_CHECKPOINT_METADATA").write_text("{}")
    world.nothing_seen()
    temporary.rename(world.path / "100")
    assert world.seen("100").kind == "directory"


def test_an_orbax_directory_killed_under_its_temporary_name_is_left_alone(world):
    temporary = world.path / "100.orbax-checkpoint-tmp-1"
    temporary.mkdir()
    (temporary / "_CHECKPOINT_METADATA").write_text("{}")
    inventory = world.inspect()
    assert (inventory.checkpoints, inventory.torn) == ((), ())


def test_json_inside_a_directory_must_parse(samples, world):
    target = world.path / "checkpoint-2"
    copy(samples("trainer", "checkpoint-2"), target)
    state = target / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:-20])
    inventory = world.inspect()
    assert inventory.torn == (("checkpoint-2", "trainer_state.json: it is not valid JSON"),)


def test_an_unknown_directory_is_seen_after_its_quiet_time(world, nursery, monkeypatch):
    monkeypatch.setattr("spotd.core.completeness.MIN_QUIET", 0.3)
    (world.path / "mine-4").mkdir()
    assert nursery.save("torch", world.path / "mine-4" / "a.pt") == 0
    assert world.seen("mine-4").step == 4


def test_a_configured_marker_decides(tmp_path):
    with a_world(tmp_path / "checkpoints", complete="DONE") as world:
        world.inspect()
        target = world.path / "mine-4"
        target.mkdir()
        (target / "a.pt").write_bytes(b"anything")
        world.nothing_seen()
        (target / "DONE").touch()
        assert world.seen("mine-4").kind == "directory"
        (target / "DONE").unlink()
        assert world.inspect().torn == (("mine-4", "DONE is missing"),)


def test_an_explicit_pattern_takes_what_it_matches_and_nothing_else(tmp_path, nursery):
    with a_world(tmp_path / "checkpoints", pattern=("*.dat",)) as world:
        world.inspect()
        assert nursery.save("torch", world.path / "a-1.pt") == 0
        (world.path / "b-2.dat").write_bytes(b"whatever it is")
        assert world.names(world.inspect()) == {"b-2.dat"}


def test_logs_and_settings_beside_checkpoints_are_no_checkpoints(world):
    for name in ("train.log", "metrics.csv", "config.yaml", "args.json", "events.out.tfevents.1"):
        (world.path / name).write_text("x")
    for name in ("runs", "wandb", "tb"):
        (world.path / name).mkdir()
        (world.path / name / "events.out.tfevents.1").write_text("x")
    inventory = world.inspect()
    assert (inventory.checkpoints, inventory.torn) == ((), ())


def test_only_what_a_power_cut_can_have_torn_is_read_to_the_end(nursery, world, monkeypatch):
    monkeypatch.setattr("spotd.shell.directory.inspecting.ON_THE_PLATTER", 0.05)
    for name in ("a-1.pt", "b-2.pt"):
        path = world.path / name
        assert nursery.save("torch", path) == 0
        data = bytearray(path.read_bytes())
        data[len(data) * 2 // 5] ^= 1
        path.write_bytes(data)
        written = path.stat().st_ctime
        eventually(lambda at=written: time.time() > at + 0.1)
    inventory = world.inspect(contents=True)
    assert world.names(inventory) == {"a-1.pt"}
    assert [name for name, _ in inventory.torn] == ["b-2.pt"]
