"""When is a checkpoint whole?

The shell looks (names, sizes, times, who writes, what the heads and tails of files
say) and this module decides. Nothing here opens a file.

Theory: a checkpoint is whole when its name is not a temporary one, nobody has it open
for writing, its structure holds, and, for a directory, the marker that its writer
leaves last is there and newest. Formats that cannot be judged from the outside must
have been quiet for a while, unless the trainer itself said that it is done or no
trainer lives any more. Which writer leaves which marker: `spotd.core.layouts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from spotd.core.checkpoint import step_from_name
from spotd.core.layouts import (
    Layout,
    directory_of,
    is_data_file,
    is_rank_file,
    layout_of,
    markers_of,
    unfinished_sentinel,
)
from spotd.core.names import has_checkpoint_extension, is_checkpoint_name, is_temporary

AUTO = "auto"
MIN_QUIET = 10.0  # seconds
QUIET_FACTOR = 3.0  # of the longest gap between two writes
MAX_QUIET = 300.0  # seconds; a gap of hours must not postpone a checkpoint for days
RANK_QUIET = 2.0  # seconds; ranks write their own files at nearly the same time


class Structure(str, Enum):
    """What the content of one file says about itself."""

    WHOLE = "whole"
    TORN = "torn"
    UNKNOWN = "unknown"  # a format that does not say


class State(str, Enum):
    """What a candidate is found to be."""

    WHOLE = "whole"
    NOT_YET = "not yet"
    TORN = "torn"
    NOT_A_CHECKPOINT = "not a checkpoint"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One regular file of a candidate.

    Attributes:
        path: Relative to the candidate; "" when the candidate is the file itself.
        size: Bytes.
        mtime_ns: Nanoseconds since the epoch.
        writing: Some process has it open for writing.
        structure: What its content says.
        reason: Why the structure is torn, in one line.
        needs: (path relative to this file's directory, least length in bytes) of the
            files that this one, an index, says must be there.
    """

    path: str
    size: int
    mtime_ns: int
    writing: bool = False
    structure: Structure = Structure.UNKNOWN
    reason: str = ""
    needs: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class CandidateFacts:
    """All that was seen of one entry of the checkpoint directory.

    Attributes:
        name: Its name.
        kind: "file" or "directory".
        files: Its regular files; one for a file.
        unusable: Why it cannot be stored at all (a link inside, too many files), or "".
        quiet: Seconds since anything in it changed.
        longest_gap: Seconds, the longest pause seen between two changes of it.
        settled: No trainer lives: judge for good.
        declared: The trainer said that this very content is complete.
        complete: `checkpoints.complete`: "auto" or the name of a marker file.
        default_pattern: `checkpoints.pattern` is `*`: only what looks like a checkpoint is one.
        family: What other candidates of the same name family are, when that is known.
        family_files: Names every whole directory of the family has (accelerate's custom objects).
    """

    name: str
    kind: str
    files: tuple[FileFacts, ...]
    unusable: str = ""
    quiet: float = 0.0
    longest_gap: float = 0.0
    settled: bool = False
    declared: bool = False
    complete: str = AUTO
    default_pattern: bool = True
    family: Layout | None = None
    family_files: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a candidate is, and why it is not whole.

    `wait` is how many seconds to wait for quiet, when nothing else is missing.
    `layout` is the writer's layout, where one was recognised.
    """

    state: State
    reason: str = ""
    wait: float = 0.0
    layout: Layout | None = None


def quiet_needed(longest_gap: float) -> float:
    """Returns the seconds of quiet after which content that cannot be judged counts as whole."""
    return min(max(MIN_QUIET, QUIET_FACTOR * longest_gap), MAX_QUIET)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name is in the configured set and may be a checkpoint at all."""
    if name.startswith(".") or is_temporary(name):
        return False
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def judge(facts: CandidateFacts) -> Verdict:
    """Decides what one candidate is."""
    if facts.unusable:
        return Verdict(State.NOT_A_CHECKPOINT, facts.unusable)
    if facts.settled:
        writing = next((file for file in facts.files if file.writing), None)
        if writing is not None:  # not the trainer: never torn, or a copy by hand would be moved
            return _being_written(writing.path or facts.name)
    if facts.kind == "file":
        return _judge_file(facts)
    return _judge_directory(facts)


def _judge_file(facts: CandidateFacts) -> Verdict:
    wanted = facts.declared or not facts.default_pattern
    if not wanted and not is_checkpoint_name(facts.name):
        return Verdict(State.NOT_A_CHECKPOINT, "its name is not that of a checkpoint")
    file = facts.files[0]
    if file.structure is Structure.TORN or file.size == 0:
        return _unfinished(facts, file.reason or "it is empty")
    if file.writing and not facts.declared:
        return _being_written(facts.name)
    if facts.declared or file.structure is Structure.WHOLE:
        return Verdict(State.WHOLE)
    return _wait_for_quiet(facts, quiet_needed(facts.longest_gap))


def _judge_directory(facts: CandidateFacts) -> Verdict:
    if facts.complete != AUTO:
        return _judge_by_marker(facts)
    layout = layout_of(facts.name, tuple(file.path for file in facts.files), facts.family)
    if layout is Layout.OTHER and not _holds_checkpoint(facts):
        return Verdict(State.NOT_A_CHECKPOINT, "it holds no file of a checkpoint")
    verdict = _judge_layout(facts, layout)
    return Verdict(verdict.state, verdict.reason, verdict.wait, layout)


def _judge_by_marker(facts: CandidateFacts) -> Verdict:
    if any(file.path == facts.complete for file in facts.files):
        return Verdict(State.WHOLE)
    wanted = facts.declared or not facts.default_pattern or _holds_checkpoint(facts)
    if not wanted:
        return Verdict(State.NOT_A_CHECKPOINT, f"it holds neither {facts.complete} nor checkpoints")
    return _unfinished(facts, f"{facts.complete} is missing")


def _holds_checkpoint(facts: CandidateFacts) -> bool:
    if facts.declared or not facts.default_pattern:
        return bool(facts.files)
    if any(has_checkpoint_extension(file.path) for file in facts.files):
        return True
    # safetensors' first file, killed under its temporary name: torn, if it is `step-5/`.
    numbered = step_from_name(facts.name) is not None
    return numbered and any(_is_temporary_path(file.path) for file in facts.files)


def _judge_layout(facts: CandidateFacts, layout: Layout) -> Verdict:
    problem = _torn_file(facts, layout) or _unmet_need(facts)
    if problem:
        return _unfinished(facts, problem)
    if facts.declared:
        return Verdict(State.WHOLE)
    writing = next((file for file in facts.files if file.writing), None)
    if writing is not None:
        return _being_written(writing.path)
    problem = _sentinel(facts, layout) or _marker_problem(facts, layout)
    if problem:
        return _unfinished(facts, problem)
    return _wait_for_quiet(facts, _quiet_of(facts, layout))


def _quiet_of(facts: CandidateFacts, layout: Layout) -> float:
    """Seconds of quiet that a directory needs whose marker is in order."""
    if layout is Layout.OTHER:
        return quiet_needed(facts.longest_gap)
    return RANK_QUIET if any(is_rank_file(file.path) for file in facts.files) else 0.0


def _torn_file(facts: CandidateFacts, layout: Layout) -> str:
    for file in facts.files:
        if file.structure is Structure.TORN and not _is_leftover(facts, layout, file):
            return f"{file.path}: {file.reason}"
    return ""


def _unmet_need(facts: CandidateFacts) -> str:
    """What an index (`.metadata`, `*.index.json`) asks for and is not there."""
    sizes = {file.path: file.size for file in facts.files}
    for index in facts.files:
        base = directory_of(index.path)
        for path, least in index.needs:
            size = sizes.get(base + path)
            if size is None:
                return f"{base}{path} is missing"
            if size < least:
                return f"{base}{path} has {size} bytes and {index.path} says {least}"
    return ""


def _sentinel(facts: CandidateFacts, layout: Layout) -> str:
    for file in facts.files:
        if unfinished_sentinel(file.path.rpartition("/")[2]):
            return f"{file.path} says that it is unfinished"
        if _is_temporary_path(file.path) and not _is_leftover(facts, layout, file):
            return f"{file.path} is a temporary file"
    return ""


def _is_temporary_path(path: str) -> bool:
    return any(is_temporary(part) for part in path.split("/"))


def _is_leftover(facts: CandidateFacts, layout: Layout, file: FileFacts) -> bool:
    """A temporary file of an earlier, killed save: the marker is newer and nobody writes it.

    It belongs to no checkpoint, and one killed save must not spoil all later ones in
    the same directory.
    """
    if file.writing or not _is_temporary_path(file.path):
        return False
    times = [other.mtime_ns for other in markers_of(layout, facts.files)]
    return bool(times) and file.mtime_ns < min(times)


def _marker_problem(facts: CandidateFacts, layout: Layout) -> str:
    """Whether the marker that this layout's writer leaves last is there and newest."""
    if layout in (Layout.OTHER, Layout.ORBAX):
        return ""
    markers = markers_of(layout, facts.files)
    if not markers:
        return f"{layout.marker} is missing"
    if layout is Layout.ACCELERATE:
        present = {file.path for file in facts.files}
        missing = sorted(facts.family_files - present)
        if missing:
            return f"{missing[0]}, which the others have, is missing"
    if layout is Layout.DCP:
        return _dcp_problem(facts)
    newest = max(marker.mtime_ns for marker in markers)
    for file in facts.files:
        late = is_data_file(layout, file.path) and file.mtime_ns > newest
        if late and _times_tell(facts.files):
            return f"{file.path} is newer than {layout.marker}"
    return ""


def _times_tell(files: tuple[FileFacts, ...]) -> bool:
    """Whether times say in which order files were written.

    Times of whole seconds come from a tool that set them (`aws s3 cp` gives the time of
    the upload, in which files overtake each other) or from a filesystem that keeps no
    finer ones. Then the other rules have to do.
    """
    return any(file.mtime_ns % 1_000_000_000 for file in files)


def _dcp_problem(facts: CandidateFacts) -> str:
    """Each directory with shards has a `.metadata` of its own, not older than the shards."""
    markers = {
        directory_of(file.path): file
        for file in facts.files
        if file.path.rpartition("/")[2] == ".metadata"
    }
    for file in facts.files:
        if not file.path.endswith(".distcp"):
            continue
        marker = markers.get(directory_of(file.path))
        if marker is None:
            return f"{directory_of(file.path)}.metadata is missing"
        if file.mtime_ns > marker.mtime_ns and _times_tell(facts.files):
            return f"{file.path} is newer than {marker.path}"
    return ""


def _unfinished(facts: CandidateFacts, reason: str) -> Verdict:
    """Torn when no trainer lives to finish it, not yet whole otherwise."""
    return Verdict(State.TORN if facts.settled else State.NOT_YET, reason)


def _being_written(path: str) -> Verdict:
    return Verdict(State.NOT_YET, f"{path} is being written")


def _wait_for_quiet(facts: CandidateFacts, needed: float) -> Verdict:
    if facts.settled or facts.quiet >= needed:
        return Verdict(State.WHOLE)
    return Verdict(State.NOT_YET, f"quiet for less than {needed:g} s", wait=needed - facts.quiet)
