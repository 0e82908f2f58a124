"""Our signatures are botocore's, to the letter."""

from __future__ import annotations

import time

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from spotd.shell.store.signing import UNSIGNED, UNSIGNED_TRAILER, Signer


@pytest.mark.parametrize("token", [None, "t/o+k=en"])
@pytest.mark.parametrize(
    ("method", "host", "path", "query", "headers", "payload"),
    [
        ("GET", "b.s3.amazonaws.com", "/run/a%20b.pt", "", {"Range": "bytes=0-9"}, UNSIGNED),
        (
            "PUT",
            "127.0.0.1:8333",
            "/b/checkpoints/00000001-epoch%3D3.ckpt/x",
            "partNumber=7&uploadId=ab%2Fc",
            {
                "Content-Encoding": "aws-chunked",
                "x-amz-trailer": "x-amz-checksum-crc64nvme",
                "x-amz-decoded-content-length": "5",
                "x-amz-storage-class": "STANDARD_IA",
            },
            UNSIGNED_TRAILER,
        ),
    ],
)
def test_a_signature_is_the_one_botocore_makes(  # noqa: PLR0917
    method, host, path, query, headers, payload, token
):
    credentials = Credentials("AKID", "secret", token).get_frozen_credentials()
    signer = Signer("eu-west-3")
    for _ in range(5):
        before = time.time()
        ours = signer.sign(method, (host, path, query), headers, credentials, payload)
        url = f"http://{host}{path}" + (f"?{query}" if query else "")
        request = AWSRequest(method, url, headers=headers)
        request.context["client_config"] = Config(s3={"payload_signing_enabled": False})
        if payload == UNSIGNED_TRAILER:
            request.context["checksum"] = {"request_algorithm": {"in": "trailer"}}
        S3SigV4Auth(credentials, "s3", "eu-west-3").add_auth(request)
        if request.headers["X-Amz-Date"] == ours["x-amz-date"]:
            break
        assert time.time() - before < 30
    assert ours["Authorization"] == request.headers["Authorization"]
    assert ours.get("x-amz-security-token") == token
