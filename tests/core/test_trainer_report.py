"""Datagrams of a trainer, honest and hostile."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotd.core.events import TrainerReported
from spotd.core.report import LARGEST_DATAGRAM, parse_report


def test_an_honest_datagram_is_understood():
    said = parse_report(
        b"STEP=41200\nTOTAL_STEPS=90000\nEPOCH=3\nLOSS=2.31\nCHECKPOINT=/a/b c.pt\nSTATUS=fine\n"
    )
    assert said.reported() == TrainerReported(41200, 90000, 3, 2.31, "fine")
    assert said.checkpoints == ["/a/b c.pt"]


def test_unknown_keys_are_ignored():
    assert parse_report(b"READY=1\nSTEP=1\nX_Y=\xc3\xa9").reported() == TrainerReported(step=1)


def test_epochs_in_fractions_are_whole_ones():
    assert parse_report(b"EPOCH=3.75").reported() == TrainerReported(epoch=3)


def test_a_loss_that_is_no_number_is_refused_and_the_step_beside_it_is_not():
    for loss in (b"nan", b"inf", b"-Infinity", b"NaN"):
        said = parse_report(b"STEP=7\nLOSS=" + loss)
        assert said.not_a_number == ["LOSS"]
        assert said.reported() == TrainerReported(step=7)


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\0",
        b"STEP",
        b"=1",
        b"STEP=",
        b"STEP=-1",
        b"STEP=1.5",
        b"STEP=0x10",
        b"STEP=1_000",
        b"STEP=\xd9\xa1",  # a digit, but not of ours
        b"STEP=99999999999999999999",
        b"STEP=1" + b"0" * 5000,
        b"LOSS=1e31",
        b"LOSS=1e999",
        b"LOSS=tensor(2.3)",
        b"LOSS=" + b"9" * 4000,
        b"EPOCH=1e400",
        b"CHECKPOINT=relative/path",
        b"CHECKPOINT=/a\rb",
        b"CHECKPOINT=/" + b"a" * 4097,
        b"STATUS=\xff\xfe",
        b"STEP=1\nnot a line",
        b"STEP=1\n" * 2000,
    ],
)
def test_a_bad_datagram_is_dropped_whole(datagram):
    assert parse_report(datagram) is None


def test_a_status_cannot_move_the_cursor_nor_fill_the_screen():
    said = parse_report(b"STATUS=\x1b[2Jhello\xe2\x80\xae" + b"x" * 1000)
    status = said.values["status"]
    assert status.isprintable()
    assert len(status) == 200


@given(
    st.binary(max_size=300)
    | st.text(alphabet="STEPLOCHKINA=/\n0123456789.eE+-naif").map(str.encode)
)
def test_nothing_a_trainer_can_send_raises_or_smuggles_anything_in(datagram):
    said = parse_report(datagram)
    if said is None:
        return
    reported = said.reported()
    for number in (reported.step, reported.total_steps, reported.epoch, reported.loss):
        assert number is None or (math.isfinite(number) and abs(number) <= 1e30)
    assert all(path.startswith("/") and "\n" not in path for path in said.checkpoints)
    assert len(datagram) <= LARGEST_DATAGRAM


def test_a_trainer_says_that_it_is_stopping():
    said = parse_report(b"STOPPING=1\nSTEP=12")
    assert said is not None
    assert said.reported().stopping is True
    assert parse_report(b"STOPPING=maybe") is None
