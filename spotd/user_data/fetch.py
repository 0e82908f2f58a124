"""Fetches a file at boot: a URL, or s3://BUCKET/KEY with the instance's role.

    python3 fetch.py SOURCE TARGET [--sha256 HEX] [--endpoint-url URL]

Standard library only, for it runs before spotd is installed. Signature: AWS, "Signature Version 4
signing process".
"""

# ruff: noqa: S310, PTH103, PTH105, PTH120, PTH123, PERF203, T201 - for any Python 3 of an image
from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

METADATA = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
TRIES, PAUSE = 30, 5.0


def metadata(path: str, token: str) -> str:
    """Reads one path of the instance metadata."""
    headers = {"X-aws-ec2-metadata-token": token}
    request = urllib.request.Request(METADATA + "/latest/meta-data/" + path, headers=headers)
    return str(urllib.request.urlopen(request, timeout=5).read().decode())


def role() -> tuple[dict[str, str], str]:
    """The role's keys, and the region."""
    request = urllib.request.Request(METADATA + "/latest/api/token", method="PUT")
    request.add_header("X-aws-ec2-metadata-token-ttl-seconds", "300")
    token = urllib.request.urlopen(request, timeout=5).read().decode()
    folder = "iam/security-credentials/"
    keys = json.loads(metadata(folder + metadata(folder, token).split()[0], token))
    return keys, metadata("placement/region", token)


def signed(source: str, endpoint: str, region: str) -> urllib.request.Request:
    """The request for s3://BUCKET/KEY."""
    keys, home = role()
    region = region or home
    bucket, _, key = source[len("s3://") :].partition("/")
    endpoint = endpoint or "https://s3." + region + ".amazonaws.com"
    path = "/" + bucket + "/" + urllib.parse.quote(key)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    host = urllib.parse.urlsplit(endpoint).netloc
    headers = {"host": host, "x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-date": stamp}
    if keys.get("Token"):
        headers["x-amz-security-token"] = keys["Token"]
    names = ";".join(sorted(headers))
    lines = "".join(name + ":" + headers[name] + "\n" for name in sorted(headers))
    canonical = f"GET\n{path}\n\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
    scope = "/".join([stamp[:8], region, "s3", "aws4_request"])
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    secret = ("AWS4" + keys["SecretAccessKey"]).encode()
    for part in scope.split("/"):
        secret = hmac.new(secret, part.encode(), "sha256").digest()
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
    signature = hmac.new(secret, text.encode(), "sha256").hexdigest()
    credential = keys["AccessKeyId"] + "/" + scope
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={signature}"
    )
    return urllib.request.Request(endpoint + path, headers=headers)


def fetch(source: str, target: str, sha256: str, endpoint: str) -> None:
    """Fetches it whole, or raises OSError or ValueError."""
    region = ""
    for _ in range(2):
        s3 = source.startswith("s3://")
        request = signed(source, endpoint, region) if s3 else urllib.request.Request(source)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                data = answer.read()
            break
        except urllib.error.HTTPError as error:
            # The bucket is in another region than the instance.
            other = error.headers.get("x-amz-bucket-region")
            if not other or other == region:
                raise
            region = other
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256:
        raise ValueError("sha256 is " + found + ", not " + sha256)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target + ".part", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(target + ".part", target)


def main() -> None:
    """The command line; tries for some minutes, for at boot not everything is up at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--sha256", default="")
    parser.add_argument("--endpoint-url", default="")
    chosen = parser.parse_args()
    for attempt in range(1, TRIES + 1):
        try:
            fetch(chosen.source, chosen.target, chosen.sha256, chosen.endpoint_url)
        except (OSError, ValueError) as error:
            print(f"fetch.py: try {attempt}: {chosen.source}: {error}", file=sys.stderr)
            if attempt == TRIES:
                sys.exit(1)
            time.sleep(PAUSE)
        else:
            return


if __name__ == "__main__":
    main()
