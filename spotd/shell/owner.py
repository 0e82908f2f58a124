"""The trainer's user, who owns checkpoints and what is put back of them."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

_WRITE_AND_SEARCH = 0o3


@dataclass(frozen=True, slots=True)
class Owner:
    """A user by number, with the groups that decide what they may write."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def may_write(self, status: os.stat_result) -> bool:
        """Whether permission bits let the user make files in a directory."""
        if self.uid == 0:
            return True
        if status.st_uid == self.uid:
            bits = status.st_mode >> 6
        elif status.st_gid in (self.gid, *self.groups):
            bits = status.st_mode >> 3
        else:
            bits = status.st_mode
        return bits & _WRITE_AND_SEARCH == _WRITE_AND_SEARCH


def owner_named(user: str | None) -> Owner:
    """Returns the trainer's user; the daemon's own while it does not exist (yet)."""
    if user is None:
        return Owner(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return Owner(os.geteuid(), os.getegid())
    groups = os.getgrouplist(user, entry.pw_gid)
    return Owner(entry.pw_uid, entry.pw_gid, tuple(groups))
