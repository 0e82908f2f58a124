"""The other end: a sink that costs next to nothing, and SeaweedFS."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from spotd.testing.seaweed import Seaweed

HERE = Path(__file__).resolve().parent


class Sink:
    def __init__(self, place: Path, size: int, *, tls: bool) -> None:
        binary = place / "sink"
        if not binary.exists():
            subprocess.run(
                ["gcc", "-O2", "-o", binary, HERE / "sink.c", "-lssl", "-lcrypto", "-lpthread"],
                check=True,
            )
        self.certificate, extra = "", []
        if tls:
            self.certificate = str(place / "cert.pem")
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                 "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
                 "-keyout", place / "key.pem", "-out", place / "cert.pem"],
                check=True, capture_output=True,
            )  # fmt: skip
            extra = [place / "cert.pem", place / "key.pem"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [binary, str(port), str(size), *extra], stdout=subprocess.PIPE
        )
        self.process.stdout.readline()
        self.url = f"{'https' if tls else 'http'}://localhost:{port}"
        self.name = "sink TLS" if tls else "sink http"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Weed:
    certificate = ""
    name = "SeaweedFS"

    def __init__(self, place: Path) -> None:
        self.server = Seaweed(place / "weed")
        self.server.start()
        self.server.make_bucket("bench")
        self.url = self.server.endpoint_url

    def close(self) -> None:
        self.server.stop()


def step_aside(process: subprocess.Popen) -> None:
    """A real server's work is done elsewhere: here it must not count as ours."""
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)
