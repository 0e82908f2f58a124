from __future__ import annotations

from spotd.core.actions import Announce
from spotd.shell.journal import Journal


def test_a_name_from_outside_does_not_steer_the_terminal(capfd):
    Journal().write(Announce("checkpoint_seen", "checkpoint a\x1b[31m\r\n\x9b2Jé is whole"))
    line = capfd.readouterr().err
    assert line.endswith(" checkpoint a [31m   2Jé is whole [checkpoint_seen]\n")
