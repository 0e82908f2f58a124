"""The trainer of the soak: `trainer/examples/minimal.py`, with an end that can be set later.

Each step adds a line `token step` to the trail, which lies outside of the played disk: from it
is told who trained when, from where, and what was trained twice. Training ends at the step
that a file names, once it is there, so that the soak may last as long as it likes.
"""

from __future__ import annotations

import argparse
import time
import uuid
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from spotd_trainer import Loader, Session
from spotd_trainer.reference import write_weights

IN, OUT = 64, 8


class Noise(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Points whose noise is drawn anew in each epoch."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(IN)
        return x, x[:OUT].sin() + 0.1 * torch.randn(OUT)


def main() -> None:
    """Trains to the step that `--finish` names."""
    parser = argparse.ArgumentParser(prog="python -m spotd.rehearsal.soak_trainer")
    parser.add_argument("--finish", type=Path, required=True, help="names the last step")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--trail", type=Path)
    parser.add_argument("--width", type=int, default=64, help="a checkpoint has 900 of them bytes")
    parser.add_argument("--tick", type=float, default=0.0, help="seconds of rest after a step")
    parser.add_argument("--save-every", type=int)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = nn.Sequential(
        nn.Linear(IN, options.width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(options.width, OUT)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    session = Session(
        model, optimizer, loader=Loader(Noise(), batch_size=4), save_every=options.save_every
    )
    with session:
        token = uuid.uuid4().hex[:12]  # pids come again in a long soak
        trail = None if options.trail is None else options.trail.open("a", buffering=1)
        for x, y in session:
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            if trail is not None:
                trail.write(f"{token} {session.step + 1}\n")
            if options.finish.exists():
                session.total_steps = int(options.finish.read_text())
            session.advance(loss)
            time.sleep(options.tick)
    write_weights(options.weights, model.state_dict())


if __name__ == "__main__":
    main()
