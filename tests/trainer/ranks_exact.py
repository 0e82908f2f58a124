"""Run by torchrun: interrupts DDP training at chosen steps, and compares the final weights."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from trainer_support import digest, make_loader, one_step, parts

from spotd_trainer import Session

STEPS = 21


def run(directory: Path, workers: int, until: int | None, asked: int) -> str:
    rank = dist.get_rank()
    model, optimizer, scheduler, scaler = parts()
    # Else DDP regroups the gradients after its first step, and sums of more than two ranks
    # depend on the grouping.
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    torch.manual_seed(rank)
    random.seed(rank)
    session = Session(
        wrapped,
        optimizer,
        scheduler=scheduler,
        scaler=scaler,
        loader=make_loader("ours", workers),
        directory=directory,
        save_every=4,
        total_steps=STEPS,
        on_stop="return",
    )
    with session:
        for x in session:
            loss = one_step(wrapped, optimizer, scheduler, scaler, x)
            # Only one rank is asked; all must stop, and at the same step.
            if session.step + 1 == until and rank == asked:
                session.request_stop()
            session.advance(loss)
    steps = [None] * dist.get_world_size()
    dist.all_gather_object(steps, session.step)
    assert len(set(steps)) == 1, steps
    return digest(model)


def main() -> None:
    directory, workers = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    whole = run(directory / "whole", workers, None, 0)
    choose = random.Random(workers)
    for number in range(8 if workers == 0 else 2):
        cuts = sorted(choose.sample(range(1, STEPS), 2))
        for step in cuts:
            run(directory / str(number), workers, step, choose.randrange(dist.get_world_size()))
        found = run(directory / str(number), workers, None, 0)
        assert found == whole, (cuts, found, whole)
        if dist.get_rank() == 0:
            print("the same", cuts, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
