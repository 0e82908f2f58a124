"""The lifecycle's diagram and tables, drawn from the code into docs/lifecycle.md.

    python -m spotd.simulation.diagram docs/lifecycle.md

A test fails when the document and the code have drifted apart.
"""

from __future__ import annotations

import sys
from pathlib import Path

from spotd.core.lifecycle import __doc__ as theory
from spotd.core.state import TRANSITIONS, Phase

MEANS = {
    Phase.STARTING: "the record is being read and a living trainer looked for",
    Phase.RESTORING: "looking at disk and store for the newest whole checkpoint, fetching it",
    Phase.RUNNING: "the trainer runs, or is just being started",
    Phase.BACKING_OFF: "the trainer crashed, or could not be started; it is started again soon",
    Phase.DRAINING: "a notice or a drill: the trainer saves and ends, what it saved is stored",
    Phase.DRAINED: "safe to stop; EC2 does the stopping",
    Phase.COMPLETED: "the trainer exited 0 and nobody had asked it to; it never runs again",
    Phase.FAILED: "given up after `max_failures` crashes without progress",
    Phase.STOPPING: "SIGTERM to spotd: the same road as a notice, then spotd ends",
}
BEGIN, END = "<!-- drawn from the code: begin -->", "<!-- drawn from the code: end -->"


def drawn() -> str:
    """Returns the part of the document that comes from the code."""
    arrows = [
        f"    {_id(before)} --> {_id(after)}"
        for before, follow in TRANSITIONS.items()
        for after in sorted(follow, key=list(Phase).index)
    ]
    names = [f"    {_id(p)} : {p.value}" for p in Phase if _id(p) != p.value]
    rows = [
        f"| `{p.value}` | {MEANS[p]} | {_follows(p)} |" for p in Phase
    ]  # fmt: skip
    return "\n".join(
        [
            "```mermaid", "stateDiagram-v2", "    [*] --> starting", *names, *arrows, "```", "",
            "| state | what it means | may be followed by |", "|---|---|---|", *rows, "",
            "## Theory of operation", "", _told(), "",
        ]
    )  # fmt: skip


def _id(phase: Phase) -> str:
    return phase.value.replace("-", "_")


def _follows(phase: Phase) -> str:
    follow = sorted(TRANSITIONS[phase], key=list(Phase).index)
    return ", ".join(f"`{p.value}`" for p in follow) or "the end of spotd"


def _told() -> str:
    """The module's own prose, without its heading and its drawing."""
    text = (theory or "").split("===\n", 1)[1]
    lines = [line for line in text.splitlines() if not line.startswith("    ")]
    out: list[str] = []
    for line in lines:
        if line or (out and out[-1]):
            out.append(line)
    return "\n".join(out).strip().replace("may\nfollow which:", "may\nfollow which.")


def rewritten(document: str) -> str:
    """Returns the document with its drawn part drawn anew."""
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{drawn()}{END}{after}"


def main() -> None:
    """Rewrites the document named on the command line."""
    path = Path(sys.argv[1])
    path.write_text(rewritten(path.read_text()))


if __name__ == "__main__":
    main()
