"""What EC2 has around an instance: a network with IMDS, DHCP, DNS and S3."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import boto3
import botocore.config

from ec2box import netns
from spotd.testing.imds import MetadataSimulator

GATEWAY = "172.31.16.1"
IMDS = "169.254.169.254"
INSTANCE = "172.31.16.10"
#: Of every instance: no two of them run at once on one network.
MAC = "02:1a:2b:3c:4d:5e"
S3_PORT = 8333
FILES_PORT = 8080
ACCESS_KEY, SECRET_KEY = "AKIASPOTDTESTS", "tests-only-secret"
#: What must never be seen in a log.
MARKS = SECRET_KEY
PREFIX = "spotd-test-"


class Cloud:
    """One private network; instances are plugged into it.

    Attributes:
        imds: the simulator behind 169.254.169.254.
        files: a folder that http://172.31.16.1:8080/ serves to the instances.
    """

    def __init__(self, folder: Path, index: int = 0) -> None:
        netns.sweep(PREFIX)
        self._folder = folder
        self.files = folder / "files"
        self.files.mkdir(parents=True)
        self._label = f"{PREFIX}{os.getpid()}-{index}"
        self.net = netns.NetNamespace(f"{self._label}-aws")
        self.net.ip("link", "add", "vpc", "type", "bridge", "forward_delay", "0")
        self.net.ip("addr", "add", f"{GATEWAY}/20", "dev", "vpc")
        self.net.ip("addr", "add", f"{IMDS}/32", "dev", "vpc")
        self.net.ip("link", "set", "vpc", "up")
        self._plugged: dict[str, netns.NetNamespace] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._s3: subprocess.Popen[bytes] | None = None
        self._dhcp()
        self.net.call(self._serve_files)
        self.s3_on()
        self.bucket = "training"
        self.net.call(self._client().create_bucket, Bucket=self.bucket)
        # Its first volume may take a while to appear; nothing else may be the first to notice.
        self.net.call(self._client().put_object, Bucket=self.bucket, Key="warm", Body=b"up")
        self.imds = self.net.call(self._start_imds)

    # -- instances -----------------------------------------------------------------------

    def plug(self, name: str) -> Path:
        """A network namespace whose ens5 is on this network; its path."""
        number = len(self._plugged)
        space = netns.NetNamespace(f"{self._label}-{name}")
        peer = f"eni{number}{os.urandom(2).hex()}"
        words = f"link add {peer} master vpc type veth peer name ens5 address {MAC} netns"
        self.net.ip(*words.split(), space.name)
        self.net.ip("link", "set", peer, "up")
        self._plugged[name] = space
        return space.path

    def address(self, name: str) -> None:
        """Gives an instance its address from outside, where nothing inside asks for one."""
        space = self._plugged[name]
        space.ip("addr", "add", f"{INSTANCE}/20", "dev", "ens5")
        space.ip("link", "set", "ens5", "up")
        space.ip("route", "add", "default", "via", GATEWAY)

    def unplug(self, name: str) -> None:
        if space := self._plugged.pop(name, None):
            space.close()

    # -- services ------------------------------------------------------------------------

    def _dhcp(self) -> None:
        """Addresses by DHCP; every name but S3's own is unknown, and known to be."""
        command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv"]
        command += ["--no-hosts", "--interface=vpc", "--bind-interfaces", "--no-ping"]
        command += ["--user=root", "--pid-file=", f"--dhcp-leasefile={self._folder}/leases"]
        command += [f"--dhcp-range={INSTANCE},172.31.16.99,255.255.240.0,1h"]
        command += ["--dhcp-authoritative", "--local=/#/", f"--host-record=s3.local,{GATEWAY}"]
        self._spawn(command, "dnsmasq")

    def _serve_files(self) -> None:
        handler = functools.partial(_Quiet, directory=str(self.files))
        self._files = http.server.ThreadingHTTPServer((GATEWAY, FILES_PORT), handler)
        threading.Thread(target=self._files.serve_forever, daemon=True).start()

    def _start_imds(self) -> Ec2Metadata:
        keys = (ACCESS_KEY, SECRET_KEY, "")
        return Ec2Metadata(
            host=IMDS, port=80, zone="eu-central-1a", instance_type="m7i.large", credentials=keys
        ).start()

    def url(self, name: str) -> str:
        """Where an instance finds the file `name` of `files`."""
        return f"http://{GATEWAY}:{FILES_PORT}/{name}"

    # -- S3 ------------------------------------------------------------------------------

    @property
    def s3_url(self) -> str:
        return f"http://{GATEWAY}:{S3_PORT}"

    def s3_on(self) -> None:
        """Starts S3, or wakes it where it was stopped."""
        if self._s3 is not None and self._s3.poll() is None:
            self._s3.send_signal(signal.SIGCONT)
            return
        weed = Path(sys.executable).with_name("weed")
        data = self._folder / "s3"
        data.mkdir(exist_ok=True)
        command = [str(weed) if weed.exists() else "weed", "mini", f"-dir={data}"]
        command += [f"-ip={GATEWAY}", f"-ip.bind={GATEWAY}", f"-s3.port={S3_PORT}"]
        command += ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += ["-master.telemetry=false"]
        # It talks to itself over /tmp/seaweedfs-*-<port>.sock, whatever its network namespace:
        # a second one there with the same ports would be talking to this one.
        # (Opened before, for the program itself may lie under /tmp.)
        alone = 'exec 3<"$(command -v "$1")" && shift && mount -t tmpfs tmpfs /tmp && '
        alone += 'exec /proc/self/fd/3 "$@"'
        command = ["unshare", "--mount", "--propagation=private", "sh", "-c", alone, "sh", *command]
        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        self._s3 = self._spawn(command, "weed", {**os.environ, **keys})
        self.net.call(_answers, self.s3_url)

    def s3_off(self) -> None:
        """Connections to S3 are refused from here on."""
        assert self._s3 is not None
        self._s3.send_signal(signal.SIGCONT)
        self._s3.terminate()
        self._s3.wait(20)

    def s3_hang(self) -> None:
        """S3 accepts connections and says nothing."""
        assert self._s3 is not None
        self._s3.send_signal(signal.SIGSTOP)

    def keys(self, prefix: str = "") -> list[str]:
        """What is in the bucket."""
        pages = self.net.call(
            lambda: list(
                self._client()
                .get_paginator("list_objects_v2")
                .paginate(Bucket=self.bucket, Prefix=prefix)
            )
        )
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def read(self, key: str) -> bytes | None:
        """What is under the key; None: nothing, or no longer."""
        client = self._client()
        try:
            answer = self.net.call(client.get_object, Bucket=self.bucket, Key=key)
        except client.exceptions.NoSuchKey:
            return None
        return answer["Body"].read()

    def put(self, key: str, data: bytes) -> None:
        self.net.call(self._client().put_object, Bucket=self.bucket, Key=key, Body=data)

    def empty(self, prefix: str = "") -> None:
        for key in self.keys(prefix):
            self.net.call(self._client().delete_object, Bucket=self.bucket, Key=key)

    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.s3_url,
            region_name="eu-central-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=botocore.config.Config(
                connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 8}
            ),
        )

    # -- the end -------------------------------------------------------------------------

    def _spawn(
        self, command: list[str], name: str, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        def start() -> subprocess.Popen[bytes]:
            with (self._folder / f"{name}.log").open("ab") as log:
                return subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
                )

        process = self.net.call(start)
        self._processes.append(process)
        return process

    def close(self) -> None:
        for name in list(self._plugged):
            self.unplug(name)
        self._files.shutdown()
        self.imds.stop()
        for process in self._processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        self.net.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Ec2Metadata(MetadataSimulator):
    """The simulator, with what cloud-init's Ec2 datasource asks for beside it.

    Attributes:
        user_data: what the instance is launched with; "": nothing.
    """

    user_data = ""

    def _tree(self) -> dict[str, bytes]:
        names = {"hostname": "ip-172-31-16-10", "local-hostname": "ip-172-31-16-10"}
        tree = super()._tree()
        tree |= {f"/meta-data/{name}": value.encode() for name, value in names.items()}
        card = f"/meta-data/network/interfaces/macs/{MAC}"
        tree |= {
            "/meta-data/mac": MAC.encode(),
            f"{card}/device-number": b"0",
            f"{card}/interface-id": b"eni-0123456789abcdef0",
            f"{card}/mac": MAC.encode(),
            f"{card}/local-ipv4s": INSTANCE.encode(),
            f"{card}/subnet-ipv4-cidr-block": b"172.31.16.0/20",
        }
        if self.user_data:
            tree["/user-data"] = self.user_data.encode()
        return tree


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def _answers(url: str, patience: float = 30.0) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError:  # noqa: PERF203 - it is started once
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
