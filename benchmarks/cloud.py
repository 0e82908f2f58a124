"""The S3 and the metadata service on loopback that a benchmark's machines live with."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))
from machines import Machine, new_run

from spotd.testing.imds import MetadataSimulator
from spotd.testing.seaweed import Seaweed

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Cloud:
    """What `cloud` gives: a directory of its own, S3 with one bucket, the metadata service."""

    where: Path
    s3: Seaweed
    imds: MetadataSimulator
    bucket: str

    def machine(self, name: str, command: list[str], **more: Any) -> Machine:
        """Returns a machine that is not booted yet."""
        return Machine(
            directory=self.where / name, command=command, run=new_run(),
            store_url=f"s3://{self.bucket}/run", endpoint_url=self.s3.endpoint_url,
            environment=self.s3.environment, imds_url=self.imds.url, **more,
        )  # fmt: skip


@contextlib.contextmanager
def cloud(bucket: str) -> Iterator[Cloud]:
    """Starts both, and takes them away again."""
    with contextlib.ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        s3 = Seaweed(where / "s3")
        s3.start()
        stack.callback(s3.kill)
        s3.make_bucket(bucket)
        imds = stack.enter_context(MetadataSimulator())
        yield Cloud(where, s3, imds, bucket)
