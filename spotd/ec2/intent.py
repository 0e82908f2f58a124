"""What this machine is just asking EC2 for: on the disk before it is sent, gone once answered.

A `spotd launch` that is killed, or loses the network, between question and answer may have
launched an instance that EC2's lists show only seconds later. The repeated command finds the
question here and asks exactly the same again: EC2 answers a known ClientToken with the instance
it has. Without this the repeated command could ask another pool first, because prices moved.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spotd.ec2.plan import Ask, Pool, rfc3339
from spotd.errors import SpotdError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FORMAT = 1
# After that EC2's lists have long shown what was launched, and the question may be out of date.
FRESH = 300.0  # seconds


def folder() -> Path:
    """Where they are kept: $XDG_STATE_HOME/spotd, else ~/.local/state/spotd."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "spotd" / "launch"


class Intent:
    """The question that is open for one run. Use `held` to get one.

    Args:
        path: Its file.
        clock: Wall clock.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

    def asking(self, one: Ask) -> None:
        """Notes, durably, what is about to be sent."""
        parameters = json.loads(json.dumps(one.parameters, default=rfc3339))
        self._write({"market": one.market, "pool": asdict(one.pool), "parameters": parameters})

    def answered(self, instance_id: str = "") -> None:
        """Forgets the question: what became of it is known, an instance or nothing."""
        if instance_id:
            self._write({"launched": instance_id})
        else:
            self._path.unlink(missing_ok=True)

    def launched(self) -> str | None:
        """The instance of a launch moments ago: EC2's lists may not show it yet."""
        document = self._read() or {}
        fresh = self._clock() - float(document.get("at", 0.0)) <= FRESH
        return str(document["launched"]) if "launched" in document and fresh else None

    def open(self) -> tuple[Ask, float] | None:
        """The question nobody saw answered, and its age in seconds."""
        document = self._read()
        if document is None or "launched" in document:
            return None
        try:
            return _ask_of(document), max(0.0, self._clock() - float(document["at"]))
        except (ValueError, TypeError, KeyError) as error:
            raise self._unreadable(error) from error

    def _read(self) -> dict[str, Any] | None:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise self._unreadable(ValueError("it is of another format"))
        return document

    def _unreadable(self, error: Exception) -> SpotdError:
        return SpotdError(
            f"{self._path} cannot be read: {error}",
            hint="`spotd instances` shows what runs; delete the file if that is all",
        )

    def _write(self, said: dict[str, Any]) -> None:
        document = {"format": FORMAT, "at": self._clock(), **said}
        scratch = self._path.with_suffix(".new")
        with scratch.open("w", encoding="utf-8") as file:
            scratch.chmod(0o600)
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self._path)


def _ask_of(document: dict[str, Any]) -> Ask:
    parameters = document["parameters"]
    options = parameters.get("InstanceMarketOptions", {}).get("SpotOptions", {})
    if "ValidUntil" in options:
        options["ValidUntil"] = datetime.fromisoformat(options["ValidUntil"].replace("Z", "+00:00"))
    return Ask(Pool(**document["pool"]), document["market"], parameters)


@contextlib.contextmanager
def held(run: str, *place: str) -> Iterator[Intent]:
    """The intent of a run; nobody else on this machine launches it meanwhile.

    Args:
        run: Its name.
        place: What else tells it from a run of the same name: region, store.

    Raises:
        SpotdError: Somebody else does, or nothing can be written here.
    """
    name = f"{run}-{hashlib.sha256(json.dumps(place).encode()).hexdigest()[:12]}"
    directory = folder()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(directory / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SpotdError(
            f"cannot note in {directory} what is asked for: {error.strerror}",
            hint="a repeated launch must find it; set XDG_STATE_HOME to a place that is yours",
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpotdError(
                f"another spotd launch of {run} is at work on this machine",
                hint="wait for it; `spotd instances` shows what it got",
            ) from None
        yield Intent(directory / f"{name}.json")
    finally:
        os.close(lock)
