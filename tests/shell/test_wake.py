from __future__ import annotations

import os
import select

from spotd.shell.wake import Wake


def ready(wake):
    poll = select.poll()
    poll.register(wake.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def test_it_wakes_until_it_is_cleared():
    wake = Wake()
    wake.set()
    wake.set()
    assert ready(wake)
    wake.clear()
    wake.clear()
    assert not ready(wake)
    wake.close()


def test_who_comes_late_writes_into_nobody_elses_descriptor(tmp_path):
    wake = Wake()
    number = wake.fileno()
    wake.close()
    file = os.open(tmp_path / "somebody elses", os.O_RDWR | os.O_CREAT)
    taken = os.dup2(file, number)
    wake.set()
    wake.close()
    assert os.fstat(taken).st_size == 0
    for descriptor in {file, taken}:
        os.close(descriptor)
