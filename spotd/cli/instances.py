"""`spotd instances`: the run's instances, why one is stopped, and whether EC2 starts it again."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, print_json, settings_of, table
from spotd.errors import EXIT_DONE

if TYPE_CHECKING:
    import argparse

    from spotd.ec2.launching import Present
    from spotd.ec2.words import Words

_AGAIN = {"yes": "yes", "no": "NO", "runs": "-", "unknown": "?"}


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    p = verbs.add_parser("instances", help="list this run's instances and their requests")
    add_options(p)
    add_region(p)
    p.add_argument("--all", action="store_true", help="of every run, and those that have ended")


def add_region(parser: argparse.ArgumentParser) -> None:
    """Adds --region."""
    parser.add_argument(
        "--region", metavar="REGION", help="where (default: launch.region, the environment's)"
    )


def run(options: argparse.Namespace) -> int:
    """Lists them."""
    from spotd.ec2.api import Ec2, region_of  # noqa: PLC0415 - boto3, only here
    from spotd.ec2.launching import present  # noqa: PLC0415

    settings = settings_of(options)
    ec2 = Ec2(region_of(options.region or settings.launch.region, settings.store.region))
    found = present(ec2, None if options.all else settings.run)
    rows = entries(found, datetime.now(timezone.utc), ended=options.all)
    if options.json:
        print_json({"region": ec2.region, "instances": rows})
    elif rows:
        print(render(rows))
    else:
        print(f"run {settings.run} has no instance and no open request in {ec2.region}")
    return EXIT_DONE


def entries(found: Present, now: datetime, *, ended: bool) -> list[dict[str, Any]]:
    """One entry for each instance, and each request without one."""
    from spotd.ec2.words import explain  # noqa: PLC0415

    rows = []
    for instance in found.instances if ended else found.living:
        request = found.request_of(instance)
        rows.append(_entry(instance, request, explain(instance, request, now)))
    listed = {i["InstanceId"]: i for i in found.instances}
    for waiting in found.waiting:
        last = listed.get(waiting.get("InstanceId", ""))
        rows.append(_entry({}, waiting, explain(last, waiting, now)))
    return rows


def _entry(
    instance: dict[str, Any], request: dict[str, Any] | None, words: Words
) -> dict[str, Any]:
    request = request or {}
    tags = {t["Key"]: t["Value"] for t in instance.get("Tags") or request.get("Tags") or []}
    launched = request.get("LaunchSpecification", {})
    zone = instance.get("Placement", {}).get("AvailabilityZone")
    until = request.get("ValidUntil")
    return {
        "run": tags.get("spotd:run"),
        "instance_id": instance.get("InstanceId"),
        "instance_type": instance.get("InstanceType") or launched.get("InstanceType"),
        "zone": zone or request.get("LaunchedAvailabilityZone"),
        "state": instance.get("State", {}).get("Name"),
        "address": instance.get("PublicIpAddress") or instance.get("PrivateIpAddress"),
        "request_id": request.get("SpotInstanceRequestId"),
        "request_state": request.get("State"),
        "request_code": request.get("Status", {}).get("Code"),
        "valid_until": until.isoformat() if until else None,
        "what": words.what,
        "starts_again": words.again,
        "todo": words.todo,
    }


def render(rows: list[dict[str, Any]], *, advice: bool = True) -> str:
    """Returns the list as text; with `advice` what to do about each."""
    heading = ("RUN", "INSTANCE", "TYPE", "ZONE", "STATE", "ADDRESS", "AGAIN", "WHY")
    lines: list[tuple[str, ...]] = [heading]
    for r in rows:
        code = f" [{r['request_id']}: {r['request_code']}]" if r["request_id"] else ""
        lines.append((
            r["run"] or "-", r["instance_id"] or "-", r["instance_type"] or "-", r["zone"] or "-",
            r["state"] or "-", r["address"] or "-", _AGAIN[r["starts_again"]], r["what"] + code,
        ))  # fmt: skip
    if not advice:
        return table(lines)
    todos = [f"{r['instance_id'] or r['request_id']}: {r['todo']}" for r in rows if r["todo"]]
    untils = [
        f"{r['request_id']}: EC2 starts nothing for it after {r['valid_until']}"
        for r in rows
        if r["valid_until"] and r["starts_again"] in ("yes", "runs")
    ]
    return "\n".join([table(lines), *todos, *untils])
