"""The trainer's user can put anything there and swap anything at any time."""

from __future__ import annotations

import contextlib
import fcntl
import io
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from directory_kit import a_world, eventually

from spotd.core.actions import Hold, SetAside
from spotd.core.events import DirectoryTrouble, HoldFailed, SetAsideDone
from spotd.shell.directory import tree, writers
from spotd.shell.directory.fingerprint import fingerprint
from spotd.shell.directory.tree import SwappedError, opened_directory, opened_file
from spotd.shell.owner import Owner

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files of another user")


def a_checkpoint(size=1000) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", os.urandom(size))
    return out.getvalue()


@pytest.fixture
def world(tmp_path):
    with a_world(tmp_path / "checkpoints") as world:
        world.inspect()
        yield world


@pytest.fixture
def root(tmp_path):
    descriptor = os.open(tmp_path, tree.DIRECTORY_FLAGS)
    yield descriptor
    os.close(descriptor)


# --- what may stand there ------------------------------------------------------------------


def test_a_link_to_a_secret_is_no_checkpoint_and_is_not_followed(world):
    (world.path / "step-9.pt").symlink_to("/etc/shadow")
    (world.path / "step-8").symlink_to("/etc")
    inventory = world.inspect()
    assert (inventory.checkpoints, inventory.torn) == ((), ())


def test_a_link_inside_a_directory_makes_it_no_checkpoint(world):
    target = world.path / "step-9"
    target.mkdir()
    (target / "model.pt").write_bytes(a_checkpoint())
    (target / "secret.pt").symlink_to("/etc/shadow")
    inventory = world.inspect()
    assert (inventory.checkpoints, inventory.torn) == ((), ())


def test_fifos_and_sockets_neither_block_nor_count(world):
    os.mkfifo(world.path / "step-1.pt")
    (world.path / "step-2").mkdir()
    os.mkfifo(world.path / "step-2" / "model.pt")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(world.path, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/step-3.pt")
        os.close(here)
        (world.path / "step-4.pt").write_bytes(a_checkpoint())
        assert world.names(world.inspect()) == {"step-4.pt"}


@pytest.mark.parametrize(
    "name", ["a\nb-1.pt", "модель-7.pt", "x" * 240 + "-1.pt", "-rf 1.pt", "$(id)1.pt"]
)
def test_strange_names_are_names(world, name):
    (world.path / name).write_bytes(a_checkpoint())
    [checkpoint] = world.inspect().checkpoints
    assert checkpoint.name == name
    held, _ = world.hold(checkpoint)
    assert world.content_of(held) == (world.path / name).read_bytes()


def test_a_name_that_is_not_utf8_can_be_neither_recorded_nor_stored(world):
    (Path(os.fsdecode(os.fsencode(world.path) + b"/step-\xff1.pt"))).write_bytes(a_checkpoint())
    assert world.inspect().checkpoints == ()


def test_a_deep_tree_ends_somewhere(world):
    inner = world.path / "step-1"
    for _ in range(60):
        inner /= "d"
    inner.mkdir(parents=True)
    (inner / "model.pt").write_bytes(a_checkpoint())
    assert world.inspect().checkpoints == ()


def test_too_many_files_are_no_checkpoint(world, monkeypatch):
    monkeypatch.setattr(tree, "MAX_FILES", 50)
    (world.path / "step-1").mkdir()
    for number in range(60):
        (world.path / "step-1" / f"{number}.pt").write_bytes(a_checkpoint(10))
    assert world.inspect().checkpoints == ()


@needs_root
def test_a_second_name_of_another_users_file_is_not_taken(tmp_path):
    secret = tmp_path / "secret.pt"
    secret.write_bytes(a_checkpoint())
    os.chown(secret, 0, 0)
    place = tmp_path / "checkpoints"
    place.mkdir()
    os.chown(place, 4711, 4711)
    os.link(secret, place / "step-1.pt")
    os.chown(secret, 4712, 4712)
    with a_world(place, owner=Owner(4711, 4711)) as world:
        assert world.inspect().checkpoints == ()


def test_files_named_like_spotds_own_are_left_alone(world):
    (world.path / ".spotd-hold").write_text("mine")
    (world.path / "step-1.pt").write_bytes(a_checkpoint())
    [checkpoint] = world.inspect().checkpoints
    world.directory.hold(Hold("00000001-step-1.pt", "step-1.pt", checkpoint.fingerprint))
    # A hold is not possible then, and saying "none" or failing are both honest.
    eventually(lambda: world.directory.source_of("00000001-step-1.pt") is not None)
    assert world.directory.source_of("00000001-step-1.pt").root == str(world.path)
    assert (world.path / ".spotd-hold").read_text() == "mine"


def test_a_hold_directory_that_is_a_link_is_not_followed(world, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (world.path / ".spotd-hold").symlink_to(elsewhere)
    (world.path / ".spotd-aside").symlink_to(elsewhere)
    (world.path / "step-1.pt").write_bytes(a_checkpoint())
    [checkpoint] = world.inspect().checkpoints
    world.directory.hold(Hold("00000001-step-1.pt", "step-1.pt", checkpoint.fingerprint))
    eventually(lambda: world.directory.source_of("00000001-step-1.pt") is not None)
    world.directory.set_aside(SetAside("step-1.pt", "test"))
    world.wait(DirectoryTrouble)
    assert list(elsewhere.iterdir()) == []
    assert (world.path / "step-1.pt").exists()


def test_a_content_swapped_after_it_was_judged_is_not_held(world):
    path = world.path / "step-1.pt"
    path.write_bytes(a_checkpoint())
    [checkpoint] = world.inspect().checkpoints
    path.unlink()
    path.write_bytes(b"something else")
    world.directory.hold(Hold("00000001-step-1.pt", "step-1.pt", checkpoint.fingerprint))
    assert world.wait(HoldFailed).id == "00000001-step-1.pt"
    assert world.directory.source_of("00000001-step-1.pt") is None


def test_everything_swapped_all_the_time_crashes_nothing(world, tmp_path):
    """A user who renames files, links and directories over each other while we look and hold."""
    stop = threading.Event()
    good = a_checkpoint()

    def swap() -> None:
        target, count = world.path / "step-1.pt", 0
        while not stop.is_set():
            count += 1
            other = tmp_path / f"other-{count}"
            with contextlib.suppress(OSError):
                if count % 4 == 0:
                    other.write_bytes(good)
                elif count % 4 == 1:
                    other.symlink_to("/etc/shadow")
                elif count % 4 == 2:
                    other.mkdir()
                else:
                    os.mkfifo(other)
                if target.is_dir() and not target.is_symlink():
                    target.rmdir()
                else:
                    target.unlink(missing_ok=True)
                other.rename(target)

    thread = threading.Thread(target=swap)
    thread.start()
    end = time.monotonic() + 1.0
    sequence = 0
    while time.monotonic() < end:
        inventory = world.inspect(settled=False)
        for checkpoint in inventory.checkpoints:
            sequence += 1
            held = f"{sequence:08d}-step-1.pt"
            world.directory.hold(Hold(held, "step-1.pt", checkpoint.fingerprint))
    stop.set()
    thread.join()
    world.inspect()
    hold = world.path / ".spotd-hold"
    for slot in hold.iterdir() if hold.exists() else ():
        content = slot / "step-1.pt"
        assert not content.is_symlink()
        assert content.read_bytes() == good


# --- opening -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["..", "../x", "a/../../x", "/etc"])
def test_a_path_that_climbs_is_not_opened(root, path):
    with pytest.raises((SwappedError, OSError)), opened_directory(root, path) as descriptor:
        assert os.fstat(descriptor).st_ino == os.fstat(root).st_ino


def test_a_directory_swapped_for_a_link_is_not_entered(root, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("/etc")
    with pytest.raises(OSError, match="b"), opened_file(root, "b", "passwd"):
        pass


def test_a_hostile_lease_does_not_block_us(root, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(a_checkpoint())
    code = (
        "import fcntl, os, sys, signal\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "f = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
        "print('leased', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"leased\n"
        with pytest.raises(BlockingIOError), opened_file(root, "a.pt"):
            pass
        process.stdin.close()


def test_a_fingerprint_changes_with_every_file_and_not_with_a_link_to_it(root, tmp_path):
    target = tmp_path / "step-1"
    (target / "inner").mkdir(parents=True)
    (target / "inner" / "a.pt").write_bytes(b"12")
    seen = {fingerprint(root, "step-1")}
    os.link(target / "inner" / "a.pt", tmp_path / "hold.pt")
    assert fingerprint(root, "step-1") in seen
    for change in (
        lambda: (target / "b.pt").write_bytes(b""),
        lambda: (target / "b.pt").rename(target / "c.pt"),
        lambda: (target / "inner" / "a.pt").write_bytes(b"123"),
        lambda: os.utime(target / "inner" / "a.pt", ns=(1, 1)),
        (target / "c.pt").unlink,
    ):
        change()
        now = fingerprint(root, "step-1")
        assert now not in seen
        seen.add(now)


# --- who writes ----------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(bytes(8192))
    descriptor = os.open(path, os.O_RDONLY)
    yield path, descriptor
    os.close(descriptor)


def test_a_file_nobody_writes_is_free(target):
    assert writers.try_lease(target[1]) is False


def test_a_file_open_for_writing_is_not(target):
    with target[0].open("r+b"):
        assert writers.try_lease(target[1]) is True
    assert writers.try_lease(target[1]) is False


def test_a_writer_through_a_mapping_is_seen_after_it_closed_its_descriptor(target):
    with target[0].open("r+b") as stream:
        mapping = mmap.mmap(stream.fileno(), 0)
    assert writers.try_lease(target[1]) is True
    mapping.close()
    assert writers.try_lease(target[1]) is False


def test_a_reader_is_no_writer(target):
    with target[0].open("rb"):
        assert writers.try_lease(target[1]) is False


def test_the_lease_is_given_back(target):
    writers.try_lease(target[1])
    assert fcntl.fcntl(target[1], fcntl.F_GETLEASE) == fcntl.F_UNLCK


def test_a_writer_that_comes_while_we_ask_does_not_end_the_daemon(target):
    """The kernel signals whoever holds the lease that a writer wants; SIGIO would kill it."""
    code = (
        "import os, sys\n"
        "from spotd.shell.directory.writers import try_lease\n"
        "asker = os.open(sys.argv[1], os.O_RDONLY)\n"
        "child = os.fork()\n"
        "for _ in range(3000):\n"
        "    if child: try_lease(asker)\n"
        "    else: os.close(os.open(sys.argv[1], os.O_WRONLY))\n"
        "if child: sys.exit(os.waitpid(child, 0)[1])\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target[0])], check=False)
    assert done.returncode == 0


def test_without_leases_the_descriptors_of_all_processes_are_looked_through(target, monkeypatch):
    monkeypatch.setattr(writers, "try_lease", lambda _: None)
    code = "import sys; f = open(sys.argv[1], 'ab'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(target[0])], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"open\n"
        assert writers.Writers().writing(target[1]) is True
        process.stdin.close()
    assert writers.Writers().writing(target[1]) is False


# --- other users ---------------------------------------------------------------------------


@needs_root
def test_the_directory_is_made_for_the_trainers_user(tmp_path):
    with a_world(tmp_path / "checkpoints", owner=Owner(4711, 4712)) as world:
        world.inspect()
        status = world.path.stat()
        assert (status.st_uid, status.st_gid) == (4711, 4712)


@needs_root
def test_copies_and_links_keep_their_owner_and_modes(tmp_path):
    place = tmp_path / "checkpoints"
    (place / "step").mkdir(parents=True)
    (place / "step" / "a.pt").write_bytes(a_checkpoint())
    for path in (place, place / "step", place / "step" / "a.pt"):
        os.chown(path, 4711, 4712)
    (place / "step" / "a.pt").chmod(0o640)
    os.utime(place / "step", ns=(10**18, 10**18))
    with a_world(place, owner=Owner(4711, 4712)) as world:
        [checkpoint] = world.inspect().checkpoints
        held, mode = world.hold(checkpoint)
        assert mode in ("copy", "reflink")
        source = world.directory.source_of(held)
        for path in (Path(source.root, "step"), Path(source.root, "step", "a.pt")):
            assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)
        assert Path(source.root, "step", "a.pt").stat().st_mode & 0o777 == 0o640
        assert Path(source.root, "step").stat().st_mtime_ns == 10**18
        assert (place / ".spotd-hold").stat().st_uid == 0


@needs_root
def test_a_directory_the_trainer_cannot_write_is_said_plainly(tmp_path):
    place = tmp_path / "checkpoints"
    place.mkdir(mode=0o755)
    with a_world(place, owner=Owner(4711, 4712)) as world:
        trouble = world.wait(DirectoryTrouble)
        assert "cannot be written" in trouble.reason
        assert trouble.hint == f"chown 4711 {place}"


def test_thousands_of_files_that_are_no_checkpoints_are_not_even_remembered(world):
    for number in range(3000):
        (world.path / f"line-{number}.log").touch()
    assert world.inspect().checkpoints == ()
    assert not world.directory._candidates.pending
    assert not world.directory._candidates._dismissed


def test_set_aside_of_what_is_gone_is_done(world):
    world.directory.set_aside(SetAside("never-was", "test"))
    assert world.wait(SetAsideDone).to == ""
