"""What a save costs the loop, the disk and the memory, against torch.save and dd in the same run.

    python benchmarks/trainer_saving.py [--gigabytes 2] [--directory DIR] [--device cpu|cuda]

Prints one line per figure: what, ours, the peer's, the ratio, the goal. Each pair is measured in
turns, the median of the ratios counts: disks and machines are noisy.
"""

# ruff: noqa: SLF001 - it looks at what a program need not see
from __future__ import annotations

import argparse
import os
import re  # noqa: F401 - for the process below
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from spotd_trainer import Session
from spotd_trainer.archive import write_archive

MIB = 1 << 20


class Stack(nn.Module):
    """A model whose parameters and AdamW moments take so many bytes, in layers of 24 MiB."""

    def __init__(self, size: int) -> None:
        super().__init__()
        width = 1448 if size > 100 * MIB else 256
        layers = max(1, round(size / 3 / (4 * width * width * 3)))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x).tanh()
        return x


def make(options) -> tuple[nn.Module, torch.optim.Optimizer, torch.Tensor]:
    torch.manual_seed(0)
    model = Stack(int(options.gigabytes * 1e9)).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=False)
    x = torch.randn(options.batch, model.width, device=options.device)
    return model, optimizer, x


def one_step(model, optimizer, x) -> None:
    model(x).pow(2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    if x.is_cuda:
        torch.cuda.synchronize()


def state_bytes(model, optimizer) -> int:
    tensors = [*model.parameters()]
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


def dd(directory: Path, size: int) -> float:
    """Bytes per second of dd, and the file is gone again."""
    target = directory / "dd"
    began = time.perf_counter()
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={size // MIB}", "conv=fsync"],
        check=True,
        capture_output=True,
    )
    took = time.perf_counter() - began
    target.unlink()
    return size / took


def line(what: str, ours: str, peer: str, ratio: float, goal: str) -> None:
    print(f"{what:38} ours {ours:>10}   {peer:>26}   ratio {ratio:6.3f}   goal {goal}", flush=True)


def blocked(options, directory: Path) -> None:
    """Time the loop stands still for one save: ours beside it, torch.save in it."""
    model, optimizer, x = make(options)
    one_step(model, optimizer, x)
    size = state_bytes(model, optimizer)
    print(f"state {size / 1e9:.2f} GB, {options.device}, torch {torch.__version__}", flush=True)
    ours, peers, steps, beside = [], [], [], []
    with Session(model, optimizer, directory=directory, save_every=10**9, keep=1) as session:
        one_step(model, optimizer, x)
        session.advance()
        # A first save comes ten seconds after the start: its buffers are mapped by then.
        session._stager._preparing.join()
        for turn in range(options.turns + 1):
            began = time.perf_counter()
            one_step(model, optimizer, x)
            steps.append(time.perf_counter() - began)
            session.advance()
            began = time.perf_counter()
            session.save()
            stood = time.perf_counter() - began
            waits: list[float] = []
            real = session._schedule.meter.waited
            session._schedule.meter.waited = lambda s, w=waits, r=real: (w.append(s), r(s))
            began = time.perf_counter()
            one_step(model, optimizer, x)
            beside.append(time.perf_counter() - began - sum(waits))
            session._schedule.meter.waited = real
            session.advance()
            session._saver.wait()
            if turn:
                # The first save maps the buffers; it is told apart.
                ours.append(stood + sum(waits))
            else:
                first = stood + sum(waits)
            began = time.perf_counter()
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
                directory / "peer",
            )
            peers.append(time.perf_counter() - began)
            (directory / "peer").unlink()
    ratio = statistics.median(o / p for o, p in zip(ours, peers[1:], strict=True))
    mine, peer = statistics.median(ours), statistics.median(peers)
    line(
        "loop stands still",
        f"{mine * 1e3:.0f} ms",
        f"torch.save {peer * 1e3:.0f} ms",
        ratio,
        "< 0.1",
    )
    line("the same, at the first save", f"{first * 1e3:.0f} ms", "", first / peer, "-")
    slowed = statistics.median(beside[1:]) / statistics.median(steps[1:])
    line(
        "the step beside a save, whole",
        f"{statistics.median(beside) * 1e3:.0f} ms",
        f"a step {statistics.median(steps) * 1e3:.0f} ms",
        slowed,
        "-",
    )


def write_rate(options, directory: Path) -> None:
    """Bytes per second from memory to the disk, fsync included, against dd."""
    size = int(options.gigabytes * 1e9)
    tensor_size = 24 * MIB
    state = {str(i): torch.randn(tensor_size // 4) for i in range(size // tensor_size)}
    size = sum(t.nbytes for t in state.values())
    ours, peers, plain = [], [], []
    for turn in range(options.turns):
        for kind in ("ours", "dd", "torch") if turn % 2 else ("dd", "torch", "ours"):
            subprocess.run(["sync"], check=True)
            if kind == "dd":
                peers.append(dd(directory, size))
            elif kind == "ours":
                began = time.perf_counter()
                write_archive(directory / "step-00000001.pt", state)
                ours.append(size / (time.perf_counter() - began))
                (directory / "step-00000001.pt").unlink()
            else:
                began = time.perf_counter()
                with (directory / "peer").open("wb") as file:
                    torch.save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
                plain.append(size / (time.perf_counter() - began))
                (directory / "peer").unlink()
    ratio = statistics.median(o / p for o, p in zip(ours, peers, strict=True))
    mine, peer = statistics.median(ours) / 1e6, statistics.median(peers) / 1e6
    line("write rate", f"{mine:.0f} MB/s", f"dd conv=fsync {peer:.0f} MB/s", ratio, "> 0.8")
    ratio = statistics.median(o / p for o, p in zip(ours, plain, strict=True))
    line(
        "write rate",
        f"{mine:.0f} MB/s",
        f"torch.save+fsync {statistics.median(plain) / 1e6:.0f} MB/s",
        ratio,
        "-",
    )


def step_time(options, directory: Path) -> None:
    """Mean step with saving at the interval that "auto" chose, against saving off."""
    options = argparse.Namespace(**{**vars(options), "gigabytes": options.small_gigabytes})
    model, optimizer, x = make(options)
    one_step(model, optimizer, x)
    ratios = []
    with Session(model, optimizer, directory=directory, keep=1) as session:
        # Until the rule has measured what a save costs here.
        saves = 0
        began = time.monotonic()
        while saves < 2 and time.monotonic() - began < 120:
            one_step(model, optimizer, x)
            session.advance()
            path = session.last_checkpoint
            if path is not None:
                saves = max(saves, 1 + (path.name != "step-00000001.pt"))
                if session._schedule.cost is not None:
                    break
        interval = session._schedule.interval.seconds(session._schedule.cost)
        print(f"  {session._schedule.interval.reasoning(session._schedule.cost)}", flush=True)
        window = min(interval, 20.0)
        for turn in range(options.turns):
            means = {}
            for kind in ("on", "off") if turn % 2 else ("off", "on"):
                session._save_every = "auto" if kind == "on" else None
                session._saver.wait()
                # A window with exactly one save in it, of an interval that may be minutes.
                session._schedule.last_save = time.monotonic() - interval + window / 4
                began, count = time.perf_counter(), 0
                while time.perf_counter() - began < window:
                    one_step(model, optimizer, x)
                    session.advance()
                    count += 1
                means[kind] = (time.perf_counter() - began) / count
            ratios.append(1 + (means["on"] / means["off"] - 1) * window / interval)
    line(
        f"step, saving every {interval:.0f} s",
        f"{means['on'] * 1e3:.2f} ms",
        f"saving off {means['off'] * 1e3:.2f} ms",
        statistics.median(ratios),
        "< 1.01",
    )
    print(
        f"  one save in {window:.0f} s, scaled to the interval;"
        f" single pairs: {', '.join(f'{r:.4f}' for r in ratios)}",
        flush=True,
    )


PEAK = """
import sys, argparse
sys.path.insert(0, {here!r})
import trainer_saving as b
options = argparse.Namespace(gigabytes={gigabytes}, device={device!r}, batch=1)
model, optimizer, x = b.make(options)
b.one_step(model, optimizer, x)
with b.Session(model, optimizer, directory={directory!r}, save_every=None, keep=1) as session:
    for _ in range(3):
        b.one_step(model, optimizer, x)
        session.advance()
        if {saving}:
            session.save()
            b.one_step(model, optimizer, x)
            session.advance()
            session._saver.wait()
    session._whole_step = session.step
peak = b.re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())
print(int(peak.group(1)) * 1024, b.state_bytes(model, optimizer))
"""


def memory(options, directory: Path) -> None:
    """Peak resident memory with saves beside the loop, over that without any."""
    peaks = {}
    for saving in (False, True):
        code = PEAK.format(
            here=str(Path(__file__).parent),
            gigabytes=options.gigabytes,
            device=options.device,
            directory=str(directory),
            saving=saving,
        )
        out = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
        peaks[saving], size = int(out[0]), int(out[1])
    more = peaks[True] - peaks[False]
    line("peak memory", f"+{more / 1e9:.2f} GB", f"state {size / 1e9:.2f} GB", more / size, "<= 1")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--small-gigabytes", type=float, default=0.05)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--directory", type=Path, help="on the disk to measure; default: here")
    parser.add_argument("--only", choices=["blocked", "rate", "steps", "memory"])
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    directory = Path(
        tempfile.mkdtemp(prefix="spotd-benchmark-", dir=options.directory or Path.cwd())
    )
    parts = {"blocked": blocked, "rate": write_rate, "steps": step_time, "memory": memory}
    try:
        for name, part in parts.items():
            if options.only in (None, name):
                part(options, directory)
                shutil.rmtree(directory)
                directory.mkdir()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
