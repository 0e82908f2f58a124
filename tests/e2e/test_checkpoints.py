from __future__ import annotations

import json
import stat
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from spotd.testing.faults import Fault

if TYPE_CHECKING:
    from machines import Machine


def tear(path: Path) -> None:
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size // 2)


def aside(machine: Machine) -> list[str]:
    return [p.name for p in (machine.checkpoints / ".spotd-aside").rglob("*.pt*")]


def resumed_at(machine: Machine) -> int:
    return machine.wait(machine.steps, "a step")[0]["step"]


def forget_steps(machine: Machine) -> None:
    (machine.work / "steps.jsonl").unlink()


def test_a_torn_newest_checkpoint_is_put_aside_and_comes_back_from_the_store(build):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    machine.saved()
    saved = machine.saved()["step"]
    machine.power_cut()
    forget_steps(machine)
    tear(machine.checkpoints / f"step-{saved}.pt")
    machine.boot()
    assert resumed_at(machine) == saved + 1
    assert any(f"step-{saved}" in name for name in aside(machine))
    assert machine.named("checkpoint_rejected")


def test_a_torn_checkpoint_that_is_not_stored_is_out_of_the_trainers_own_sight(build, network):
    machine = build("--search", s3=True, endpoint_url=network.endpoint_url)
    machine.boot()
    machine.wait_for_steps(3)
    saved = machine.saved()["step"]
    network.set(Fault("drop"))
    machine.pull("save")
    machine.wait(lambda: machine.status()["checkpoint"]["pending"], "a second checkpoint")
    torn = machine.status()["checkpoint"]["newest"]["name"]
    machine.power_cut()
    forget_steps(machine)
    network.set(Fault())
    tear(machine.checkpoints / torn)
    machine.boot()
    assert resumed_at(machine) == saved + 1
    assert any(torn in name for name in aside(machine))


def test_a_file_overwritten_in_place_and_killed_in_mid_save_comes_back_from_the_hold(
    build, network
):
    machine = build(
        "--in-place", "--name", "ckpt.pt", "--silent", s3=True, endpoint_url=network.endpoint_url
    )
    machine.boot()
    machine.wait_for_steps(3)
    machine.saved()
    newest = machine.saved()
    saved = json.loads(zip_member(machine.checkpoints / "ckpt.pt", "archive/data.pkl"))["step"]
    machine.pull("hold-in-save")
    machine.pull("save")
    machine.wait((machine.work / "in-save").exists, "the middle of a save")
    machine.power_cut()
    forget_steps(machine)
    machine.release("hold-in-save")
    network.set(Fault("swallow"))  # the store cannot help
    machine.boot()
    assert resumed_at(machine) == saved + 1
    finished = machine.wait_for_event("restore_finished")
    assert "hold" in finished["message"]
    assert finished["checkpoint"] == newest["id"]


def zip_member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def facts(root: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(p.relative_to(root)): (
            stat.S_IMODE(p.stat().st_mode), p.stat().st_mtime_ns, p.read_bytes(),
        )
        for p in root.rglob("*") if p.is_file()
    }  # fmt: skip


def test_a_lost_disk_comes_back_from_the_store_with_names_modes_and_times(on_both_stores):
    machine = on_both_stores("--as-directory", "--name", "checkpoint-{step}")
    machine.boot()
    machine.wait_for_steps(3)
    machine.saved()
    newest = machine.saved()
    before = facts(machine.checkpoints / newest["name"])
    assert before["rng/state_0"][0] == 0o600
    machine.power_cut()
    machine.lose_disk()
    machine.boot()
    assert resumed_at(machine) == newest["step"] + 1
    assert facts(machine.checkpoints / newest["name"]) == before
    assert machine.status()["checkpoint"]["newest"]["stored"]


def test_a_directory_killed_in_mid_save_is_put_aside(build):
    machine = build("--as-directory", "--name", "checkpoint-{step}")
    machine.boot()
    machine.wait_for_steps(3)
    saved = machine.saved()["step"]
    machine.pull("hold-in-save")
    machine.pull("save")
    machine.wait((machine.work / "in-save").exists, "the middle of a save")
    machine.power_cut()
    forget_steps(machine)
    machine.release("hold-in-save")
    machine.boot()
    assert resumed_at(machine) == saved + 1
    assert list((machine.checkpoints / ".spotd-aside").iterdir())


def test_nothing_is_deleted_from_the_store_because_it_went_from_the_disk(build):
    machine = build(sections={"store": {"keep": 3}})
    machine.boot()
    machine.wait_for_steps(3)
    names = [machine.saved()["name"] for _ in range(3)]
    for name in names:
        (machine.checkpoints / name).unlink()
    machine.saved()
    listed = json.loads(machine.spotd("checkpoints", "--json", check=True).stdout)
    stored = [c["name"] for c in listed["checkpoints"] if c["stored"]]
    assert stored[-3:-1] == names[1:]


def test_what_is_superfluous_goes_from_disk_and_store_and_the_newest_stays(build):
    machine = build(sections={"store": {"keep": 2}, "checkpoints": {"keep_local": 1}})
    machine.boot()
    machine.wait_for_steps(3)
    names = [machine.saved()["name"] for _ in range(4)]

    def trimmed():
        found = json.loads(machine.spotd("checkpoints", "--json").stdout)["checkpoints"]
        on_disk = [c["name"] for c in found if c["on_disk"]]
        stored = [c["name"] for c in found if c["stored"]]
        return on_disk == names[-1:] and stored == names[-2:]

    machine.wait(trimmed, "one on the disk, two in the store")


def spoil(machine: Machine, key: str, change) -> None:
    """Changes an object in the store behind spotd's back."""
    path = Path(machine.store_url.removeprefix("file://")) / machine.run / key
    path.write_bytes(change(path.read_bytes()))


def flip(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


def test_a_damaged_checkpoint_in_the_store_is_passed_over_for_the_one_before(build):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    older = machine.saved()
    newer = machine.saved()
    machine.power_cut()
    machine.lose_disk()
    spoil(machine, f"checkpoints/{newer['id']}/{newer['name']}", flip)
    machine.boot()
    assert resumed_at(machine) == older["step"] + 1
    rejected = machine.named("checkpoint_rejected")
    assert [e["checkpoint"] for e in rejected] == [newer["id"]]
    assert "damaged" in rejected[0]["message"]


def test_a_damaged_object_in_s3_is_passed_over_for_the_one_before(build, bucket):
    machine = build(s3=True)
    machine.boot()
    machine.wait_for_steps(3)
    older = machine.saved()
    newer = machine.saved()
    machine.power_cut()
    machine.lose_disk()
    prefix = machine.store_url.removeprefix("s3://spotd-test/")
    key = f"{prefix}/{machine.run}/checkpoints/{newer['id']}/{newer['name']}"
    body = bucket.get_object(Bucket="spotd-test", Key=key)["Body"].read()
    bucket.put_object(Bucket="spotd-test", Key=key, Body=flip(body))
    machine.boot()
    assert resumed_at(machine) == older["step"] + 1


def test_a_hostile_manifest_is_refused_and_nothing_is_written_where_it_points(build):
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    older = machine.saved()
    newer = machine.saved()
    machine.power_cut()
    machine.lose_disk()

    def climb(data: bytes) -> bytes:
        manifest = json.loads(data)
        manifest["name"] = "../../evil"
        return json.dumps(manifest).encode()

    spoil(machine, f"checkpoints/{newer['id']}/MANIFEST.json", climb)
    machine.boot()
    assert resumed_at(machine) == older["step"] + 1
    assert not list(machine.directory.rglob("*evil*"))


def test_a_link_in_the_checkpoint_directory_is_never_followed(build, tmp_path):
    secret = tmp_path / "secret.pt"
    machine = build()
    machine.boot()
    machine.wait_for_steps(3)
    secret.write_bytes((machine.checkpoints / machine.saved()["name"]).read_bytes() + b"secret")
    (machine.checkpoints / "step-999999.pt").symlink_to(secret)
    (machine.checkpoints / "step-99999").mkdir()
    (machine.checkpoints / "step-99999" / "trainer_state.json").symlink_to(secret)
    machine.saved()
    machine.saved()
    stored = Path(machine.store_url.removeprefix("file://"))
    assert not [p for p in stored.rglob("*") if p.is_file() and b"secret" in p.read_bytes()]
    assert not list(stored.rglob("*99999*"))


def test_a_trainer_can_say_itself_that_a_checkpoint_is_complete(build):
    script = (
        "import os, socket, time, pathlib;"
        "d = pathlib.Path(os.environ['SPOTD_CHECKPOINT_DIR']);"
        "(d / 'state.bin').write_bytes(b'x' * 1000);"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
        "s.sendto(f'STEP=7\\nCHECKPOINT={d}/state.bin'.encode(), os.environ['SPOTD_SOCKET']);"
        "time.sleep(1000)"
    )
    machine = build(command=[sys.executable, "-S", "-c", script])
    machine.boot()
    newest = machine.wait_stored()
    assert (newest["name"], newest["step"]) == ("state.bin", 7)


def test_what_the_trainer_is_deleting_is_not_stored_as_the_newest(build):
    machine = build("--name", "checkpoint-{step}", "--as-directory")
    machine.boot()
    machine.wait_for_steps(3)
    first, second = machine.saved(), machine.saved()
    old = machine.checkpoints / first["name"]
    (old / "model.bin").unlink()  # a rotation under way: the marker goes last
    (old / "rng" / "state_0").unlink()
    third = machine.saved()
    stored = [i.partition("-")[2] for i in machine.status()["store"]["checkpoints"]]
    assert stored == [each["name"] for each in (first, second, third)]
