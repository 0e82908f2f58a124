"""Prices: by API where the role may, from the configuration where it may not."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING

from spotd.bill.reckoning import Prices
from spotd.errors import SpotdError
from spotd.shell.account import call, client

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spotd.config import CostSettings
    from spotd.core.ledger import BootRecord

HISTORY, LIST, CONFIGURED = "EC2's price history", "AWS's price list", "the configuration"
MOST_DAYS = 90  # that EC2 remembers Spot prices
PRICING_REGION = "us-east-1"  # the price list is the same everywhere, and served in a few regions
GIB = 1 << 30


def look_up(records: Sequence[BootRecord], configured: CostSettings) -> Prices:
    """Asks EC2 and the price list; what they do not say is in `why_not`."""
    why: list[str] = []
    base = configured_prices(records, configured)
    spot = _spot(records, why)
    on_demand = _on_demand(records, why)
    disk, disk_size = _disk(records, why)
    return Prices(
        spot=spot,
        on_demand=on_demand or base.on_demand,
        disk=base.disk if disk is None else disk,
        disk_size=disk_size,
        spot_source=HISTORY if spot else base.spot_source,
        on_demand_source=LIST if on_demand else base.on_demand_source,
        disk_source=base.disk_source if disk is None else LIST,
        why_not=tuple(dict.fromkeys(why)),
    )


def configured_prices(records: Sequence[BootRecord], configured: CostSettings) -> Prices:
    """What the configuration says, now and at each boot."""
    types = {r.instance_type or "" for r in records}
    price = configured.on_demand_price
    later = any(r.on_demand_price is not None for r in records)
    return Prices(
        on_demand={} if price is None else dict.fromkeys(types, price),
        disk=configured.disk_price,
        spot_source=CONFIGURED if any(r.spot_price is not None for r in records) else "",
        on_demand_source=CONFIGURED if price is not None or later else "",
        disk_source=CONFIGURED if configured.disk_price is not None else "",
    )


def _tell(why: list[str], error: SpotdError) -> None:
    why.append(f"{error.message}. {error.hint}" if error.hint else error.message)


def _spot(
    records: Sequence[BootRecord], why: list[str]
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    from spotd.ec2.api import Ec2  # noqa: PLC0415 - boto3

    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    regions = {r.region for r in records if r.region}
    for region in sorted(regions):
        here = [r for r in records if r.region == region and r.instance_type]
        types = sorted({r.instance_type or "" for r in here})
        now = datetime.now(timezone.utc)
        first = datetime.fromtimestamp(min(r.booted for r in here), timezone.utc) if here else now
        since = max(first, now - timedelta(days=MOST_DAYS))
        try:
            changes = Ec2(region).prices(types, since, now) if types else []
        except SpotdError as error:
            _tell(why, error)
            continue
        for change in changes:
            found.setdefault((change.instance_type, change.zone), []).append(
                (change.when, change.price)
            )
    return found


def _on_demand(records: Sequence[BootRecord], why: list[str]) -> dict[str, float]:
    from spotd.ec2.on_demand import on_demand_price  # noqa: PLC0415 - boto3

    found = {}
    wanted = {(r.instance_type, r.region) for r in records if r.instance_type and r.region}
    for instance_type, region in sorted(wanted):
        try:
            price = on_demand_price(instance_type, region)
        except SpotdError as error:
            _tell(why, error)
            break  # it will say the same of the next one
        if price is not None:
            found[instance_type] = price
    return found


def _disk(records: Sequence[BootRecord], why: list[str]) -> tuple[float | None, dict[str, float]]:
    """Dollars for a GiB and month, and GiB by instance, of volumes that are still there."""
    sizes: dict[str, float] = {}
    price: float | None = None
    for region in sorted({r.region for r in records if r.region}):
        ids = sorted({r.instance_id for r in records if r.region == region})
        try:
            ec2 = client("ec2", region)
            filters = [{"Name": "attachment.instance-id", "Values": ids[-200:]}]
            asking = partial(ec2.describe_volumes, Filters=filters)
            volumes = call("ec2:DescribeVolumes", "*", asking)["Volumes"]
        except SpotdError as error:
            _tell(why, error)
            continue
        for volume in volumes:
            name = volume["Attachments"][0]["InstanceId"]
            sizes[name] = sizes.get(name, 0.0) + float(volume["Size"])
        kinds = sorted({str(v.get("VolumeType", "gp3")) for v in volumes})
        if len(kinds) == 1 and price is None:
            try:
                price = volume_price(kinds[0], region)
            except SpotdError as error:
                _tell(why, error)
    return price, sizes


def volume_price(kind: str, region: str) -> float | None:
    """Dollars for a GiB and month of an EBS volume type; None when the list has none.

    Raises:
        SpotdError: The list cannot be asked.
    """
    pricing = client("pricing", PRICING_REGION)
    wanted = {"productFamily": "Storage", "volumeApiName": kind, "regionCode": region}
    filters = [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in wanted.items()]
    answer = call(
        "pricing:GetProducts", "*",
        lambda: pricing.get_products(ServiceCode="AmazonEC2", Filters=filters),
    )  # fmt: skip
    return monthly_price_in(answer.get("PriceList", []))


def monthly_price_in(products: Iterable[str]) -> float | None:
    """The price of a GiB and month in the JSON texts of an answer; None: there is none."""
    dimensions = (
        dimension
        for text in products
        for term in json.loads(text).get("terms", {}).get("OnDemand", {}).values()
        for dimension in term.get("priceDimensions", {}).values()
        if dimension.get("unit") == "GB-Mo"
    )
    prices = (float(d.get("pricePerUnit", {}).get("USD", 0)) for d in dimensions)
    return min((p for p in prices if p > 0), default=None)
