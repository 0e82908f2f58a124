"""The first thing that runs in a trainer's process: becomes its user, then executes it.

Run as `python -I -S launch.py FD`, where FD is a stream socket to the daemon. It reads
one line of JSON (see `spotd.shell.trainer.starting.Order`), prepares everything as the
trainer's own user, says so, and waits for the daemon to say go: by then the daemon has
written down durably who is about to train. When the daemon is gone instead, so is it.

What does not work is told in one line of JSON: `stage`, `errno` and `detail`. When the
command is executed the socket closes by itself. Standard library only, and little of it:
nothing of the daemon's may be imported, or be readable, once this is another user.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import stat
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

_REFUSED = 126  # what a shell answers for a command that cannot be executed


class _Refusal(Exception):  # noqa: N818
    """A stage failed; the daemon finds the words."""

    def __init__(self, stage: str, number: int | None, detail: str) -> None:
        super().__init__(stage)
        self.stage = stage
        self.number = number
        self.detail = detail


def main(control: int) -> None:
    """Obeys one order; returns only when the command was not executed."""
    order = json.loads(_read_line(control))
    os.set_inheritable(control, False)
    # Found beside this file, which another user may not be able to read.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    file_reader = importlib.import_module("environment_file")

    del sys.path[0]
    try:
        _undo_what_is_the_daemons()
        _become(order)
        os.umask(0o022)
        environment = {**order["environment"], **_file(order, file_reader), **order["last_word"]}
        _enter(order["directory"])
        program = _find(order["command"][0], environment.get("PATH", os.defpath))
        os.write(control, b'{"stage": "ready"}\n')
        if _read_line(control).strip() != b"go":
            os._exit(_REFUSED)
        _execute(program, order, environment)
    except _Refusal as refusal:
        answer = {"stage": refusal.stage, "errno": refusal.number, "detail": refusal.detail}
        with contextlib.suppress(OSError):
            os.write(control, json.dumps(answer).encode() + b"\n")
        os._exit(_REFUSED)


def _read_line(control: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(control, 65536)
        if not part:
            os._exit(_REFUSED)
        line += part
    return line


def _undo_what_is_the_daemons() -> None:
    """Signals, priority and the protection from the kernel's memory killer."""
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    # A score above zero is not the daemon's doing, and lowering it takes a capability.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:  # noqa: PTH123
        if int(file.read()) < 0:
            file.seek(0)
            file.write("0")


def _become(order: dict) -> None:  # type: ignore[type-arg]
    if order["uid"] is None:
        return
    try:
        os.setgroups(order["groups"])
        os.setresgid(order["gid"], order["gid"], order["gid"])
        os.setresuid(order["uid"], order["uid"], order["uid"])
    except OSError as error:
        raise _Refusal("user", error.errno, "") from error


def _file(order: dict, reader: ModuleType) -> dict[str, str]:  # type: ignore[type-arg]
    """The environment file that only its own user may vouch for, read as that user."""
    path = order["environment_file"]
    if path is None:
        return {}
    try:
        found: dict[str, str] = reader.read(path)
    except OSError as error:
        raise _Refusal("environment_file", error.errno, path) from error
    except reader.BadLine as error:
        raise _Refusal("environment_line", None, f"{path} {error}") from error
    return found


def _enter(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError as error:
        raise _Refusal("directory", error.errno, directory) from error


def _find(name: str, path: str) -> str:
    """Finds the program as execvp(3) would; a name with a slash is taken as it is."""
    if "/" in name:
        candidates = [name]
    else:
        candidates = [os.path.join(part or ".", name) for part in path.split(":")]  # noqa: PTH118
    found = None
    for candidate in candidates:
        try:
            mode = os.stat(candidate).st_mode  # noqa: PTH116
        except OSError as error:
            if "/" in name:
                raise _Refusal("command", error.errno, candidate) from error
            continue
        if stat.S_ISREG(mode) and os.access(candidate, os.X_OK):
            return candidate
        found = found or candidate
    if found is not None:
        raise _Refusal("not_executable", None, found)
    raise _Refusal("not_found", None, path)


def _execute(program: str, order: dict, environment: dict[str, str]) -> None:  # type: ignore[type-arg]
    os.dup2(order["output"], 1)
    os.dup2(order["output"], 2)
    os.close(order["output"])
    try:
        os.execve(program, order["command"], environment)  # noqa: S606
    except OSError as error:
        raise _Refusal("execute", error.errno, program) from error


if __name__ == "__main__":
    main(int(sys.argv[1]))
