"""Who we are to AWS, and how to reach it: endpoint, region, credentials, signatures.

All of it is botocore's knowledge; here it is only put to use, at the first call, because
importing it takes a tenth of a second and tens of MiB. What botocore raises becomes a
StoreProblem, in words.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from spotd.shell.store.access import Access, Keys
from spotd.shell.store.problems import (
    CredentialsExpired,
    answered,
    no_credentials,
    unreachable,
    untrusted,
)
from spotd.shell.store.protocol import StoreProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client

    from spotd.shell.store.signing import Credentials

# A healthy S3 answers a connect in milliseconds and never pauses for seconds; what does is
# dead, and another connection, most likely to another host, is the cure. docs/transfer.md
# has the measurements.
CONNECT_TIMEOUT = 3.0  # seconds
PROGRESS_TIMEOUT = 10.0  # seconds in which not one byte moves, or no answer comes
COMPLETE_TIMEOUT = 60.0  # seconds: S3 puts thousands of parts together before it answers

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class S3Options:
    """What store.* says beyond the url."""

    endpoint_url: str | None = None
    region: str | None = None
    storage_class: str | None = None
    server_side_encryption: str | None = None
    kms_key_id: str | None = None


class Aws:
    """S3 clients for one bucket, and what the thin sender needs to do without them.

    Args:
        bucket: Its name.
        options: Endpoint and region.
        connections: How many requests at a time there may be.
    """

    def __init__(self, bucket: str, options: S3Options, connections: int) -> None:
        self._bucket = bucket
        self._options = options
        self._connections = connections
        self._lock = threading.RLock()
        self._client: S3Client | None = None
        self._patient: S3Client | None = None
        self._session: Any = None
        self._region: str | None = None

    @property
    def client(self) -> S3Client:
        """The botocore client, made at its first use: that takes a third of a second."""
        with self._lock:
            if self._client is None:
                self._client = self._make_client(PROGRESS_TIMEOUT)
            return self._client

    @property
    def patient(self) -> S3Client:
        """A client that waits longer: for calls that make S3 work before it answers."""
        with self._lock:
            if self._patient is None:
                self._patient = self._make_client(COMPLETE_TIMEOUT)
            return self._patient

    def call(self, operation: str, resource: str, function: Callable[[], _T]) -> _T:
        """Runs a botocore call; whatever goes wrong becomes a StoreProblem."""
        from botocore import exceptions  # noqa: PLC0415 - botocore only where S3 is
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        try:
            return function()
        except exceptions.ClientError as error:
            told = error.response.get("Error", {})
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
            code = str(told.get("Code") or status)
            problem = answered(operation, code, str(told.get("Message", "")), resource)
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
        except exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise untrusted(self._options.endpoint_url or "S3", _line(error)) from error
            raise unreachable(self._options.endpoint_url or "S3", _line(error)) from error
        except (exceptions.ParamValidationError, ValueError) as error:
            raise StoreProblem(f"{operation} cannot be asked for: {_line(error)}") from error
        except (exceptions.BotoCoreError, HTTPError, OSError) as error:
            raise unreachable(self._options.endpoint_url or "S3", _line(error)) from error

    def noticed(self, problem: StoreProblem) -> None:
        """Has credentials looked up again when the server calls them expired."""
        if isinstance(problem, CredentialsExpired):
            with self._lock:
                self._session = self._client = self._patient = None

    @property
    def region(self) -> str:
        """The bucket's region, as far as anybody knows."""
        return str(self.client.meta.region_name)

    def credentials(self) -> Credentials:
        """Returns the credentials of this moment; those that expire are renewed before."""

        def look() -> Credentials:
            found = self._the_session().get_credentials()
            if found is None:
                raise no_credentials("none found")
            frozen: Credentials = found.get_frozen_credentials()
            return frozen

        return self.call("GetCredentials", "", look)

    def access(self) -> Access:
        """Returns all that is needed to reach the bucket's objects without botocore."""
        url = self.object_url("x")
        found = self.credentials()
        keys = Keys(found.access_key, found.secret_key, found.token)
        bundle = self.ca_bundle() if url.startswith("https:") else ""
        return Access(url.removesuffix("x"), self.region, bundle, keys)

    def object_url(self, key: str) -> str:
        """Returns the url of an object, as botocore would call it; needs credentials."""
        url = self.call(
            "PresignUrl", key, lambda: self.client.generate_presigned_url(
                "put_object", Params={"Bucket": self._bucket, "Key": key}
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

        config = Config(
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
                    "s3", region_name=region, endpoint_url=self._options.endpoint_url, config=config
                ),
            )  # fmt: skip
            return client

        region = self._options.region or session.get_config_variable("region") or self._region
        if region is None:
            region = "us-east-1"  # what servers that are not AWS expect
            if not self._options.endpoint_url:
                region = self._region = self._find_region(create(region)) or region
        return create(region)

    def close(self) -> None:
        """Lets go of connections."""
        for client in (self._client, self._patient):
            if client is not None:
                client.close()

    def _find_region(self, client: S3Client) -> str | None:
        """Asks where the bucket is; S3 says so even to those it refuses."""
        from botocore.exceptions import ClientError  # noqa: PLC0415

        def ask() -> str | None:
            try:
                headers = client.head_bucket(Bucket=self._bucket)["ResponseMetadata"]["HTTPHeaders"]
            except ClientError as error:
                headers = error.response["ResponseMetadata"]["HTTPHeaders"]
            return headers.get("x-amz-bucket-region")

        return self.call("HeadBucket", "", ask)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def told(answer: Any, name: str) -> str:
    """Returns what an answer says, which it must: botocore believes one that was cut short."""
    value = answer.get(name)
    if not value:
        raise StoreProblem(f"S3's answer was cut short: it has no {name}", retriable=True)
    return str(value)
