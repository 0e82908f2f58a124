"""What it costs two ranks to agree at every step on stopping and saving.

    torchrun --nproc-per-node 2 benchmarks/trainer_agreement.py

Peer: a blocking all-reduce of one flag at every step, the usual way. Both over gloo, on the CPU,
in turns; steps are 10 ms of sleeping, so that what is measured is the agreement's own time.
"""

# ruff: noqa: SLF001 - it looks at what a program need not see
from __future__ import annotations

import statistics
import sys
import time

import torch
import torch.distributed as dist

from spotd_trainer.agreement import Ranks, Wish

STEP = 0.010
STEPS = 300


def ours(ranks: Ranks, first: int) -> list[float]:
    costs = []
    for step in range(first, first + STEPS):
        time.sleep(STEP)
        began = time.perf_counter()
        ranks.decide(step, Wish())
        costs.append(time.perf_counter() - began)
    return costs


def blocking() -> list[float]:
    costs = []
    flag = torch.zeros(1, dtype=torch.int64)
    for _ in range(STEPS):
        time.sleep(STEP)
        began = time.perf_counter()
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        costs.append(time.perf_counter() - began)
    return costs


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = Ranks()
    ours(ranks, 1)  # it measures the step first
    mine, theirs = [], []
    for turn in range(1, 6):
        mine.append(statistics.fmean(ours(ranks, 1 + turn * STEPS)))
        theirs.append(statistics.fmean(blocking()))
    if dist.get_rank() == 0:
        a, b = statistics.median(mine), statistics.median(theirs)
        print(
            f"agreement, {dist.get_world_size()} ranks, 10 ms steps, every {ranks._every} steps:"
            f" ours {a * 1e6:.1f} us a step = {a / STEP:.2%} of it (goal < 1 %),"
            f" blocking all-reduce {b * 1e6:.1f} us = {b / STEP:.2%}; ratio {a / b:.3f}"
        )
    ranks.finish()
    dist.destroy_process_group()
    sys.exit(0)


if __name__ == "__main__":
    main()
