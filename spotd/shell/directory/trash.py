"""Names for what is being made and for what is to be deleted, below `.spotd-hold`.

A daemon can be killed between any two steps. What it was making is worth nothing then and
what it had decided to delete is deleted; what it had moved away and not yet looked at goes
back to where it was.
"""

from __future__ import annotations

import contextlib
import itertools
import os

from spotd.shell.directory.aside import set_aside
from spotd.shell.directory.fingerprint import fingerprint_of
from spotd.shell.directory.private import HOLD, opened_private, rename_to_free_name
from spotd.shell.directory.tree import opened_directory, remove_tree, snapshot

MODE = 0o700
NEW, TRASH, DOUBT = ".new-", ".trash-", ".doubt-"


class ChangedError(Exception):
    """What stands under the name is not the content that was meant."""


class Trash:
    """What this daemon makes and deletes, told apart from what an earlier one left."""

    def __init__(self) -> None:
        self._token = os.urandom(4).hex()
        self._count = itertools.count(1)

    def fresh(self, kind: str) -> str:
        """Returns a name that nobody else uses."""
        return f"{kind}{self._token}-{next(self._count)}"

    def take(self, root: int, name: str, meant: str) -> None:
        """Moves an entry of the checkpoint directory to the trash, if it is what was meant.

        Raises:
            ChangedError: It is something else; it stands where it stood.
            OSError: It cannot be moved.
        """
        with opened_private(root, HOLD, MODE) as hold:
            doubt = self.fresh(DOUBT)
            os.mkdir(doubt, MODE, dir_fd=hold)
            with opened_directory(hold, doubt) as target:
                try:
                    rename_to_free_name(root, name, target, name)
                except OSError:
                    os.rmdir(doubt, dir_fd=hold)
                    raise
                right = fingerprint_of(snapshot(target, name)) == meant
                if not right:
                    _give_back(root, target, name)
            if right:
                os.rename(doubt, self.fresh(TRASH), src_dir_fd=hold, dst_dir_fd=hold)
                return
            os.rmdir(doubt, dir_fd=hold)
        raise ChangedError("it has changed")

    def empty(self, root: int) -> None:
        """Deletes what is to be deleted, and clears up behind a daemon that was killed.

        Raises:
            OSError: Something cannot be deleted.
        """
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            opened_private(root, HOLD, MODE, create=False) as hold,
        ):
            for name in os.listdir(hold):  # noqa: PTH208 - a descriptor
                ours = f"-{self._token}-" in name
                if name.startswith(TRASH) or (name.startswith(NEW) and not ours):
                    remove_tree(hold, name)
                elif name.startswith(DOUBT) and not ours:
                    _undo(root, hold, name)


def _undo(root: int, hold: int, doubt: str) -> None:
    with opened_directory(hold, doubt) as moved:
        for name in os.listdir(moved):  # noqa: PTH208 - a descriptor
            _give_back(root, moved, name)
    os.rmdir(doubt, dir_fd=hold)


def _give_back(root: int, source: int, name: str) -> None:
    try:
        rename_to_free_name(source, name, root, name)
    except FileExistsError:
        set_aside(root, name, "moved to be deleted, and not deleted", source=source)
