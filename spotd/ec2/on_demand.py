"""What an instance type costs on demand, by the price list API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from spotd.ec2.api import asked
from spotd.shell.account import client

if TYPE_CHECKING:
    from collections.abc import Iterable

# The price list is the same everywhere and served in three regions; AWS Billing user guide,
# "AWS Price List Query API".
ENDPOINT_REGION = "us-east-1"
_FILTERS = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
}


def on_demand_price(instance_type: str, region: str) -> float | None:
    """Dollars an hour for Linux on shared hardware; None when the list has no such price.

    Raises:
        SpotdError: The list cannot be asked.
    """
    pricing = client("pricing", ENDPOINT_REGION)
    wanted = _FILTERS | {"instanceType": instance_type, "regionCode": region}
    filters = [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in wanted.items()]
    answer = asked(
        "pricing:GetProducts", "*",
        lambda: pricing.get_products(ServiceCode="AmazonEC2", Filters=filters),
    )  # fmt: skip
    return price_in(answer.get("PriceList", []))


def price_in(products: Iterable[str]) -> float | None:
    """The hourly price in the JSON texts of an answer; None when there is none above zero."""
    dimensions = (
        dimension
        for text in products
        for term in json.loads(text).get("terms", {}).get("OnDemand", {}).values()
        for dimension in term.get("priceDimensions", {}).values()
        if dimension.get("unit") == "Hrs"
    )
    prices = (float(d.get("pricePerUnit", {}).get("USD", 0)) for d in dimensions)
    return min((p for p in prices if p > 0), default=None)
