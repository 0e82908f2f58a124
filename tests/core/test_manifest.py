"""Manifests come from a bucket that others can write to: nothing in them is believed unread."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotd.core.manifest import (
    Manifest,
    ManifestDirectory,
    ManifestError,
    ManifestFile,
    parse_manifest,
    render_manifest,
)

CHECKSUM = "crc64nvme:rosUhgp5mIg="


def good(kind="directory", **changes):
    document = {
        "format": 1,
        "run": "r",
        "id": "00000003-step-7",
        "sequence": 3,
        "generation": 2,
        "name": "step-7",
        "node": 0,
        "kind": kind,
        "step": 7,
        "created": "2026-11-21T08:22:00Z",
        "instance_id": "i-1",
        "size": 30,
        "files": [
            {"path": "a", "size": 10, "mode": 0o644, "mtime_ns": 5, "checksum": CHECKSUM},
            {"path": "d/b", "size": 20, "mode": 0o600, "mtime_ns": 9, "checksum": CHECKSUM},
        ],
    }
    return document | changes


def parse(document):
    return parse_manifest(json.dumps(document).encode(), run="r", checkpoint="00000003-step-7")


def with_path(path, **changes):
    document = good()
    document["files"][0] |= {"path": path, **changes}
    return document


def test_a_good_manifest_says_what_the_core_needs_to_know():
    stored = parse(good()).stored()
    assert (stored.id, stored.sequence, stored.generation) == ("00000003-step-7", 3, 2)
    assert (stored.size, stored.step, stored.mtime_ns) == (30, 7, 9)
    assert stored.created == 1795249320.0


def test_what_was_rendered_is_parsed_back_the_same():
    manifest = Manifest(
        run="r",
        id="00000003-Schritt ä",
        sequence=3,
        generation=1,
        name="Schritt ä",
        kind="directory",
        step=None,
        created=1795249320.125,
        instance_id="i-1",
        size=10,
        files=(ManifestFile("d/ü", 10, 0o640, 123456789, CHECKSUM),),
        directories=(ManifestDirectory(".", 0o755, 1), ManifestDirectory("d", 0o700, 2)),
    )
    data = render_manifest(manifest)
    assert parse_manifest(data, run="r", checkpoint=manifest.id) == manifest


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/./b",
        "..",
        ".",
        "",
        "a//b",
        "a/",
        "x\0y",
        "\ud800",
        "n" * 256,
        "/".join(["d" * 200] * 6),
        None,
        7,
        ["a"],
        "MANIFEST.json",
    ],
)
def test_a_path_that_leads_out_or_cannot_be_is_refused(path):
    with pytest.raises(ManifestError):
        parse(with_path(path))


def test_a_path_twice_is_refused():
    with pytest.raises(ManifestError):
        parse(with_path("d/b"))


def test_a_file_that_is_a_directory_too_is_refused():
    with pytest.raises(ManifestError):
        parse(with_path("d"))
    with pytest.raises(ManifestError):
        parse(good(directories=[{"path": "a", "mode": 0o755, "mtime_ns": 0}]))


def test_set_user_id_bits_are_not_handed_out():
    assert parse(with_path("a", mode=0o4755)).files[0].mode == 0o755


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": None},
        {"run": "other"},
        {"id": "00000004-step-7"},
        {"sequence": 4},
        {"name": "step-8"},
        {"kind": "link"},
        {"kind": "file"},
        {"step": -1},
        {"step": True},
        {"step": 1.5},
        {"size": 31},
        {"size": "30"},
        {"node": -1},
        {"generation": 2**60},
        {"created": "yesterday"},
        {"created": "2026-11-21T08:22:00"},
        {"created": 5},
        {"instance_id": None},
        {"instance_id": "i" * 1000},
        {"files": {}},
        {"files": [7]},
        {"files": None},
        {"directories": [{"path": "../..", "mode": 0o755, "mtime_ns": 0}]},
        {"directories": [{"path": "x", "mode": 0o755, "mtime_ns": -1}]},
    ],
)
def test_any_other_lie_is_refused(changes):
    with pytest.raises(ManifestError):
        parse(good() | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": -1},
        {"size": 10**18},
        {"size": 10.0},
        {"mode": -1},
        {"mode": "rw"},
        {"mtime_ns": 2**70},
        {"checksum": "md5"},
        {"checksum": "crc64nvme:" + "A" * 200},
        {"checksum": None},
    ],
)
def test_a_file_out_of_range_is_refused(changes):
    with pytest.raises(ManifestError):
        parse(with_path("a", **changes))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 1' + b"0" * 10_000 + b"}",
        b'{"format": NaN}',
    ],
)
def test_what_is_no_json_object_is_refused_in_words(data):
    with pytest.raises(ManifestError):
        parse_manifest(data, run="r", checkpoint="00000003-step-7")


def test_a_name_of_spotds_own_cannot_be_restored():
    document = good(id="00000003-.spotd-hold", name=".spotd-hold")
    data = json.dumps(document).encode()
    with pytest.raises(ManifestError):
        parse_manifest(data, run="r", checkpoint="00000003-.spotd-hold")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.sampled_from([*good(), "directories"]), json_values)
def test_whatever_stands_in_a_field_it_is_parsed_or_refused(field, value):
    try:
        manifest = parse(good() | {field: value})
    except ManifestError:
        return
    assert manifest.id == "00000003-step-7"
    assert all(".." not in file.path.split("/") for file in manifest.files)
