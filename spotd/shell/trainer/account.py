"""Whose trainer it is, and the clean environment that user gets."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spotd.shell.trainer.environment_file import BadLine, read

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class StartRefused(Exception):  # noqa: N818
    """The trainer cannot be started now; `reason` and `hint` are one line each."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine; `switch` when the daemon has to become it first."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str
    switch: bool


def find_account(user: str | None) -> Account:
    """The user of `trainer.user`, or the daemon's own.

    Raises:
        StartRefused: There is no such user, or only root could become it.
    """
    try:
        entry = pwd.getpwuid(os.geteuid()) if user is None else pwd.getpwnam(user)
    except KeyError:
        if user is None:  # a container started with --user has no entry
            return Account(str(os.geteuid()), os.geteuid(), os.getegid(), (), "/", "/bin/sh", False)
        raise StartRefused(
            f"trainer.user: there is no user {user!r} on this machine",
            "create the user, or change trainer.user",
        ) from None
    switch = os.geteuid() == 0 and user is not None
    if entry.pw_uid != os.geteuid() and not switch:
        raise StartRefused(
            f"trainer.user: cannot become {user!r}, because spotd does not run as root",
            "run spotd as root, or leave trainer.user out",
        )
    return Account(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)) if switch else (),
        home=entry.pw_dir,
        shell=entry.pw_shell or "/bin/sh",
        switch=switch,
    )


def clean_environment(account: Account) -> dict[str, str]:
    """What a login would set, and nothing of the daemon's but its language.

    Python's output to a pipe or a file waits in blocks of 8 KiB; unbuffered, the last lines
    before a crash are there when somebody asks why.
    """
    return {
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell,
        "PATH": _PATH,
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "PYTHONUNBUFFERED": "1",
    }


def vouched_file(path: Path, account: Account) -> Mapping[str, str] | None:
    """The environment file's variables, when root alone decides what is in it.

    Anything else is for the trainer's own user to read (None): a link of that user's could
    lead to a file that only root may read.

    Raises:
        StartRefused: The file cannot be used.
    """
    if not account.switch or not _only_root_decides(path):
        return None
    try:
        return read(str(path))
    except OSError as error:
        raise StartRefused(f"trainer.environment_file: {path}: {error.strerror}") from error
    except BadLine as error:
        raise StartRefused(f"trainer.environment_file: {path} {error}") from error


def _only_root_decides(path: Path) -> bool:
    """No part of the way to the file is anybody else's, and none is a link."""
    try:
        for part in (path, *path.parents):
            found = part.lstat()
            if found.st_uid != 0 or stat.S_ISLNK(found.st_mode) or found.st_mode & 0o022:
                return False
    except OSError:
        return False
    return True
