"""The Hugging Face Trainer under spotd: a callback, and `resume_from_checkpoint`.

spotd.toml:
    [trainer]
    command = "python hf_run.py"
    checkpoint_signal = "SIGUSR1"
    [checkpoints]
    pattern = "checkpoint-*"
"""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from spotd_trainer import newest_checkpoint  # <---
from spotd_trainer.huggingface import SpotdCallback  # <---


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.mse_loss(self.net(x), labels)}


class Data(Dataset[dict[str, torch.Tensor]]):
    def __init__(self) -> None:
        self.x = torch.randn(1024, 8)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "labels": self.x[index].sum().view(1)}


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    directory = os.environ.get("SPOTD_CHECKPOINT_DIR", "checkpoints")
    arguments = TrainingArguments(
        output_dir=directory,
        max_steps=int(os.environ.get("MAX_STEPS", "300")),
        per_device_train_batch_size=16,
        save_steps=100,
        save_total_limit=3,
        logging_steps=50,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
    )
    model = Net()
    trainer = Trainer(model, arguments, train_dataset=Data(), callbacks=[SpotdCallback()])  # <---
    trainer.train(resume_from_checkpoint=newest_checkpoint(directory))  # <---
    total = sum(parameter.double().sum() for parameter in model.parameters())
    print(f"step {trainer.state.global_step}, sum of weights {float(total):.17g}")


if __name__ == "__main__":
    main()
