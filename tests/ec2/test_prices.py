"""`spotd prices`: EC2 over HTTP; the price list, which moto lacks, by botocore's Stubber."""

from __future__ import annotations

import json

import boto3
import pytest
from botocore.stub import Stubber
from ec2_region import ZONE_A, ZONE_B, price

from spotd.ec2 import on_demand, pricing
from spotd.ec2.api import PriceChange
from spotd.errors import SpotdError

HOUR = 3600.0


def one(*changes, start=0.0, end=10 * HOUR):
    (found,) = pricing.series([PriceChange("t", "z", w, p) for w, p in changes], start, end)
    return found


def product(dollars):
    return json.dumps({
        "terms": {"OnDemand": {"A": {"priceDimensions": {
            "B": {"unit": "Hrs", "pricePerUnit": {"USD": dollars}}
        }}}}
    })  # fmt: skip


@pytest.fixture
def price_list(monkeypatch):
    """The price list API, with what it answers."""
    client = boto3.client(
        "pricing", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    monkeypatch.setattr(on_demand, "client", lambda *_: client)
    with Stubber(client) as stubber:
        yield stubber


def test_a_mean_is_weighted_by_how_long_each_price_held():
    found = one((0.0, 1.0), (9 * HOUR, 11.0))
    assert found.mean(0.0, 10 * HOUR) == pytest.approx(2.0)
    assert (found.now, found.lowest, found.highest) == (11.0, 1.0, 11.0)


def test_the_last_change_before_the_start_holds_at_the_start():
    found = one((-90 * HOUR, 5.0), (-2 * HOUR, 3.0), (5 * HOUR, 1.0))
    assert found.mean(0.0, 5 * HOUR) == pytest.approx(3.0)


def test_the_chart_goes_from_the_lowest_to_the_highest_block():
    found = one((0.0, 1.0), (5 * HOUR, 2.0))
    assert pricing.chart(found, 1.0, 2.0, 10) == "▁" * 5 + "█" * 5
    assert pricing.chart(found, 1.0, 2.0, 4, pricing.PLAIN) == "__##"


def test_the_chart_is_blank_where_nothing_is_known_and_flat_where_nothing_moves():
    assert pricing.chart(one((5 * HOUR, 1.0)), 1.0, 1.0, 4) == "  ▁▁"


def test_zones_of_a_type_share_a_scale():
    changes = [PriceChange("t", "a", 0, 1.0), PriceChange("t", "b", 0, 3.0)]
    assert pricing.scales(pricing.series(changes, 0, HOUR)) == {"t": (1.0, 3.0)}


def test_prices_zones_and_savings_are_shown_the_cheapest_first(run, cloud, price_list):
    run.configure(types='["g5.xlarge"]', zones="[]")
    cloud.history = [
        price("g5.xlarge", ZONE_A, 0.50, 200), price("g5.xlarge", ZONE_A, 0.40, 24),
        price("g5.xlarge", ZONE_B, 0.25, 300),
    ]  # fmt: skip
    price_list.add_response("get_products", {"PriceList": [product("1.0060000000")]})
    status, out, err = run.spotd("prices")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[1].split()[:3] == ["g5.xlarge", ZONE_B, "0.2500"]
    assert lines[2].split()[:3] == ["g5.xlarge", ZONE_A, "0.4000"]
    assert "75 %" in lines[1]
    assert "60 %" in lines[2]
    assert "▁" in lines[1]
    assert "on demand: $1.0060 an hour" in out


def test_without_the_price_list_savings_are_not_guessed(run, cloud, price_list):
    cloud.history = [price("g5.xlarge", ZONE_A, 0.40)]
    price_list.add_client_error("get_products", "AccessDeniedException", "no")
    status, out, _ = run.spotd("prices", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["pools"][0]["saving"] is None
    assert "pricing:GetProducts" in found["notes"][0]


def test_the_configurations_own_price_is_used_and_named(run, cloud):
    run.config.write_text(run.config.read_text() + "[cost]\non_demand_price = 1.0\n")
    cloud.history = [price("g5.xlarge", ZONE_A, 0.40)]
    status, out, _ = run.spotd("prices")
    assert status == 0
    assert "60 %" in out
    assert "cost.on_demand_price" in out


def test_the_advisors_file_tells_how_often_it_is_interrupted(run, cloud, tmp_path):
    run.config.write_text(run.config.read_text() + "[cost]\non_demand_price = 1.0\n")
    cloud.history = [price("g5.xlarge", ZONE_A, 0.40)]
    path = tmp_path / "advisor.json"
    path.write_text(json.dumps({
        "ranges": [{"index": 0, "label": "<5%"}, {"index": 1, "label": "5-10%"}],
        "spot_advisor": {"us-east-1": {"Linux": {"g5.xlarge": {"r": 1, "s": 60}}}},
    }))  # fmt: skip
    status, out, _ = run.spotd("prices", "--advisor", str(path))
    assert status == 0
    assert "5-10%" in out


def test_a_file_that_is_not_the_advisors_is_refused_in_words(tmp_path):
    path = tmp_path / "advisor.json"
    path.write_text("[]")
    with pytest.raises(SpotdError, match="no interruption frequencies for us-east-1"):
        pricing.advisor(path, "us-east-1")


def test_prices_can_be_looked_at_before_there_is_a_configuration(
    cloud, price_list, capsys, monkeypatch
):
    from spotd import cli, config

    monkeypatch.setattr(config, "DEFAULT_PATH", "/nonexistent/spotd.toml")
    cloud.history = [price("g6.xlarge", ZONE_A, 0.30)]
    price_list.add_response("get_products", {"PriceList": []})
    assert cli.main(["prices", "--instance-type", "g6.xlarge", "--days", "90"]) == 0
    assert "0.3000" in capsys.readouterr().out


def test_a_type_without_prices_is_said_to_have_none(run, cloud):
    status, _, err = run.spotd("prices")
    assert status == 1
    assert "no Spot prices for g5.xlarge" in err


def test_a_price_of_nothing_is_no_price():
    assert on_demand.price_in([product("0.0000000000"), product("1.2")]) == 1.2
    assert on_demand.price_in([product("0.0")]) is None
    assert on_demand.price_in([]) is None
