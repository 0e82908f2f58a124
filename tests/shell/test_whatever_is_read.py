"""Whatever stands in what spotd reads from outside: it is read or refused, and nothing trips.

Configuration, metadata, manifests, the record, datagrams and checkpoints' headers are fuzzed
beside their own tests; here is the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

import pytest
from directory_kit import a_world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spotd.core import ledger, names
from spotd.core.checkpoint import checkpoint_id, name_family, parse_checkpoint_id, step_from_name
from spotd.core.manifest import ManifestError, parse_manifest
from spotd.shell import history
from spotd.shell.control import ControlServer, ask
from spotd.shell.directory.held import from_note, guess, needs_copy, slot_of
from spotd.shell.directory.private import read_note
from spotd.shell.statefile import read_json
from spotd.shell.store.checkpoints import CheckpointStore
from spotd.shell.store.lease import Lease, LeaseKeeper
from spotd.shell.store.protocol import Blob, PreconditionFailed, StoreProblem
from spotd.shell.store.record import UploadRecord
from spotd.shell.trainer import proc
from spotd.shell.trainer.record import Record, RecordStore

FUZZ = settings(
    max_examples=250, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
DEEP = st.sampled_from([b"[" * 3_000, b'{"a":' * 3_000, b"1" * 5_000, b"\xff\xfe{}", b""])
BYTES = st.binary(max_size=200) | JSON.map(lambda x: json.dumps(x).encode()) | DEEP
NAME_BITS = st.sampled_from(
    ["step", "-", "_", "=", ".", "tmp", "0", "00", "9" * 40, ".pt", "rank", "epoch", "ckpt", "~",
     "\n", "\x1b", "é", "\udcff", " ", "checkpoint", ".orbax-checkpoint-tmp", "last", "-of-"]
)  # fmt: skip
NAMES = st.lists(NAME_BITS, min_size=1, max_size=40).map("".join) | st.text(min_size=1, max_size=99)


def in_one_place(good: dict, key: str, value: object) -> bytes:
    return json.dumps({**good, key: value}).encode()


class OneObject:
    """A store in which every object has the same content."""

    location = "memory"

    def __init__(self, data: bytes) -> None:
        self.data = data

    def get(self, key: str, *, limit: int) -> Blob:
        return Blob(self.data[: limit + 1], "etag")

    def put(self, key, data, *, if_none_match=False, if_match=""):
        if if_none_match:
            raise PreconditionFailed(key)
        return "etag2"


# --- the bucket ----------------------------------------------------------------------------

LEASE = {
    "format": 1, "run": "r", "node": 0, "holder": "i-1", "generation": 3,
    "acquired": "2026-01-01T00:00:00Z", "renewed": "2026-01-01T00:00:00Z",
    "expires": "2026-01-01T00:00:00Z",
}  # fmt: skip


def take_lease(data: bytes) -> None:
    try:
        lease = LeaseKeeper(OneObject(data), "r", "i-2").acquire()
    except StoreProblem as problem:  # held, or no lease: it says which
        said = problem.message
    else:
        said = "a lease"
        assert isinstance(lease, Lease)
        assert 0 < lease.generation < 2**60
    assert said


@FUZZ
@given(BYTES)
def test_whatever_lease_json_holds_it_is_a_lease_or_a_problem(data):
    take_lease(data)


@FUZZ
@given(st.sampled_from(sorted(LEASE)), JSON)
def test_whatever_stands_in_one_field_of_a_lease_it_is_a_lease_or_a_problem(key, value):
    take_lease(in_one_place(LEASE, key, value))


@FUZZ
@given(BYTES)
def test_whatever_bytes_a_manifest_has_it_is_refused(data):
    with contextlib.suppress(ManifestError):
        manifest = parse_manifest(data, run="r", checkpoint="00000001-step-1.pt")
        assert manifest.id == "00000001-step-1.pt"


@FUZZ
@given(BYTES | JSON.map(lambda x: in_one_place({"format": 1, "run": "r"}, "run", x)))
def test_only_this_runs_own_completion_is_believed(tmp_path, data):
    said = CheckpointStore(OneObject(data), "r", "i-1", 0, tmp_path).completed()
    if said:
        assert json.loads(data)["run"] == "r"


@FUZZ
@given(BYTES | JSON.map(lambda x: json.dumps({"format": 1, "run": "r", "notices": x}).encode()))
def test_whatever_a_ledger_holds_it_is_read_or_passed_over(data):
    found = ledger.parse(data, "r")
    assert found is None or found.instance_id


# --- spotd's own files ---------------------------------------------------------------------


@FUZZ
@given(BYTES)
def test_whatever_a_state_file_holds_it_is_an_object_or_nothing(tmp_path, data):
    path = tmp_path / "state.json"
    path.write_bytes(data)
    found = read_json(path)
    assert found is None or isinstance(found, dict)


def trainer_record() -> dict:
    return {"format": 1, "pid": 77, "started": 5, "boot_id": proc.boot_id(), "attempt": 1,
            "marker": "m"}  # fmt: skip


def read_trainer_record(place: Path, data: bytes) -> None:
    (place / "trainer.json").write_bytes(data)
    found = RecordStore(place, place / "spare.json").read()
    if found is not None:
        assert isinstance(found, Record)
        for field in ("pid", "started", "attempt"):
            assert type(getattr(found, field)) is int
        for field in ("marker", "unit", "cgroup", "output"):
            assert type(getattr(found, field)) is str
        assert found.pid > 0


@FUZZ
@given(BYTES)
def test_whatever_the_trainers_record_holds_it_names_a_process_or_nothing(tmp_path, data):
    read_trainer_record(tmp_path, data)


@FUZZ
@given(st.sampled_from([*trainer_record(), "unit", "cgroup", "output", "output_from", "x"]), JSON)
def test_whatever_stands_in_one_field_of_the_trainers_record(tmp_path, key, value):
    read_trainer_record(tmp_path, in_one_place(trainer_record(), key, value))


UPLOAD_LINES = [
    {"begin": "a", "upload": "u", "part_size": 5, "stat": [1, 2, 3]},
    {"part": "a", "number": 1, "etag": "e", "size": 5, "crc": 7},
    {"done": "b", "etag": "e", "size": 5, "crc": 7, "stat": [1, 2, 3], "head": None},
    {"forget": "a"},
]


@FUZZ
@given(
    st.lists(
        BYTES
        | st.tuples(st.sampled_from(UPLOAD_LINES), st.sampled_from(
            ["begin", "upload", "part_size", "stat", "part", "number", "etag", "size", "crc",
             "done", "head", "forget"]), JSON
        ).map(lambda x: in_one_place(*x)),
        max_size=5,
    )
)  # fmt: skip
def test_whatever_the_record_of_an_upload_holds_it_is_continued_or_begun_anew(tmp_path, lines):
    folder = tmp_path / "uploads"
    folder.mkdir(exist_ok=True)
    record = UploadRecord(folder, "00000001-a", "s3://b")
    header = {"format": 1, "id": "00000001-a", "location": "s3://b"}
    record.path.write_bytes(b"\n".join([json.dumps(header).encode(), *lines]))
    record = UploadRecord(folder, "00000001-a", "s3://b")
    for begun in record.begun.values():
        assert type(begun.upload) is str
        assert type(begun.part_size) is int
        assert all(type(n) is int and n > 0 for n in begun.parts)
    assert all(type(path) is str for path in (*record.begun, *record.done))


@FUZZ
@given(BYTES)
def test_whatever_a_history_holds_its_whole_lines_are_read(tmp_path, data):
    path = tmp_path / "history.jsonl"
    path.write_bytes(data.replace(b"\n", b"") + b'\n{"time": 1.0, "event": "drained"}\n')
    assert list(history.read(path))[-1]["event"] == "drained"


# --- the checkpoint directory --------------------------------------------------------------


@FUZZ
@given(BYTES)
def test_whatever_a_note_beside_a_hold_says_it_names_nothing_outside(tmp_path, data):
    (tmp_path / "note").write_bytes(data)
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        hold = from_note(read_note(directory, "note"))
    finally:
        os.close(directory)
    assert hold is None or hold.name not in ("", ".", "..")


@FUZZ
@given(JSON, st.sampled_from(["id", "name", "kind", "mode", "original", "held", "step"]))
def test_whatever_stands_in_one_field_of_a_note_it_names_nothing_outside(value, key):
    note = {"id": "00000001-a", "name": "a", "kind": "file", "mode": "link", "original": "o",
            "held": "h", "step": 1, "declared": False, key: value}  # fmt: skip
    hold = from_note(note)
    if hold is not None:
        assert "/" not in hold.name
        assert hold.name not in ("", ".", "..")


@FUZZ
@given(NAMES)
def test_whatever_a_name_is_it_is_understood_at_once_or_not_at_all(name):
    began = time.process_time()
    step = step_from_name(name)
    assert step is None or step >= 0
    for look in (names.is_temporary, names.is_checkpoint_name, names.final_name,
                 names.without_rank, name_family, guess):  # fmt: skip
        look(name)
    needs_copy(name, overwritten=False, counted=False)
    if "/" not in name and "\0" not in name:
        assert parse_checkpoint_id(checkpoint_id(7, name)) == (7, name)
        with contextlib.suppress(UnicodeEncodeError):  # cannot be stored: refused before
            assert len(slot_of(checkpoint_id(7, name)).encode()) <= 255
    assert time.process_time() - began < 5, "a pattern that runs away"


@settings(FUZZ, max_examples=40)
@given(st.dictionaries(NAMES, st.binary(max_size=60), max_size=6))
def test_whatever_stands_in_the_directory_an_inventory_comes(tmp_path_factory, files):
    place = tmp_path_factory.mktemp("directory") / "c"
    place.mkdir()
    for name, data in files.items():
        with contextlib.suppress(OSError, ValueError):  # no name for a file
            Path(os.fsdecode(bytes(place) + b"/" + os.fsencode(name.replace("/", "")))).write_bytes(
                data
            )
    with a_world(place) as world:
        inventory = world.inspect(contents=True)
        told = {c.name for c in inventory.checkpoints} | {n for n, _ in inventory.torn}
        assert told <= {path.name for path in place.iterdir()}


# --- the control socket --------------------------------------------------------------------


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    path = tmp_path_factory.mktemp("control") / "control.sock"
    server = ControlServer(path, status=lambda: {"state": "running"}, post=lambda _: None)
    server.start()
    yield path
    server.close()


@settings(FUZZ, max_examples=60)
@given(BYTES | JSON.map(lambda x: json.dumps({"verb": x}).encode()))
def test_whatever_is_asked_the_next_one_is_answered(control, data):
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(20)
        one.connect(str(control))
        with contextlib.suppress(OSError):  # it hangs up on who says too much
            one.sendall(data + b"\n")
            one.recv(65536)
    assert next(ask(control, "status", timeout=20))["data"]["state"] == "running"
