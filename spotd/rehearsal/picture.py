"""The loss curve of two trainings, with the interruptions marked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SMOOTH = 25  # steps of running mean, so that two curves can be told apart


def smoothed(entries: Sequence[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Returns steps and a running mean of the loss; a step trained twice counts once."""
    by_step = {int(e["step"]): float(e["loss"]) for e in entries}
    steps = sorted(by_step)
    losses = [by_step[s] for s in steps]
    means = [
        sum(losses[max(0, i - SMOOTH) : i + 1]) / len(losses[max(0, i - SMOOTH) : i + 1])
        for i in range(len(losses))
    ]
    return steps, means


def draw(
    path: Path,
    uninterrupted: Sequence[dict[str, Any]],
    interrupted: Sequence[dict[str, Any]],
    marks: Sequence[tuple[str, int, int]],
) -> None:
    """Writes the picture.

    Args:
        path: PNG file.
        uninterrupted: Entries with "step" and "loss".
        interrupted: The same of the run that was interrupted.
        marks: (name, step reached, steps lost) of each interruption.
    """
    figure, axes = plt.subplots(figsize=(10, 5.2), dpi=110)
    axes.plot(*smoothed(uninterrupted), color="#b9c3cf", linewidth=5, label="uninterrupted")
    axes.plot(*smoothed(interrupted), color="#1f5fa8", linewidth=1.5, label="under spotd")
    top = axes.get_ylim()[1]
    for name, step, lost in marks:
        axes.axvspan(step - lost, step, color="#d9822b", alpha=0.25, linewidth=0)
        axes.axvline(step, color="#d9822b", linewidth=1)
        axes.annotate(
            f"{name}\n{lost} steps lost",
            (step, top),
            xytext=(4, -4),
            textcoords="offset points",
            rotation=90,
            va="top",
            fontsize=8,
            color="#7a4a12",
        )
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss (mean of {SMOOTH} steps)")
    axes.set_title("The same training, left alone and interrupted")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
