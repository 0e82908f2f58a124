"""At a notice a checkpoint goes up while the trainer writes it, or nothing of it is there."""

from __future__ import annotations

import os
import signal
import sys
from urllib.parse import urlsplit

import pytest

# Saves at the stop signal, 24 MiB at a time, each when it is let.
TRAINER = """
import os, pathlib, signal, sys, time, zipfile
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
d, work = pathlib.Path(os.environ["SPOTD_CHECKPOINT_DIR"]), pathlib.Path.cwd()
(work / "pid").write_text(str(os.getpid()))
while not asked:
    time.sleep(0.005)
name, temporary = "step-7.pt", ".tmp-step-7.pt-" + str(os.getpid())
with (d / temporary).open("wb") as out, zipfile.ZipFile(out, "w") as z:
    z.writestr("archive/data.pkl", b"x")
    with z.open("archive/data/0", "w", force_zip64=True) as f:
        for part in range(2):
            f.write(os.urandom(24 << 20))
            out.flush()
            while not (work / f"go-on-{part}").exists():
                time.sleep(0.005)
    z.writestr("archive/version", "3")
(d / temporary).rename(d / name)
"""


@pytest.fixture
def saving(build, imds, bucket):
    """A machine whose trainer is in the middle of a save, of which something has gone up."""
    machine = build(command=[sys.executable, "-S", "-c", TRAINER], s3=True)
    machine.boot()
    machine.wait((machine.work / "pid").exists, "a trainer")
    machine.wait_for_state("running")
    imds.give_notice("stop", in_seconds=120)

    def sent():
        return [
            part["Size"]
            for each in multiparts(machine, bucket)
            for part in bucket.list_parts(
                Bucket=each["Bucket"], Key=each["Key"], UploadId=each["UploadId"]
            ).get("Parts", ())
        ]

    machine.wait(sent, "a part in the store while the file is being written")
    assert objects(machine, bucket) == []
    return machine


def place(machine):
    url = urlsplit(machine.store_url)
    return url.netloc, f"{url.path.lstrip('/')}/{machine.run}/checkpoints/"


def multiparts(machine, bucket):
    name, prefix = place(machine)
    page = bucket.list_multipart_uploads(Bucket=name, Prefix=prefix)
    return [{**each, "Bucket": name} for each in page.get("Uploads", ())]


def objects(machine, bucket):
    name, prefix = place(machine)
    page = bucket.list_objects_v2(Bucket=name, Prefix=prefix)
    return [each["Key"].rpartition("/")[2] for each in page.get("Contents", ())]


def test_only_what_is_missing_is_sent_when_it_is_whole(saving, bucket, tmp_path):
    for part in range(2):
        (saving.work / f"go-on-{part}").touch()
    stored = saving.wait_for_event("checkpoint_stored")
    assert stored["ahead"] >= 16 << 20
    assert stored["message"].endswith("while it was being written)")
    assert sorted(objects(saving, bucket)) == ["MANIFEST.json", "step-7.pt"]
    assert multiparts(saving, bucket) == []
    saving.wait_for_event("drained")
    saving.spotd("restore", "--to", str(tmp_path / "there"), check=True)
    assert (tmp_path / "there" / "step-7.pt").read_bytes() == (
        saving.checkpoints / "step-7.pt"
    ).read_bytes()


def test_of_a_trainer_killed_in_mid_save_nothing_is_there(saving, bucket):
    os.kill(int((saving.work / "pid").read_text()), signal.SIGKILL)
    saving.wait_for_event("drained")
    assert objects(saving, bucket) == []
    saving.wait(lambda: not multiparts(saving, bucket), "no multipart upload left")


def test_a_daemon_killed_in_mid_save_stores_it_when_it_is_back(saving, bucket):
    saving.kill_daemon()
    for part in range(2):
        (saving.work / f"go-on-{part}").touch()
    saving.start_daemon()
    saving.wait_for_event("checkpoint_stored")
    assert sorted(objects(saving, bucket)) == ["MANIFEST.json", "step-7.pt"]
    assert multiparts(saving, bucket) == []
