"""What the pieces that carry out actions share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from spotd.core.events import DirectoryTrouble, Event, LocalInventory
    from spotd.shell.directory.candidates import Candidates
    from spotd.shell.directory.holds import Holds
    from spotd.shell.directory.judge import Judge
    from spotd.shell.directory.trash import Trash
    from spotd.shell.directory.workers import Worker


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one checkpoint directory.

    Attributes:
        candidates: What stands in it; the directory's own thread only.
        holds: What is held.
        trash: What is being made and what is to be deleted.
        judge: Judges entries.
        post: Takes events, from any thread.
        answer: Takes the answer to an inspection.
        files: The thread for copies and deletions.
        disk: The thread for fsyncs and the reading of contents.
        stop: Set when spotd ends.
        call: Runs something in the directory's own thread.
    """

    candidates: Candidates
    holds: Holds
    trash: Trash
    judge: Judge
    post: Callable[[Event], None]
    answer: Callable[[LocalInventory | DirectoryTrouble], None]
    files: Worker
    disk: Worker
    stop: threading.Event
    call: Callable[[Callable[[], None]], None]
