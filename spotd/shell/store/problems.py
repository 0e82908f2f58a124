"""What S3 answers when it does not do it, in one line and with what to do about it.

Codes are from the S3 API reference, "Error responses", and from botocore's exceptions.
Nothing here imports botocore: both senders and the tests use it.
"""

from __future__ import annotations

import re

from spotd.shell.store.protocol import Damaged, NotFound, PreconditionFailed, StoreProblem

_BUSY = {
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "RequestTimeTooSlow",
    "Throttling", "ThrottlingException", "TooManyRequests", "OperationAborted", "Busy",
    "ConditionalRequestConflict", "RequestLimitExceeded", "BandwidthLimitExceeded",
    "IncompleteBody", "500", "502", "503", "504", "429", "408",
}  # fmt: skip
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_UNKNOWN_KEY = {"InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "AuthFailure"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "Forbidden", "UnauthorizedAccess", "403"}
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed",
           "IllegalLocationConstraintException", "301", "307", "TemporaryRedirect"}  # fmt: skip
_CHECKSUM = {"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch",
             "XAmzContentSHA256Mismatch"}  # fmt: skip
_MISSING = {"NoSuchKey", "NoSuchUpload", "404", "NotFound"}
_CONDITION = {"PreconditionFailed", "412"}

_ACTIONS = {  # what to allow for each operation, from S3's "Actions and permissions"
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "UploadPartCopy": "s3:PutObject and s3:GetObject",
    "CopyObject": "s3:PutObject and s3:GetObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListParts": "s3:ListMultipartUploadParts",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
}


class CredentialsExpired(StoreProblem):
    """The server says so, whatever their date says: they have to be looked up again."""


def answered(operation: str, code: str, message: str, resource: str) -> StoreProblem:
    """Returns the problem behind an S3 error answer.

    Args:
        operation: "PutObject" and the like.
        code: S3's error code, or the HTTP status where there was none.
        message: S3's own sentence; may be empty.
        resource: `s3://bucket/key`, for people.
    """
    if code in _CONDITION:
        return PreconditionFailed(f"{resource} was written by somebody else in between")
    if code in _MISSING:
        return NotFound(f"{resource} is not in the store")
    if code in _CHECKSUM:
        return Damaged(f"{resource} arrived damaged ({code})", retriable=True)
    if code in _BUSY:
        return StoreProblem(f"S3 is busy: {operation} answered {code}", retriable=True)
    known = _known(operation, code, resource)
    if known is not None:
        return known
    retriable = code.isdigit() and code.startswith("5")
    text = " ".join(message.split())[:200]
    return StoreProblem(f"{operation} on {resource} failed: {code} {text}", retriable=retriable)


def _known(  # noqa: PLR0911 - a table with sentences in it
    operation: str, code: str, resource: str
) -> StoreProblem | None:
    if code in _CLOCK:
        return StoreProblem(
            "this machine's clock is more than 15 minutes off, and S3 refuses it",
            hint="set the clock: chronyc makestep, and enable chrony (169.254.169.123 on EC2)",
        )
    if code in _EXPIRED:
        return CredentialsExpired(
            "the AWS credentials have expired",
            hint="use an instance profile: it renews them; or put new ones in their place",
            retriable=True,
        )
    if code in _UNKNOWN_KEY:
        return StoreProblem(
            f"S3 does not accept the AWS credentials ({code})",
            hint="check access key, secret and session token, and that they are for this endpoint",
        )
    if code in _DENIED:
        action = _ACTIONS.get(operation, f"s3:{operation}")
        return StoreProblem(
            f"access denied: {operation} on {resource}",
            hint=f"allow {action} on it in the policy of the instance's role",
        )
    if code == "NoSuchBucket":
        bucket = "/".join(resource.split("/")[:3])
        return StoreProblem(
            f"the bucket {bucket} does not exist",
            hint="create it (aws s3 mb), or correct store.url",
        )
    if code in _REGION:
        return StoreProblem(
            f"the bucket of {resource} is in another region ({code})",
            hint="set store.region to the bucket's: aws s3api get-bucket-location",
        )
    return None


def element(text: str, name: str) -> str:
    """Returns the text of an element of S3's error document; it is flat and small."""
    found = re.search(rf"<{name}>([^<]{{0,1000}})</{name}>", text)
    return found[1] if found else ""


def unreachable(endpoint: str, reason: str) -> StoreProblem:
    """Returns the problem of a request that got no answer."""
    return StoreProblem(
        f"no answer from {endpoint}: {reason}",
        hint="check the network, a gateway or endpoint to S3, and the security group",
        retriable=True,
    )


def untrusted(endpoint: str, reason: str) -> StoreProblem:
    """Returns the problem of a server whose certificate nobody vouches for."""
    return StoreProblem(
        f"{endpoint} has a certificate that is not trusted: {reason}",
        hint="set AWS_CA_BUNDLE to the authority's certificate, or correct store.endpoint_url",
    )


def no_credentials(reason: str) -> StoreProblem:
    """Returns the problem of a machine that has no AWS credentials."""
    return StoreProblem(
        f"no AWS credentials: {reason}",
        hint="attach an instance profile with access to the bucket, or set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY in spotd's environment",
    )
