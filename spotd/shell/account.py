"""The AWS account around the instance: clients for EC2, SNS and prices, refusals in words.

Imported only by processes that end soon (verbs, helpers of the daemon): boto3 costs 30 MiB.
Codes are those of the EC2 API reference, "Error codes", and of the other services' "Common
errors". AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_<SERVICE> mean what they mean to every SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from spotd.errors import EXIT_UNAVAILABLE, SpotdError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
CONNECT_TIMEOUT = 3.0  # seconds
READ_TIMEOUT = 15.0
_DENIED = frozenset(
    {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "AuthorizationError",
     "AuthorizationErrorException", "NotAuthorized", "403"}
)  # fmt: skip
_UNKNOWN = frozenset(
    {"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch",
     "InvalidAccessKeyId"}
)  # fmt: skip
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})


class Denied(SpotdError):  # noqa: N818 - what the account says
    """The policy lacks something: `action` on `resource`."""

    def __init__(self, action: str, resource: str) -> None:
        super().__init__(
            f"not allowed: {action} on {resource}",
            hint=f"allow {action} on {resource} in the policy of the instance's role "
            "(packaging/aws/iam-policy.json has it)",
        )
        self.action = action
        self.resource = resource


def client(service: str, region: str | None) -> Any:
    """Returns a boto3 client that gives up within a minute.

    Raises:
        SpotdError: There is no region to ask in, or the AWS configuration is wrong.
    """
    import boto3  # noqa: PLC0415 - tens of MiB
    from botocore import exceptions  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"total_max_attempts": 3, "mode": "standard"},
    )
    try:
        # A session of its own: the default one would keep the first credentials it found.
        return boto3.Session().client(service, region_name=region, config=config)  # type: ignore[call-overload]
    except exceptions.NoRegionError:
        raise SpotdError(
            "it is not known which AWS region to ask",
            hint="set store.region, or AWS_DEFAULT_REGION",
        ) from None
    except (exceptions.BotoCoreError, ValueError) as error:
        raise misconfigured(error) from error


def misconfigured(error: Exception) -> SpotdError:
    """The problem behind an AWS configuration that boto3 cannot work with."""
    return SpotdError(
        f"the AWS configuration cannot be used: {' '.join(str(error).split())[:200]}",
        hint="check AWS_PROFILE (aws configure list-profiles), region and AWS_ENDPOINT_URL",
    )


def call(action: str, resource: str, function: Callable[[], _T]) -> _T:
    """Makes a call; whatever goes wrong becomes one line with a hint.

    Args:
        action: As a policy names it, "ec2:DescribeInstances".
        resource: What it is done to, for people.
        function: Makes the call.

    Raises:
        Denied: The policy lacks the action.
        SpotdError: Anything else.
    """
    from botocore import exceptions  # noqa: PLC0415

    try:
        return function()
    except exceptions.ClientError as error:
        told = error.response.get("Error", {})
        code, message = str(told.get("Code", "")), " ".join(str(told.get("Message", "")).split())
        if code in _DENIED:
            raise Denied(action, resource) from error
        if code in _UNKNOWN:
            hint = "use an instance profile, or check key, secret and session token"
            text = f"AWS does not accept the credentials ({code})"
            raise SpotdError(text, hint=hint) from error
        if code in _EXPIRED:
            hint = "use an instance profile: it renews them; and check the clock"
            raise SpotdError("the AWS credentials have expired", hint=hint) from error
        raise SpotdError(f"{action} on {resource} failed: {code} {message[:200]}") from error
    except (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
    ) as error:
        raise SpotdError(
            "there are no AWS credentials",
            hint="attach an instance profile (packaging/aws), or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY",
        ) from error
    except (exceptions.BotoCoreError, OSError) as error:
        service = action.partition(":")[0]
        text = " ".join(str(error).split())[:200]
        raise SpotdError(
            f"no answer from {service}: {text}",
            hint="check the network: a route or a VPC endpoint to it, and the security group",
            exit_code=EXIT_UNAVAILABLE,
        ) from error


def describe_instance(ec2: Any, instance_id: str) -> dict[str, Any]:
    """Returns an instance as EC2 describes it.

    Raises:
        SpotdError: Not allowed, not there, no answer.
    """
    found = call(
        "ec2:DescribeInstances", "*", lambda: ec2.describe_instances(InstanceIds=[instance_id])
    )
    for reservation in found["Reservations"]:
        for instance in reservation["Instances"]:
            return dict(instance)
    raise SpotdError(
        f"EC2 does not know {instance_id}",
        hint="is it in the account of these credentials, and in this region?",
    )


def request_of(ec2: Any, instance: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the Spot request of an instance; None: it is no Spot instance.

    Raises:
        SpotdError: Not allowed, no answer; or it is one, and its request is not to be found.
    """
    request_id = instance.get("SpotInstanceRequestId")
    if not request_id and instance.get("InstanceLifecycle") != "spot":
        return None
    name = instance["InstanceId"]
    which: dict[str, Any] = (
        {"SpotInstanceRequestIds": [request_id]}
        if request_id
        else {"Filters": [{"Name": "instance-id", "Values": [name]}]}
    )
    found = call(
        "ec2:DescribeSpotInstanceRequests",
        "*",
        lambda: ec2.describe_spot_instance_requests(**which)["SpotInstanceRequests"],
    )
    if not found:
        raise SpotdError(
            f"{name} is a Spot instance, and its request is not to be found",
            hint="aws ec2 describe-spot-instance-requests shows what there is",
        )
    return dict(found[0])
