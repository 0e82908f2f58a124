"""The watch hears what matters, and costs nothing while nothing happens."""

from __future__ import annotations

import os
import shutil

import pytest
from directory_kit import ME, a_world, content, eventually

from spotd.core.actions import Inspect
from spotd.core.events import (
    CheckpointSeen,
    CheckpointVanished,
    DirectoryTrouble,
    LocalInventory,
    SavesInProgress,
)
from spotd.shell.directory import directory as module
from spotd.shell.directory import watch
from spotd.shell.directory.answers import Answers
from spotd.shell.directory.place import PlaceError, open_place
from spotd.shell.directory.watch import rescan_interval
from spotd.shell.owner import Owner


@pytest.fixture
def world(tmp_path):
    with a_world(tmp_path / "checkpoints") as world:
        world.inspect()
        yield world


def saw(world) -> list[str]:
    return [e.checkpoint.name for e in world.posted if isinstance(e, CheckpointSeen)]


# --- seeing --------------------------------------------------------------------------------


def test_what_stood_there_before_is_in_the_inventory_and_not_news(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "step-1.pt").write_bytes(content())
    with a_world(tmp_path / "c") as world:
        assert world.names(world.inspect()) == {"step-1.pt"}
        (world.path / "step-2.pt").write_bytes(content())
        world.seen("step-2.pt")
        assert saw(world) == ["step-2.pt"]


def test_what_was_torn_at_the_start_and_is_finished_later_is_news(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "step-1.pt").write_bytes(content()[:50])
    with a_world(tmp_path / "c") as world:
        assert world.inspect(settled=False).checkpoints == ()
        (world.path / "step-1.pt").write_bytes(content())
        assert world.seen("step-1.pt").step == 1


def test_a_checkpoint_seen_once_is_not_seen_again_for_nothing(world):
    (world.path / "step-1.pt").write_bytes(content())
    world.seen("step-1.pt")
    (world.path / "step-1.pt").open("r+b").close()  # closed after writing, nothing written
    os.utime(world.path)
    world.inspect(settled=False)
    assert saw(world) == ["step-1.pt"]


def test_overwriting_is_seen_as_another_content_of_the_same_name(world):
    prints = []
    for seed in (1, 2):
        (world.path / "ckpt.pt").write_bytes(content(seed))
        prints.append(world.seen("ckpt.pt").fingerprint)
    assert prints[0] != prints[1]


def test_rotation_is_seen(world):
    (world.path / "step-1.pt").write_bytes(content())
    world.seen("step-1.pt")
    (world.path / "step-1.pt").rename(world.path / "step-2.pt")
    assert world.wait(CheckpointVanished).name == "step-1.pt"
    assert world.seen("step-2.pt").step == 2


def test_a_file_in_a_directory_in_a_directory_is_noticed(world):
    inner = world.path / "checkpoint-3" / "a" / "b"
    inner.mkdir(parents=True)
    (world.path / "checkpoint-3" / "config.json").write_text("{}")
    (inner / "model.pt").write_bytes(content())
    world.wait(SavesInProgress, lambda event: event.names == ("checkpoint-3",))
    (world.path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    assert world.seen("checkpoint-3").kind == "directory"
    (inner / "more.pt").write_bytes(content())
    (world.path / "checkpoint-3" / "trainer_state.json").write_text('{"again": 1}')
    assert world.seen("checkpoint-3").kind == "directory"


def save_as_hugging_face_does(directory):
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.bin").write_bytes(content(1))
    (directory / "optimizer.pt").write_bytes(content(2))
    (directory / "trainer_state.json").write_text("{}")


@pytest.mark.parametrize("settled", [False, True])
def test_a_directory_that_is_being_deleted_is_no_new_checkpoint(world, settled):
    old = world.path / "checkpoint-100"
    save_as_hugging_face_does(old)
    world.seen("checkpoint-100")
    for name in ("model.bin", "optimizer.pt", "config.json"):
        (old / name).unlink()
        assert world.names(world.inspect(settled=settled)) == set(), "its marker is there still"
    shutil.rmtree(old)
    save_as_hugging_face_does(old)
    world.seen("checkpoint-100")
    assert saw(world) == ["checkpoint-100"] * 2


def test_a_directory_that_was_half_deleted_and_is_saved_again_is_news(world):
    again = world.path / "checkpoint-100"
    save_as_hugging_face_does(again)
    world.seen("checkpoint-100")
    (again / "model.bin").unlink()
    assert world.names(world.inspect(settled=False)) == set()
    (again / "model.bin").write_bytes(content(3))
    (again / "trainer_state.json").write_text('{"again": 1}')
    world.seen("checkpoint-100")


def test_a_directory_moved_in_from_elsewhere_is_seen(world, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "model.pt").write_bytes(content())
    (tmp_path / "made" / "trainer_state.json").write_text("{}")
    (tmp_path / "made").rename(world.path / "checkpoint-4")
    assert world.seen("checkpoint-4").step == 4


def test_more_subdirectories_than_watches_are_still_all_found(world, monkeypatch):
    monkeypatch.setattr(watch, "MAX_WATCHED", 3)
    for number in range(10):
        target = world.path / f"checkpoint-{number}"
        target.mkdir()
        (target / "model.pt").write_bytes(content())
        (target / "trainer_state.json").write_text("{}")
    found = {world.wait(CheckpointSeen).checkpoint.name for _ in range(10)}
    assert found == {f"checkpoint-{number}" for number in range(10)}


def test_on_a_filesystem_without_events_scanning_finds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "is_blind", lambda _: True)
    with a_world(tmp_path / "c") as world:
        world.inspect()
        (world.path / "step-1.pt").write_bytes(content())
        assert world.seen("step-1.pt").step == 1
        (world.path / "step-1.pt").unlink()
        assert world.wait(CheckpointVanished).name == "step-1.pt"


def test_without_a_watch_to_be_had_scanning_finds_it(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(module, "Ears", refuse)
    with a_world(tmp_path / "c") as world:
        world.inspect()
        (world.path / "step-1.pt").write_bytes(content())
        assert world.seen("step-1.pt").step == 1


def test_a_writer_that_never_closes_in_our_sight_is_looked_at_again(world):
    """A writer through a mapping: no event tells when it is done."""
    import mmap

    data = content()
    path = world.path / "step-1.pt"
    with path.open("w+b") as stream:
        stream.truncate(len(data))
        mapping = mmap.mmap(stream.fileno(), len(data))
    mapping[:] = data
    world.nothing_seen()
    mapping.close()
    assert world.seen("step-1.pt").size == len(data)


# --- the directory itself ------------------------------------------------------------------


def test_a_missing_directory_is_made_when_its_parent_is_there(tmp_path):
    with a_world(tmp_path / "checkpoints") as world:
        assert world.inspect() == LocalInventory()
        assert world.path.stat().st_uid == ME.uid


def test_a_directory_whose_parent_is_missing_is_said_once_and_found_when_it_comes(tmp_path):
    with a_world(tmp_path / "disk" / "checkpoints") as world:
        trouble = world.wait(DirectoryTrouble)
        assert "does not exist" in trouble.reason
        assert trouble.hint
        world.path.mkdir(parents=True)
        (world.path / "step-1.pt").write_bytes(content())
        eventually(lambda: world.directory.free_space() is not None)
        world.seen("step-1.pt")
        assert [e for e in world.posted if isinstance(e, DirectoryTrouble)] == [trouble]


def test_every_inspection_of_a_missing_directory_is_answered(tmp_path):
    with a_world(tmp_path / "disk" / "checkpoints") as world:
        for _ in range(3):
            world.directory.inspect(Inspect(settled=True))
        reasons = {world.wait(DirectoryTrouble).reason for _ in range(4)}
        assert len(reasons) == 1


def test_a_directory_deleted_and_made_again_is_watched_again(world):
    (world.path / "step-1.pt").write_bytes(content())
    world.seen("step-1.pt")
    shutil.rmtree(world.path)
    assert world.wait(CheckpointVanished).name == "step-1.pt"
    world.path.mkdir()
    (world.path / "step-2.pt").write_bytes(content())
    assert world.seen("step-2.pt").step == 2


def test_a_directory_that_is_gone_is_not_made_again_under_the_trainers_feet(world):
    """`rm -r checkpoints; mkdir checkpoints` in the trainer must not fail."""
    shutil.rmtree(world.path)
    assert "does not exist" in world.wait(DirectoryTrouble).reason
    world.path.mkdir()
    assert world.inspect() == LocalInventory()


def test_a_directory_moved_away_is_not_followed(world, tmp_path):
    world.path.rename(tmp_path / "old")
    world.wait(DirectoryTrouble)
    (tmp_path / "old" / "step-1.pt").write_bytes(content())
    world.path.mkdir()
    (world.path / "step-2.pt").write_bytes(content())
    world.seen("step-2.pt")
    assert saw(world) == ["step-2.pt"]


def test_a_configured_link_is_resolved_once(tmp_path):
    (tmp_path / "ebs").mkdir()
    (tmp_path / "c").symlink_to("ebs")
    with a_world(tmp_path / "c") as world:
        world.inspect()
        (tmp_path / "ebs" / "step-1.pt").write_bytes(content())
        world.seen("step-1.pt")
        assert world.directory.path == str(tmp_path / "ebs")
        assert world.directory.declare(str(tmp_path / "c" / "step-1.pt"))
        assert world.directory.declare(str(tmp_path / "ebs" / "step-1.pt"))


def test_a_directory_replaced_by_a_link_is_not_followed(world, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "step-1.pt").write_bytes(content())
    shutil.rmtree(world.path)
    world.path.symlink_to(tmp_path / "elsewhere")
    world.wait(DirectoryTrouble, lambda event: "cannot be opened" in event.reason)
    assert saw(world) == []


def test_a_file_in_the_place_of_the_directory_is_said(tmp_path):
    (tmp_path / "c").write_text("not a directory")
    with pytest.raises(PlaceError, match="cannot be opened"):
        open_place(str(tmp_path / "c"), ME, create=True)


def test_permission_bits_decide_who_may_write(tmp_path):
    tmp_path.chmod(0o750)
    status = tmp_path.stat()
    assert Owner(status.st_uid, 1).may_write(status)
    assert not Owner(4711, status.st_gid).may_write(status)
    tmp_path.chmod(0o770)
    assert Owner(4711, 1, (status.st_gid,)).may_write(tmp_path.stat())
    assert not Owner(4711, 1).may_write(tmp_path.stat())


def test_a_disk_without_room_for_the_next_one_is_said_once(world, monkeypatch):
    real = os.fstatvfs

    def nearly_full(descriptor):
        status = real(descriptor)
        return os.statvfs_result((*status[:4], 400, *status[5:]))

    monkeypatch.setattr("spotd.shell.directory.place.os.fstatvfs", nearly_full)
    monkeypatch.setattr("spotd.shell.directory.place._FULL", 1 << 30)
    world.inspect()
    trouble = world.wait(DirectoryTrouble)
    assert "full" in trouble.reason
    assert "keep_local" in trouble.hint
    for _ in range(3):
        world.inspect()
    assert [e for e in world.posted if isinstance(e, DirectoryTrouble)] == [trouble]


def test_a_remark_does_not_pass_for_the_answer_to_an_inspection(world, tmp_path):
    answers = Answers(world.posted.append)
    answers.asked()
    answers.post(DirectoryTrouble("a remark"))
    answers.answer(LocalInventory())
    assert world.posted[-2:] == [LocalInventory(), DirectoryTrouble("a remark")]


# --- what the trainer says -----------------------------------------------------------------


def test_a_declared_checkpoint_is_seen_at_once_whatever_its_format(world):
    (world.path / "mine.xyz").write_bytes(b"only the trainer knows")
    world.nothing_seen()
    assert world.directory.declare(str(world.path / "mine.xyz"))
    assert world.seen("mine.xyz").declared


def test_a_declaration_is_of_one_content(world):
    (world.path / "old-1.pt").write_bytes(b"\x80\x02legacy")
    world.directory.declare(str(world.path / "old-1.pt"))
    world.seen("old-1.pt")
    (world.path / "old-1.pt").write_bytes(b"\x80\x02legacy, again")
    assert world.wait(CheckpointVanished).name == "old-1.pt"
    world.inspect(settled=False)
    assert saw(world) == ["old-1.pt"]


def test_what_is_already_known_is_not_news_when_it_is_declared(world):
    (world.path / "step-1.pt").write_bytes(content())
    world.seen("step-1.pt")
    world.directory.declare(str(world.path / "step-1.pt"))
    [checkpoint] = world.inspect().checkpoints
    assert checkpoint.declared
    assert saw(world) == ["step-1.pt"]


@pytest.mark.parametrize(
    "path",
    ["step-1.pt", "/etc/passwd", "{c}/../x.pt", "{c}/a/b.pt", "{c}", "{c}/", "{c}/..", "", "/",
     "{c}/x\0y", "{c}/../checkpoints/../../etc/passwd"],
)  # fmt: skip
def test_a_declaration_of_anything_else_is_refused(world, path):
    assert not world.directory.declare(path.format(c=world.path))


def test_a_declaration_of_what_is_not_there_or_torn_is_nothing(world):
    (world.path / "step-1.pt").write_bytes(content()[:60])
    for name in ("never.pt", "step-1.pt", ".spotd-hold", "a.tmp"):
        world.directory.declare(str(world.path / name))
    world.nothing_seen()


def test_the_step_the_trainer_reported_stands_in_for_one_in_the_name(world):
    world.directory.expect(4711)
    (world.path / "ckpt.pt").write_bytes(content())
    assert world.seen("ckpt.pt").step == 4711
    (world.path / "step-12.pt").write_bytes(content())
    assert world.seen("step-12.pt").step == 12


def test_what_the_fetcher_puts_there_is_known_and_not_news(world):
    world.directory.arriving("step-9.pt")
    (world.path / "step-9.pt").write_bytes(content())
    world.nothing_seen()
    world.directory.arrived("step-9.pt")
    assert world.names(world.inspect(settled=False)) == {"step-9.pt"}
    assert saw(world) == []


# --- cost ----------------------------------------------------------------------------------


def test_a_rescan_is_rarer_the_more_it_costs():
    assert rescan_interval(0.0001, blind=False) == 10.0
    assert rescan_interval(0.05, blind=False) == pytest.approx(50.0)
    assert rescan_interval(60.0, blind=False) == 120.0
    assert rescan_interval(0.0001, blind=True) == 1.0


def test_what_is_known_is_not_read_again(world, monkeypatch):
    (world.path / "step-1.pt").write_bytes(content())
    world.seen("step-1.pt")

    def never(*_):
        raise AssertionError

    monkeypatch.setattr("spotd.shell.directory.judge.read_structure", never)
    monkeypatch.setattr("spotd.shell.directory.judge.opened_file", never)
    assert world.names(world.inspect()) == {"step-1.pt"}


def test_it_ends_when_it_is_told_to(tmp_path):
    import threading

    before = set(threading.enumerate())
    with a_world(tmp_path / "c") as world:
        world.inspect(contents=True)
        (world.path / "ckpt.pt").write_bytes(content())
        world.hold(world.seen("ckpt.pt"))
    assert set(threading.enumerate()) == before


def test_it_can_be_stopped_without_a_directory(tmp_path):
    with a_world(tmp_path / "no" / "c") as world:
        world.wait(DirectoryTrouble)
    assert world.directory.free_space() is None
