"""`spotd cost` as a person calls it, from what machines left on their disks and in the store."""

from __future__ import annotations

import json
import time

import pytest

from spotd.bill.prices import look_up, monthly_price_in
from spotd.bill.records import from_store
from spotd.cli import main
from spotd.config import load
from spotd.core.ledger import BootRecord, NoticeRecord

H = 3600.0


@pytest.fixture
def place(tmp_path):
    """A configuration, and a way to leave records on the disk or in the store."""
    config = tmp_path / "spotd.toml"
    (tmp_path / "store").mkdir()
    config.write_text(
        f"""
        run = "mono"
        cost = {{on_demand_price = 1.006, spot_price = 0.4, disk_price = 0.08}}
        trainer = {{command = "x", directory = "/"}}
        checkpoints = {{directory = "c"}}
        store = {{url = "file://{tmp_path}/store"}}
        paths = {{state = "{tmp_path}/state", runtime = "{tmp_path}/run"}}
        """
    )

    def leave(record, where):
        folder = tmp_path / where / "mono/ledger"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / record.name).write_bytes(record.to_bytes())

    leave.config, leave.root = config, tmp_path
    return leave


def record(hours_ago, hours, name, instance="i-1", *, kind="interrupted", notice=True):
    start = time.time() - hours_ago * H
    found = BootRecord(
        "mono", instance, name, kind, "g5.xlarge", "us-east-1a", "us-east-1", "spot",
        booted=start, began=start + 5, seen=start + hours * H, spot_price=0.4,
    )  # fmt: skip
    if notice:
        at = found.seen - 60
        found.notices.append(NoticeRecord("stop", at, at + 105, at, at + 3, at + 9, at + 9))
    return found


def test_boots_of_other_machines_come_from_the_store(place, capsys):
    place(record(20, 5, "boot-1", kind="first"), "store")
    place(record(12, 5, "boot-2", "i-2", kind="new-instance"), "state")
    assert main(["cost", "--offline", "--json", "--config", str(place.config)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["boots"], told["instances"]) == (2, 2)
    assert told["paid"]["low"] == pytest.approx(4.0, abs=0.01)
    assert told["on_demand"]["low"] == pytest.approx(10.06, abs=0.01)
    assert told["sources"]["spot"] == "the configuration"


def test_the_text_names_every_source_and_every_range(place, capsys):
    place(record(20, 5, "boot-1", kind="first"), "state")
    place(record(10, 5, "boot-2"), "state")
    main(["cost", "--offline", "--config", str(place.config)])
    text = capsys.readouterr().out
    assert "run mono: 2 boots on 1 instance" in text
    assert "(by the configuration)" in text
    assert "unknown while stopped" in text, "a disk of unknown size costs nobody knows what"
    assert "3.0 s" in text
    assert "INTERRUPTION" in text


def test_what_others_wrote_into_the_bucket_is_not_believed(place):
    folder = place.root / "store/mono/ledger"
    folder.mkdir(parents=True)
    (folder / "junk.json").write_text("{")
    (folder / "large.json").write_text("x" * 100_000)
    (folder / "other-run.json").write_bytes(record(5, 1, "b").to_bytes().replace(b"mono", b"nono"))
    place(record(20, 5, "boot-1"), "store")
    assert [r.boot_id for r in from_store(load(str(place.config)))] == ["boot-1"]


def test_a_run_without_a_boot_says_so(place, capsys):
    assert main(["cost", "--offline", "--config", str(place.config)]) == 0
    assert "no boot of it is on record" in capsys.readouterr().out


def test_a_store_that_does_not_answer_leaves_what_this_machine_knows(place, capsys):
    place(record(20, 5, "boot-1"), "state")
    (place.root / "store").rmdir()
    assert main(["cost", "--offline", "--config", str(place.config)]) == 69
    told = capsys.readouterr()
    assert "1 boot" in told.out
    assert "other machines are missing" in told.err


def test_without_permission_the_configuration_counts_and_what_to_allow_is_said(
    place, capsys, account, monkeypatch
):
    for name, value in account.user_who_may("s3:GetObject").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", "http://127.0.0.1:9")
    account.policies_count()
    place(record(20, 5, "boot-1"), "state")
    main(["cost", "--config", str(place.config)])
    text = capsys.readouterr().out
    assert "(by the configuration)" in text
    assert "ec2:DescribeSpotPriceHistory" in text
    assert "ec2:DescribeVolumes" in text


def test_volumes_that_are_still_there_are_measured(account, monkeypatch, place):
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", "http://127.0.0.1:9")
    instance, _ = account.spot_instance()
    prices = look_up([record(5, 1, "b", instance)], load(str(place.config)).cost)
    assert prices.disk_size[instance] > 0
    assert prices.disk == 0.08
    assert prices.disk_source == "the configuration"


def test_a_price_of_storage_is_read_off_the_price_list():
    product = {"terms": {"OnDemand": {"a": {"priceDimensions": {
        "x": {"unit": "GB-Mo", "pricePerUnit": {"USD": "0.0800000000"}}}}}}}  # fmt: skip
    assert monthly_price_in([json.dumps(product)]) == 0.08
    assert monthly_price_in([]) is None
