"""Several ranks: DDP, shards that move to another number of ranks, and two nodes."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
from pathlib import Path

import pytest
import torch
from torch import nn
from trainer_support import TINY, Noisy, finish, lines_in, start, torchrun, wait_for

from spotd_trainer import CheckpointError, Loader, Session, TornCheckpointError
from spotd_trainer.files import find_checkpoints

HERE = Path(__file__).parent


def rank_of(agent: int, rank: int) -> int | None:
    """The pid of a rank below a torchrun agent."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return int(child)
    return None


def test_four_ranks_cut_off_anywhere_end_the_same(tmp_path):
    process = start(torchrun(4, HERE / "ranks_exact.py", tmp_path, 2), tmp_path)
    out = finish(process)
    assert process.returncode == 0, out
    assert out.count("the same") == 2, out


def test_when_torchrun_itself_is_stopped_its_ranks_save_and_their_workers_live(tmp_path):
    options = ("-m", "spotd_trainer.reference", *TINY, "--steps", 100_000, "--workers", 2)
    process = start(torchrun(2, *options, "--save-every", "never"), tmp_path)
    wait_for(lambda: lines_in(tmp_path / "losses.jsonl") > 20, process)
    process.send_signal(signal.SIGTERM)
    out = finish(process)
    assert "exited unexpectedly" not in out
    assert find_checkpoints(tmp_path / "checkpoints"), out


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two_nodes(tmp_path, *options):
    port = free_port()
    agents = []
    for node in range(2):
        # Each with a disk of its own.
        directory = tmp_path / f"node{node}"
        directory.mkdir(exist_ok=True)
        command = torchrun(1, *options, nodes=2, node=node, port=port)
        agents.append(start(command, directory, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="60"))
    return agents


def test_two_nodes_of_which_one_gets_the_notice_save_the_same_step_and_both_resume(tmp_path):
    options = ("-m", "spotd_trainer.reference", *TINY, "--steps", 150, "--save-every", "never")
    options = (*options, "--out-weights", "w")
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    whole = start(torchrun(2, *options), undisturbed)
    assert finish(whole) is not None

    agents = two_nodes(tmp_path, *options)
    log = tmp_path / "node0" / "losses.jsonl"
    wait_for(lambda: lines_in(log) > 30, agents[0])
    pids = [rank_of(agent.pid, rank) for rank, agent in enumerate(agents)]
    if None in pids:
        # Which node is first is the rendezvous' business.
        pids = [rank_of(agent.pid, 1 - rank) for rank, agent in enumerate(agents)]
    os.kill(pids[1], signal.SIGTERM)
    outs = [finish(agent) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outs
    found = find_checkpoints(tmp_path / "node0" / "checkpoints") + find_checkpoints(
        tmp_path / "node1" / "checkpoints"
    )
    assert len(found) == 1, outs
    state = torch.load(found[0], weights_only=True)
    assert len(state["ranks"]) == 2
    assert state["step"] == max(lines_in(tmp_path / f"node{n}" / "losses.jsonl") for n in range(2))

    agents = two_nodes(tmp_path, *options)
    outs = [finish(agent) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outs
    assert "resumed at step" in "".join(outs)
    weights = [path.read_bytes() for path in tmp_path.glob("node*/w")]
    assert weights == [(undisturbed / "w").read_bytes()]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """What four FSDP2 ranks have saved, after they were interrupted in every way."""
    directory = tmp_path_factory.mktemp("shards")
    process = start(torchrun(4, HERE / "ranks_sharded.py", directory, "all"), directory)
    return directory, process, finish(process)


def test_four_sharded_ranks_end_the_same_go_on_without_space_and_are_overtaken(shards):
    _, process, out = shards
    assert process.returncode == 0, out
    for text in ("the same", "went on without space", "overtaken"):
        assert text in out


def test_what_four_ranks_have_saved_is_resumed_by_two(shards):
    directory, _, _ = shards
    shutil.copytree(directory / "moving", directory / "resumed")
    process = start(torchrun(2, HERE / "ranks_sharded.py", directory, "resume"), directory)
    out = finish(process)
    assert process.returncode == 0, out
    assert "resumed by fewer" in out


def plain_run(directory, width: int = 64):
    from ranks_sharded import Net

    model = Net()
    if width != 64:
        model.layers[0], model.layers[3] = nn.Linear(4, width), nn.Linear(width, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, Session(
        model, optimizer, loader=Loader(Noisy(), 8), directory=directory, save_every=None
    )


@pytest.fixture
def moving(shards, tmp_path):
    directory = tmp_path / "c"
    shutil.copytree(shards[0] / "moving", directory)
    shutil.rmtree(directory / "step-00000004")
    return directory


def test_what_four_ranks_have_saved_is_resumed_by_one_process_without_shards(moving):
    model, session = plain_run(moving)
    before = model.layers[0].weight.clone()
    with session:
        assert session.step == 6
        assert not torch.equal(model.layers[0].weight, before)
        for x in session:
            model(x).sum().backward()
            session._parts.optimizers[0].step()
            session.advance()
            break
    assert session.last_checkpoint.name == "step-00000007.pt"


def refused(directory, **more) -> CheckpointError:
    model, session = plain_run(directory, **more)
    before = model.layers[0].weight.clone()
    with pytest.raises(CheckpointError) as caught, session:
        pass
    assert torch.equal(model.layers[0].weight, before)
    return caught.value


def test_a_shard_cut_short_is_refused_by_name_and_tensor(moving):
    shard = moving / "step-00000006" / "__1_0.distcp"
    os.truncate(shard, shard.stat().st_size // 2)
    error = refused(moving)
    assert isinstance(error, TornCheckpointError)
    assert error.path == str(shard)
    assert "expected at least" in str(error)


def test_a_shard_with_a_changed_byte_is_refused(moving):
    shard = moving / "step-00000006" / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    tensor = content.find(b"data/0", 100)
    content[content.find(b"\x3d", tensor + 100)] ^= 1
    shard.write_bytes(content)
    assert str(shard) in str(refused(moving))


@pytest.mark.parametrize("name", [".metadata", "trainer.pt", "rank-00002.pt", "__3_0.distcp"])
def test_a_part_that_is_missing_is_named(moving, name):
    (moving / "step-00000006" / name).unlink()
    assert refused(moving).path.endswith(f"step-00000006/{name}")


def test_shards_of_another_model_are_refused_by_key(moving):
    error = refused(moving, width=32)
    assert error.key in ("model.layers.0.weight", "model.layers.0.bias")
    assert "found torch.float32 of shape (64" in str(error)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_metadata_that_is_an_evil_pickle_is_not_executed(moving, monkeypatch):
    monkeypatch.chdir(moving.parent)
    (moving / "step-00000006" / ".metadata").write_bytes(pickle.dumps(Evil()))
    assert "posix.mkdir" in str(refused(moving))
    assert not (moving.parent / "executed").exists()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_order_of_the_data_is_the_same_for_any_number_of_ranks(world):
    def batches(loaders, count):
        return [
            sorted(int(i) for batch in step for i in batch)
            for step, _ in zip(zip(*loaders, strict=True), range(count), strict=False)
        ]

    expected = batches([Loader(range(40), 8)], 5)
    loaders = [Loader(range(40), 8 // world, rank=r, world_size=world) for r in range(world)]
    assert batches(loaders, 5) == expected
    other = [Loader(range(40), 4, rank=r, world_size=2) for r in range(2)]
    first = Loader(range(40), 8 // world, rank=0, world_size=world)
    for _ in zip(first, range(2), strict=False):
        pass
    position = first.state_dict() | {"position": 16}
    for loader in other:
        loader.load_state_dict(position)
    assert batches(other, 3) == expected[2:]
