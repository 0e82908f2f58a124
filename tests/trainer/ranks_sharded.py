"""Run by torchrun: FSDP2 training that is interrupted, runs out of space, and moves to fewer ranks.

ranks_sharded.py DIRECTORY all        what four ranks do
ranks_sharded.py DIRECTORY resume     two ranks go on with what four have saved
"""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from trainer_support import Noisy, digest

from spotd_trainer import Loader, Session
from spotd_trainer.archive import DurableFile

STEPS = 12


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Dropout(0.1), nn.Linear(64, 1))
        self.register_buffer("seen", torch.zeros(()))
        # Changes, but is left out of state_dict: the session finds out.
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        # Different on every rank.
        self.seen += x.detach().sum()
        return self.layers(x)


class Whole(nn.Module):
    """The weights of all ranks, put together, and this rank's buffers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            self.register_buffer(name.replace(".", "_"), whole.detach().clone())


class Run:
    def __init__(self, directory: Path, batch: int = 2, **more) -> None:
        torch.manual_seed(0)
        self.model = Net()
        fully_shard(self.model.layers)
        fully_shard(self.model)
        torch.manual_seed(dist.get_rank())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.session = Session(
            self.model,
            self.optimizer,
            loader=Loader(Noisy(), batch),
            directory=directory,
            on_stop="return",
            **{"save_every": 4, "total_steps": STEPS, **more},
        )

    def step(self, x: torch.Tensor) -> torch.Tensor:
        loss = (self.model(x) - x.mean(1, keepdim=True)).pow(2).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def train(self, until: int | None = None, asked: int = 0) -> str:
        with self.session as session:
            for x in session:
                loss = self.step(x)
                if session.step + 1 == until and dist.get_rank() == asked:
                    session.request_stop()
                session.advance(loss)
        return digest(Whole(self.model))


def say(text: str) -> None:
    dist.barrier()
    if dist.get_rank() == 0:
        print(text, flush=True)


def interrupted_anywhere(directory: Path) -> None:
    whole = Run(directory / "whole").train()
    for number, cuts in enumerate([(1, 5), (3, 8), (10, 11)]):
        for asked, until in enumerate(cuts, start=1):
            Run(directory / str(number)).train(until, asked)
        assert Run(directory / str(number)).train() == whole, cuts
    say("the same")


def without_space(directory: Path) -> None:
    run = Run(directory, keep=9)
    free = resource.getrlimit(resource.RLIMIT_FSIZE)
    with run.session as session:
        for x in session:
            loss = run.step(x)
            # One rank's disk is full at the save of step 4, and at no other.
            full = session.step + 1 in (4, 5) and dist.get_rank() == 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, free[1]) if full else free)
            session.advance(loss)
            session._saver.wait()
            # All know at the same step that it is over: step 8 is saved at step 8.
            dist.barrier()
    assert session.save_failures == 1
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["step-00000008", "step-00000012"], names
    say("went on without space")


def overtaken(directory: Path) -> None:
    held = threading.Event()
    real = DurableFile.write

    def write(file: DurableFile, data: object) -> int:
        if threading.current_thread().name == "spotd-save" and dist.get_rank() == 2:
            held.set()
            while not file._pace.cancelled:
                threading.Event().wait(0.01)
        return real(file, data)

    DurableFile.write = write
    Run(directory).train(until=6, asked=3)
    DurableFile.write = real
    names = sorted(path.name for path in directory.iterdir())
    # Not step 4, which was under way, but the step at which all had heard of the stop.
    assert len(names) == 1, names
    assert names[0] > "step-00000005", names
    assert held.is_set() == (dist.get_rank() == 2)
    say("overtaken")


def resumed_by_fewer(directory: Path) -> None:
    expected = (directory / "digest").read_text()
    # Four ranks of two samples are two ranks of four: the same batches.
    run = Run(directory / "resumed", batch=4)
    with run.session as session:
        assert session.step == 6
        assert digest(Parameters(run.model)) == expected
        samples = session._position._loader
        assert (samples.epoch, samples.position) == (1, 8)
        for x in session:
            session.advance(run.step(x))
    say("resumed by fewer")


class Parameters(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, tensor in model.named_parameters():
            self.register_buffer(name.replace(".", "_"), tensor.full_tensor().detach())


def main() -> None:
    directory = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if sys.argv[2] == "all":
        interrupted_anywhere(directory)
        without_space(directory / "space")
        overtaken(directory / "overtaken")
        run = Run(directory / "moving", total_steps=6)
        run.train()
        found = digest(Parameters(run.model))
        if dist.get_rank() == 0:
            (directory / "digest").write_text(found)
    else:
        resumed_by_fewer(directory)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
