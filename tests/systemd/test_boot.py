from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ec2box.training import Training

pytestmark = [pytest.mark.root, pytest.mark.systemd]


def test_an_instance_that_boots_trains_and_stores_its_checkpoints(training: Training) -> None:
    training.boot()
    training.until_stored()
    assert training.instance.show("spotd.service", "ActiveState")["ActiveState"] == "active"
    assert training.line() != ""
