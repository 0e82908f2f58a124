"""What is held stays what it was, and comes back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from directory_kit import a_world, content, eventually

from spotd.core.actions import Hold, SetAside
from spotd.core.events import (
    CheckpointSeen,
    CheckpointVanished,
    Durable,
    Held,
    HoldFailed,
    Reinstated,
    ReinstateFailed,
    SetAsideDone,
)
from spotd.shell.directory import holds


@pytest.fixture
def world(tmp_path):
    with a_world(tmp_path / "checkpoints") as world:
        world.inspect()
        yield world


def save(world, name, seed=0):
    """Writes in place, as open(name, "wb") does, and waits until it is seen."""
    data = content(seed)
    (world.path / name).write_bytes(data)
    return world.seen(name), data


def save_directory(world, name, seed=0):
    making = world.path / f"{name}.tmp"
    (making / "inner").mkdir(parents=True)
    (making / "inner" / "b.pt").write_bytes(content(seed + 1))
    (making / "a.pt").write_bytes(content(seed))
    (making / "trainer_state.json").write_text("{}")
    making.rename(world.path / name)
    return world.seen(name)


def test_a_numbered_file_is_held_by_a_link_and_survives_its_deletion(world):
    checkpoint, data = save(world, "step-1.pt")
    held, mode = world.hold(checkpoint)
    (world.path / "step-1.pt").unlink()
    assert world.wait(CheckpointVanished).name == "step-1.pt"
    assert mode == "link"
    assert world.content_of(held) == data


def test_a_held_link_has_the_fingerprint_of_the_original(world):
    checkpoint, _ = save(world, "step-1.pt")
    held, _ = world.hold(checkpoint)
    assert world.directory.source_of(held).fingerprint == checkpoint.fingerprint


def test_a_file_without_a_number_is_copied_and_survives_being_written_over(world):
    checkpoint, data = save(world, "ckpt.pt", 1)
    held, mode = world.hold(checkpoint)
    save(world, "ckpt.pt", 2)
    assert mode in ("copy", "reflink")
    assert world.content_of(held) == data


@pytest.mark.parametrize("name", ["resnet50.pt", "gpt2.pth", "ckpt_v2.pt", "checkpoint-7b.pt"])
def test_a_number_that_counts_nothing_promises_no_new_name(world, name):
    checkpoint, data = save(world, name, 1)
    held, mode = world.hold(checkpoint)
    save(world, name, 2)
    assert mode in ("copy", "reflink")
    assert world.content_of(held) == data


@pytest.mark.parametrize("name", ["checkpoint-500.pt", "epoch=3.ckpt", "ep1-ba20.pt", "0042.pt"])
def test_a_number_that_counts_is_enough_for_a_link(world, name):
    assert world.hold(save(world, name)[0])[1] == "link"


def test_a_second_name_of_a_family_shows_that_its_number_counts(world):
    save(world, "model_01.pt", 1)
    assert world.hold(save(world, "model_02.pt", 2)[0])[1] == "link"


def test_a_name_that_was_written_over_once_is_copied_from_then_on(world):
    save(world, "step-1.pt", 1)
    checkpoint, data = save(world, "step-1.pt", 2)
    held, mode = world.hold(checkpoint)
    save(world, "step-1.pt", 3)
    assert mode in ("copy", "reflink")
    assert world.content_of(held) == data


def test_replacing_by_rename_is_not_writing_over(world):
    for seed in (1, 2):
        (world.path / "new.tmp").write_bytes(content(seed))
        (world.path / "new.tmp").rename(world.path / "step-1.pt")
        checkpoint = world.seen("step-1.pt")
    assert world.hold(checkpoint)[1] == "link"


def test_a_directory_is_held_with_all_that_is_in_it(world):
    checkpoint = save_directory(world, "checkpoint-5")
    held, mode = world.hold(checkpoint)
    shutil.rmtree(world.path / "checkpoint-5")
    source = world.directory.source_of(held)
    copy = Path(source.root, source.name)
    assert (mode, source.kind) == ("link", "directory")
    assert (copy / "inner" / "b.pt").read_bytes() == content(1)
    assert (copy / "trainer_state.json").read_text() == "{}"


def test_without_room_for_a_copy_links_have_to_do(world, monkeypatch):
    monkeypatch.setattr(holds, "free_bytes", lambda _: 1000)
    monkeypatch.setattr(holds, "can_reflink", lambda *_: False)
    checkpoint, data = save(world, "ckpt.pt")
    held, mode = world.hold(checkpoint)
    assert mode == "link"
    assert world.content_of(held) == data


def test_where_nothing_can_be_kept_the_original_is_sent(world, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(holds, "clone", refuse)
    checkpoint, _ = save(world, "step-1.pt")
    held, mode = world.hold(checkpoint)
    source = world.directory.source_of(held)
    assert mode == "none"
    assert source == (str(world.path), "step-1.pt", "file", checkpoint.fingerprint)


def test_what_has_changed_since_is_not_held(world):
    first, _ = save(world, "step-1.pt", 1)
    save(world, "step-1.pt", 2)
    world.directory.hold(Hold("00000001-step-1.pt", "step-1.pt", first.fingerprint))
    assert "changed" in world.wait(HoldFailed).reason


def test_what_is_gone_is_not_held(world):
    checkpoint, _ = save(world, "step-1.pt")
    (world.path / "step-1.pt").unlink()
    world.directory.hold(Hold("00000001-step-1.pt", "step-1.pt", checkpoint.fingerprint))
    assert world.wait(HoldFailed).id == "00000001-step-1.pt"


def test_an_original_written_over_while_it_is_copied_is_no_hold(world, monkeypatch):
    checkpoint, _ = save(world, "ckpt.pt", 1)
    real = holds.clone

    def clone_slowly(*arguments, **more):
        real(*arguments, **more)
        (world.path / "ckpt.pt").write_bytes(content(2, 9000))

    monkeypatch.setattr(holds, "clone", clone_slowly)
    world.directory.hold(Hold("00000001-ckpt.pt", "ckpt.pt", checkpoint.fingerprint))
    assert "changed" in world.wait(HoldFailed).reason
    assert [p.name for p in (world.path / ".spotd-hold").iterdir()] == []


def test_a_hold_is_said_before_it_is_durable_and_both_once(world):
    checkpoint, _ = save(world, "step-1.pt")
    held, _ = world.hold(checkpoint)
    said = [type(e) for e in world.posted if isinstance(e, (Held, Durable)) and e.id == held]
    assert said == [Held, Durable]


def test_a_long_fsync_does_not_delay_the_next_hold(world, monkeypatch):
    import threading

    release = threading.Event()
    real = os.fsync
    monkeypatch.setattr(
        "spotd.shell.directory.clone.os.fsync", lambda fd: release.wait(20) and real(fd)
    )
    first, _ = save(world, "step-1.pt", 1)
    world.directory.hold(Hold("00000001-step-1.pt", "step-1.pt", first.fingerprint))
    assert world.wait(Held).id == "00000001-step-1.pt"
    second, _ = save(world, "step-2.pt", 2)
    world.directory.hold(Hold("00000002-step-2.pt", "step-2.pt", second.fingerprint))
    assert world.wait(Held).id == "00000002-step-2.pt"
    assert not [event for event in world.posted if isinstance(event, Durable)]
    release.set()
    assert world.wait(Durable).id == "00000001-step-1.pt"


def test_an_id_longer_than_a_name_may_be_is_held_too(world):
    name = "n" * 250 + "-1.pt"
    checkpoint, data = save(world, name[-251:])
    held, _ = world.hold(checkpoint)
    assert world.content_of(held) == data


def test_what_is_held_stays_held_when_asked_again_after_the_original_was_written_over(world):
    checkpoint, data = save(world, "ckpt.pt", 1)
    held, _ = world.hold(checkpoint)
    save(world, "ckpt.pt", 2)
    world.directory.hold(Hold(held, checkpoint.name, checkpoint.fingerprint))
    assert world.wait(Held).id == held
    assert world.wait(Durable).id == held
    assert world.content_of(held) == data


def test_holding_the_same_id_again_replaces_it(world):
    checkpoint, data = save(world, "step-1.pt")
    world.hold(checkpoint)
    held, _ = world.hold(checkpoint)
    assert world.content_of(held) == data


def test_what_is_released_is_deleted_and_the_original_is_not(world):
    checkpoint, data = save(world, "step-1.pt")
    held, _ = world.hold(checkpoint)
    world.directory.release_hold(held)
    eventually(lambda: not list((world.path / ".spotd-hold").iterdir()))
    assert world.directory.source_of(held) is None
    assert (world.path / "step-1.pt").read_bytes() == data


def test_releasing_what_is_not_held_is_no_trouble(world):
    world.directory.release_hold("00000009-never.pt")
    assert world.inspect().held == ()


# --- a daemon that was killed --------------------------------------------------------------


def test_the_next_daemon_finds_what_is_held(tmp_path):
    with a_world(tmp_path / "c") as world:
        world.inspect()
        world.directory.expect(4711)
        second, _ = save(world, "step-2.pt")
        copied, _ = save(world, "ckpt.pt", 3)
        world.hold(second, 2)
        world.hold(copied, 3)
    for path in ("step-2.pt", "ckpt.pt"):
        (tmp_path / "c" / path).unlink()
    with a_world(tmp_path / "c") as world:
        inventory = world.inspect(contents=True)
        found = {held.id: held.checkpoint for held in inventory.held}
        assert set(found) == {"00000002-step-2.pt", "00000003-ckpt.pt"}
        assert found["00000002-step-2.pt"].fingerprint == second.fingerprint
        assert found["00000003-ckpt.pt"].fingerprint == copied.fingerprint
        assert found["00000003-ckpt.pt"].step == 4711
        assert world.content_of("00000003-ckpt.pt") == content(3)


def test_a_hold_whose_content_a_power_cut_damaged_is_not_found_by_a_later_look_either(tmp_path):
    with a_world(tmp_path / "c") as world:
        world.inspect()
        checkpoint, _ = save(world, "step-2.pt")
        world.hold(checkpoint, 2)
    linked = tmp_path / "c" / "step-2.pt"
    before = linked.stat()
    damaged = linked.read_bytes().replace(bytes(100), b"x" + bytes(99), 1)
    linked.write_bytes(damaged)
    os.utime(linked, ns=(before.st_atime_ns, before.st_mtime_ns))
    with a_world(tmp_path / "c") as world:
        assert world.inspect(contents=True).held == ()
        assert world.inspect().held == ()
    with a_world(tmp_path / "c") as world:
        assert world.inspect().held == ()
    left = [p for p in (tmp_path / "c" / ".spotd-aside").rglob("step-2.pt*") if p.is_file()]
    assert linked.exists() or left, "damaged, and not deleted"


@pytest.mark.parametrize("leftover", ["empty", "torn", "unfinished", "trash"])
def test_leftovers_of_a_killed_daemon_are_removed(tmp_path, leftover):
    slot = tmp_path / "c" / ".spotd-hold"
    slot /= {"unfinished": ".new-0a0b0c0d-1", "trash": ".trash-0a0b0c0d-2"}.get(
        leftover, "00000001-step-1.pt"
    )
    slot.mkdir(parents=True)
    if leftover != "empty":
        (slot / "step-1.pt").write_bytes(content()[:500])
    with a_world(tmp_path / "c") as world:
        assert world.inspect().held == ()
        eventually(lambda: not slot.exists())


def test_a_hold_without_its_note_is_taken_if_its_content_is_whole(tmp_path):
    slot = tmp_path / "c" / ".spotd-hold" / "00000001-step-1.pt"
    slot.mkdir(parents=True)
    (slot / "step-1.pt").write_bytes(content())
    with a_world(tmp_path / "c") as world:
        [held] = world.inspect().held
        assert (held.id, held.checkpoint.step) == ("00000001-step-1.pt", 1)


def test_a_held_link_that_was_written_over_is_not_what_its_id_means(tmp_path):
    with a_world(tmp_path / "c") as world:
        world.inspect()
        world.hold(save(world, "step-1.pt", 1)[0])
    (tmp_path / "c" / "step-1.pt").write_bytes(content(2, 9000))
    with a_world(tmp_path / "c") as world:
        inventory = world.inspect()
        assert inventory.held == ()
        assert world.names(inventory) == {"step-1.pt"}


def test_a_held_content_without_another_name_is_moved_and_not_deleted(tmp_path):
    with a_world(tmp_path / "c") as world:
        world.inspect()
        world.hold(save(world, "step-1.pt", 1)[0])
    (tmp_path / "c" / "step-1.pt").write_bytes(content(2, 9000))
    (tmp_path / "c" / "step-1.pt").unlink()
    with a_world(tmp_path / "c") as world:
        assert world.inspect().held == ()
    assert (tmp_path / "c" / ".spotd-aside" / "step-1.pt").read_bytes() == content(2, 9000)


@pytest.mark.parametrize(
    "note",
    [b"", b"[]", b"{", b'{"id": 5}', (b'{"id":"x","name":"../../etc/passwd","kind":"file",'
     b'"mode":"link","original":"","held":""}')],
)  # fmt: skip
def test_a_hostile_note_is_not_believed(tmp_path, note):
    slot = tmp_path / "c" / ".spotd-hold" / "00000001-step-1.pt"
    slot.mkdir(parents=True)
    (slot / "step-1.pt").write_bytes(content())
    (slot / ".hold.json").write_bytes(note)
    with a_world(tmp_path / "c") as world:
        assert [held.id for held in world.inspect().held] == ["00000001-step-1.pt"]


# --- putting back --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["step-1.pt", "ckpt.pt"])
def test_what_was_deleted_is_put_back_and_stays_held(world, name):
    checkpoint, data = save(world, name)
    held, _ = world.hold(checkpoint)
    (world.path / name).unlink()
    world.wait(CheckpointVanished)
    world.directory.reinstate(held)
    back = world.wait(Reinstated).checkpoint
    assert (world.path / name).read_bytes() == data
    assert (back.name, back.mtime_ns) == (name, checkpoint.mtime_ns)
    assert world.content_of(held) == data
    seen_after = world.inspect().checkpoints
    assert [c.fingerprint for c in seen_after] == [back.fingerprint]
    assert [e for e in world.posted if isinstance(e, CheckpointSeen)][1:] == []


def test_a_directory_is_put_back(world):
    held, _ = world.hold(save_directory(world, "checkpoint-5"))
    shutil.rmtree(world.path / "checkpoint-5")
    world.directory.reinstate(held)
    assert world.wait(Reinstated).checkpoint.step == 5
    assert (world.path / "checkpoint-5" / "inner" / "b.pt").read_bytes() == content(1)


def test_what_is_torn_in_its_place_is_set_aside_and_not_deleted(world):
    checkpoint, data = save(world, "ckpt.pt")
    held, _ = world.hold(checkpoint)
    os.truncate(world.path / "ckpt.pt", 100)
    world.directory.reinstate(held)
    world.wait(Reinstated)
    assert (world.path / "ckpt.pt").read_bytes() == data
    assert (world.path / ".spotd-aside" / "ckpt.pt").read_bytes() == data[:100]


def test_what_stands_in_its_place_already_is_left_there(world):
    checkpoint, _ = save(world, "step-1.pt")
    held, _ = world.hold(checkpoint)
    world.directory.reinstate(held)
    assert world.wait(Reinstated).checkpoint.fingerprint == checkpoint.fingerprint
    assert not (world.path / ".spotd-aside").exists()


def test_without_room_for_two_the_held_copy_itself_is_put_back(world, monkeypatch):
    checkpoint, data = save(world, "ckpt.pt")
    monkeypatch.setattr(holds, "can_reflink", lambda *_: False)
    held, _ = world.hold(checkpoint)
    monkeypatch.setattr(holds, "free_bytes", lambda _: 0)
    (world.path / "ckpt.pt").unlink()
    world.directory.reinstate(held)
    back = world.wait(Reinstated).checkpoint
    assert (world.path / "ckpt.pt").read_bytes() == data
    assert world.directory.source_of(held) == (str(world.path), "ckpt.pt", "file", back.fingerprint)


def test_a_held_checkpoint_that_is_torn_itself_is_not_put_back_for_good(world):
    checkpoint, _ = save(world, "step-1.pt")
    held, _ = world.hold(checkpoint)
    source = world.directory.source_of(held)
    os.truncate(Path(source.root, source.name), 100)
    world.directory.reinstate(held)
    assert world.wait(ReinstateFailed).id == held


def test_what_is_not_held_cannot_be_put_back(world):
    world.directory.reinstate("00000001-never.pt")
    assert world.wait(ReinstateFailed).reason == "it is not held"


# --- aside and deletion --------------------------------------------------------------------


def test_torn_ones_are_set_aside_with_the_reason_and_nothing_is_ever_overwritten(world):
    for seed in (1, 2, 3):
        (world.path / "step-1.pt").write_bytes(content(seed)[:99])
        world.directory.set_aside(SetAside("step-1.pt", "its end record is missing"))
        world.wait(SetAsideDone)
    aside = world.path / ".spotd-aside"
    kept = {p.read_bytes() for p in aside.iterdir() if not p.name.endswith(".why.json")}
    assert kept == {content(seed)[:99] for seed in (1, 2, 3)}
    note = json.loads((aside / "step-1.pt.why.json").read_text())
    assert (note["name"], note["reason"]) == ("step-1.pt", "its end record is missing")


def test_the_last_one_set_aside_is_brought_back(world):
    for seed in (1, 2):
        _, data = save(world, "step-1.pt", seed)
        world.directory.set_aside(SetAside("step-1.pt", "test"))
        assert world.wait(SetAsideDone).to.startswith(".spotd-aside/step-1.pt")
    world.directory.bring_back("step-1.pt")
    world.seen("step-1.pt")
    assert (world.path / "step-1.pt").read_bytes() == data


def test_nothing_is_brought_back_over_something_else(world):
    save(world, "step-1.pt", 1)
    world.directory.set_aside(SetAside("step-1.pt", "test"))
    world.wait(SetAsideDone)
    _, data = save(world, "step-1.pt", 2)
    world.directory.bring_back("step-1.pt")
    world.inspect()
    assert (world.path / "step-1.pt").read_bytes() == data


def test_a_torn_directory_is_set_aside_whole(world):
    (world.path / "step-5").mkdir()
    (world.path / "step-5" / "__0_0.distcp").write_bytes(b"half")
    assert world.inspect().torn == (("step-5", ".metadata is missing"),)
    world.directory.set_aside(SetAside("step-5", ".metadata is missing"))
    assert world.wait(SetAsideDone).to == ".spotd-aside/step-5"
    assert world.inspect().torn == ()


def test_deleting_deletes_what_was_meant(world):
    checkpoint = save_directory(world, "checkpoint-5")
    world.directory.delete_local("checkpoint-5", checkpoint.fingerprint)
    assert world.wait(CheckpointVanished).name == "checkpoint-5"
    eventually(lambda: not list((world.path / ".spotd-hold").iterdir()))


def test_deleting_leaves_what_the_trainer_has_saved_meanwhile(world):
    checkpoint, _ = save(world, "step-1.pt", 1)
    _, data = save(world, "step-1.pt", 2)
    world.directory.delete_local("step-1.pt", checkpoint.fingerprint)
    world.inspect()
    assert (world.path / "step-1.pt").read_bytes() == data
