"""What AWS refuses the operator, in one line and with what to do about it."""

from __future__ import annotations

import re

from spotd.errors import EXIT_UNAVAILABLE, SpotdError

POLICY = "packaging/aws/operator-policy.md"
_PROFILE = "packaging/aws/iam-policy.md"
# "User: ... is not authorized to perform: ACTION on resource: ARN ..."; IAM user guide,
# "Troubleshoot access denied error messages".
_TOLD = re.compile(
    r"not authorized to perform: (?P<action>[\w-]+:\w+)(?: on resource: (?P<resource>\S+))?"
)
_DENIED = frozenset(
    {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "AuthorizationError"}
)
_UNKNOWN = frozenset(
    {"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch"}
)
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_BUSY = frozenset(
    {"RequestLimitExceeded", "Throttling", "ThrottlingException", "InternalError", "Unavailable",
     "ServiceUnavailable", "InternalFailure", "500", "503"}
)  # fmt: skip
_WHAT_TO_DO = {
    "InvalidAMIID.NotFound": "launch.image must exist in this region",
    "InvalidAMIID.Malformed": "launch.image: ubuntu-24.04, deep-learning, ami-... or SSM parameter",
    "InvalidKeyPair.NotFound": "create it (aws ec2 create-key-pair), or correct launch.key_name",
    "InvalidGroup.NotFound": "correct launch.security_groups; they belong to one VPC",
    "InvalidSubnetID.NotFound": "correct launch.subnets; they belong to this region",
    "MissingInput": "name subnets (launch.subnets): this account has no default VPC",
    "VPCIdNotSpecified": "name subnets (launch.subnets): this account has no default VPC",
    "InvalidInstanceType": "correct launch.instance_types",
    "OptInRequired": "open the AWS Marketplace page of the image once and accept its terms",
    "ParameterNotFound": "name an AMI (--image ami-...): this region has no such SSM parameter",
    "PendingVerification": "AWS verifies new accounts, mostly within minutes: try again later",
    "Blocked": "the account may not launch: AWS support says why",
}


class Refused(SpotdError):  # noqa: N818 - what the account says
    """AWS did not do it. `code` is its own word; `sure`: it is known that nothing was done."""

    def __init__(
        self, code: str, message: str, *, hint: str = "", sure: bool = True, exit_code: int = 1
    ) -> None:
        super().__init__(message, hint=hint, exit_code=exit_code)
        self.code = code
        self.sure = sure


class Denied(Refused):
    """The operator's policy lacks an action."""


def refused(code: str, message: str, action: str, resource: str) -> Refused:
    """The problem behind an error answer.

    Args:
        code: AWS's error code.
        message: Its sentence; names the action and the resource where AWS says them.
        action: As a policy names it, "ec2:RunInstances".
        resource: What it is done to, as a policy names it.
    """
    text = " ".join(message.split())
    told = _TOLD.search(text)
    if code in _DENIED or told:  # whatever an endpoint in between makes of the code
        lacking = told["action"] if told else action
        where = (told["resource"] if told else None) or resource
        return Denied(
            code,
            f"your credentials do not allow {lacking} on {where.rstrip('.')}",
            hint=f"{POLICY} has a policy for who launches, and a reason for each action; what the "
            "instance itself may do is in iam-policy.md beside it",
        )
    if code in _UNKNOWN:
        hint = "aws sts get-caller-identity says who you are; check key, secret and session token"
        return Refused(code, f"AWS does not accept the credentials ({code})", hint=hint)
    if code in _EXPIRED:
        return Refused(code, "the AWS credentials have expired", hint="log in again")
    if code in _BUSY:
        return Refused(
            code, f"{action} is not answered ({code}): {text[:200]}", sure=False,
            hint="repeat the command in a moment: nothing is done twice",
            exit_code=EXIT_UNAVAILABLE,
        )  # fmt: skip
    hint = _WHAT_TO_DO.get(code, "")
    if not hint and "iam" in text.lower() and "instance profile" in text.lower():
        hint = f"correct launch.instance_profile; {_PROFILE} says how to make one"
    return Refused(code, f"{action} refused: {text[:300] or code} ({code})", hint=hint)


def unreachable(action: str, reason: str) -> Refused:
    """The problem of a call that got no answer: it may have been carried out."""
    return Refused(
        "", f"no answer to {action}: {' '.join(reason.split())[:200]}", sure=False,
        hint="check the network and the region, and repeat the command: nothing is done twice",
        exit_code=EXIT_UNAVAILABLE,
    )  # fmt: skip
