"""A checkpoint that cannot be resumed from: which file, which key, what was expected."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from trainer_support import Net, digest

from spotd_trainer import CheckpointError, Loader, Session, TornCheckpointError, newest_checkpoint
from spotd_trainer import whole as whole_module
from spotd_trainer.archive import FORMAT, LIBRARY, read_archive, write_archive
from spotd_trainer.files import set_aside


def make(width: int = 8):
    model = Net(width)
    return model, torch.optim.AdamW(model.parameters())


def step(model, optimizer) -> None:
    model(torch.randn(4, 4)).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def saved(directory, steps: int = 3, width: int = 8, **more):
    """Three whole checkpoints; the path of the newest."""
    model, optimizer = make(width)
    with Session(model, optimizer, directory=directory, save_every=1, **more) as session:
        for _ in range(steps):
            step(model, optimizer)
            session.advance()
            session._saver.wait()
    return session.last_checkpoint


def resumed(directory, model, optimizer, **more):
    session = Session(model, optimizer, directory=directory, save_every=None, **more)
    with session:
        pass
    return session


def change(path, edit) -> None:
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)


def refused(tmp_path, model, optimizer, **more) -> CheckpointError:
    """The error of a resume that must not touch the model."""
    before, groups = digest(model), len(optimizer.state)
    with pytest.raises(CheckpointError) as caught:
        resumed(tmp_path, model, optimizer, **more)
    assert digest(model) == before
    assert len(optimizer.state) == groups
    return caught.value


def test_a_file_cut_short_is_passed_over_for_the_older_one(tmp_path, caplog):
    newest = saved(tmp_path)
    os.truncate(newest, newest.stat().st_size // 2)
    assert resumed(tmp_path, *make()).resumed_from.name == "step-00000002.pt"
    assert "step-00000003.pt: expected a whole archive" in caplog.text


@pytest.mark.parametrize("number", [0, 4, 11, -1])
def test_one_changed_bit_is_found_before_anything_is_loaded(tmp_path, number, caplog):
    newest = saved(tmp_path, width=64)
    with zipfile.ZipFile(newest) as archive, archive.open(archive.infolist()[number]) as record:
        # Only opening it reads the header before it, and so finds where its bytes begin.
        place = record._fileobj._pos
    content = bytearray(newest.read_bytes())
    content[place] ^= 1
    newest.write_bytes(content)
    try:
        found = resumed(tmp_path, *make(64))
    except CheckpointError as error:
        raise AssertionError(error) from error
    assert found.resumed_from.name == "step-00000002.pt"
    assert str(newest) in caplog.text


def test_when_all_are_torn_it_does_not_begin_anew_in_silence(tmp_path):
    saved(tmp_path)
    for path in tmp_path.iterdir():
        os.truncate(path, 100)
    error = refused(tmp_path, *make())
    assert isinstance(error, TornCheckpointError)
    assert "no whole checkpoint is left" in str(error)
    assert "step-00000003.pt" in str(error)


def test_the_one_that_spotd_names_comes_first(tmp_path, monkeypatch):
    saved(tmp_path)
    monkeypatch.setenv("SPOTD_RESUME_FROM", str(tmp_path / "step-00000001.pt"))
    assert resumed(tmp_path, *make()).step == 1


def test_when_the_one_that_spotd_names_is_torn_the_newest_whole_one_is_taken(tmp_path, monkeypatch):
    saved(tmp_path)
    os.truncate(tmp_path / "step-00000003.pt", 50)
    monkeypatch.setenv("SPOTD_RESUME_FROM", str(tmp_path / "step-00000003.pt"))
    assert resumed(tmp_path, *make()).step == 2


def test_another_models_checkpoint_is_refused_by_key_and_shape(tmp_path):
    newest = saved(tmp_path, width=8)
    error = refused(tmp_path, *make(width=16))
    assert error.path == str(newest)
    assert error.key == "model.inner.weight"
    assert "expected float32 of shape (16, 4), found float32 of shape (8, 4)" in str(error)


def test_a_model_with_more_layers_is_refused_by_the_missing_key(tmp_path):
    saved(tmp_path)
    model = nn.Sequential(Net(), nn.Linear(1, 1))
    error = refused(tmp_path, model, torch.optim.AdamW(model.parameters()))
    assert error.key == "model.0.inner.weight"
    assert "found nothing" in str(error)


def test_another_precision_is_refused(tmp_path):
    saved(tmp_path)
    model = Net().double()
    error = refused(tmp_path, model, torch.optim.AdamW(model.parameters()))
    assert "expected float64 of shape (8, 4), found float32" in str(error)


def test_another_optimizer_is_refused_by_name(tmp_path):
    saved(tmp_path)
    model = Net()
    error = refused(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert error.key == "optimizers[0]"
    assert "expected SGD, found AdamW" in str(error)


def test_other_parameter_groups_are_refused(tmp_path):
    saved(tmp_path)
    model = Net()
    halves = [{"params": [*model.inner.parameters()]}, {"params": [*model.outer.parameters()]}]
    error = refused(tmp_path, model, torch.optim.AdamW(halves))
    assert error.key == "optimizers[0].param_groups"
    assert "expected 2 parameter groups, found 1" in str(error)


def test_other_data_is_refused(tmp_path):
    model, optimizer = make()
    with Session(
        model, optimizer, loader=Loader([0] * 40, 4), directory=tmp_path, total_steps=2
    ) as session:
        for _ in session:
            step(model, optimizer)
            session.advance()
    model, optimizer = make()
    error = refused(tmp_path, model, optimizer, loader=Loader([0] * 44, 4))
    assert error.key == "loader"
    assert "samples: expected 44, found 40" in str(error)


def test_extra_state_that_is_missing_is_named(tmp_path):
    saved(tmp_path)
    error = refused(tmp_path, *make(), extra={"ema": Net()})
    assert error.key == "extra.ema"


def test_extra_state_that_is_not_asked_for_is_not_dropped_in_silence(tmp_path, caplog):
    newest = saved(tmp_path, extra={"ema": Net()})
    resumed(tmp_path, *make())
    assert f"{newest}: extra.ema is not asked for" in caplog.text


def test_extra_weights_of_another_shape_are_refused_before_any_of_them_is_loaded(tmp_path):
    saved(tmp_path, extra={"ema": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))})
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    before = digest(other)
    error = refused(tmp_path, *make(), extra={"ema": other})
    assert error.key == "extra.ema.1.weight"
    assert digest(other) == before


@pytest.mark.parametrize("key", ["step", "types", "scaler", "model", "ranks"])
def test_a_key_that_is_missing_is_named_and_nothing_is_touched(tmp_path, key):
    path = saved(tmp_path)
    change(path, lambda state: state.pop(key))
    error = refused(tmp_path, *make())
    assert (error.path, error.key) == (str(path), key)


def test_a_file_that_the_disk_cannot_read_is_torn_and_one_that_is_forbidden_is_not(
    tmp_path, monkeypatch
):
    newest = saved(tmp_path)
    real = whole_module.read_archive

    def failing(number):
        def read(path):
            if path == newest:
                raise OSError(number, os.strerror(number))
            return real(path)

        return read

    monkeypatch.setattr(whole_module, "read_archive", failing(errno.EACCES))
    assert "cannot be read: Permission denied" in str(refused(tmp_path, *make()))
    monkeypatch.setattr(whole_module, "read_archive", failing(errno.EIO))
    assert resumed(tmp_path, *make()).step == 2


def test_any_byte_that_changes_is_found_or_harmless(tmp_path):
    path = tmp_path / "step-00000001.pt"
    write_archive(path, {"library": LIBRARY, "format": FORMAT, "x": torch.arange(4)})
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        try:
            state = read_archive(path)
        except TornCheckpointError:
            continue
        assert torch.equal(state["x"], torch.arange(4)), place


def names_in(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("why", ["torn", "gone back"])
def test_later_checkpoints_a_run_does_not_go_on_from_never_push_out_its_own(tmp_path, why, caplog):
    newest = saved(tmp_path)
    if why == "torn":
        os.truncate(newest, 100)
    model, optimizer = make()
    back = tmp_path / "step-00000001.pt"
    named = {"resume_from": back} if why == "gone back" else {}
    with Session(model, optimizer, directory=tmp_path, save_every=1, keep=1, **named) as session:
        step(model, optimizer)
        session.advance()
    assert session.step == (3 if why == "torn" else 2)
    assert session.last_checkpoint.exists()
    assert names_in(tmp_path) == [".aside", session.last_checkpoint.name]
    assert "step-00000003.pt" in names_in(tmp_path / ".aside")
    assert "set aside" in caplog.text
    # Started again without being told, it goes on the same way.
    assert resumed(tmp_path, *make()).step == session.step


def test_a_name_that_is_taken_aside_gets_a_number(tmp_path):
    for _ in range(3):
        (tmp_path / "step-00000009").mkdir()
        set_aside(tmp_path, 8)
    names = ["step-00000009", "step-00000009~2", "step-00000009~3"]
    assert names_in(tmp_path / ".aside") == names


def test_started_again_within_one_attempt_it_goes_on_from_what_that_attempt_saved(
    tmp_path, monkeypatch
):
    """By torchrun's --max-restarts or a shell's loop, whose variables are still the old ones."""
    monkeypatch.setenv("SPOTD_ATTEMPT", "4")
    saved(tmp_path)
    monkeypatch.setenv("SPOTD_RESUME_FROM", str(tmp_path / "step-00000001.pt"))
    assert resumed(tmp_path, *make()).step == 3
    monkeypatch.setenv("SPOTD_ATTEMPT", "5")
    assert resumed(tmp_path, *make()).step == 1


def trained(directory, loader, steps):
    model, optimizer = make()
    with Session(
        model, optimizer, loader=loader, directory=directory, total_steps=steps
    ) as session:
        for _ in session:
            step(model, optimizer)
            session.advance()
    return session


def test_a_plain_loader_of_another_length_is_refused(tmp_path):
    trained(tmp_path, DataLoader(torch.ones(40, 4), 4), 7)
    error = refused(tmp_path, *make(), loader=DataLoader(torch.ones(20, 4), 4))
    assert error.key == "loader"
    assert "batches in an epoch: expected 5, found 10" in str(error)


def test_a_loader_without_a_length_that_ends_too_early_says_so(tmp_path):
    class Stream(IterableDataset):
        def __init__(self, length):
            self.length = length

        def __iter__(self):
            return iter(torch.ones(self.length, 4))

    trained(tmp_path, DataLoader(Stream(40), 4), 7)
    with pytest.raises(RuntimeError, match="ended epoch 0 after 5 batches, of which 7"):
        trained(tmp_path, DataLoader(Stream(20), 4), 8)


def test_a_model_without_values_is_refused_at_once(tmp_path):
    with torch.device("meta"):
        model = Net()
    with pytest.raises(ValueError, match=r"model\.inner\.weight is on the meta device"):
        Session(model, directory=tmp_path)


class Holder:
    def __init__(self, state) -> None:
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state) -> None:
        self.state = state


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"a": torch.ones(2, device="meta")}, r"extra\.x\.a: a tensor on the meta device"),
        ({"a": [torch.eye(2).to_sparse()]}, r"extra\.x\.a\[0\]: a tensor that is sparse"),
        ({"a": {frozenset((1,)): 2}}, r"extra\.x\.a: as a key, a frozenset cannot be saved"),
        ({"a": {(1, object): 2}}, r"extra\.x\.a: as a key, a tuple cannot be saved"),
    ],
)
def test_what_would_not_come_back_is_refused_at_save_time(tmp_path, state, problem):
    with (
        pytest.raises(TypeError, match=problem),
        Session(*make(), directory=tmp_path, extra={"x": Holder(state)}) as session,
    ):
        session.advance()


def test_every_kind_of_plain_value_and_key_comes_back(tmp_path):
    state = {
        None: (1.5, [True]), 2.5: torch.bfloat16, b"k": torch.device("cpu"), (1, "a"): 2**200,
        torch.int8: torch.Size([3]), "empty": torch.empty(0), "of much": torch.arange(9)[2:3],
    }  # fmt: skip
    saved(tmp_path, extra={"x": Holder(state)})
    back = Holder({})
    resumed(tmp_path, *make(), extra={"x": back})
    tensors = {"empty", "of much"}
    assert {k: v for k, v in back.state.items() if k not in tensors} == {
        k: v for k, v in state.items() if k not in tensors
    }
    assert torch.equal(back.state["of much"], torch.tensor([2]))


def test_a_foreign_checkpoint_is_refused_and_says_what_it_holds(tmp_path):
    path = tmp_path / "step-00000005.pt"
    torch.save({"epoch": 3, "state_dict": Net().state_dict()}, path)
    error = refused(tmp_path, *make())
    assert error.path == str(path)
    assert error.key == "library"
    assert "expected 'spotd_trainer', found a dict with the keys epoch, state_dict" in str(error)


@pytest.mark.parametrize(("number", "age"), [(FORMAT - 1, "older"), (FORMAT + 1, "newer")])
def test_another_format_is_refused_by_number(tmp_path, number, age):
    path = tmp_path / "step-00000005.pt"
    torch.save({"library": LIBRARY, "format": number}, path)
    error = refused(tmp_path, *make())
    assert error.key == "format"
    assert f"expected {FORMAT}, found {number}" in str(error)
    assert f"an {age}" in str(error) or f"a {age}" in str(error)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_inside_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = tmp_path / "c"
    checkpoints.mkdir()
    torch.save(
        {"library": LIBRARY, "format": FORMAT, "x": Evil()}, checkpoints / "step-00000005.pt"
    )
    error = refused(checkpoints, *make())
    assert "mkdir" in str(error)
    assert not (tmp_path / "executed").exists()


def test_a_bare_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = tmp_path / "c"
    checkpoints.mkdir()
    (checkpoints / "step-00000005.pt").write_bytes(pickle.dumps(Evil()))
    error = refused(checkpoints, *make())
    assert "expected a whole archive" in str(error)
    assert not (tmp_path / "executed").exists()


def test_a_part_that_refuses_its_state_leaves_the_model_alone(tmp_path):
    class Fussy:
        fuss = False

        def state_dict(self):
            return {"a": 1}

        def load_state_dict(self, state):
            raise ValueError("not today")

    saved(tmp_path, extra={"fussy": Fussy()})
    error = refused(tmp_path, *make(), extra={"fussy": Fussy()})
    assert error.key == "extra.fussy"
    assert "not today" in str(error)


def test_a_value_that_is_missing_is_named(tmp_path):
    path = saved(tmp_path)
    change(path, lambda state: state.pop("optimizers"))
    error = refused(tmp_path, *make())
    assert error.key == "optimizers"


def test_a_model_is_restored_the_same_from_a_compiled_and_a_wrapped_one(tmp_path):
    model, optimizer = make()
    with Session(torch.compile(model), optimizer, directory=tmp_path) as session:
        step(model, optimizer)
        session.advance()
    other, other_optimizer = make()
    resumed(tmp_path, other, other_optimizer)
    assert digest(other) == digest(model)


def test_float32_moments_of_bfloat16_weights_keep_their_precision(tmp_path):
    def fresh():
        model = nn.Linear(4, 4).bfloat16()
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = fresh()
    with Session(model, optimizer, directory=tmp_path) as session:
        model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        state = optimizer.state[model.weight]
        state["exp_avg"] = torch.full((4, 4), 1.00001)
        session.advance()
    other, other_optimizer = fresh()
    resumed(tmp_path, other, other_optimizer)
    assert torch.equal(other_optimizer.state[other.weight]["exp_avg"], torch.full((4, 4), 1.00001))


def test_newest_checkpoint_passes_over_what_is_torn(tmp_path):
    saved(tmp_path)
    os.truncate(tmp_path / "step-00000003.pt", 50)
    assert newest_checkpoint(tmp_path).name == "step-00000002.pt"
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_newest_checkpoint_wants_the_file_that_the_hf_trainer_writes_last(tmp_path):
    for name in ("checkpoint-50", "checkpoint-100", "checkpoint-150"):
        (tmp_path / name).mkdir()
    for name, size in (("checkpoint-50", 16), ("checkpoint-80", 15)):
        # A power cut after the last file was written: it syncs none.
        (tmp_path / name).mkdir(exist_ok=True)
        header = b'{"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'
        weights = len(header).to_bytes(8, "little") + header + bytes(size)
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        # Of a format that nobody here knows, and so whole.
        (tmp_path / name / "tokens.bin").write_bytes(b"spm1")
    (tmp_path / "checkpoint-90").mkdir()
    (tmp_path / "checkpoint-90" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-90" / "optimizer.pt").write_bytes(bytes(4096))
    (tmp_path / "checkpoint-80" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-50" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-100" / "trainer_state.json").write_text('{"global_step": 10')
    assert newest_checkpoint(tmp_path).name == "checkpoint-50"
