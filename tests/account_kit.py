"""An AWS account on loopback: moto's server, and what a test puts into it."""

from __future__ import annotations

import json
import logging
import urllib.request

import pytest

REGION = "us-east-1"
IMAGE = "ami-03cf127a"  # one of those that moto starts with; listing them takes seconds


class Account:
    """EC2, SNS and SQS of moto, over HTTP."""

    def __init__(self, url):
        self.url = url
        self.environment = {
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_ENDPOINT_URL_EC2": url,
            "AWS_ENDPOINT_URL_SNS": url,
        }

    def client(self, service):
        import boto3

        return boto3.client(
            service, endpoint_url=self.url, region_name=REGION,
            aws_access_key_id="test-key", aws_secret_access_key="test-secret",
        )  # fmt: skip

    def spot_instance(self, *, kind="persistent", behaviour="stop"):
        """A running Spot instance: (instance id, request id)."""
        ec2 = self.client("ec2")
        request = ec2.request_spot_instances(
            InstanceCount=1, Type=kind, InstanceInterruptionBehavior=behaviour,
            LaunchSpecification={"ImageId": IMAGE, "InstanceType": "g5.xlarge"},
        )["SpotInstanceRequests"][0]  # fmt: skip
        return request["InstanceId"], request["SpotInstanceRequestId"]

    def state_of(self, instance):
        found = self.client("ec2").describe_instances(InstanceIds=[instance])
        return found["Reservations"][0]["Instances"][0]["State"]["Name"]

    def request_state(self, request):
        found = self.client("ec2").describe_spot_instance_requests(SpotInstanceRequestIds=[request])
        return found["SpotInstanceRequests"][0]["State"]

    def user_who_may(self, *actions):
        """Credentials of somebody who may do just that; see `policies_count`."""
        iam = self.client("iam")
        iam.create_user(UserName="narrow")
        iam.put_user_policy(
            UserName="narrow", PolicyName="narrow",
            PolicyDocument=json.dumps({
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}],
            }),
        )  # fmt: skip
        key = iam.create_access_key(UserName="narrow")["AccessKey"]
        return {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }

    def policies_count(self, yes=True):
        """From now on policies are looked at, or not any more."""
        from moto import settings
        from moto.core.responses import ActionAuthenticatorMixin

        settings.INITIAL_NO_AUTH_ACTION_COUNT = 0 if yes else float("inf")
        ActionAuthenticatorMixin.request_count = 0

    def post(self, path, data=b""):
        request = urllib.request.Request(self.url + path, data=data, method="POST")
        with urllib.request.urlopen(request, timeout=10):
            pass


@pytest.fixture(scope="module")
def _moto():
    pytest.importorskip("moto.server")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield Account(f"http://{host}:{port}")
    server.stop()


@pytest.fixture
def account(_moto, monkeypatch):
    """An empty account; this process's environment leads to it and nowhere else."""
    _moto.policies_count(False)
    _moto.post("/moto-api/reset")
    for name, value in _moto.environment.items():
        monkeypatch.setenv(name, value)
    yield _moto
    _moto.policies_count(False)
