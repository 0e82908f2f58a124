"""Who trained which step, read from the trail the trainers left: one at most, none skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Trail:
    """`lives`: one a trainer, (token, first step, last step); `wrong`: what must not be."""

    lives: tuple[tuple[str, int, int], ...]
    wrong: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Steps trained in all, those trained again included."""
        return sum(last - first + 1 for _, first, last in self.lives)

    @property
    def last(self) -> int:
        """The last step trained."""
        return self.lives[-1][2] if self.lives else 0


def read_trail(path: Path) -> Trail:
    """Reads it. A line that a kill cut short ends with the next line break."""
    lives: list[tuple[str, int, int]] = []
    wrong: list[str] = []
    gone: set[str] = set()
    top = 0
    text = path.read_text() if path.exists() else ""
    for line in text.split("\n")[:-1]:
        token, number = line.split()
        step = int(number)
        if lives and lives[-1][0] == token:
            _, first, last = lives[-1]
            if step != last + 1:
                wrong.append(f"trainer {token} trained step {step} after {last}")
            lives[-1] = (token, first, step)
        else:
            if token in gone:
                wrong.append(f"trainer {token} trained step {step} while another one trained")
            if step > top + 1:
                wrong.append(
                    f"trainer {token} began at step {step}, and nobody had trained {top + 1}"
                )
            gone |= {token}
            lives.append((token, step, step))
        top = max(top, step)
    return Trail(tuple(lives), tuple(wrong))
