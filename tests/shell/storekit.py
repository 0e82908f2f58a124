"""What the tests of the store share: stores on loopback, checkpoints, a waiting daemon."""

from __future__ import annotations

import os
import queue
import secrets
import time

from spotd.core import actions
from spotd.shell.store.checkpoints import CheckpointStore
from spotd.shell.store.client import StoreClient
from spotd.shell.store.protocol import Flow
from spotd.shell.store.settings import StoreSettings, open_store
from spotd.shell.store.source import UploadSource
from spotd.shell.store.transfer import Lanes, Transfer
from spotd.shell.store.upload import Upload, UploadOrder

MIB = 1024 * 1024


def unique_url():
    return f"s3://spotd-test/shell/{secrets.token_hex(6)}"


def write_file(path, size):
    content = os.urandom(size)
    path.write_bytes(content)
    return content


class Daemon:
    """Stands for the deciding loop: gives actions to a StoreClient, waits for events."""

    def __init__(self, tmp_path, settings, *, instance="i-1", run="run"):
        self.directory = tmp_path / "checkpoints"
        self.directory.mkdir(exist_ok=True)
        self.events = queue.Queue()
        self.seen = []
        self.generation = 0
        self.client = StoreClient(
            settings,
            run,
            instance,
            0,
            self.directory,
            None,
            tmp_path / f"state-{instance}",
            self.events.put,
        )

    def wait(self, *kinds, timeout=60):
        """Returns the next event of one of the kinds; the others are kept in `seen`."""
        deadline = time.monotonic() + timeout
        while True:
            event = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            self.seen.append(event)
            if type(event).__name__ in kinds:
                return event

    def open(self):
        self.client.open()
        opened = self.wait("StoreOpened", "LeaseRefused", "StoreFailed")
        self.generation = getattr(opened, "generation", 0)
        return opened

    def upload(self, sequence, name, *, urgent=False, kind="file", step=None, root=None):
        checkpoint = f"{sequence:08d}-{name}"
        action = actions.Upload(
            checkpoint, name, "", step, time.time(), self.generation, urgent=urgent
        )
        self.client.upload(action, UploadSource(str(root or self.directory), name, kind))
        return checkpoint

    def stored(self, sequence, name, **options):
        self.upload(sequence, name, **options)
        return self.wait("Uploaded", "UploadFailed")

    def fetch(self, checkpoint):
        self.client.fetch(checkpoint)
        return self.wait("Fetched", "FetchFailed")


class Bench:
    """The same without a worker process: for tests that need to get between the parts."""

    def __init__(self, tmp_path, settings, *, run="run", lanes=4):
        self.directory = tmp_path / "checkpoints"
        self.directory.mkdir(exist_ok=True)
        self.state = tmp_path / "state"
        self.store = open_store(settings, run)
        self.lanes = Lanes(lanes)
        self.checkpoints = CheckpointStore(self.store, run, "i-1", 0, self.state)
        self.troubles = []
        self.progress = []

    def upload(self, sequence, name, *, kind="file", flow=None, patience=30.0, fingerprint=""):
        order = UploadOrder(
            f"{sequence:08d}-{name}",
            1,
            None,
            time.time(),
            UploadSource(str(self.directory), name, kind, fingerprint),
        )
        transfer = Transfer(self.store, self.lanes, flow or Flow(), patience, self.troubles.append)
        report = lambda sent, size: self.progress.append((sent, size))  # noqa: E731
        return Upload(self.checkpoints, transfer, order, report, lambda: None).run()

    def close(self):
        self.lanes.close()
        self.store.close()


def file_settings(tmp_path):
    (tmp_path / "store").mkdir(exist_ok=True)
    return StoreSettings((tmp_path / "store").as_uri())
