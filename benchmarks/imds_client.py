"""What one poll of the metadata service costs, by three clients: python benchmarks/imds_client.py

Each client runs in a process of its own against the simulator in another one, which
closes the connection after each answer as EC2's service does. A poll is three questions
with a token in hand. Memory is what the client adds to a bare interpreter.
"""

from __future__ import annotations

import sys
import time

POLLS = 300
ROUNDS = 3
INTERVAL = 5.0
PATHS = (
    "spot/instance-action",
    "events/recommendations/rebalance",
    "events/maintenance/scheduled",
)
HEADER = "X-aws-ec2-metadata-token-ttl-seconds"


def bare(_url):
    return lambda: None


def spotd(url):
    from spotd.config import ImdsSettings
    from spotd.shell.clouds.ec2 import Ec2Metadata

    source = Ec2Metadata(ImdsSettings(endpoint=url))
    return lambda: source.poll(2.0, lambda _answer: None)


def spotd_settings_only(url):
    from spotd.config import ImdsSettings

    ImdsSettings(endpoint=url)
    return lambda: None


def http_client(url):
    from http.client import HTTPConnection

    connection = HTTPConnection(url.removeprefix("http://"), timeout=2.0)

    def ask(method, path, headers):
        connection.request(method, path, headers=headers)
        return connection.getresponse().read()

    token = ask("PUT", "/latest/api/token", {HEADER: "21600"}).decode()
    headers = {"X-aws-ec2-metadata-token": token}
    return lambda: [ask("GET", f"/latest/meta-data/{path}", headers) for path in PATHS]


def requests_session(url):
    import requests

    session = requests.Session()
    session.trust_env = False
    token = session.put(f"{url}/latest/api/token", headers={HEADER: "21600"}, timeout=2).text
    session.headers["X-aws-ec2-metadata-token"] = token
    return lambda: [session.get(f"{url}/latest/meta-data/{path}", timeout=2) for path in PATHS]


CLIENTS = {f.__name__: f for f in (bare, spotd_settings_only, spotd, http_client, requests_session)}


def child(name: str, url: str) -> None:
    poll = CLIENTS[name](url)
    poll()
    before, begin = time.process_time(), time.perf_counter()
    for _ in range(POLLS):
        poll()
    cpu, wall = time.process_time() - before, time.perf_counter() - begin
    private = sum(
        int(line.split()[1])
        for line in open("/proc/self/smaps_rollup")  # noqa: SIM115, PTH123 - read to its end
        if line.startswith(("Private_Clean", "Private_Dirty"))
    )
    # By hand: a child imports nothing but its client.
    print(f'{{"cpu": {cpu / POLLS}, "wall": {wall / POLLS}, "uss": {private * 1024}}}')


def main() -> None:
    import json
    import statistics
    import subprocess

    from spotd.testing.imds import MetadataSimulator

    with MetadataSimulator() as imds:
        results = {name: [] for name in CLIENTS}
        for _ in range(ROUNDS):  # interleaved, so that a busy machine is busy for all
            for name in CLIENTS:
                command = [sys.executable, __file__, name, imds.url]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                results[name].append(json.loads(done.stdout))

    def median(name, what):
        return statistics.median(result[what] for result in results[name])

    print(
        f"{'client':22}{'CPU/poll':>10}{'of a core':>11}{'wall/poll':>11}{'USS':>10}{'added':>10}"
    )
    for name in CLIENTS:
        cpu, wall, uss = median(name, "cpu"), median(name, "wall"), median(name, "uss")
        print(
            f"{name:22}{cpu * 1e3:7.2f} ms{cpu / INTERVAL:10.3%}{wall * 1e3:7.2f} ms"
            f"{uss / 2**20:6.1f} MiB{(uss - median('bare', 'uss')) / 2**20:6.1f} MiB"
        )
    ours, theirs = median("spotd", "cpu"), median("requests_session", "cpu")
    print(f"spotd / requests: {ours / theirs:.2f} of the CPU")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(*sys.argv[1:])
    else:
        main()
