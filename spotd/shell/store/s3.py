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

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from spotd.shell.store.checksum import DEFAULT, Algorithm
from spotd.shell.store.problems import CredentialsExpired, answered, no_credentials, unreachable
from spotd.shell.store.protocol import (
    Blob,
    Damaged,
    Entry,
    Flow,
    NotFound,
    Part,
    Piece,
    StoreProblem,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mypy_boto3_s3 import S3Client

    from spotd.shell.store.sender import PartSender

# A healthy S3 answers a connect in milliseconds and never pauses for seconds; what does is
# dead, and another connection, most likely to another host, is the cure. docs/transfer.md
# has the measurements.
CONNECT_TIMEOUT = 3.0  # seconds
PROGRESS_TIMEOUT = 10.0  # seconds in which not one byte moves, or no answer comes
COMPLETE_TIMEOUT = 60.0  # seconds: S3 puts thousands of parts together before it answers
_COPY_LIMIT = 5 * 10**9  # CopyObject ends at 5 GB
_DELETE_PAGE = 1000

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class S3Options:
    """What store.* says beyond the url."""

    endpoint_url: str | None = None
    region: str | None = None
    storage_class: str | None = None
    server_side_encryption: str | None = None
    kms_key_id: str | None = None


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
        self._connections = connections
        self._make_sender = sender
        self._lock = threading.RLock()
        self._client: S3Client | None = None
        self._patient: S3Client | None = None
        self._sender: PartSender | None = None
        self._session: Any = None
        self._config: Any = None
        self._region: str | None = None

    @property
    def location(self) -> str:
        """See `ObjectStore.location`."""
        place = f" at {self.options.endpoint_url}" if self.options.endpoint_url else ""
        return f"s3://{self.bucket}/{self._prefix}".rstrip("/") + place

    @property
    def algorithm(self) -> Algorithm:
        """See `ObjectStore.algorithm`."""
        return DEFAULT

    def key(self, key: str) -> str:
        """Returns the key in the bucket."""
        return self._prefix + key

    def resource(self, key: str) -> str:
        """Returns `s3://bucket/key`, for people."""
        return f"s3://{self.bucket}/{self._prefix}{key}"

    @property
    def client(self) -> S3Client:
        """The botocore client, made at its first use: that takes a third of a second."""
        with self._lock:
            if self._client is None:
                self._client = self._make_client(PROGRESS_TIMEOUT)
            return self._client

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
        _ = self.client, self.sender  # each is made at its first use

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str = "") -> str:
        """See `ObjectStore.put`."""
        extra: dict[str, Any] = {}
        if if_none_match:
            extra["IfNoneMatch"] = "*"
        if if_match:
            extra["IfMatch"] = if_match
        answer = self.call(
            "PutObject", key, lambda: self.client.put_object(
                Bucket=self.bucket, Key=self.key(key), Body=data,
                ContentType="application/json", **self._encryption(), **extra,
            ),
        )  # fmt: skip
        return answer["ETag"]

    def get(self, key: str, *, limit: int) -> Blob:
        """See `ObjectStore.get`."""

        def read() -> Blob:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.key(key))
            with answer["Body"] as body:
                data = body.read(limit + 1)
            if len(data) > limit:
                raise Damaged(f"{self.resource(key)} has more than {limit} bytes")
            return Blob(data, answer["ETag"])

        return self.call("GetObject", key, read)

    def list(self, prefix: str, *, delimiter: bool = False) -> Iterator[Entry]:
        """See `ObjectStore.list`."""
        token: dict[str, Any] = {"Delimiter": "/"} if delimiter else {}
        while True:
            page = self.call(
                "ListObjectsV2", prefix, lambda: self.client.list_objects_v2(
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
            answer = self.call(
                "DeleteObjects", page[0], lambda page=page: self.client.delete_objects(  # type: ignore[misc]
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
        answer = self.call(
            "CreateMultipartUpload", key, lambda: self.client.create_multipart_upload(
                Bucket=self.bucket, Key=self.key(key), **self.object_options(),
                ChecksumAlgorithm=self.algorithm.name.upper(),  # type: ignore[arg-type]
                ChecksumType="FULL_OBJECT",
            ),
        )  # fmt: skip
        return answer["UploadId"]

    def surviving(self, key: str, upload: str, recorded: Mapping[int, Part]) -> dict[int, Part]:
        """See `ObjectStore.surviving`."""
        found: dict[int, Part] = {}
        marker: dict[str, Any] = {}
        field: Any = f"Checksum{self.algorithm.name.upper()}"
        while True:
            page = self.call(
                "ListParts", key, lambda: self.client.list_parts(
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
            answer = self.call(
                "CompleteMultipartUpload", key, lambda: self.patient.complete_multipart_upload(
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
        return answer["ETag"]

    def _completed(self, key: str, size: int, checksum: str, value: str) -> str | None:
        head: Any = self.head(key)
        if head is None or head["ContentLength"] != size:
            return None
        # Without the checksum nobody can say that it is the same object.
        return str(head["ETag"]) if head.get(checksum) == value else None

    def head(self, key: str) -> dict[str, Any] | None:
        """Returns what HeadObject says of an object, checksums included; None if missing."""
        try:
            answer = self.call(
                "HeadObject", key, lambda: self.client.head_object(
                    Bucket=self.bucket, Key=self.key(key), ChecksumMode="ENABLED"
                ),
            )  # fmt: skip
        except NotFound:
            return None
        return dict(answer)

    def abort(self, key: str, upload: str) -> None:
        """See `ObjectStore.abort`."""
        try:
            self.call(
                "AbortMultipartUpload", key, lambda: self.client.abort_multipart_upload(
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
        answer = self.call(
            "CopyObject", key, lambda: self.patient.copy_object(
                Bucket=self.bucket, Key=self.key(key),
                CopySource={"Bucket": self.bucket, "Key": self.key(source)},
                CopySourceIfMatch=part.etag, **self.object_options(),
                ChecksumAlgorithm=self.algorithm.name.upper(),  # type: ignore[arg-type]
            ),
        )  # fmt: skip
        result: Any = answer.get("CopyObjectResult", {})
        self._check_copy(key, part, result.get(checksum))
        return str(result["ETag"])

    def _copy_parts(self, source: str, key: str, part: Part) -> str:
        upload = self.begin(key)
        size = 1024**3
        parts: dict[int, Part] = {}
        try:
            for number, offset in enumerate(range(0, part.size, size), start=1):
                last = min(offset + size, part.size) - 1
                answer = self.call(
                    "UploadPartCopy", key,
                    lambda number=number, offset=offset, last=last: self.patient.upload_part_copy(  # type: ignore[misc]
                        Bucket=self.bucket, Key=self.key(key), UploadId=upload, PartNumber=number,
                        CopySource={"Bucket": self.bucket, "Key": self.key(source)},
                        CopySourceIfMatch=part.etag, CopySourceRange=f"bytes={offset}-{last}",
                    ),
                )  # fmt: skip
                parts[number] = Part(answer["CopyPartResult"]["ETag"], last + 1 - offset, None)
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
        for client in (self._client, self._patient):
            if client is not None:
                client.close()

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

    @property
    def patient(self) -> S3Client:
        """A client that waits longer: for calls that make S3 work before it answers."""
        with self._lock:
            if self._patient is None:
                self._patient = self._make_client(COMPLETE_TIMEOUT)
            return self._patient

    def call(self, operation: str, key: str, function: Callable[[], _T]) -> _T:
        """Runs a botocore call; whatever goes wrong becomes a StoreProblem."""
        from botocore import exceptions  # noqa: PLC0415 - botocore only where S3 is
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        try:
            return function()
        except exceptions.ClientError as error:
            told = error.response.get("Error", {})
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
            code = str(told.get("Code") or status)
            problem = answered(operation, code, str(told.get("Message", "")), self.resource(key))
            self.noticed(problem)
            raise problem from error
        except (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.ProfileNotFound,
            exceptions.TokenRetrievalError,
        ) as error:
            raise no_credentials(_line(error)) from error
        except (exceptions.ParamValidationError, ValueError) as error:
            raise StoreProblem(f"{operation} cannot be asked for: {_line(error)}") from error
        except (exceptions.BotoCoreError, HTTPError, OSError) as error:
            raise unreachable(self.endpoint, _line(error)) from error

    @property
    def endpoint(self) -> str:
        """Where requests go, for people."""
        return self.options.endpoint_url or "S3"

    def noticed(self, problem: StoreProblem) -> None:
        """Has credentials looked up again when the server calls them expired."""
        if isinstance(problem, CredentialsExpired):
            with self._lock:
                self._session = self._client = self._patient = None

    def sign(
        self, method: str, url: str, headers: dict[str, str], *, trailer: bool
    ) -> dict[str, str]:
        """Returns the headers with date and signature; the payload is not signed.

        Args:
            method: Of the request.
            url: The whole of it, quoted.
            headers: All that are to be signed, Host excepted.
            trailer: The body ends with its checksum.
        """
        from botocore.auth import S3SigV4Auth  # noqa: PLC0415 - botocore only where S3 is
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415

        client = self.client
        request = AWSRequest(method, url, headers=headers)
        request.context["client_config"] = self._config
        if trailer:
            request.context["checksum"] = {"request_algorithm": {"in": "trailer"}}
        signer = S3SigV4Auth(self._credentials(), "s3", client.meta.region_name)
        signer.add_auth(request)
        return dict(request.headers.items())

    def _credentials(self) -> Any:
        """Returns the credentials of this moment; those that expire are renewed before."""

        def look() -> Any:
            found = self._the_session().get_credentials()
            if found is None:
                raise no_credentials("none found")
            return found.get_frozen_credentials()

        return self.call("GetCredentials", "", look)

    def object_url(self, key: str) -> str:
        """Returns the url of an object, as botocore would call it; needs credentials."""
        url = self.call(
            "PresignUrl", key, lambda: self.client.generate_presigned_url(
                "put_object", Params={"Bucket": self.bucket, "Key": key}
            ),
        )  # fmt: skip
        return url.partition("?")[0]

    def ca_bundle(self) -> str:
        """Returns the file of the authorities that are trusted, as botocore sees it."""
        from botocore.httpsession import get_cert_path  # noqa: PLC0415

        return str(self._the_session().get_config_variable("ca_bundle") or get_cert_path(True))

    def _the_session(self) -> Any:
        import botocore.session  # noqa: PLC0415 - tens of MiB, only where S3 is

        if self._session is None:
            self._session = botocore.session.get_session()
        return self._session

    def _make_client(self, read_timeout: float) -> S3Client:
        from botocore.config import Config  # noqa: PLC0415

        self._config = config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=read_timeout,
            # Retries are ours: bounded by what somebody waits for, not by a count.
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=self._connections + 4,
            tcp_keepalive=True,
            signature_version="s3v4",
            s3={"payload_signing_enabled": False},
        )
        session = self._the_session()

        def create(region: str) -> S3Client:
            client: S3Client = self.call(
                "CreateClient", "", lambda: session.create_client(
                    "s3", region_name=region, endpoint_url=self.options.endpoint_url, config=config
                ),
            )  # fmt: skip
            return client

        region = self.options.region or session.get_config_variable("region") or self._region
        if region is None:
            region = "us-east-1"  # what servers that are not AWS expect
            if not self.options.endpoint_url:
                region = self._region = self._find_region(create(region)) or region
        return create(region)

    def _find_region(self, client: S3Client) -> str | None:
        """Asks where the bucket is; S3 says so even to those it refuses."""
        from botocore.exceptions import ClientError  # noqa: PLC0415

        def ask() -> str | None:
            try:
                headers = client.head_bucket(Bucket=self.bucket)["ResponseMetadata"]["HTTPHeaders"]
            except ClientError as error:
                headers = error.response["ResponseMetadata"]["HTTPHeaders"]
            return headers.get("x-amz-bucket-region")

        return self.call("HeadBucket", "", ask)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
