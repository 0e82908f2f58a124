"""The store: credentials, a small object written, read, listed and deleted; and how fast it is."""

from __future__ import annotations

import os
import secrets
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from spotd.checks import Finding, Surroundings, failed, ok, warning
from spotd.errors import SpotdError
from spotd.shell.store.api import Probe, list_checkpoints
from spotd.shell.store.api import probe as probe_store
from spotd.shell.store.protocol import Cancelled, Flow, Piece
from spotd.shell.store.settings import StoreSettings, open_store
from spotd.shell.store.transfer import Lanes

if TYPE_CHECKING:
    from spotd.config import Settings
    from spotd.shell.store.protocol import ObjectStore

SUBJECT = "store"
PROBE_SIZE = 8 << 20  # bytes of one probe object; S3's own advice is 8 to 16 MiB a part
PROBE_LANES = 4
PROBE_SECONDS = 8.0  # a probe that takes longer is stopped: it has said enough


@dataclass(frozen=True, slots=True)
class Credentials:
    """`method`: botocore's word for where they are from. `expiring`: they end, unrenewed."""

    method: str
    expiring: bool
    service: bool  # this looks like what the unit will see: no shell's variables


def probe(around: Surroundings) -> list[Finding]:
    """Looks, and leaves nothing behind."""
    settings = around.settings
    found = []
    if settings.store.url.startswith("s3://"):
        try:
            credentials = find_credentials()
        except SpotdError as error:
            return [failed("credentials", error.message, error.hint)]
        found.append(judge_credentials(credentials))
        if credentials is None:
            return found
    try:
        result = probe_store(settings.store, settings.run)
        listing = list_checkpoints(settings.store, settings.run)
    except SpotdError as error:
        return [*found, failed(SUBJECT, error.message, error.hint)]
    stored = listing.stored
    if around.newest_size is None and stored:
        around.newest_size = max(stored, key=lambda c: c.sequence).size
    found.append(judge(result, len(stored)))
    found += judge_listing(listing.damaged, completed=listing.completed, run=settings.run)
    return found


def find_credentials() -> Credentials | None:
    """Where the AWS credentials are from; None: there are none. Never what they are.

    Raises:
        SpotdError: The AWS configuration that would say so is wrong.
    """
    import botocore.session  # noqa: PLC0415 - tens of MiB
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    from spotd.shell.account import misconfigured  # noqa: PLC0415

    try:
        held = botocore.session.get_session().get_credentials()
    except BotoCoreError as error:
        raise misconfigured(error) from error
    if held is None:
        return None
    method = str(held.method)
    expiring = held.token is not None and not hasattr(held, "refresh_needed")
    return Credentials(method, expiring, service="INVOCATION_ID" in os.environ)


def judge_credentials(held: Credentials | None) -> Finding:
    """Decides about credentials: ones that end, or that only this shell sees, end a run."""
    subject = "credentials"
    if held is None:
        advice = "attach an instance profile with the policy in packaging/aws"
        return failed(subject, "there are none", advice)
    role = "an instance profile renews its own and needs no secret on the disk"
    if held.expiring:
        text = f"temporary ones ({held.method}) that nobody renews"
        return warning(subject, text, role)
    if held.method in ("env", "shared-credentials-file", "config-file") and not held.service:
        text = f"found by way of {held.method}, which the daemon may not see"
        return warning(subject, text, f"{role}; else put them into the unit's environment")
    return ok(subject, f"by way of {held.method}")


def judge(result: Probe, checkpoints: int) -> Finding:
    """Decides about a store that works."""
    text = (
        f"{result.location}: written, read, listed, deleted in {result.seconds:.2f} s; "
        f"{checkpoints} checkpoints of this run"
    )
    if not result.conditional:
        advice = "conditional writes keep two machines from training one run; use a store with them"
        return warning(SUBJECT, f"{text}; ignores conditional writes", advice)
    return ok(SUBJECT, text)


def judge_listing(
    damaged: tuple[tuple[str, str], ...], *, completed: bool, run: str
) -> list[Finding]:
    """Decides about what is there already."""
    found = []
    if completed:
        advice = "give `run` another name to train something new"
        found.append(warning("run", f"{run} is complete: nothing will be started", advice))
    for name, reason in damaged:
        advice = "it is passed over at a resume; delete it when you do not need it"
        found.append(
            warning("checkpoint", f"{name} in the store is not believed: {reason}", advice)
        )
    return found


def measure(settings: Settings) -> float | None:
    """Sends a few probe objects side by side and deletes them; bytes per second, None: nothing.

    Raises:
        SpotdError: The store refuses.
    """
    store = open_store(StoreSettings.of(settings.store), settings.run, connections=PROBE_LANES)
    lanes = Lanes(PROBE_LANES)
    keys = [f"check-{secrets.token_hex(8)}" for _ in range(PROBE_LANES)]
    flow = Flow()
    timer = threading.Timer(PROBE_SECONDS, flow.stop)
    fd = os.memfd_create("spotd-check", os.MFD_CLOEXEC)
    try:
        os.write(fd, secrets.token_bytes(PROBE_SIZE))
        store.warm()
        timer.start()
        started = time.monotonic()
        sent = 0
        try:
            piece = Piece(fd, 0, PROBE_SIZE)
            sent = sum(lanes.each(partial(_send, store, key, piece, flow) for key in keys))
        except Cancelled:
            sent = flow.wire
        seconds = time.monotonic() - started
    finally:
        timer.cancel()
        lanes.close()
        os.close(fd)
        try:
            store.delete(keys)
        finally:
            store.close()
    return sent / seconds if sent else None


def _send(store: ObjectStore, key: str, piece: Piece, flow: Flow) -> int:
    store.send_whole(key, piece, flow)
    return piece.length
