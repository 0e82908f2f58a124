"""PyTorch Lightning under spotd: a callback, and `ckpt_path`.

spotd.toml:
    [trainer]
    command = "python lightning_run.py"
    checkpoint_signal = "SIGUSR1"
    [checkpoints]
    pattern = "step-*.ckpt"
"""

from __future__ import annotations

import os

import lightning as L
import torch
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

from spotd_trainer import newest_checkpoint  # <---
from spotd_trainer.lightning import SpotdCallback  # <---


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1))

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch), batch.sum(1, keepdim=True))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    L.seed_everything(0)
    torch.set_num_threads(1)
    data = torch.randn(1024, 8)
    # Lightning saves the place in the data only of a loader that can tell it.
    loader = StatefulDataLoader(data, batch_size=16, shuffle=True)
    trainer = L.Trainer(
        max_steps=int(os.environ.get("MAX_STEPS", "300")),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SpotdCallback(save_every=100)],  # <---
    )
    module = Module()
    trainer.fit(module, loader, ckpt_path=newest_checkpoint(), weights_only=True)  # <---
    total = sum(parameter.double().sum() for parameter in module.parameters())
    print(f"step {trainer.global_step}, sum of weights {float(total):.17g}")


if __name__ == "__main__":
    main()
