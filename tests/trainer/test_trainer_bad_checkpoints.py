"""A checkpoint that cannot be resumed from: which file, which key, what was expected."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest
import torch
from torch import nn
from trainer_support import Net, digest

from spotd_trainer import CheckpointError, Loader, Session, TornCheckpointError, newest_checkpoint
from spotd_trainer.archive import FORMAT, LIBRARY


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
    (tmp_path / "checkpoint-50" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-100" / "trainer_state.json").write_text('{"global_step": 10')
    assert newest_checkpoint(tmp_path).name == "checkpoint-50"
