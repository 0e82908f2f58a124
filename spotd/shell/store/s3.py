"""The object store in S3, or in anything that speaks its protocol.

Everything small goes through botocore: it knows endpoints, regions, credentials and
their renewal. The bytes go through a `PartSender` (`spotd.shell.store.sender`), chosen
for speed. Checksums are given to S3 for whole objects (CRC64NVME, type FULL_OBJECT,
combined from the parts'), so S3 itself refuses to complete an object that is not what
was read from the disk.

An object of a checkpoint is completed without conditions, under a key that only this
checkpoint uses: a 409 on a conditional completion would mean sending every part again.
Conditional are only the small JSON objects.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from spotd.shell.store.aws import Aws, S3Options, told
from spotd.shell.store.checksum import Algorithm, default
from spotd.shell.store.problems import answered
from spotd.shell.store.protocol import (
    Blob,
    Damaged,
    Entry,
    Flow,
    NotFound,
    Part,
    Piece,
)
from spotd.shell.store.small import age_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from spotd.shell.store.access import Access
    from spotd.shell.store.sender import PartSender

_COPY_LIMIT = 5 * 10**9  # CopyObject ends at 5 GB
_DELETE_PAGE = 1000

_T = TypeVar("_T")


class S3Store:
    """An ObjectStore below `s3://bucket/prefix`.

    Args:
        bucket: Its name.
        prefix: Of all keys, without slashes at its ends; may be empty.
        options: Endpoint, region, encryption, storage class.
        connections: How many requests at a time there may be.
        sender: Makes the part sender; None for the default one.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        options: S3Options,
        *,
        connections: int = 16,
        sender: Callable[[S3Store], PartSender] | None = None,
    ) -> None:
        self.bucket = bucket
        self.options = options
        self._prefix = f"{prefix}/" if prefix else ""
        self._make_sender = sender
        self.aws = Aws(bucket, options, connections)
        self._lock = threading.Lock()
        self._sender: PartSender | None = None

    def _call(self, operation: str, key: str, function: Callable[[], _T]) -> _T:
        return self.aws.call(operation, self.resource(key), function)

    @property
    def location(self) -> str:
        """See `ObjectStore.location`."""
        place = f" at {self.options.endpoint_url}" if self.options.endpoint_url else ""
        return f"s3://{self.bucket}/{self._prefix}".rstrip("/") + place

    @property
    def algorithm(self) -> Algorithm:
        """See `ObjectStore.algorithm`."""
        return default()

    def key(self, key: str) -> str:
        """Returns the key in the bucket."""
        return self._prefix + key

    def resource(self, key: str) -> str:
        """Returns `s3://bucket/key`, for people."""
        return f"s3://{self.bucket}/{self._prefix}{key}"

    @property
    def sender(self) -> PartSender:
        """What moves the bytes."""
        if self._sender is None:
            from spotd.shell.store.sender import choose_sender  # noqa: PLC0415 - needs botocore

            make = self._make_sender or choose_sender
            made = make(self)
            with self._lock:
                self._sender = self._sender or made
        return self._sender

    def warm(self) -> None:
        """See `ObjectStore.warm`."""
        _ = self.aws.client, self.sender  # each is made at its first use

    def access(self) -> Access | None:
        """Returns how to reach it without botocore; None when only botocore can."""
        from spotd.shell.store.thin import possible  # noqa: PLC0415 - who moves bytes has it

        return self.aws.access() if possible(self) else None

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str = "") -> str:
        """See `ObjectStore.put`."""
        extra: dict[str, Any] = {}
        if if_none_match:
            extra["IfNoneMatch"] = "*"
        if if_match:
            extra["IfMatch"] = if_match
        answer = self._call(
            "PutObject", key, lambda: self.aws.client.put_object(
                Bucket=self.bucket, Key=self.key(key), Body=data,
                ContentType="application/json", **self._encryption(), **extra,
            ),
        )  # fmt: skip
        return told(answer, "ETag")

    def get(self, key: str, *, limit: int) -> Blob:
        """See `ObjectStore.get`."""

        def read() -> Blob:
            answer = self.aws.client.get_object(Bucket=self.bucket, Key=self.key(key))
            with answer["Body"] as body:
                data = body.read(limit + 1)
            if len(data) > limit:
                raise Damaged(f"{self.resource(key)} has more than {limit} bytes")
            metadata: Any = answer.get("ResponseMetadata", {})
            return Blob(data, told(answer, "ETag"), age_of(metadata.get("HTTPHeaders", {})))

        return self._call("GetObject", key, read)

    def list(self, prefix: str, *, delimiter: bool = False) -> Iterator[Entry]:
        """See `ObjectStore.list`."""
        token: dict[str, Any] = {"Delimiter": "/"} if delimiter else {}
        while True:
            page = self._call(
                "ListObjectsV2", prefix, lambda: self.aws.client.list_objects_v2(
                    Bucket=self.bucket, Prefix=self.key(prefix), **token
                ),
            )  # fmt: skip
            entries = [(each["Key"], each.get("Size", 0)) for each in page.get("Contents", ())]
            entries += [(each["Prefix"], 0) for each in page.get("CommonPrefixes", ())]
            for key, size in sorted(entries):
                yield Entry(key[len(self._prefix) :], size)
            if not page.get("IsTruncated"):
                return
            token["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, keys: Sequence[str]) -> None:
        """See `ObjectStore.delete`."""
        for start in range(0, len(keys), _DELETE_PAGE):
            page = keys[start : start + _DELETE_PAGE]
            answer = self._call(
                "DeleteObjects", page[0], lambda page=page: self.aws.client.delete_objects(  # type: ignore[misc]
                    Bucket=self.bucket,
                    Delete={"Objects": [{"Key": self.key(key)} for key in page], "Quiet": True},
                ),
            )  # fmt: skip
            for error in answer.get("Errors", ()):
                code = error.get("Code", "")
                if code not in {"NoSuchKey", "404"}:
                    where = f"s3://{self.bucket}/{error.get('Key', '')}"
                    raise answered("DeleteObject", code, error.get("Message", ""), where)

    def send_whole(self, key: str, piece: Piece, flow: Flow) -> Part:
        """See `ObjectStore.send_whole`."""
        return self.sender.send_whole(key, piece, flow, self.object_options())

    def begin(self, key: str) -> str:
        """See `ObjectStore.begin`."""
        answer = self._call(
            "CreateMultipartUpload", key, lambda: self.aws.client.create_multipart_upload(
                Bucket=self.bucket, Key=self.key(key), **self.object_options(),
                ChecksumAlgorithm=self.algorithm.name.upper(),  # type: ignore[arg-type]
                ChecksumType="FULL_OBJECT",
            ),
        )  # fmt: skip
        return told(answer, "UploadId")

    def surviving(self, key: str, upload: str, recorded: Mapping[int, Part]) -> dict[int, Part]:
        """See `ObjectStore.surviving`."""
        found: dict[int, Part] = {}
        marker: dict[str, Any] = {}
        field: Any = f"Checksum{self.algorithm.name.upper()}"
        while True:
            page = self._call(
                "ListParts", key, lambda: self.aws.client.list_parts(
                    Bucket=self.bucket, Key=self.key(key), UploadId=upload, **marker
                ),
            )  # fmt: skip
            for each in page.get("Parts", ()):
                number, etag = each["PartNumber"], each["ETag"]
                known = recorded.get(number)
                if known is not None and known.etag.strip('"') == etag.strip('"'):
                    found[number] = known
                else:
                    crc = self.algorithm.decode(str(each.get(field, "")))
                    found[number] = Part(etag, each["Size"], crc)
            if not page.get("IsTruncated"):
                return found
            marker["PartNumberMarker"] = page["NextPartNumberMarker"]

    def send_part(self, key: str, upload: str, number: int, piece: Piece, flow: Flow) -> Part:
        """See `ObjectStore.send_part`."""
        return self.sender.send_part(key, upload, number, piece, flow)

    def complete(self, key: str, upload: str, parts: Mapping[int, Part], crc: int) -> str:
        """See `ObjectStore.complete`."""
        checksum = f"Checksum{self.algorithm.name.upper()}"
        value = self.algorithm.encode(crc)
        size = sum(part.size for part in parts.values())
        listed: Any = []
        for number in sorted(parts):
            part = parts[number]
            own = {} if part.crc is None else {checksum: self.algorithm.encode(part.crc)}
            listed.append({"PartNumber": number, "ETag": part.etag, **own})
        extra: Any = {checksum: value, "ChecksumType": "FULL_OBJECT", "MpuObjectSize": size}
        try:
            answer = self._call(
                "CompleteMultipartUpload", key, lambda: self.aws.patient.complete_multipart_upload(
                    Bucket=self.bucket, Key=self.key(key), UploadId=upload,
                    MultipartUpload={"Parts": listed}, **extra,
                ),
            )  # fmt: skip
        except NotFound:
            # Completed already, and only the answer got lost on its way?
            etag = self._completed(key, size, checksum, value)
            if etag is None:
                raise
            return etag
        stored = answer.get(checksum)
        if stored is not None and stored != value:
            raise Damaged(f"{self.resource(key)} was stored with another checksum")
        return told(answer, "ETag")

    def _completed(self, key: str, size: int, checksum: str, value: str) -> str | None:
        head: Any = self.head(key)
        if head is None or head["ContentLength"] != size:
            return None
        # Without the checksum nobody can say that it is the same object.
        return str(head["ETag"]) if head.get(checksum) == value else None

    def head(self, key: str) -> dict[str, Any] | None:
        """Returns what HeadObject says of an object, checksums included; None if missing."""
        try:
            answer = self._call(
                "HeadObject", key, lambda: self.aws.client.head_object(
                    Bucket=self.bucket, Key=self.key(key), ChecksumMode="ENABLED"
                ),
            )  # fmt: skip
        except NotFound:
            return None
        return dict(answer)

    def abort(self, key: str, upload: str) -> None:
        """See `ObjectStore.abort`."""
        try:
            self._call(
                "AbortMultipartUpload", key, lambda: self.aws.client.abort_multipart_upload(
                    Bucket=self.bucket, Key=self.key(key), UploadId=upload
                ),
            )  # fmt: skip
        except NotFound:
            return

    def copy(self, source: str, key: str, part: Part) -> str:
        """See `ObjectStore.copy`."""
        if part.size > _COPY_LIMIT:
            return self._copy_parts(source, key, part)
        checksum: Any = f"Checksum{self.algorithm.name.upper()}"
        answer = self._call(
            "CopyObject", key, lambda: self.aws.patient.copy_object(
                Bucket=self.bucket, Key=self.key(key),
                CopySource={"Bucket": self.bucket, "Key": self.key(source)},
                CopySourceIfMatch=part.etag, **self.object_options(),
                ChecksumAlgorithm=self.algorithm.name.upper(),  # type: ignore[arg-type]
            ),
        )  # fmt: skip
        result: Any = answer.get("CopyObjectResult", {})
        self._check_copy(key, part, result.get(checksum))
        return told(result, "ETag")

    def _copy_parts(self, source: str, key: str, part: Part) -> str:
        upload = self.begin(key)
        size = 1024**3
        parts: dict[int, Part] = {}
        try:
            for number, offset in enumerate(range(0, part.size, size), start=1):
                last = min(offset + size, part.size) - 1
                request: Any = {
                    "Bucket": self.bucket,
                    "Key": self.key(key),
                    "UploadId": upload,
                    "PartNumber": number,
                    "CopySource": {"Bucket": self.bucket, "Key": self.key(source)},
                    "CopySourceIfMatch": part.etag,
                    "CopySourceRange": f"bytes={offset}-{last}",
                }
                copy = functools.partial(self.aws.patient.upload_part_copy, **request)
                answer = self._call("UploadPartCopy", key, copy)
                parts[number] = Part(
                    told(answer.get("CopyPartResult", {}), "ETag"), last + 1 - offset, None
                )
            return self.complete(key, upload, parts, part.crc or 0)
        except BaseException:
            self.abort(key, upload)
            raise

    def _check_copy(self, key: str, part: Part, stored: str | None) -> None:
        if (
            stored is not None
            and part.crc is not None
            and stored != self.algorithm.encode(part.crc)
        ):
            self.delete([key])
            raise Damaged(f"{self.resource(key)} was copied with another checksum")

    def receive(self, key: str, piece: Piece, flow: Flow, algorithm: Algorithm) -> int:
        """See `ObjectStore.receive`."""
        return self.sender.receive(key, piece, flow, algorithm)

    def close(self) -> None:
        """See `ObjectStore.close`."""
        if self._sender is not None:
            self._sender.close()
        self.aws.close()

    def object_options(self) -> dict[str, Any]:
        """Returns what every object of a checkpoint is written with, by its API name."""
        extra = self._encryption()
        if self.options.storage_class:
            extra["StorageClass"] = self.options.storage_class
        return extra

    def _encryption(self) -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if self.options.server_side_encryption:
            extra["ServerSideEncryption"] = self.options.server_side_encryption
        if self.options.kms_key_id:
            extra["SSEKMSKeyId"] = self.options.kms_key_id
        return extra
