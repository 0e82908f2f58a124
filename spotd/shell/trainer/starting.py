"""Starts a process as the trainer's user, in two steps: prepared, then executed.

Between the two the caller writes down durably who is about to train. A daemon that is
killed at any point leaves either no trainer, or one that its successor finds.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spotd.shell.trainer import proc
from spotd.shell.trainer.account import Account, StartRefused
from spotd.shell.trainer.tree import MARKER

if TYPE_CHECKING:
    from collections.abc import Sequence

_LAUNCHER = Path(__file__).with_name("launch.py")
_PREPARED_SECONDS = 30.0  # a home directory on a network may take its time
_SAID = 4096


@dataclass(frozen=True, slots=True)
class Order:
    """What the launcher is told. `last_word` is what no environment file may change."""

    command: tuple[str, ...]
    directory: str
    account: Account
    environment: dict[str, str]
    environment_file: str | None
    last_word: dict[str, str]
    marker: str

    def as_json(self, output: int) -> bytes:
        """One line for `spotd.shell.trainer.launch`."""
        who = self.account
        return json.dumps({
            "command": self.command,
            "directory": self.directory,
            "uid": who.uid if who.switch else None,
            "gid": who.gid,
            "groups": who.groups,
            "environment": self.environment,
            "environment_file": self.environment_file,
            "last_word": {**self.last_word, MARKER: self.marker},
            "output": output,
        }).encode() + b"\n"  # fmt: skip


class Prepared:
    """A process that has become the trainer's user and waits for `execute`."""

    def __init__(
        self, order: Order, output: int, *, prefix: Sequence[str] = (), inherit: Sequence[int] = ()
    ) -> None:
        """Starts it.

        Args:
            order: What to become and what to execute.
            output: Descriptor that becomes its standard output and error.
            prefix: A command that executes what follows it in place (`systemd-run --scope`).
            inherit: Descriptors that the command keeps.

        Raises:
            StartRefused: It cannot be executed as ordered.
        """
        self._order = order
        ours, theirs = socket.socketpair()
        self._control = ours
        self._said = b""
        try:
            self.popen = self._spawn(prefix, theirs, output, inherit)
        except OSError as error:
            ours.close()
            raise StartRefused(f"cannot start a process: {error.strerror}") from error
        finally:
            theirs.close()
        try:
            ours.sendall(order.as_json(output))
            self._expect("ready", time.monotonic() + _PREPARED_SECONDS)
        except (OSError, StartRefused) as error:
            self.give_up()
            if isinstance(error, StartRefused):
                raise
            raise StartRefused(self._died()) from error

    @property
    def identity(self) -> proc.Identity:
        """The process that is to be the trainer's main one."""
        found = proc.stat(self.popen.pid)
        if found is None:  # not waited for, so it cannot be gone
            raise StartRefused("the process vanished while it was being started")
        return found.identity

    def execute(self) -> None:
        """Lets it execute the command, and returns when it has.

        Raises:
            StartRefused: It could not be executed.
        """
        try:
            self._control.sendall(b"go\n")
            self._expect(None, time.monotonic() + _PREPARED_SECONDS)
        except (OSError, StartRefused) as error:
            self.give_up()
            if isinstance(error, StartRefused):
                raise
            raise StartRefused(self._died()) from error
        self._control.close()
        self._close_said()

    def give_up(self) -> None:
        """Ends it before it has executed anything."""
        self._control.close()
        self.popen.kill()
        self.popen.wait()
        if self.popen.stderr is not None and not self.popen.stderr.closed:
            self._said = self.popen.stderr.read(_SAID) if self._readable() else b""
        self._close_said()

    def _spawn(
        self, prefix: Sequence[str], control: socket.socket, output: int, inherit: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        interpreter = [sys.executable, "-I", "-S", str(_LAUNCHER), str(control.fileno())]
        return subprocess.Popen(
            [*prefix, *interpreter],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,  # only until the command is executed: what systemd-run says
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", MARKER: self._order.marker},
            cwd="/",
            pass_fds=(control.fileno(), output, *inherit),
            start_new_session=True,
        )

    def _expect(self, stage: str | None, deadline: float) -> None:
        """Waits for a word of the launcher's; None: for the socket to close by itself."""
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._control], [], [], left)[0]:
                raise StartRefused(
                    f"the trainer's process was not ready after {_PREPARED_SECONDS:.0f} s",
                    "is a file system that does not answer on the way to the command?",
                )
            part = self._control.recv(65536)
            if not part:
                if stage is None:
                    return
                self.popen.wait()
                raise OSError(errno.EPIPE, "the launcher died")
            line += part
        answer = json.loads(line)
        if answer["stage"] != stage:
            raise self._refusal(answer)

    def _refusal(self, answer: dict[str, object]) -> StartRefused:
        number = answer["errno"]
        return explain(
            self._order, str(answer["stage"]),
            number if isinstance(number, int) else None, str(answer["detail"]),
        )  # fmt: skip

    def _died(self) -> str:
        """What is known of a launcher that did not come to speak: systemd-run refused, say."""
        said = self._said.decode(errors="replace").strip().splitlines()
        status = self.popen.returncode
        return f"the trainer's process ended with {status} before it began" + (
            f": {said[-1]}" if said else ""
        )

    def _readable(self) -> bool:
        stderr = self.popen.stderr
        return stderr is not None and bool(select.select([stderr], [], [], 0)[0])

    def _close_said(self) -> None:
        if self.popen.stderr is not None:
            self.popen.stderr.close()


def explain(order: Order, stage: str, number: int | None, detail: str) -> StartRefused:
    """Words for what did not work, for the person on the other end of SSH."""
    user = order.account.name
    why = os.strerror(number) if number is not None else ""
    if stage == "directory":
        return _directory(detail, number, user)
    if stage == "user":
        return StartRefused(f"trainer.user: cannot become {user!r}: {why}")
    if stage == "environment_file":
        return StartRefused(f"trainer.environment_file: user {user!r} cannot read {detail}: {why}")
    if stage == "environment_line":
        return StartRefused(f"trainer.environment_file: {detail}")
    return _command(order, stage, number, detail)


def _directory(path: str, number: int | None, user: str) -> StartRefused:
    if number == errno.ENOENT:
        return StartRefused(
            f"trainer.directory: {path} does not exist", "create it, or mount what holds it"
        )
    if number in (errno.EACCES, errno.EPERM):
        return StartRefused(
            f"trainer.directory: user {user!r} may not enter {path}",
            f"look at its permissions and those above it: namei -l {path}",
        )
    why = os.strerror(number) if number is not None else "unusable"
    return StartRefused(f"trainer.directory: {path}: {why}")


def _command(order: Order, stage: str, number: int | None, detail: str) -> StartRefused:
    name, user = order.command[0], order.account.name
    why = os.strerror(number) if number is not None else ""
    if stage == "not_found":
        return StartRefused(
            f"trainer.command: {name!r} is in none of the directories of the trainer's PATH "
            f"({detail})",
            "give its whole path (of a virtual environment, say), or set PATH in "
            "trainer.environment",
        )
    if stage == "not_executable" or number == errno.EACCES:
        return StartRefused(
            f"trainer.command: user {user!r} may not execute {detail}",
            f"chmod +x it, or put its interpreter in front; namei -l {detail} shows who may",
        )
    if stage == "execute" and number == errno.ENOENT:
        return StartRefused(
            f"trainer.command: the interpreter in the first line of {detail} does not exist",
            "a virtual environment that was moved has to be made again",
        )
    if number == errno.ENOENT:
        return StartRefused(
            f"trainer.command: {detail} does not exist",
            "" if detail.startswith("/") else f"it was looked for in {order.directory}",
        )
    if number == errno.ENOEXEC:
        return StartRefused(
            f"trainer.command: {detail} is no program for this machine",
            "a script needs an interpreter in its first line, or in front of it",
        )
    return StartRefused(f"trainer.command: cannot execute {detail}: {why}")
