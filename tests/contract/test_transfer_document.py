"""docs/transfer.md says what each time-out is: what it says is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spotd.shell.store import aws, client, lease, peace, transfer, worker

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "transfer.md").read_text()


def row(start: str) -> str:
    """The value in the table row that starts so."""
    found = re.search(rf"^\| {re.escape(start)} \| ([^|]*) \|", TEXT, re.MULTILINE)
    assert found, f"no row {start!r}"
    return found[1]


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("connect", f"{aws.CONNECT_TIMEOUT:.0f} s"),
        ("no byte moves, no answer begins", f"{aws.PROGRESS_TIMEOUT:.0f} s"),
        ("CompleteMultipartUpload, CopyObject", f"{aws.COMPLETE_TIMEOUT:.0f} s"),
        (
            "pause before the next try",
            f"{0.5 * transfer.BACKOFF:.2f} to {1.5 * transfer.BACKOFF:.2f} s",
        ),
        ("... in peace", f"acknowledged for {transfer.PATIENCE:.0f} s"),
        ("small things (lists, manifests, deletions)", f"for {worker._SOON:.0f} s"),
        ("stop", f"after {client._PATIENCE['stop']:.0f} s"),
        ("lease", f"{lease.TTL:.0f} s"),
        ("... in a directory", f"{lease.TTL_BY_OUR_CLOCKS:.0f} s"),
        ("worker with nothing to do", f"{client.IDLE:.0f} s"),
        (
            "worker without an answer",
            "{renew:.0f} s lease, {open:.0f} s open, {delete:.0f} s delete".format_map(
                client._PATIENCE
            ),
        ),
        ("cores in peace", f"{peace.SHARE:.0%} of them".replace("%", " %")),
    ],
)
def test_every_time_out_in_the_document_is_that_of_the_code(start, words):
    assert words in row(start)
