"""What botocore knows of a bucket, in a form that does without it.

Finding it out costs a quarter of a second of CPU and 30 MiB, far more than the one small
request that renews a lease. So who has found it out passes it on: the store's worker to the
daemon, which renews the lease with it, and the daemon to the next worker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Of PutObject's options, from its entry in S3's API reference.
HEADERS = {
    "StorageClass": "x-amz-storage-class",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
}


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials of one moment (`spotd.shell.store.signing.Credentials`)."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the objects of a store.

    Attributes:
        url: Of the object with the key "": the store's prefix is not in it.
        region: The bucket's.
        ca_bundle: File of the authorities that are trusted; "" without TLS.
        keys: Credentials; S3 says when they have expired.
    """

    url: str
    region: str
    ca_bundle: str
    keys: Keys = field(repr=False)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Access:
        """Returns what `dataclasses.asdict` made of one."""
        return cls(**{**told, "keys": Keys(**told["keys"])})
