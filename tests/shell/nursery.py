"""A process that has imported the trainers' libraries once and forks a child for each save.

Run as a program: reads one JSON line per job from stdin, forks, answers with the child's
pid, then with how it ended. Jobs die where they are told to: at the n-th byte of a file
(RLIMIT_FSIZE with SIGXFSZ's default action, exact to the byte) or at the n-th file opened
for writing (SIGKILL from an audit hook): kill -9 in mid-save, and no luck involved.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")


def die_at_byte(limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def die_at_open(count: int, below: str) -> None:
    left = [count]

    def hook(event: str, args: tuple) -> None:
        if event == "os.rename" and str(args[0]).startswith(below):
            left[0] -= 1
        elif event == "open" and isinstance(args[0], (str, bytes)):
            writing = isinstance(args[1], str) and any(c in args[1] for c in "wax+")
            flags = args[2] if isinstance(args[2], int) else 0
            if os.fsdecode(args[0]).startswith(below) and (writing or flags & 3):
                left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def tensors(size: int):
    import torch

    torch.manual_seed(7)
    part = max(size // 40, 1)
    return {f"layer.{i}.weight": torch.randn(part) for i in range(10)}


def save_torch(path: str, size: int) -> None:
    import torch

    torch.save({"model": tensors(size), "step": 7}, path)


def save_legacy(path: str, size: int) -> None:
    import torch

    torch.save(tensors(size), path, _use_new_zipfile_serialization=False)


def save_without_crc(path: str, size: int) -> None:
    import torch

    torch.serialization.set_crc32_options(False)
    torch.save({"model": tensors(size)}, path)


def save_safetensors(path: str, size: int) -> None:
    from safetensors.torch import save_file

    save_file(tensors(size), path)


def save_dcp(path: str, size: int) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save(tensors(size), checkpoint_id=path)


def save_accelerate(path: str, size: int) -> None:
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(64, max(size // 260, 1))
    optimizer = torch.optim.Adam(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.save_state(path)


def save_trainer(path: str, size: int) -> None:
    """`path` is .../checkpoint-2: the Trainer saves there by itself after two steps."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    config = GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=max(size // 128, 64))
    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)} for _ in range(4)]
    arguments = TrainingArguments(
        output_dir=str(Path(path).parent), max_steps=2, save_steps=2, report_to=[], use_cpu=True,
        per_device_train_batch_size=1, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    Trainer(GPT2LMHeadModel(config), arguments, train_dataset=rows).train()


def save_lightning(path: str, size: int) -> None:
    import lightning.pytorch as lightning
    import torch

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(32, max(size // 132, 1))

        def training_step(self, batch, _):
            return self.layer(batch).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Model(), torch.utils.data.DataLoader(torch.randn(4, 32)))
    trainer.save_checkpoint(path)


JOBS = {name[5:]: job for name, job in globals().copy().items() if name.startswith("save_")}


def run(job: dict) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    if "at_byte" in job:
        die_at_byte(job["at_byte"])
    if "at_open" in job:
        die_at_open(job["at_open"], str(Path(job["path"]).parent))
    JOBS[job["writer"]](job["path"], job["size"])


def main() -> None:
    import accelerate  # noqa: F401 - for the children
    import safetensors.torch  # noqa: F401
    import torch.distributed.checkpoint

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        if job["writer"] == "import":
            __import__(job["path"])
            print(0, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                run(job)
                status = 0
            finally:
                os._exit(status)
        _, how = os.waitpid(pid, 0)
        print(how, flush=True)


if __name__ == "__main__":
    main()
