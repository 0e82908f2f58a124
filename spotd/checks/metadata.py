"""The metadata service, where notices appear; and what it says the instance is."""

from __future__ import annotations

from spotd.checks import Finding, Surroundings, failed, ok, warning
from spotd.shell.clouds import InstanceIdentity, MetadataTrouble, detect, make_source

SUBJECT = "metadata"


def probe(around: Surroundings) -> list[Finding]:
    """Asks for a notice as the daemon does, then what the instance is."""
    settings = around.settings
    cloud = settings.cloud
    around.cloud = (detect() or "ec2") if cloud == "auto" else cloud
    source = make_source(cloud, settings.imds)
    try:
        source.poll(settings.imds.timeout, lambda _: None)
        around.identity = source.identity(settings.imds.timeout)
    except MetadataTrouble as trouble:
        return [judge_trouble(settings.imds.endpoint, trouble.reason, trouble.hint)]
    return judge(around.cloud, around.identity)


def judge_trouble(endpoint: str, reason: str, hint: str) -> Finding:
    """Decides about a service that does not answer: without it no notice is ever seen."""
    return failed(SUBJECT, f"no notice can be seen: {reason}", hint or f"see imds.* ({endpoint})")


def judge(cloud: str, identity: InstanceIdentity) -> list[Finding]:
    """Decides about what it answered."""
    what = identity.instance_type or "an instance of unknown type"
    where = identity.az or identity.region or "an unknown zone"
    name = identity.instance_id or "without an id"
    found = [ok(SUBJECT, f"answers: {name}, {what} in {where}")]
    life = identity.life_cycle
    if life is None:
        found.append(warning("life cycle", "it does not say", "is this a cloud instance?"))
    elif life == "spot":
        found.append(ok("life cycle", "spot"))
    else:
        advice = (
            "nothing interrupts it, and it costs the full price; `spotd launch` makes a persistent "
            "Spot instance"
            if cloud == "ec2"
            else "nothing interrupts it, and it costs the full price"
        )
        found.append(warning("life cycle", life, advice))
    return found
