"""The trainer in its own scope, below the hardened unit that ships: a real systemd."""

from __future__ import annotations

import ast
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from ec2box import image
from ec2box.ami import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ec2box.instance import Instance

pytestmark = [pytest.mark.root, pytest.mark.systemd]

# A daemon in miniature: starts or adopts one trainer, obeys one word a line, writes what happens.
DAEMON = """
import os, pathlib, signal, time
from spotd.config import TrainerSettings
from spotd.core import actions
from spotd.shell.trainer import TrainerHost
def drain(*_):
    time.sleep(1)
    print("drained", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, drain)
events = open("/run/spotd/events", "a")
def post(event):
    fields = {name: getattr(event, name) for name in event.__slots__}
    print((type(event).__name__, fields), file=events, flush=True)
work = pathlib.Path("/home/ubuntu")
host = TrainerHost(
    TrainerSettings(command=("/bin/sh", "train.sh"), directory=work, user="ubuntu"), run="a-run",
    checkpoint_directory=work, runtime_directory=pathlib.Path("/run/spotd"),
    state_directory=pathlib.Path("/var/lib/spotd"), post=post)
if not os.path.exists("/run/spotd/words"):
    os.mkfifo("/run/spotd/words")
found = host.find()
if found:
    post(found)
    host.adopt(found)
else:
    host.start(actions.StartTrainer(3, None, 100.0))
while True:
    for word in open("/run/spotd/words"):
        if word == "stop\\n":
            host.signal(actions.SignalTrainer("SIGTERM", "stop"))
        if word == "kill\\n":
            host.kill(actions.KillTrainer("told to"))
"""

DROP_IN = """
[Service]
Type=simple
WatchdogSec=0
ExecStart=
ExecStart=/usr/bin/python3 /root/daemon.py
Environment=PYTHONPATH=/opt/spotd-source PYTHONDONTWRITEBYTECODE=1 AWS_SECRET_ACCESS_KEY=secret
"""

TRAINS = """
trap 'echo saving; exit 0' TERM
echo "$$ trains, user $(id -un), score $(cat /proc/self/oom_score_adj)"
env | cut -d= -f1 | sort | tr '\\n' ' '
for descriptor in /proc/$$/fd/*; do readlink $descriptor; done | sed 's/:.*//' | tr '\\n' ' '
echo ready
setsid sleep 1000 &
while :; do sleep 0.05; done
"""


class Machine:
    """An instance with the miniature daemon as its spotd.service."""

    def __init__(self, instance: Instance, program: str) -> None:
        self.instance = instance
        instance.mount()
        instance.write("/home/ubuntu/train.sh", program)
        instance.write("/root/daemon.py", DAEMON)
        unit = (REPOSITORY / "systemd/spotd.service").read_text()
        instance.write("/etc/systemd/system/spotd.service", unit)
        instance.write("/etc/systemd/system/spotd.service.d/miniature.conf", DROP_IN)
        source = instance.file("/opt/spotd-source/spotd")
        shutil.copytree(REPOSITORY / "spotd", source, ignore=shutil.ignore_patterns("__pycache__"))
        instance.start()
        instance.booted()
        instance.shell("id ubuntu || useradd -m ubuntu; chown -R ubuntu /home/ubuntu")

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        text = self.instance.shell("cat /run/spotd/events 2>/dev/null || :")
        return [ast.literal_eval(line) for line in text.splitlines()]

    def until(self, name: str) -> dict[str, Any]:
        self.instance.until(lambda: any(n == name for n, _ in self.events()), name)
        return next(fields for n, fields in reversed(self.events()) if n == name)

    def say(self, word: str) -> None:
        self.instance.shell(f"echo {word} > /run/spotd/words")

    def alive(self, pid: int) -> bool:
        return "alive" in self.instance.shell(f"kill -0 {pid} 2>/dev/null && echo alive || :")

    def scope(self) -> str:
        units = self.instance.run("systemctl", "list-units", "--plain", "--no-legend", "spotd-t*")
        return units.split()[0] if units.split() else ""

    def output(self) -> str:
        return self.instance.run("journalctl", "-t", "spotd-trainer-a-run", "-o", "cat")


@pytest.fixture
def machine(
    launch: Callable[..., Instance], scratch: Path, base: Path
) -> Iterator[Callable[[str], Machine]]:
    layer = scratch / "no-cloud-init"
    layer.mkdir(exist_ok=True)
    layers = [image.without_cloud_init(layer), base]
    return lambda program: Machine(launch(layers=layers), program)


def test_it_lives_in_a_scope_outlives_the_daemon_and_is_adopted(
    machine: Callable[[str], Machine],
) -> None:
    box = machine(TRAINS)
    box.instance.run("systemctl", "start", "spotd")
    pid = box.until("TrainerStarted")["pid"]
    box.instance.until(lambda: "ready" in box.output(), "the trainer's output in the journal")

    scope = box.scope()
    assert scope.startswith("spotd-trainer-a-run-3-")
    shown = box.instance.show(scope, "Before", "TimeoutStopUSec", "ControlGroup")
    assert "spotd.service" in shown["Before"]
    assert shown["TimeoutStopUSec"] == "1min 40s"
    first, names, descriptors = box.output().splitlines()[:3]
    assert first == f"{pid} trains, user ubuntu, score 0"
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH",
                "INVOCATION_ID"} & set(names.split())  # fmt: skip
    lock = "/var/lib/spotd/a-run/trainer.lock"
    allowed = {"/dev/null", "socket", lock, "/home/ubuntu/train.sh"}
    assert set(descriptors.removesuffix("ready").split()) == allowed
    entry = box.instance.journal("SYSLOG_IDENTIFIER=spotd-trainer-a-run")[0]
    assert entry["_SYSTEMD_UNIT"] == scope

    box.instance.run("systemctl", "kill", "--signal=KILL", "spotd")
    found = box.until("TrainerFound")
    assert (found["pid"], found["attempt"]) == (pid, 3)
    assert box.alive(pid)

    box.say("stop")
    assert box.until("SignalSent")["targets"] == (pid,)
    exited = box.until("TrainerExited")
    assert exited["status"] is None
    assert exited["last_lines"][-1] == "saving"
    box.instance.until(lambda: box.scope() == "", "the scope to go")
    assert "sleep 1000" not in box.instance.run("ps", "-eo", "args")


def test_killing_it_empties_its_scope(machine: Callable[[str], Machine]) -> None:
    box = machine(TRAINS)
    box.instance.run("systemctl", "start", "spotd")
    box.until("TrainerStarted")
    box.instance.until(lambda: "ready" in box.output(), "the trainer's output")
    box.say("kill")
    exited = box.until("TrainerExited")
    assert exited["signal"] == 9
    assert "ready" in exited["last_lines"][-1]
    box.instance.until(lambda: box.scope() == "", "the scope to go")
    assert "sleep 1000" not in box.instance.run("ps", "-eo", "args")


def test_a_shutdown_stops_the_daemon_before_the_trainer(
    machine: Callable[[str], Machine],
) -> None:
    box = machine(TRAINS)
    box.instance.run("systemctl", "start", "spotd")
    box.until("TrainerStarted")
    box.instance.until(lambda: "ready" in box.output(), "the trainer's output")
    box.instance.stop()
    box.instance.mount()
    said = [entry["MESSAGE"] for entry in box.instance.journal()]
    assert said.index("drained") < said.index("saving")
