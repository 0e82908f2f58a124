"""How a run stands, by what the store says: who trains it, and what is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from spotd.core.manifest import ManifestError, parse_json_object, parse_time
from spotd.errors import SpotdError, UnavailableError
from spotd.shell.store.api import list_checkpoints
from spotd.shell.store.lease import KEY
from spotd.shell.store.protocol import NotFound
from spotd.shell.store.settings import StoreSettings, open_store

if TYPE_CHECKING:
    from spotd.config import Settings
    from spotd.core.checkpoint import StoredCheckpoint

_MAX_LEASE = 16 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """What the store says of a run.

    Attributes:
        completed: The run is complete.
        holder: Which instance has or had the lease; "" when nobody ever trained it.
        lease_left: Seconds until the lease ends; not above 0: nobody has it.
        newest: The newest whole checkpoint; None when there is none.
    """

    completed: bool = False
    holder: str = ""
    lease_left: float = 0.0
    newest: StoredCheckpoint | None = None

    def trained_by(self, instance_id: str) -> bool:
        """Whether this instance has the lease now."""
        return self.holder == instance_id and self.lease_left > 0


def look(settings: Settings) -> Standing:
    """Asks the store.

    Raises:
        SpotdError: It cannot be asked from here.
    """
    parts = urlsplit(settings.store.url)
    if parts.scheme == "file" and not Path(unquote(parts.path)).is_dir():
        raise UnavailableError(
            f"{settings.store.url} is not mounted on this machine",
            hint="ask from one where it is",
        )
    holder, left = _lease(settings)
    listing = list_checkpoints(settings.store, settings.run)
    newest = max(listing.stored, key=lambda s: (s.sequence, s.generation), default=None)
    return Standing(listing.completed, holder, left, newest)


def _lease(settings: Settings) -> tuple[str, float]:
    store = open_store(StoreSettings.of(settings.store), settings.run)
    try:
        blob = store.get(KEY, limit=_MAX_LEASE)
        document = parse_json_object(blob.data, KEY, _MAX_LEASE)
        return str(document.get("holder", "")), parse_time(document.get("expires")) - time.time()
    except NotFound:
        return "", 0.0
    except ManifestError as error:
        raise SpotdError(f"lease.json in {store.location} is not a lease: {error}") from error
    finally:
        store.close()
