"""The reference trainer: a GPT over bytes that can be interrupted at any step, any number of times.

    python -m spotd_trainer.reference --steps 2000

trains on the Python standard library's own sources and needs nothing but torch. Run it alone,
under spotd, or under torchrun. Everything that resuming takes is in `train`: the session, the
loop over it, and `session.advance`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import logging
import math
import os
import sys
import sysconfig
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from spotd_trainer.gpt import GPT, Shape
from spotd_trainer.loader import Loader
from spotd_trainer.rng import derive_seed, seed_all
from spotd_trainer.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("spotd_trainer.reference")


class Windows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Windows of `context` bytes, each with the bytes that follow one position later."""

    def __init__(self, data: torch.Tensor, context: int) -> None:
        self.data = data
        self.context = context

    def __len__(self) -> int:
        return (len(self.data) - 1) // self.context

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = index * self.context
        window = self.data[start : start + self.context + 1].long()
        return window[:-1], window[1:]


def read_data(source: Path | None, limit: int) -> torch.Tensor:
    """The first `limit` bytes of a file, or of a directory's .py and .txt files in name order."""
    source = source or Path(sysconfig.get_paths()["stdlib"])
    files = [source]
    if source.is_dir():
        files = sorted(p for p in source.iterdir() if p.suffix in (".py", ".txt"))
    text = bytearray()
    for file in files:
        if len(text) >= limit:
            break
        text += file.read_bytes()
    if not text:
        raise SystemExit(f"--data {source}: expected text, found no bytes")
    return torch.frombuffer(text[:limit], dtype=torch.uint8)


def how_often(text: str) -> int | str | None:
    """`--save-every` as a session takes it; argparse tells what is wrong with another text."""
    if text == "auto":
        return text
    if text != "never" and int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number of steps, found {text}")
    return None if text == "never" else int(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; `--help` lists them with their defaults."""
    parser = argparse.ArgumentParser(
        prog="python -m spotd_trainer.reference",
        description=(__doc__ or "").split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--steps", type=int, default=2000, help="optimizer steps in all")
    add("--data", type=Path, help="text file or directory; default: Python's standard library")
    add("--data-limit", type=int, default=4 << 20, help="bytes read of it")
    add("--checkpoint-dir", type=Path, help="default: $SPOTD_CHECKPOINT_DIR, else checkpoints")
    add("--save-every", type=how_often, default="auto", help="steps, 'auto' or 'never'")
    add("--keep", type=int, default=3, help="checkpoints that stay on the disk")
    add("--layers", type=int, default=4)
    add("--heads", type=int, default=4)
    add("--width", type=int, default=128)
    add("--context", type=int, default=128, help="bytes a prediction sees")
    add("--dropout", type=float, default=0.1)
    add("--batch", type=int, default=16, help="windows per rank and micro-batch")
    add("--accumulate", type=int, default=1, help="micro-batches per step")
    add("--learning-rate", type=float, default=1e-3)
    add("--warmup", type=int, default=100, help="steps")
    add("--workers", type=int, default=0, help="loader processes")
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="of torch; default 1 on the CPU: results depend on it")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--bf16", action=argparse.BooleanOptionalAction, help="default: on CUDA")
    add("--shard", action="store_true", help="over several ranks: FSDP2 instead of DDP")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--eval-every", type=int, default=250, help="steps; 0: never")
    add("--sample", type=int, default=0, metavar="N", help="print N bytes at each evaluation")
    add("--log-every", type=int, default=50, help="steps between progress lines")
    add("--log-jsonl", type=Path, help="append one line of step and loss per step")
    add("--out-weights", type=Path, help="write the final weights there, and print their sha256")
    return parser.parse_args(arguments)


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights, put together from the shards of all ranks if there are any. Collective."""
    return {
        name: getattr(tensor, "full_tensor", lambda tensor=tensor: tensor)()
        for name, tensor in model.state_dict().items()
    }


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> str:
    """Write names and raw bytes of all weights, the same bytes for the same weights; sha256."""
    digest = hashlib.sha256()
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("wb") as file:
        for name, tensor in weights.items():
            values = tensor.detach().cpu().contiguous()
            raw = ctypes.string_at(values.data_ptr(), values.nbytes)
            for piece in (f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), raw):
                digest.update(piece)
                file.write(piece)
    temporary.replace(path)
    return digest.hexdigest()


@torch.no_grad()
def evaluate(model: torch.nn.Module, windows: Windows, batch: int, device: torch.device) -> float:
    """Mean loss over at most eight batches from the front of `windows`."""
    model.eval()
    losses: list[float] = []
    for start in range(0, min(len(windows), 8 * batch), batch):
        pairs = [windows[i] for i in range(start, min(start + batch, len(windows)))]
        x, y = (torch.stack(side).to(device) for side in zip(*pairs, strict=True))
        losses.append(model(x, y).item())
    model.train()
    return sum(losses) / len(losses)


def learning_rate(options: argparse.Namespace) -> Any:
    """Factor of the learning rate by step: a linear start, then half a cosine down to a tenth."""

    def factor(step: int) -> float:
        if step < options.warmup:
            return (step + 1) / float(options.warmup)
        done: float = min(1.0, (step - options.warmup) / max(1, options.steps - options.warmup))
        return 0.1 + 0.45 * (1.0 + math.cos(math.pi * done))

    return factor


def over_ranks(gpt: GPT, options: argparse.Namespace, device: torch.device) -> torch.nn.Module:
    """The model as it is trained: compiled, and spread over the ranks if there are several."""
    if options.compile:
        gpt.compile()
    if not torch.distributed.is_initialized():
        return gpt
    if options.shard:
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 - slow to import

        for block in gpt.blocks:
            fully_shard(block)
        fully_shard(gpt)
        return gpt
    devices = [device.index] if device.type == "cuda" else None
    # DDP otherwise regroups the gradients after the first step of a process, and with more than
    # two ranks a sum depends on the grouping in its last bit: a resume would not be exact.
    exact = torch.distributed.get_world_size() > 2  # noqa: PLR2004 - two summands commute
    return torch.nn.parallel.DistributedDataParallel(
        gpt, device_ids=devices, find_unused_parameters=exact
    )


@contextlib.contextmanager
def only_local(model: torch.nn.Module, local: bool) -> Iterator[None]:
    """Leave the gradients of a micro-batch on their rank, until the step's last one."""
    set_sync = getattr(model, "set_requires_gradient_sync", None)
    if callable(set_sync):
        set_sync(not local)
    no_sync = getattr(model, "no_sync", None)
    with no_sync() if local and callable(no_sync) else contextlib.nullcontext():
        yield


def train(options: argparse.Namespace, device: torch.device, rank: int) -> None:
    """Train to `options.steps`, from wherever the newest checkpoint is."""
    seed_all(options.seed)
    data = read_data(options.data, options.data_limit)
    held_out = len(data) // 10
    train_windows = Windows(data[: len(data) - held_out], options.context)
    eval_windows = Windows(data[len(data) - held_out :], options.context)
    if options.eval_every and not len(eval_windows):
        log.warning("a tenth of %d bytes is too little to evaluate on: it is left out", len(data))
        options.eval_every = 0

    shape = Shape(options.layers, options.heads, options.width, options.context, options.dropout)
    gpt = GPT(shape).to(device)
    model = over_ranks(gpt, options, device)
    seed_all(derive_seed(options.seed, rank))
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=options.learning_rate, fused=fused)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(options))
    loader = Loader(
        train_windows,
        options.batch,
        seed=options.seed,
        workers=options.workers,
        random_samples=False,
        pin_memory=device.type == "cuda",
    )
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=options.bf16)

    session = Session(
        model,
        optimizer,
        scheduler=scheduler,
        loader=loader,
        directory=options.checkpoint_dir,
        save_every=options.save_every,
        keep=options.keep,
        total_steps=options.steps,
    )
    with session, contextlib.ExitStack() as stack:
        progress = Progress(options, rank, session.step, stack)
        micro = 0
        for x, y in session:
            micro += 1
            last = micro % options.accumulate == 0
            with only_local(model, not last):
                with bf16:
                    loss = model(x.to(device), y.to(device)) / options.accumulate
                loss.backward()
            progress.add(loss)
            if not last:
                continue
            torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            progress.step(session.step + 1)
            session.advance(progress.loss)
            if options.eval_every and session.step % options.eval_every == 0:
                show_evaluation(options, gpt, eval_windows, device, session.step)
    if options.out_weights:
        weights = whole_weights(gpt)
        if rank == 0:
            digest = write_weights(options.out_weights, weights)
            print(digest, options.out_weights, sep="  ")  # noqa: T201 - as sha256sum prints it


class Progress:
    """Adds up the loss of a step's micro-batches, and writes it down."""

    def __init__(
        self, options: argparse.Namespace, rank: int, step: int, stack: contextlib.ExitStack
    ) -> None:
        self.options = options
        self.loss: torch.Tensor | None = None
        self._sum: torch.Tensor | None = None
        self._since = (time.monotonic(), step)
        self._rank = rank
        self._file: IO[str] | None = None
        if options.log_jsonl and rank == 0:
            self._file = stack.enter_context(options.log_jsonl.open("a", buffering=1))

    def add(self, loss: torch.Tensor) -> None:
        """Count one micro-batch."""
        self._sum = loss.detach() if self._sum is None else self._sum + loss.detach()

    def step(self, step: int) -> None:
        """Count one step: a line in the file for each, one on the terminal now and then."""
        self.loss, self._sum = self._sum, None
        if self._rank or self.loss is None:
            return
        if self._file:
            print(json.dumps({"step": step, "loss": float(self.loss)}), file=self._file)
        if step % self.options.log_every == 0 or step == self.options.steps:
            now = time.monotonic()
            rate = (step - self._since[1]) / max(now - self._since[0], 1e-9)
            self._since = (now, step)
            total = self.options.steps
            log.info("step %d/%d  loss %.4f  %.1f steps/s", step, total, float(self.loss), rate)


def show_evaluation(
    options: argparse.Namespace, gpt: GPT, windows: Windows, device: torch.device, step: int
) -> None:
    """Log the loss on held-out text, and a sample. Draws from no generator but its own."""
    # On every rank: with shards none can compute alone.
    log.info("step %d  held out %.4f", step, evaluate(gpt, windows, options.batch, device))
    if options.sample:
        generator = torch.Generator().manual_seed(derive_seed(options.seed, step))
        gpt.eval()
        text = gpt.sample(b"def ", options.sample, generator)
        gpt.train()
        log.info("sample: %s", text.decode("utf-8", "replace"))


def main(arguments: list[str] | None = None) -> None:
    """Run it; the exit status says whether it finished (0) or was interrupted (143)."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if options.bf16 is None:
        options.bf16 = device.type == "cuda"
    torch.use_deterministic_algorithms(True, warn_only=True)
    if device.type == "cpu" or options.threads:
        torch.set_num_threads(options.threads or 1)
    if os.environ.get("RANK", "0") != "0":
        # One voice is enough.
        logging.getLogger("spotd_trainer").setLevel(logging.WARNING)
    if "RANK" not in os.environ:
        return train(options, device, rank=0)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        train(options, device, torch.distributed.get_rank())
    finally:
        torch.distributed.destroy_process_group()
    return None


if __name__ == "__main__":
    main()
