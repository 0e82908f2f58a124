"""Small objects in S3 without botocore: one signed request each, over `http1`.

Reads and conditional writes, which is what a lease needs. What it cannot do, and whatever
S3 answers that is not plainly about the object, is a StoreProblem, and the caller's cue to
try it the long way.
"""

from __future__ import annotations

import base64
import ssl
import zlib
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from spotd.shell.store.http1 import Pool, Timeouts, head
from spotd.shell.store.problems import answered, element, untrusted
from spotd.shell.store.protocol import Blob, Damaged, Flow, StoreProblem
from spotd.shell.store.signing import UNSIGNED, Signer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spotd.shell.store.access import Access
    from spotd.shell.store.http1 import Answer

# The same as everywhere else: docs/transfer.md has the measurements.
TIMEOUTS = Timeouts(connect=3.0, progress=10.0)
_OK = 200
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class SmallObjects:
    """Small objects below `s3://bucket/prefix`; safe from any thread.

    Args:
        access: The way there.
        bucket: Its name, for people.
        prefix: Of all keys, with its slash at the end; may be empty.
        options: Headers that every object is written with.

    Raises:
        StoreProblem: The file of trusted authorities cannot be read.
    """

    def __init__(
        self, access: Access, bucket: str, prefix: str, options: Mapping[str, str]
    ) -> None:
        parts = urlsplit(access.url)
        context = None
        if parts.scheme == "https":
            try:
                context = ssl.create_default_context(cafile=access.ca_bundle)
            except (OSError, ssl.SSLError) as error:
                raise untrusted(access.url, f"{access.ca_bundle}: {error}") from error
        self._access = access
        self._bucket = bucket
        self._prefix = prefix
        self._options = dict(options)
        self._host = parts.netloc
        self._base = parts.path or "/"
        self._signer = Signer(access.region)
        port = parts.port or (443 if context else 80)
        self._pool = Pool(str(parts.hostname), port, context, TIMEOUTS)

    @property
    def location(self) -> str:
        """See `ObjectStore.location`."""
        return self._resource("").rstrip("/")

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str = "") -> str:
        """See `ObjectStore.put`."""
        checksum = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
        headers = {
            "Content-Type": "application/json",
            "x-amz-checksum-crc32": checksum,
            **self._options,
        }
        if if_none_match:
            headers["If-None-Match"] = "*"
        if if_match:
            headers["If-Match"] = if_match
        answer, _ = self._ask("PutObject", "PUT", key, headers, data)
        etag = answer.headers.get("etag", "")
        if not etag:
            raise StoreProblem("S3's answer was cut short: it has no ETag", retriable=True)
        return etag

    def get(self, key: str, *, limit: int) -> Blob:
        """See `ObjectStore.get`."""
        answer, data = self._ask("GetObject", "GET", key, {}, None, limit + 1)
        if "transfer-encoding" in answer.headers:
            raise StoreProblem(f"{self._resource(key)} comes in another form than S3's")
        if len(data) > limit or answer.length:
            raise Damaged(f"{self._resource(key)} has more than {limit} bytes")
        etag = answer.headers.get("etag", "")
        if not etag:  # a write on condition of "" would be one without condition
            raise StoreProblem("S3's answer was cut short: it has no ETag", retriable=True)
        return Blob(data, etag, age_of(answer.headers))

    def close(self) -> None:
        """Lets go of connections."""
        self._pool.close()

    def _ask(  # noqa: PLR0917
        self, operation: str, method: str, key: str, headers: dict[str, str],
        body: bytes | None, limit: int = 65536,
    ) -> tuple[Answer, bytes]:  # fmt: skip
        path = self._base + quote(self._prefix + key, safe="/-_.~")
        url = (self._host, path, "")
        signed = self._signer.sign(method, url, headers, self._access.keys, UNSIGNED)
        request = head(method, path, signed)
        if body is not None:
            request = request[:-2] + b"Content-Length: %d\r\n\r\n" % len(body) + body
        with self._pool.connection(Flow()) as connection:
            connection.send(request)
            answer = connection.answer()
            data = answer.small(limit)
            self._pool.keep(connection, answer)
        if answer.status != _OK:
            text = data.decode(errors="replace")
            code = element(text, "Code") or str(answer.status)
            raise answered(operation, code, element(text, "Message"), self._resource(key))
        return answer, data

    def _resource(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"


def age_of(headers: Mapping[str, str]) -> float | None:
    """Returns how many seconds ago an object was written, by the store's own clock.

    Both headers are whole seconds, so that it may be a second less: never more.
    """
    now, written = _seconds(headers.get("date", "")), _seconds(headers.get("last-modified", ""))
    if now is None or written is None:
        return None
    return max(0.0, now - written - 1.0)


def _seconds(text: str) -> float | None:
    """Returns the time in "Sun, 06 Nov 1994 08:49:37 GMT" (RFC 9110, 5.6.7), since 1970."""
    import calendar  # noqa: PLC0415 - a foreign lease is a rare sight

    try:
        _, day, month, year, clock, zone = text.split()
        hour, minute, second = (int(part) for part in clock.split(":"))
        number = _MONTHS.index(month) + 1
        if zone != "GMT" or not (0 <= hour < 24 and 0 <= minute < 60 and 0 <= second <= 60):  # noqa: PLR2004
            return None
        return float(calendar.timegm((int(year), number, int(day), hour, minute, second)))
    except (ValueError, OverflowError):
        return None
