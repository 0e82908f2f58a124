"""An EC2 region on loopback: moto's server over HTTP, taught what Spot does and moto does not.

moto answers RunInstances without a Spot request, forgets ClientToken, never lacks capacity, has
no placement scores, no prices that move and no public images. `Cloud` adds these, in the server's
process and by the rules of ec2-facts: a known token gives the instance it has given before, the
same token with other parameters is refused, a stop by the user disables the request, cancelling
the request of a stopped instance ends it, and terminating an instance whose request still holds
makes EC2 launch another one. The code under test sees nothing but HTTP.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone

from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import ec2_backends
from moto.ec2.models.spot_requests import SpotInstanceRequest
from moto.ec2.responses.instances import InstanceResponse
from moto.ec2.responses.spot_instances import SpotInstances
from moto.server import ThreadedMotoServer

REGION, ACCOUNT = "us-east-1", "123456789012"
AMI, ARM_AMI = "ami-0123456789abcdef0", "ami-0fedcba9876543210"
ZONE_A, ZONE_B = "us-east-1a", "us-east-1b"
UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
_DENIED = (
    "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/ann "
    "is not authorized to perform: {} on resource: {} because no identity-based policy allows it. "
    "Encoded authorization failure message: AAAA"
)


def image(ami, architecture):
    return {
        "ami_id": ami, "name": f"ubuntu-{architecture}", "architecture": architecture,
        "state": "available", "public": True, "owner_id": "099720109477", "platform": None,
        "image_type": "machine", "hypervisor": "xen", "root_device_name": "/dev/sda1",
        "root_device_type": "ebs", "sriov": "simple", "virtualization_type": "hvm",
        "description": "", "image_location": "", "creation_date": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip


class Request(SpotInstanceRequest):
    """A Spot request that changes the way EC2's do."""

    __module__ = "moto.ec2.models"  # moto finds the service by it

    def __init__(self, cloud, instance, market, tags):
        self.ec2_backend = cloud.backend
        self.tags = {}
        cloud.count += 1
        self.id = f"sir-{cloud.count:08x}"
        self.instance, self.state, self._status_code = instance, "active", "fulfilled"
        self.status_message = ""
        options = market.get("SpotOptions", {})
        self.type = options.get("SpotInstanceType", "one-time")
        self.instance_interruption_behaviour = options.get("InstanceInterruptionBehavior")
        self.valid_until, self.valid_from = options.get("ValidUntil"), None
        self.price, self.launch_group, self.spot_fleet_id = None, None, None
        self.launch_specification = None
        if tags:
            self.add_tags(tags)
        self.all_tags = {"spot-instances-request": tags}

    @property
    def instance_id(self):
        return self.instance.id if self.instance else None

    def become(self, state, code):
        self.state, self._status_code = state, code


class Cloud:
    """The region. `refuses` maps (type, zone, market) to an error code."""

    def __init__(self, url):
        self.url = url
        self.backend = ec2_backends[ACCOUNT][REGION]
        self.count = 0
        self.forget()

    def forget(self):
        """What a test has scripted; instances stay, each test has its own run."""
        self.refuses, self.denies, self.scores = {}, set(), None
        self.asked, self.calls, self.tokens, self.history = [], [], {}, []
        self.leaves_open = False
        self.loses_answer = False

    # What the tests look at.
    def instances(self, run):
        found = [i for r in self.backend.reservations.values() for i in r.instances]
        tagged = [i for i in found if any(t["value"] == run for t in i.get_tags())]
        return [i for i in tagged if i._state.name not in ("terminated", "shutting-down")]

    def requests(self, run):
        found = self.backend.spot_instance_requests.values()
        return [r for r in found if any(t["value"] == run for t in r.get_tags())]

    def check(self, name, arn):
        """What the operator's policy lacks."""
        if (action := f"ec2:{name}") in self.denies:
            raise EC2ClientError("UnauthorizedOperation", _DENIED.format(action, arn))

    # What EC2 does.
    def run(self, original, response):
        market = response._get_param("InstanceMarketOptions") or {}
        kind = market.get("MarketType", "on-demand")
        zone = (response._get_param("Placement") or {}).get("AvailabilityZone")
        pool = (response._get_param("InstanceType"), zone, kind)
        if response._get_param("DryRun"):
            return original(response)
        token = response._get_param("ClientToken")
        self.asked.append((*pool, token))
        if code := self.refuses.get(pool):
            if self.leaves_open:
                tags = response._parse_tag_specification().get("spot-instances-request", {})
                left = self._request(None, market, tags)
                left.become("open", "capacity-not-available")
            raise EC2ClientError(code, f"scripted: {code}")
        said = (pool, market.get("SpotOptions", {}).get("ValidUntil"))
        if token in self.tokens:
            reservation, before = self.tokens[token]
            if said != before:
                raise EC2ClientError("IdempotentParameterMismatch", "scripted: other parameters")
            return ActionResult(reservation)
        result = original(response)
        reservation = result._result
        self.tokens[token] = (reservation, said)
        if kind == "spot":
            tags = response._parse_tag_specification().get("spot-instances-request", {})
            self._request(reservation.instances[0], market, tags)
        if self.loses_answer:
            self.loses_answer = False
            raise EC2ClientError("InternalError", "scripted: the answer is lost")
        return result

    def _request(self, instance, market, tags):
        request = Request(self, instance, market, tags)
        self.backend.spot_instance_requests[request.id] = request
        if instance is not None:
            instance.spot_instance_request_id = request.id
        return request

    def cancel(self, ids):
        found = [self.backend.spot_instance_requests[i] for i in ids]
        for request in found:
            instance = request.instance
            if instance is not None and instance._state.name == "stopped":
                instance.terminate()
            request.become("cancelled", "request-canceled-and-instance-running")
        return found

    def terminated(self, ids):
        for request in list(self.backend.spot_instance_requests.values()):
            if request.instance_id in ids and request.state in ("active", "open", "disabled"):
                request.become("open", "instance-terminated-by-user")
                old = request.instance
                fresh = self.backend.run_instances(
                    old.image_id, 1, None, [], instance_type=old.instance_type,
                    tags={"instance": {t["key"]: t["value"] for t in old.get_tags()}},
                    placement=old.placement.zone if hasattr(old, "placement") else None,
                    region_name=REGION, is_instance_type_default=False,
                ).instances[0]  # fmt: skip
                request.instance = fresh
                request.become("active", "fulfilled")

    def stopped(self, ids):
        for request in self.backend.spot_instance_requests.values():
            if request.instance_id in ids and request.state == "active":
                request.become("disabled", "instance-stopped-by-user")

    def interrupt(self, run, code="instance-stopped-no-capacity"):
        """EC2 stops the run's instance."""
        for request in self.requests(run):
            request.instance.stop()
            request.become("open", code)


def serve(patch):
    """Starts the server; returns it and its Cloud. `patch`: a MonkeyPatch that outlives it."""
    from moto.ec2.models import amis
    from moto.ec2.utils import filter_dict_attribute_mapping

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    patch.setattr(amis, "AMIS", [image(AMI, "x86_64"), image(ARM_AMI, "arm64")])
    patch.setenv("MOTO_AMIS_PATH", "(in memory)")
    patch.setitem(filter_dict_attribute_mapping, "client-token", "client_token")
    ec2_backends[ACCOUNT][REGION].reset()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    cloud = Cloud(f"http://{host}:{port}")
    teach_answers(patch, cloud)
    teach_requests(patch, cloud)
    return server, cloud


def teach_answers(patch, cloud):
    """RunInstances, scores, prices, public parameters."""
    from moto.ssm.models import Parameter, SimpleSystemManagerBackend

    original = InstanceResponse.run_instances

    def run(self):
        cloud.calls.append("RunInstances")
        cloud.check("RunInstances", f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/*")
        return cloud.run(original, self)

    def scores(self):
        cloud.check("GetSpotPlacementScores", "*")
        found = (cloud.scores or {}).items()
        return ActionResult({
            "SpotPlacementScores": [
                {"Region": REGION, "AvailabilityZoneId": zone, "Score": score}
                for zone, score in found
            ]
        })  # fmt: skip

    def history(self):
        wanted = self._get_param("InstanceTypes", [])
        return ActionResult(
            {"SpotPriceHistory": [p for p in cloud.history if p["InstanceType"] in wanted]}
        )

    def parameter(self, name):
        if name != UBUNTU:
            return None
        return Parameter(
            account_id=ACCOUNT, name=name, value=AMI, parameter_type="String", description=None,
            allowed_pattern=None, keyid=None, last_modified_date=datetime.now(timezone.utc),
            version=1, data_type="text",
        )  # fmt: skip

    patch.setattr(InstanceResponse, "run_instances", run)
    patch.setattr(SpotInstances, "get_spot_placement_scores", scores, raising=False)
    patch.setattr(SpotInstances, "describe_spot_price_history", history)
    patch.setattr(SimpleSystemManagerBackend, "get_parameter", parameter)


def teach_requests(patch, cloud):
    """What happens to a request when its instance stops or ends."""
    from moto.ec2.models import EC2Backend

    stop, terminate = EC2Backend.stop_instances, EC2Backend.terminate_instances

    def cancel(self, request_ids):
        cloud.calls.append("CancelSpotInstanceRequests")
        arn = f"arn:aws:ec2:{REGION}:{ACCOUNT}:spot-instances-request/{request_ids[0]}"
        cloud.check("CancelSpotInstanceRequests", arn)
        return cloud.cancel(request_ids)

    def stopping(self, instance_ids):
        cloud.calls.append("StopInstances")
        done = stop(self, instance_ids)
        cloud.stopped(instance_ids)
        return done

    def terminating(self, instance_ids):
        cloud.calls.append("TerminateInstances")
        done = terminate(self, instance_ids)
        cloud.terminated(instance_ids)
        return done

    patch.setattr(EC2Backend, "cancel_spot_instance_requests", cancel)
    patch.setattr(EC2Backend, "stop_instances", stopping)
    patch.setattr(EC2Backend, "terminate_instances", terminating)


def price(instance_type, zone, dollars, hours_ago=1.0):
    """One change of a Spot price."""
    return {
        "InstanceType": instance_type, "AvailabilityZone": zone, "SpotPrice": f"{dollars:.6f}",
        "ProductDescription": "Linux/UNIX",
        "Timestamp": datetime.now(timezone.utc) - timedelta(hours=hours_ago),
    }  # fmt: skip
