"""AWS Signature Version 4 for requests whose payload is not signed.

After the IAM user guide, "Create a signed AWS API request"; a test holds it against
botocore's own signer, which costs four times as much: a third of sending a small file.
The credentials are botocore's, so they are found and renewed as ever.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass, field
from typing import Protocol

UNSIGNED = "UNSIGNED-PAYLOAD"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
_ALGORITHM = "AWS4-HMAC-SHA256"


class Credentials(Protocol):
    """What botocore calls frozen credentials: those of one moment."""

    @property
    def access_key(self) -> str:
        """Its id."""
        ...

    @property
    def secret_key(self) -> str:
        """The key itself."""
        ...

    @property
    def token(self) -> str | None:
        """Of temporary credentials."""
        ...


@dataclass(slots=True)
class Signer:
    """Signs requests for S3 in one region; keeps the key of the day."""

    region: str
    _key: tuple[tuple[str, str], bytes] = field(default=(("", ""), b""))

    def sign(
        self,
        method: str,
        url: tuple[str, str, str],
        headers: dict[str, str],
        credentials: Credentials,
        payload: str,
    ) -> dict[str, str]:
        """Returns all headers of the request, the signature among them.

        Args:
            method: "PUT" and the like.
            url: Host (with the port, unless it is the scheme's own), quoted path, and quoted
                query, its parameters in order of their names.
            headers: Beyond those that signing adds.
            credentials: Of this moment.
            payload: `UNSIGNED` or `UNSIGNED_TRAILER`.
        """
        host, path, query = url
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{stamp[:8]}/{self.region}/s3/aws4_request"
        found = {**headers, "Host": host, "x-amz-date": stamp, "x-amz-content-sha256": payload}
        if credentials.token:
            found["x-amz-security-token"] = credentials.token
        pairs = sorted((name.lower(), " ".join(text.split())) for name, text in found.items())
        names = ";".join(name for name, _ in pairs)
        lines = "".join(f"{name}:{text}\n" for name, text in pairs)
        request = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{payload}"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{digest}"
        key = self._signing_key(stamp[:8], credentials.secret_key)
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        found["Authorization"] = (
            f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}"
        )
        return found

    def _signing_key(self, date: str, secret: str) -> bytes:
        known, key = self._key
        if known == (date, secret):
            return key
        key = f"AWS4{secret}".encode()
        for part in (date, self.region, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        self._key = ((date, secret), key)
        return key
