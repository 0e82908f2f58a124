"""Putting aside what the trainer must not see, on a disk that has no room left."""

from __future__ import annotations

import errno
import json
import os

import pytest

from spotd.shell.directory import private
from spotd.shell.directory.aside import bring_back, set_aside


@pytest.fixture
def root(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def full_disk(monkeypatch):
    """Names can be moved, bytes cannot be written."""

    def write(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(private.os, "write", write)


def test_a_full_disk_keeps_nothing_from_going_aside_and_leaves_no_rubbish(
    root, tmp_path, full_disk
):
    (tmp_path / "step-3.pt").write_bytes(b"torn")
    assert set_aside(root, "step-3.pt", "torn") == ".spotd-aside/step-3.pt"
    assert [entry.name for entry in (tmp_path / ".spotd-aside").iterdir()] == ["step-3.pt"]


def test_what_went_aside_without_a_note_can_be_brought_back(root, tmp_path, full_disk):
    (tmp_path / "step-3.pt").write_bytes(b"content")
    set_aside(root, "step-3.pt", "the trainer crashed from it")
    assert bring_back(root, "step-3.pt")
    assert (tmp_path / "step-3.pt").read_bytes() == b"content"


def test_of_two_of_one_name_the_one_with_the_newest_note_comes_back(root, tmp_path):
    for content in (b"first", b"second"):
        (tmp_path / "step-3.pt").write_bytes(content)
        set_aside(root, "step-3.pt", "torn")
    assert bring_back(root, "step-3.pt")
    assert (tmp_path / "step-3.pt").read_bytes() == b"second"
    note = json.loads((tmp_path / ".spotd-aside" / "step-3.pt.why.json").read_bytes())
    assert note["name"] == "step-3.pt"
