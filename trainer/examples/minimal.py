"""The least a training loop of one's own must add: the lines marked with an arrow.

python minimal.py [STEPS]

Interrupt it as often as you like (Ctrl-C, SIGTERM, SIGKILL) and start it again: the sum it prints
at the end is the same.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.utils.data import Dataset

from spotd_trainer import Loader, Session  # <---


class Sines(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Noisy points of a sine."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.rand(1) * 6.28
        return x, x.sin() + 0.1 * torch.randn(1)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000

    model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Dropout(0.1), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loader = Loader(Sines(), batch_size=32)  # <--- in the place of DataLoader

    session = Session(  # <--- finds, loads and saves
        model, optimizer, scheduler=scheduler, loader=loader, total_steps=steps
    )
    with session:  # <---
        for x, y in session:  # <--- the batches that are still to come
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            session.advance(loss)  # <--- a step is done

    total = sum(parameter.double().sum() for parameter in model.parameters())
    print(f"step {session.step}, sum of weights {float(total):.17g}")


if __name__ == "__main__":
    main()
