"""Renews the lease from the daemon itself: one small request in place of a process.

A worker that starts, imports botocore, finds credentials and makes a client costs 0.4 s of
CPU and 60 MiB for it, too much to do every minute. It is still the one that judges: whatever
S3 answers beside yes and "somebody else has it", the worker hears again.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from spotd.core import events
from spotd.errors import SpotdError
from spotd.shell.store.access import Access
from spotd.shell.store.lease import Lease, LeaseHeld, LeaseKeeper
from spotd.shell.store.settings import StoreSettings, small_objects

if TYPE_CHECKING:
    from spotd.shell.store.small import SmallObjects


class Renewal:
    """The lease of one run; used by one thread at a time, told of new access by another.

    Args:
        settings: `[store]`.
        run: The run's name.
        holder: This instance's id.
        node: This machine's number in the run.
    """

    def __init__(self, settings: StoreSettings, run: str, holder: str, node: int) -> None:
        self._settings = settings
        self._run = run
        self._holder = holder
        self._node = node
        self._access: Access | None = None
        self._small: tuple[Access, SmallObjects] | None = None

    @property
    def possible(self) -> bool:
        """Whether anybody has told us how to reach the store."""
        return self._access is not None

    def told(self, access: dict[str, Any] | None) -> None:
        """Takes what a worker says of the way to the store; None: there is none but its own."""
        self._access = Access.of(access) if access else None

    def renew(self, lease: Lease) -> tuple[Lease | None, events.Event]:
        """Returns what we hold from now on, and the event that says so.

        Raises:
            SpotdError: It is the worker's turn. Nothing is known of the lease.
        """
        try:
            renewed = LeaseKeeper(self._objects(), self._run, self._holder, self._node).renew(lease)
        except LeaseHeld as held:
            return None, events.LeaseRefused(held.holder, held.expires_in)
        except SpotdError:
            self._access = None  # it may be what was wrong
            raise
        except Exception as error:
            traceback.print_exc()
            self._access = None
            raise SpotdError(f"a defect in the renewal: {error!r}") from error
        return renewed, events.LeaseRenewed(renewed.seconds_left())

    def _objects(self) -> SmallObjects:
        access = self._access
        if access is None:
            raise SpotdError("nobody has said how to reach the store")
        if self._small is None or self._small[0] != access:
            made = small_objects(self._settings, self._run, access)
            if made is None:
                raise SpotdError("only a worker reaches this store")
            self._small = (access, made)
        return self._small[1]
