from __future__ import annotations

import functools
import itertools
import json
import time
from contextlib import suppress

import pytest

pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server]'")

import ec2_region as region

from spotd import cli
from spotd.config import load
from spotd.core.manifest import Manifest, ManifestFile, render_manifest
from spotd.ec2 import api
from spotd.shell.store.lease import LeaseKeeper
from spotd.shell.store.settings import StoreSettings, open_store

_names = itertools.count(1)


@pytest.fixture(scope="module")
def _served():
    with pytest.MonkeyPatch.context() as patch:
        server, cloud = region.serve(patch)
        # Reading EC2's service model takes a third of a second: once is enough.
        patch.setattr(api, "client", functools.cache(api.client))
        yield cloud
        server.stop()
        cloud.backend.reset()


@pytest.fixture
def cloud(_served, monkeypatch, tmp_path):
    """The region, and an environment that leads to it and nowhere else."""
    _served.forget()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": region.REGION, "AWS_ENDPOINT_URL": _served.url,
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "XDG_STATE_HOME": str(tmp_path / "state"),
        "COLUMNS": "120",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "SPOTD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return _served


class Run:
    """A configured run: its name, its file, its store, and `spotd` called on it."""

    def __init__(self, tmp_path, capsys):
        self.name = f"run-{next(_names)}"
        self.store_path = tmp_path / "store"
        self.store_path.mkdir()
        self.config = tmp_path / "spotd.toml"
        self._capsys = capsys
        self.configure()

    def configure(self, *launch, types='["g5.xlarge"]', zones='["us-east-1a", "us-east-1b"]'):
        lines = [f"instance_types = {types}", f"zones = {zones}", *launch]
        self.config.write_text(
            f'run = "{self.name}"\n[trainer]\ncommand = "python train.py"\n'
            f'directory = "/srv"\n[checkpoints]\ndirectory = "out"\n'
            f'[store]\nurl = "file://{self.store_path}"\n[launch]\n' + "\n".join(lines) + "\n"
        )

    def spotd(self, verb, *arguments):
        """Exit status, what was printed, what was complained about."""
        try:
            status = cli.main([verb, "--config", str(self.config), *arguments])
        except SystemExit as end:
            status = end.code
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err

    def launch(self, *arguments):
        """Launches and does not watch."""
        return self.spotd("launch", "--until", "launched", *arguments)

    def completion(self):
        """What the daemon writes into completed.json."""
        return json.dumps({"format": 1, "run": self.name}).encode()

    def open_store(self):
        return open_store(StoreSettings.of(load(str(self.config)).store), self.name)

    def take_lease(self, instance_id, *, ago=0.0):
        """`instance_id` trains; with `ago`, its lease was renewed so long ago."""
        store = self.open_store()
        clock = (lambda: time.time() - ago) if ago else time.time
        keeper = LeaseKeeper(store, self.name, instance_id, clock=clock)
        return keeper, keeper.acquire()

    def give_back(self, held):
        keeper, lease = held
        keeper.release(lease)

    def store_checkpoint(self, instance_id, *, sequence=1, step=100, ago=0.0):
        """A whole checkpoint, as far as its manifest says."""
        name = f"step-{step}.pt"
        identity = f"{sequence:08d}-{name}"
        one = ManifestFile(
            path=name, size=0, mode=0o644, mtime_ns=0, checksum="crc64nvme:AAAAAAAAAAA="
        )
        manifest = Manifest(
            self.name, identity, sequence, 1, name, "file", step, time.time() - ago, instance_id,
            0, (one,),
        )  # fmt: skip
        self.open_store().put(f"checkpoints/{identity}/MANIFEST.json", render_manifest(manifest))
        return identity


@pytest.fixture
def run(cloud, tmp_path, capsys):
    return Run(tmp_path, capsys)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Time passes by looking: no test waits for EC2's own slowness."""
    from spotd.ec2 import ending, following, launching

    for module in (ending, following, launching):
        with suppress(AttributeError):
            monkeypatch.setattr(module, "PAUSE", 0.0)
