# ruff: noqa: NPY002, TRY301 - users' code draws from numpy's global generator
"""What the trainer's tests share: a small run with every kind of state, and real processes."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from spotd_trainer import Loader, Session

EXAMPLES = Path(__file__).parents[2] / "trainer" / "examples"
TINY = [
    *("--layers", "1", "--heads", "2", "--width", "16", "--context", "16", "--batch", "4"),
    *("--data-limit", "60000", "--warmup", "10", "--eval-every", "0", "--log-every", "1000"),
    *("--log-jsonl", "losses.jsonl"),
]


class Noisy:
    """Samples that draw from all three generators, as augmentation does."""

    def __init__(self, length: int = 40) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < self.length:
            raise IndexError(index)
        noise = random.random() + float(np.random.rand()) + torch.rand(4)
        return torch.arange(4.0) + index / 10 + 0.1 * noise


class Net(nn.Module):
    """Dropout draws, and batch normalisation has buffers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.2)
        self.outer = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.drop(torch.tanh(self.norm(self.inner(x)))))


def make_loader(kind: str, workers: int):
    data = Noisy()
    if kind == "ours":
        return Loader(data, 4, workers=workers)
    if kind == "played back":
        return DataLoader(data, 4, shuffle=True, drop_last=True, num_workers=workers)
    if kind == "stateful":
        # Nothing restores the RNGs inside its workers: samples that draw would not be exact.
        plain = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
        return StatefulDataLoader(plain, 4, shuffle=True, drop_last=True, num_workers=workers)
    return None


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def parts(seed: int = 0):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=1000)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=5)
    return model, optimizer, scheduler, scaler


def one_step(model, optimizer, scheduler, scaler, x) -> torch.Tensor:
    x = x + random.random() * 0.01 + float(np.random.rand()) * 0.01
    loss = (model(x) - x.mean(1, keepdim=True)).pow(2).mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    scheduler.step()
    return loss


class Died(Exception):  # noqa: N818
    """Stands for a SIGKILL: nothing is saved on the way out."""


def run(directory, steps, *, kind="ours", workers=0, until=None, how="stop", save_every=3, **more):
    """Train from the newest checkpoint; return the digest at the end, None if cut off before."""
    model, optimizer, scheduler, scaler = parts()
    loader = make_loader(kind, workers)
    session = Session(
        model,
        optimizer,
        scheduler=scheduler,
        scaler=scaler,
        loader=loader,
        directory=directory,
        save_every=save_every,
        total_steps=steps,
        on_stop="return",
        **more,
    )
    try:
        with session:
            batches = iter(session) if loader is not None else iter(lambda: torch.rand(4, 4), None)
            while not session.done:
                x = next(batches)
                loss = one_step(model, optimizer, scheduler, scaler, x)
                if until is not None and session.step + 1 >= until:
                    if how == "die":
                        raise Died
                    session.request_stop()
                session.advance(loss)
    except Died:
        return None
    return digest(model) if session.step >= steps and not session.should_stop else None


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPOTD_", "TORCHELASTIC"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}


def start(command, cwd, **more: str) -> subprocess.Popen:
    """A process of its own session, so that its group can be signalled."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def reference(*options: object):
    return [sys.executable, "-m", "spotd_trainer.reference", *TINY, *options]


def torchrun(processes: int, *command: object, nodes: int = 1, node: int = 0, port: int = 0):
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nproc-per-node", processes, "--nnodes", nodes, "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"),
        *("--local-addr", "127.0.0.1"),
        *(["--rdzv-conf", f"is_host={int(node == 0)}"] if nodes > 1 else []),
        *command,
    ]


def finish(process: subprocess.Popen, timeout: float = 90) -> str:
    """Its output, once it has ended by itself."""
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"still running: {process.communicate()[0]}") from None


def wait_for(condition, process: subprocess.Popen | None = None, timeout: float = 90):
    """Wait until `condition()` is true; fail when time is up or the process has ended."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()[0]}")
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.02)
    return found


def lines_in(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0
