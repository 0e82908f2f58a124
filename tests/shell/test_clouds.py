"""Google's and Azure's metadata services, and telling the clouds apart, over real sockets."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotd.config import ImdsSettings
from spotd.core.events import MetadataAnswered, MetadataFailed
from spotd.shell.clouds import (
    InstanceIdentity,
    MetadataTrouble,
    detect,
    instance_id_of_firmware,
    make_source,
    printable,
)
from spotd.shell.clouds.azure import AzureMetadata, read_date, read_events
from spotd.shell.clouds.ec2 import Ec2Metadata
from spotd.shell.clouds.gce import GceMetadata
from spotd.shell.imds import MetadataWatcher
from spotd.testing.azure import AzureSimulator
from spotd.testing.gce import GceSimulator
from spotd.testing.imds import MetadataSimulator
from spotd.testing.metadata import drive

DEADLINE = 20.0


@pytest.fixture
def gce():
    with GceSimulator() as simulator:
        yield simulator


@pytest.fixture
def azure():
    with AzureSimulator() as simulator:
        yield simulator


def source_of(cls, simulator):
    return cls(ImdsSettings(endpoint=simulator.url))


def poll(source, timeout=5.0):
    early = []
    return early, source.poll(timeout, early.append)


# --- Google ---


def test_a_quiet_google_instance_is_answered_with_nothing(gce):
    assert poll(source_of(GceMetadata, gce)) == ([], MetadataAnswered())


def test_a_preemption_is_a_notice_of_thirty_seconds(gce):
    source = source_of(GceMetadata, gce)
    before = time.time()
    poll(source)
    gce.preempt()
    (early,), answer = poll(source)
    assert answer == early
    assert answer.action == "stop"
    assert before + 30 <= answer.time <= time.time() + 30


def test_a_preemption_keeps_its_time_from_poll_to_poll(gce):
    gce.preempt()
    source = source_of(GceMetadata, gce)
    assert poll(source)[1].time == poll(source)[1].time


def test_a_preemption_found_at_the_first_poll_is_taken_to_be_some_seconds_old(gce):
    gce.preempt()
    assert poll(source_of(GceMetadata, gce))[1].time <= time.time() + 25


def test_a_preemption_that_is_over_is_over(gce):
    gce.preempt()
    source = source_of(GceMetadata, gce)
    poll(source)
    gce.withdraw()
    assert poll(source)[1] == MetadataAnswered()


def test_host_maintenance_is_a_scheduled_event(gce):
    gce.maintain("TERMINATE_ON_HOST_MAINTENANCE")
    answer = poll(source_of(GceMetadata, gce))[1]
    assert answer.events == (("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", ""),)


def test_trouble_beside_a_preemption_does_not_hide_it(gce):
    gce.preempt()
    gce.mood("500", path="maintenance-event")
    assert poll(source_of(GceMetadata, gce))[1].action == "stop"


def test_the_google_instance_is_known(gce):
    assert source_of(GceMetadata, gce).identity(5.0) == InstanceIdentity(
        "4520031799277581759", "g2-standard-4", "us-central1-a", "us-central1", "spot"
    )


def test_an_answer_without_googles_header_is_not_believed(gce):
    with MetadataSimulator(v1=True) as other:
        other.mood("garbage")
        with pytest.raises(MetadataTrouble, match="not the metadata server's"):
            poll(source_of(GceMetadata, other))


@pytest.mark.parametrize("said", ["true", "", "MAYBE", "TRUE\nTRUE"])
def test_what_is_neither_true_nor_false_is_trouble(gce, said):
    gce.say("preempted", said)
    with pytest.raises(MetadataTrouble, match="preempted"):
        poll(source_of(GceMetadata, gce))


# --- Azure ---


def test_a_quiet_azure_machine_is_answered_with_nothing(azure):
    assert poll(source_of(AzureMetadata, azure))[1] == MetadataAnswered()


def test_a_preempt_is_a_notice_with_its_time(azure):
    azure.schedule("Preempt", in_seconds=30)
    answer = poll(source_of(AzureMetadata, azure))[1]
    assert answer.action == "stop"
    assert 20 < answer.time - time.time() <= 30


def test_a_machine_that_will_be_deleted_is_terminated():
    with AzureSimulator(eviction_policy="Delete") as azure:
        azure.schedule("Preempt")
        assert poll(source_of(AzureMetadata, azure))[1].action == "terminate"


def test_a_terminate_is_an_event_until_it_is_near(azure):
    source = source_of(AzureMetadata, azure)
    azure.schedule("Terminate", in_seconds=600)
    far = poll(source)[1]
    assert (far.action, far.events[0][1]) == (None, "Terminate")
    azure.withdraw()
    azure.schedule("Terminate", in_seconds=60)
    near = poll(source)[1]
    assert (near.action, near.events) == ("terminate", ())


def test_a_preempt_that_has_started_keeps_the_time_it_had(azure):
    source = source_of(AzureMetadata, azure)
    name = azure.schedule("Preempt", in_seconds=30)
    told = poll(source)[1].time
    azure.begin(name)
    assert poll(source)[1].time == told


def test_a_preempt_first_seen_when_it_has_started_leaves_thirty_seconds_once(azure):
    source = source_of(AzureMetadata, azure)
    azure.begin(azure.schedule("Preempt"))
    told = poll(source)[1].time
    assert told <= time.time() + 30
    assert poll(source)[1].time == told


def test_the_event_of_another_machine_of_the_set_is_not_ours(azure):
    azure.schedule("Preempt", resources=["trainer-2"])
    assert poll(source_of(AzureMetadata, azure))[1] == MetadataAnswered()


def test_a_name_is_ours_in_any_case_of_letters(azure):
    azure.schedule("Preempt", resources=["trainer-2", "TRAINER-1"])
    assert poll(source_of(AzureMetadata, azure))[1].action == "stop"


@pytest.mark.parametrize("kind", ["Freeze", "Reboot", "Redeploy"])
def test_other_events_are_scheduled_events(azure, kind):
    name = azure.schedule(kind, in_seconds=900)
    ((event_id, code, start),) = poll(source_of(AzureMetadata, azure))[1].events
    assert (event_id, code) == (name, kind)
    assert read_date(start) > time.time()


def test_no_event_is_ever_acknowledged(azure):
    azure.schedule("Preempt")
    source = source_of(AzureMetadata, azure)
    poll(source)
    poll(source)
    assert {q.method for q in azure.questions} == {"GET"}
    assert azure.acknowledged == []


def test_the_azure_machine_is_known(azure):
    assert source_of(AzureMetadata, azure).identity(5.0) == InstanceIdentity(
        "02aab8a4-74ef-476e-8182-f6d2ba4166a6",
        "Standard_NC4as_T4_v3",
        "westeurope-1",
        "westeurope",
        "spot",
    )


def test_the_slow_first_question_on_azure_is_explained(azure):
    azure.mood("hang")
    with pytest.raises(MetadataTrouble) as trouble:
        poll(source_of(AzureMetadata, azure), timeout=0.2)
    assert "two minutes" in trouble.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Mon, 19 Sep 2016 18:29:47 GMT", 1474309787.0),
        ("Mon, 19 Sep 2016 18:29:47 UTC", None),
        ("Mon, 39 Sep 2016 18:29:47 GMT", None),
        ("Mon, 19 Sop 2016 18:29:47 GMT", None),
        ("Mon, 19 Sep 0000 18:29:47 GMT", None),
        ("", None),
    ],
)
def test_a_date_is_read_strictly(text, seconds):
    assert read_date(text) == seconds


LEAF = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
EVENT = st.dictionaries(
    st.sampled_from(["EventId", "EventType", "EventStatus", "NotBefore", "Resources"]),
    LEAF | st.lists(LEAF, max_size=3),
)


@given(
    body=st.binary(max_size=100)
    | (LEAF | st.fixed_dictionaries({"Events": st.lists(EVENT | LEAF, max_size=30) | LEAF})).map(
        lambda said: json.dumps(said).encode()
    )
)
def test_whatever_a_document_holds_it_is_read_or_refused(body):
    try:
        found = read_events(body)
    except MetadataTrouble as trouble:
        refused = trouble.reason
    else:
        assert len(found) <= 20
        return
    assert refused


# --- all of them ---


@pytest.mark.parametrize("simulator_class", [GceSimulator, AzureSimulator])
@pytest.mark.parametrize(
    "mood", ["403", "500", "503", "garbage", "noise", "truncated", "hang", "trickle", "closed",
             "reset", "huge", "redirect"]
)  # fmt: skip
def test_trouble_is_posted_and_ends_with_the_trouble(simulator_class, mood):
    events = queue.SimpleQueue()
    cloud = "gce" if simulator_class is GceSimulator else "azure"
    with simulator_class() as simulator:
        settings = ImdsSettings(endpoint=simulator.url, poll_interval=0.05, timeout=0.4)
        simulator.mood(mood, seconds=0.05)
        watcher = MetadataWatcher(settings, events.put, cloud=cloud)
        watcher.start()
        assert isinstance(events.get(timeout=DEADLINE), MetadataFailed)
        simulator.well()
        if cloud == "gce":
            simulator.preempt()
        else:
            simulator.schedule("Preempt")
        end = time.monotonic() + DEADLINE
        event = events.get(timeout=DEADLINE)
        while getattr(event, "action", None) is None and time.monotonic() < end:
            event = events.get(timeout=DEADLINE)
        watcher.stop()
        assert watcher.join(DEADLINE)
    assert event.action == "stop"


@pytest.mark.parametrize(("cloud", "interval"), [("ec2", 5.0), ("gce", 1.0), ("azure", 1.0)])
def test_short_notices_are_asked_for_more_often(cloud, interval, tmp_path):
    watcher = MetadataWatcher(ImdsSettings(), lambda event: None, cloud=cloud, dmi=tmp_path)
    assert watcher._interval == interval


@pytest.mark.parametrize(
    ("files", "cloud", "source"),
    [
        ({"sys_vendor": "Amazon EC2"}, "ec2", Ec2Metadata),
        (
            {"sys_vendor": "Xen", "bios_vendor": "Xen", "product_uuid": "EC2A1B2C"},
            "ec2",
            Ec2Metadata,
        ),
        ({"bios_vendor": "Amazon EC2"}, "ec2", Ec2Metadata),
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine"}, "gce", GceMetadata),
        (
            {
                "sys_vendor": "Microsoft Corporation",
                "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
            },
            "azure",
            AzureMetadata,
        ),
        ({"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "Laptop"}, "", Ec2Metadata),
        ({"sys_vendor": "QEMU"}, "", Ec2Metadata),
        ({}, "", Ec2Metadata),
    ],
)
def test_the_firmware_tells_whose_machine_it_is(tmp_path, files, cloud, source):
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    assert detect(tmp_path) == cloud
    assert isinstance(make_source("auto", ImdsSettings(), tmp_path), source)


def test_firmware_that_cannot_be_read_tells_nothing(tmp_path):
    (tmp_path / "board_asset_tag").mkdir()
    assert instance_id_of_firmware(tmp_path) is None


@given(st.text())
def test_text_from_outside_is_made_fit_for_a_log_line(text):
    said = printable(text, 10)
    assert len(said) <= 10
    assert said.isprintable()


# --- simulators as programs ---


@pytest.mark.parametrize(
    ("module", "verb", "arguments"),
    [
        ("imds", "give_notice", {"action": "stop", "in_seconds": 60}),
        ("gce", "preempt", {}),
        ("azure", "schedule", {"kind": "Preempt"}),
    ],
)
def test_a_simulator_of_its_own_process_is_driven_over_http(module, verb, arguments):
    command = [sys.executable, "-m", f"spotd.testing.{module}", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        assert drive(url, verb, **arguments)["ok"]
        with pytest.raises(ValueError, match="no mood"):
            drive(url, "mood", mood="sunny")
        with pytest.raises(ValueError, match="KeyError"):
            drive(url, "no_such_verb")
        classes = {"imds": Ec2Metadata, "gce": GceMetadata, "azure": AzureMetadata}
        source = classes[module](ImdsSettings(endpoint=url))
        assert poll(source)[1].action == "stop"
        assert drive(url, "state")["moods"] == []
        process.terminate()
        assert process.wait(DEADLINE) == 0


def test_a_closed_port_is_closed_at_once_and_opens_again_when_well():
    with MetadataSimulator() as simulator:
        source = source_of(Ec2Metadata, simulator)
        drive(simulator.url, "mood", mood="closed")
        with pytest.raises(MetadataTrouble, match="refused"):
            poll(source)
        simulator.well()
        assert poll(source)[1] == MetadataAnswered()


def test_a_closed_port_opens_again_by_itself_after_its_time():
    with MetadataSimulator() as simulator:
        simulator.mood("closed", for_seconds=0.1)
        end = time.monotonic() + DEADLINE
        while simulator.state()["moods"] and time.monotonic() < end:
            time.sleep(0.01)
        source = source_of(Ec2Metadata, simulator)
        assert answers_before(source, end) == MetadataAnswered()


def answers_before(source, end):
    """The first answer there is; the last mood has ended, its port may still be opening."""
    while True:
        try:
            return poll(source)[1]
        except MetadataTrouble:  # noqa: PERF203 - asked again until it answers
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def test_boto3_finds_the_credentials_of_the_simulated_role(monkeypatch, tmp_path):
    boto3 = pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with MetadataSimulator(credentials=("AKIATEST", "secret", "token")) as imds:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url)
        found = boto3.Session().get_credentials().get_frozen_credentials()
    assert (found.access_key, found.secret_key, found.token) == ("AKIATEST", "secret", "token")
