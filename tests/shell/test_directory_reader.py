"""What files say about themselves, believed by nobody: real ones, cut ones and hostile ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import threading
import time
import tracemalloc
import zipfile
import zlib
from collections import OrderedDict
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spotd.core.completeness import Structure
from spotd.shell.directory import dcpmeta
from spotd.shell.directory.reader import read_contents, read_structure

WHOLE, TORN, UNKNOWN = Structure.WHOLE, Structure.TORN, Structure.UNKNOWN
NEVER = threading.Event()
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def read(tmp_path):
    """Writes bytes under a name and reads what they say."""

    @contextmanager
    def opened(data, name):
        path = tmp_path / name
        path.write_bytes(data)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(data, name, *, contents=False):
        with opened(data, name) as descriptor:
            if contents:
                return read_contents(descriptor, name, NEVER)
            return read_structure(descriptor, name)

    return read


def a_zip(records=(("a/data.pkl", b"x" * 300), ("a/data/0", bytes(2000))), method=0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in records:
            archive.writestr(name, data)
    return out.getvalue()


def a_safetensors(length=64, metadata=None) -> bytes:
    header = {"w": {"dtype": "F32", "shape": [length // 4], "data_offsets": [0, length]}}
    if metadata:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(length)


class _StorageInfo:  # pickled by name, as DCP's is
    def __init__(self, relative_path, offset, length):
        self.relative_path, self.offset, self.length = relative_path, offset, length


def a_metadata(entries=(("__0_0.distcp", 0, 100), ("__0_0.distcp", 100, 50)), protocol=4) -> bytes:
    storage = {i: _StorageInfo(*entry) for i, entry in enumerate(entries)}
    return pickle.dumps({"storage_data": storage, "other": OrderedDict(a=1)}, protocol)


# --- zip -----------------------------------------------------------------------------------


def test_a_zip_is_whole(read):
    assert read(a_zip(), "a.pt").structure is WHOLE


def test_every_strict_beginning_of_a_zip_is_torn(read):
    data = a_zip()
    for length in range(len(data)):
        assert read(data[:length], "a.pt").structure is TORN, length


def test_a_zip_with_bytes_behind_its_end_is_torn(read):
    assert read(a_zip() + b"more", "a.pt").structure is TORN


def test_a_zip_with_a_comment_is_whole(read):
    out = io.BytesIO(a_zip())
    with zipfile.ZipFile(out, "a") as archive:
        archive.comment = b"PK\x05\x06 is not the end"
    assert read(out.getvalue(), "a.pt").structure is WHOLE


def test_a_zip_whose_directory_was_lost_to_zeros_is_torn(read):
    data = bytearray(a_zip())
    at = data.index(b"PK\x01\x02")
    data[at : at + 20] = bytes(20)
    assert read(bytes(data), "a.pt").structure is TORN


def wide_zip(*, packed: int, offset: int) -> bytes:
    """One stored record whose sizes and offset stand in the zip64 field, as above 4 GiB."""
    name, data = b"a/data/0", b"y" * 500
    local = struct.pack("<4s2B4HL2L2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0, zlib.crc32(data),
                        500, 500, len(name), 0) + name + data  # fmt: skip
    extra = struct.pack("<2H3Q", 1, 24, 500, packed, offset)
    full = 0xFFFFFFFF
    sizes = (zlib.crc32(data), full, full, len(name), len(extra), 0, 0, 0, 0, full)
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 45, 0, 45, 0, 0, 0, 0, 0, *sizes)
    directory = entry + name + extra
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(directory),
                        len(local))  # fmt: skip
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(local) + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, full, full, 0)
    return local + directory + end64 + locator + end


def test_a_zip64_is_whole_and_its_contents_too(read):
    assert read(wide_zip(packed=500, offset=0), "a.pt").structure is WHOLE
    assert read(wide_zip(packed=500, offset=0), "a.pt", contents=True).structure is WHOLE


def test_a_zip64_that_claims_more_than_there_is_is_torn(read):
    assert read(wide_zip(packed=1 << 40, offset=0), "a.pt").structure is TORN
    assert read(wide_zip(packed=500, offset=1 << 62), "a.pt").structure is TORN


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_contents_of_a_good_zip_are_good_whatever_its_method(read, method):
    assert read(a_zip(method=method), "a.npz", contents=True).structure is WHOLE


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_one_changed_byte_of_a_record_is_found(read, method):
    records = [(f"r{i}", random.Random(i).randbytes(5000)) for i in range(3)]
    data = bytearray(a_zip(records, method))
    data[7000] ^= 0xFF
    assert read(bytes(data), "a.pt").structure is WHOLE
    assert read(bytes(data), "a.pt", contents=True).structure is TORN


def test_a_bomb_is_a_bad_record_and_no_more(read):
    honest = a_zip([("r", bytes(64 << 20)), ("s", b"good" * 50)], zipfile.ZIP_DEFLATED)
    at = honest.index(b"PK\x01\x02")
    liar = bytearray(honest)
    liar[at + 24 : at + 28] = struct.pack("<L", 10)  # says that it holds ten bytes
    tracemalloc.start()
    found = read(bytes(liar), "a.npz", contents=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.structure is TORN
    assert peak < 16 << 20


def test_records_that_lie_over_each_other_are_refused_before_they_are_read(read):
    data = a_zip([("r", bytes(100_000))])
    at = data.index(b"PK\x01\x02")
    entry, end = data[at:-22], bytearray(data[-22:])
    end[8:16] = struct.pack("<2HL", 500, 500, 500 * len(entry))
    found = read(data[:at] + entry * 500 + bytes(end), "a.pt", contents=True)
    assert (found.structure, found.reason) == (TORN, "its records overlap")


# --- other single files --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.pt", "a.ckpt", "a.bin", "a.safetensors", "a.json", ".metadata"]
)
def test_an_empty_file_is_torn(read, name):
    assert read(b"", name).structure is TORN


def test_a_legacy_pickle_is_not_judged(read):
    assert read(pickle.dumps([1, 2, 3]), "a.pt").structure is UNKNOWN


def test_a_checkpoint_of_zeros_never_reached_the_disk(read):
    assert read(bytes(5000), "a.ckpt").structure is TORN


def test_a_safetensors_file_is_whole(read):
    assert read(a_safetensors(), "a.safetensors").structure is WHOLE


def test_every_strict_beginning_of_a_safetensors_file_is_torn(read):
    data = a_safetensors()
    for length in range(len(data)):
        assert read(data[:length], "a.safetensors").structure is TORN, length


def test_text_that_looks_like_offsets_inside_a_name_is_no_offset(read):
    data = a_safetensors(metadata={"note": '"data_offsets":[0,999999]'})
    assert read(data, "a.safetensors").structure is WHOLE


def test_a_preallocated_safetensors_file_without_its_header_is_torn(read):
    assert read(bytes(5000), "a.safetensors").structure is TORN


def test_a_hole_where_tensors_must_be_is_found_when_contents_are_read(tmp_path):
    path = tmp_path / "a.safetensors"
    data = a_safetensors(1 << 20)
    path.write_bytes(data[:4096])
    os.truncate(path, len(data))  # the rest never reached the disk
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if os.lseek(descriptor, 0, os.SEEK_HOLE) >= len(data):
            pytest.skip("this filesystem does not tell holes")
        assert read_structure(descriptor, path.name).structure is WHOLE
        assert read_contents(descriptor, path.name, NEVER).structure is TORN
    finally:
        os.close(descriptor)


def test_an_index_names_the_shards_that_must_be_there(read):
    index = {"metadata": {}, "weight_map": {"a": "m-00001-of-00002.safetensors",
                                            "b": "m-00002-of-00002.safetensors"}}  # fmt: skip
    found = read(json.dumps(index).encode(), "model.safetensors.index.json")
    assert [name for name, _ in found.needs] == [
        "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors",
    ]  # fmt: skip


def test_json_that_is_cut_is_torn(read):
    text = json.dumps({"a": list(range(50))}, indent=2).encode()
    assert read(text, "trainer_state.json").structure is WHOLE
    for length in range(len(text)):
        assert read(text[:length], "trainer_state.json").structure is TORN


def test_a_large_json_is_judged_by_its_end(read):
    text = json.dumps({"log": "x" * (2 << 20)}).encode()
    assert read(text, "trainer_state.json").structure is WHOLE
    assert read(text[:-1], "trainer_state.json").structure is TORN


def test_lines_of_json_under_the_name_of_json_are_no_damage(read):
    assert read(b'{"a": 1}\n{"a": 2}\n', "log.json").structure is WHOLE


def test_deep_json_ends_in_a_verdict_and_not_in_an_overflow(read):
    assert read(b"[" * 500_000, "a.json").structure is TORN


# --- .metadata -----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_metadata_says_how_long_each_shard_must_be(protocol):
    assert dcpmeta.shard_lengths(a_metadata(protocol=protocol)) == {"__0_0.distcp": 150}


def test_metadata_of_torch_itself_is_understood(tmp_path):
    import subprocess
    import sys

    code = (
        "import torch, sys, warnings; warnings.simplefilter('ignore')\n"
        "import torch.distributed.checkpoint as dcp\n"
        "dcp.save({f'l.{i}': torch.ones(100) for i in range(9)}, checkpoint_id=sys.argv[1])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    lengths = dcpmeta.shard_lengths((tmp_path / ".metadata").read_bytes())
    assert lengths == {"__0_0.distcp": (tmp_path / "__0_0.distcp").stat().st_size}


def test_every_strict_beginning_of_metadata_is_torn(read):
    data = a_metadata()
    for length in range(len(data)):
        assert read(data[:length], ".metadata").structure is TORN, length


def test_a_pickle_that_would_run_a_command_runs_nothing(read, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/ran",))

    data = pickle.dumps({"storage_data": Evil()})
    assert read(data, ".metadata").structure is UNKNOWN
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "entry", [("p", -1, 5), ("p", 0, "long"), (7, 0, 5), ("p", 0, 1 << 70), ("p", None, None)]
)
def test_metadata_with_impossible_numbers_is_torn(read, entry):
    assert read(a_metadata((entry,)), ".metadata").structure is TORN


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04" + b"2" * 100 + b".",  # DUP of nothing
        b"\x80\x04]" + b"2\x86" * 200_000 + b".",  # a tuple of tuples, 2 ** 200,000 leaves
        b"\x80\x04" + b"(" * 500_000 + b".",  # marks without end
        b"\x80\x04\x8d" + b"\xff" * 8 + b".",  # a string of 2 ** 64 bytes
        b"\x80\x04\x8b" + struct.pack("<i", -5) + b".",  # a number of -5 bytes
        b"\x80\x04h\x07.",  # something never remembered
        b"I" + b"9" * 100_000 + b"\n.",  # a number of 100,000 digits
        b"cos\nsystem\n(S'true'\ntR.",  # protocol 0
        b"P1\n.",
    ],
    ids=range(9),
)
def test_a_hostile_pickle_ends_in_a_verdict(read, data):
    assert read(data, ".metadata").structure in (TORN, UNKNOWN)


def test_a_pickle_of_endless_opcodes_is_given_up(monkeypatch):
    monkeypatch.setattr(dcpmeta, "MAX_OPCODES", 10_000)
    with pytest.raises(dcpmeta.TooLargeError):
        dcpmeta.shard_lengths(b"\x80\x04" + b"N0" * 20_000 + b"N.")


# --- anything at all -----------------------------------------------------------------------

NAMES = st.sampled_from(
    ["a.pt", "a.ckpt", "a.safetensors", ".metadata", "a.json", "m.index.json", "a.distcp", "a.npz"]
)
SEEDS = [a_zip(), a_zip(method=8), a_safetensors(), a_metadata(), a_metadata(protocol=2),
         wide_zip(packed=500, offset=0), b'{"weight_map": {"a": "x.safetensors"}}']  # fmt: skip


@FUZZ
@given(name=NAMES, data=st.binary(max_size=400))
def test_arbitrary_bytes_end_in_a_verdict(read, name, data):
    for contents in (False, True):
        assert isinstance(read(data, name, contents=contents).structure, Structure)


@FUZZ
@given(name=NAMES, seed=st.sampled_from(SEEDS), rng=st.randoms(use_true_random=False))
def test_damaged_real_files_end_in_a_verdict(read, name, seed, rng):
    data = bytearray(seed)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data))
        data[at : at + rng.randint(0, 8)] = rng.randbytes(rng.randint(0, 8))
        data = data or bytearray(b"x")
    for contents in (False, True):
        assert isinstance(read(bytes(data), name, contents=contents).structure, Structure)


def test_a_file_cut_while_it_is_read_is_torn_and_no_crash(tmp_path):
    """Reader and truncation race; whatever wins, the answer is a verdict."""
    path = tmp_path / "a.pt"
    whole = a_zip([(f"r{i}", bytes(1000)) for i in range(200)])
    stop = threading.Event()

    def cut() -> None:
        while not stop.is_set():
            path.write_bytes(whole)
            os.truncate(path, len(whole) // 2)

    path.write_bytes(whole)
    thread = threading.Thread(target=cut)
    thread.start()
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            descriptor = os.open(path, os.O_RDONLY)
            verdict = read_contents(descriptor, path.name, NEVER)
            os.close(descriptor)
            assert verdict.structure in (WHOLE, TORN)
    finally:
        stop.set()
        thread.join()


def test_sparse_giants_cost_nothing(tmp_path):
    for name in ("a.pt", "a.safetensors", ".metadata", "a.json", "m.index.json"):
        path = tmp_path / name
        with path.open("wb") as stream:
            stream.write(b"PK\x03\x04" if name == "a.pt" else b"{")
            stream.truncate(1 << 40)
        descriptor = os.open(path, os.O_RDONLY)
        tracemalloc.start()
        verdict = read_structure(descriptor, name)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        os.close(descriptor)
        assert verdict.structure in (TORN, UNKNOWN)
        assert peak < 8 << 20
