"""What is whole, what is not yet, what is torn: every row of the table of trainers."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotd.core.completeness import (
    CandidateFacts,
    FileFacts,
    State,
    Structure,
    judge,
    matches,
    quiet_needed,
)
from spotd.core.layouts import Layout
from spotd.core.names import is_checkpoint_name, is_temporary

WHOLE, TORN, UNKNOWN = Structure.WHOLE, Structure.TORN, Structure.UNKNOWN


def file(path="", *, at=100, size=1000, **more) -> FileFacts:
    return FileFacts(path, size, at, **more)


def a_file(name, *, quiet=0.0, settled=False, declared=False, **more) -> CandidateFacts:
    default = {"default_pattern": more.pop("default_pattern", True)}
    gap = more.pop("longest_gap", 0.0)
    return CandidateFacts(
        name, "file", (file(**more),), quiet=quiet, settled=settled, declared=declared,
        longest_gap=gap, **default,
    )  # fmt: skip


def a_directory(name, *files, **more) -> CandidateFacts:
    return CandidateFacts(name, "directory", tuple(files), **more)


def state(facts) -> str:
    return judge(facts).state.value


# --- names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [".tmpAb12Cd", "model.pt.tmp", "tmp.pth.tar", "ckpt_tmp.pt", "5.orbax-checkpoint-tmp-99",
     ".metadata.tmp", "tmp-checkpoint-500", "last.pt.part", "x.pt.tmp.4711", "X.PT.TMP"],
)  # fmt: skip
def test_names_that_writers_give_to_unfinished_files_are_temporary(name):
    assert is_temporary(name)
    assert not matches(name, ("*",))


@pytest.mark.parametrize(
    "name",
    ["last.ckpt", "step-7", "template.pt", "attempt.3.pt", "tmpfs", "data.lock", "README.md~"],
)
def test_names_that_only_look_a_little_like_it_are_not(name):
    assert not is_temporary(name)


@pytest.mark.parametrize(
    "name", ["ckpt.pt", "epoch=3-step=200.ckpt", "checkpoint.pth.tar", "model.safetensors", "a.npz"]
)
def test_a_file_with_a_checkpoint_extension_is_one_under_the_default_pattern(name):
    assert is_checkpoint_name(name)


@pytest.mark.parametrize(
    "name",
    ["train.log", "metrics.csv", "config.yaml", "events.out.tfevents.1.host", "args.json",
     "training_args.bin", "model-00001-of-00004.safetensors", "__0_0.distcp", "rng_state_3.pth"],
)  # fmt: skip
def test_logs_settings_and_parts_are_none_under_the_default_pattern(name):
    assert not is_checkpoint_name(name)


def test_with_an_explicit_pattern_everything_that_matches_counts():
    assert matches("weights-5.dat", ("*.dat",))
    facts = a_file("weights-5.dat", quiet=11.0, default_pattern=False)
    assert state(facts) == "whole"


def test_a_hidden_or_temporary_name_never_counts_whatever_the_pattern():
    assert not matches(".hidden.pt", ("*", ".*"))
    assert not matches("a.pt.tmp", ("*.tmp",))


# --- files -------------------------------------------------------------------------------


def test_a_zip_whose_directory_holds_is_whole_at_once():
    assert state(a_file("ckpt.pt", structure=WHOLE)) == "whole"


def test_a_file_that_is_open_for_writing_is_not_yet_whole():
    found = judge(a_file("ckpt.pt", structure=WHOLE, writing=True))
    assert found.state is State.NOT_YET
    assert "being written" in found.reason


def test_a_torn_file_is_only_not_yet_whole_while_a_trainer_may_finish_it():
    facts = a_file("ckpt.pt", structure=TORN, reason="its end record is missing")
    assert state(facts) == "not yet"


def test_a_torn_file_is_torn_when_no_trainer_lives_and_says_why():
    facts = a_file("ckpt.pt", structure=TORN, reason="its end record is missing", settled=True)
    assert judge(facts).state is State.TORN
    assert judge(facts).reason == "its end record is missing"


def test_a_file_somebody_still_writes_is_not_torn_even_when_no_trainer_lives():
    facts = a_file("ckpt.pt", structure=TORN, reason="x", writing=True, settled=True)
    assert state(facts) == "not yet"


def test_a_legacy_pickle_is_whole_after_ten_quiet_seconds():
    assert judge(a_file("old.pt", quiet=4.0)).wait == pytest.approx(6.0)
    assert state(a_file("old.pt", quiet=9.9)) == "not yet"
    assert state(a_file("old.pt", quiet=10.0)) == "whole"


def test_a_slow_writer_of_an_unknown_format_is_given_three_times_its_longest_gap():
    assert state(a_file("old.pt", quiet=29.0, longest_gap=10.0)) == "not yet"
    assert state(a_file("old.pt", quiet=30.0, longest_gap=10.0)) == "whole"


def test_a_legacy_pickle_is_not_judged_when_no_trainer_lives():
    assert state(a_file("old.pt", settled=True)) == "whole"


def test_an_empty_file_is_never_whole_even_if_the_trainer_says_so():
    assert state(a_file("ckpt.pt", size=0, quiet=1e6)) == "not yet"
    assert state(a_file("ckpt.pt", size=0, settled=True)) == "torn"
    assert state(a_file("ckpt.pt", size=0, declared=True)) == "not yet"


def test_a_file_the_trainer_declared_needs_no_quiet():
    assert state(a_file("old.pt", declared=True)) == "whole"
    assert state(a_file("anything.dat", declared=True)) == "whole"


def test_a_declared_file_that_is_visibly_torn_is_not_believed():
    assert state(a_file("ckpt.pt", structure=TORN, declared=True)) == "not yet"


def test_what_cannot_be_stored_is_no_checkpoint_and_says_why():
    facts = a_directory("step-5", file("a.pt"), unusable="link is a symbolic link")
    assert judge(facts).state is State.NOT_A_CHECKPOINT
    assert judge(facts).reason == "link is a symbolic link"


def test_quiet_is_never_waited_for_longer_than_five_minutes():
    assert quiet_needed(4000.0) == 300.0


# --- DCP and torchtitan ------------------------------------------------------------------


def dcp(at=(100, 100, 110), *, shard=5000, needs=5000, prefix="", **more) -> CandidateFacts:
    return a_directory(
        "step-5",
        file(prefix + "__0_0.distcp", at=at[0], size=shard),
        file(prefix + "__1_0.distcp", at=at[1], size=shard),
        file(prefix + ".metadata", at=at[2], structure=WHOLE,
             needs=(("__0_0.distcp", needs), ("__1_0.distcp", needs))),
        **more,
    )  # fmt: skip


def test_dcp_with_its_metadata_newest_and_its_shards_long_enough_is_whole():
    assert judge(dcp()).state is State.WHOLE
    assert judge(dcp()).layout is Layout.DCP


def test_dcp_whose_metadata_came_in_the_same_instant_as_a_shard_is_whole():
    assert state(dcp((110, 110, 110))) == "whole"


def test_dcp_without_metadata_is_not_whole_and_torn_in_the_end():
    files = (file("__0_0.distcp"), file("__1_0.distcp"))
    assert state(a_directory("step-5", *files, quiet=1e6)) == "not yet"
    assert judge(a_directory("step-5", *files, settled=True)).reason == ".metadata is missing"


def test_dcp_saved_again_in_the_same_directory_has_old_metadata_beside_a_new_shard():
    found = judge(dcp((120, 100, 110), settled=True))
    assert found.state is State.TORN
    assert "newer than" in found.reason


def test_dcp_with_a_short_shard_is_torn():
    found = judge(dcp(shard=4999, settled=True))
    assert found.state is State.TORN
    assert "4999" in found.reason


def test_dcp_with_a_missing_shard_is_torn():
    facts = a_directory(
        "step-5",
        file("__0_0.distcp"),
        file(".metadata", at=110, structure=WHOLE, needs=(("__1_0.distcp", 10),)),
        settled=True,
    )
    assert judge(facts).reason == "__1_0.distcp is missing"


def test_dcp_one_level_down_is_judged_there():
    assert state(dcp(prefix="model/")) == "whole"
    assert state(dcp((120, 100, 110), prefix="model/", settled=True)) == "torn"


def test_dcp_with_one_part_saved_and_the_other_not_is_not_whole():
    facts = a_directory(
        "step-5",
        file("model/__0_0.distcp"),
        file("model/.metadata", at=110, structure=WHOLE),
        file("optimizer/__0_0.distcp"),
        settled=True,
    )
    assert judge(facts).reason == "optimizer/.metadata is missing"


def test_dcp_being_written_is_not_yet_whole():
    facts = a_directory("step-5", file("__0_0.distcp", writing=True))
    assert state(facts) == "not yet"


# --- Hugging Face ------------------------------------------------------------------------


def trainer(*more_files, state_at=200, name="checkpoint-500", **more) -> CandidateFacts:
    return a_directory(
        name,
        file("config.json", structure=WHOLE),
        file("model.safetensors", at=110, structure=WHOLE),
        file("optimizer.pt", at=120, structure=WHOLE),
        file("scheduler.pt", at=130, structure=WHOLE),
        file("rng_state.pth", at=140, structure=WHOLE),
        file("trainer_state.json", at=state_at, structure=WHOLE),
        *more_files,
        **more,
    )


def test_a_trainer_checkpoint_with_its_state_newest_is_whole_at_once():
    assert judge(trainer()).state is State.WHOLE
    assert judge(trainer()).layout is Layout.TRAINER


def test_a_trainer_checkpoint_without_its_state_is_never_whole():
    files = (file("config.json", structure=WHOLE), file("model.safetensors", structure=WHOLE))
    assert state(a_directory("checkpoint-500", *files, quiet=1e6)) == "not yet"
    found = judge(a_directory("checkpoint-500", *files, settled=True))
    assert found.reason == "trainer_state.json is missing"


def test_a_trainer_checkpoint_whose_siblings_have_a_state_needs_one_too():
    only = a_directory(
        "checkpoint-500", file("model.safetensors", structure=WHOLE), settled=True,
        family=Layout.TRAINER,
    )  # fmt: skip
    assert state(only) == "torn"


def test_a_trainer_checkpoint_saved_again_is_not_whole_while_its_state_is_old():
    assert state(trainer(state_at=115, settled=True)) == "torn"


def test_a_torn_optimizer_makes_a_trainer_checkpoint_torn():
    bad = file("extra.pt", structure=TORN, reason="its end record is missing")
    assert judge(trainer(bad, settled=True)).reason == "extra.pt: its end record is missing"


def test_a_missing_shard_of_a_sharded_model_makes_it_torn():
    index = file("model.safetensors.index.json", structure=WHOLE,
                 needs=(("model-00001-of-00002.safetensors", 1),
                        ("model-00002-of-00002.safetensors", 1)))  # fmt: skip
    shard = file("model-00001-of-00002.safetensors", structure=WHOLE)
    found = judge(trainer(index, shard, settled=True))
    assert found.reason == "model-00002-of-00002.safetensors is missing"


def test_the_sentinel_of_the_jit_checkpoint_keeps_it_from_being_whole():
    facts = trainer(file("checkpoint-is-incomplete.txt", size=0), quiet=1e6)
    assert state(facts) == "not yet"
    assert state(trainer(file("checkpoint-is-incomplete.txt", size=0), settled=True)) == "torn"


def test_a_readme_written_after_the_state_changes_nothing():
    assert state(trainer(file("README.md", at=999))) == "whole"


def test_the_rng_state_of_another_rank_may_come_after_the_state():
    late = file("rng_state_1.pth", at=205, structure=WHOLE)
    assert state(trainer(late, quiet=1.0)) == "not yet"
    assert state(trainer(late, quiet=2.0)) == "whole"


def test_times_of_whole_seconds_were_set_by_a_tool_and_say_nothing_of_order():
    second = 1_000_000_000
    files = (
        file("config.json", at=5 * second, structure=WHOLE),
        file("model.safetensors", at=9 * second, structure=WHOLE),
        file("trainer_state.json", at=3 * second, structure=WHOLE),
    )
    assert state(a_directory("checkpoint-500", *files, settled=True)) == "whole"


# --- accelerate --------------------------------------------------------------------------


def accelerate(*more_files, **more) -> CandidateFacts:
    return a_directory(
        "checkpoint_3",
        file("model.safetensors", at=100, structure=WHOLE),
        file("optimizer.bin", at=110, structure=WHOLE),
        file("random_states_0.pkl", at=120, structure=WHOLE),
        *more_files,
        **more,
    )


def test_an_accelerate_checkpoint_is_whole_two_seconds_after_its_random_states():
    assert state(accelerate(quiet=1.9)) == "not yet"
    assert state(accelerate(quiet=2.0)) == "whole"
    assert judge(accelerate(quiet=2.0)).layout is Layout.ACCELERATE


def test_an_accelerate_checkpoint_without_random_states_is_torn_when_its_siblings_have_them():
    facts = a_directory(
        "checkpoint_3", file("model.safetensors", structure=WHOLE), settled=True,
        family=Layout.ACCELERATE,
    )  # fmt: skip
    assert judge(facts).reason == "random_states_*.pkl is missing"


def test_registered_objects_come_after_the_random_states_and_are_waited_for():
    expected = frozenset({"custom_checkpoint_0.pkl"})
    assert state(accelerate(settled=True, family_files=expected)) == "torn"
    late = file("custom_checkpoint_0.pkl", at=130)
    assert state(accelerate(late, settled=True, family_files=expected)) == "whole"


# --- orbax, marker files, unknown directories --------------------------------------------


def test_orbax_commits_by_renaming_so_what_has_its_final_name_is_whole():
    facts = a_directory("1000", file("_CHECKPOINT_METADATA"), file("d/ocdbt.process_0/x"))
    assert judge(facts).state is State.WHOLE
    assert judge(facts).layout is Layout.ORBAX


def test_orbax_with_its_success_file_is_whole():
    assert state(a_directory("1000", file("commit_success.txt"), file("params/a"))) == "whole"


def test_an_orbax_item_still_under_its_temporary_name_is_not_whole():
    facts = a_directory(
        "1000", file("_CHECKPOINT_METADATA", at=50), file("d.orbax-checkpoint-tmp-7/x", at=60)
    )
    assert state(facts) == "not yet"


@pytest.mark.parametrize("present", [True, False])
def test_with_a_configured_marker_its_presence_alone_decides(present):
    files = [file("weights.pt", structure=TORN, reason="x", at=999)]
    if present:
        files.append(file("DONE", size=0, at=1))
    facts = a_directory("run-1", *files, complete="DONE", quiet=1e6)
    assert state(facts) == ("whole" if present else "not yet")


def test_with_a_configured_marker_a_directory_without_it_is_torn_in_the_end():
    facts = a_directory("run-1", file("weights.pt"), complete="DONE", settled=True)
    assert judge(facts).reason == "DONE is missing"
    assert judge(facts).state is State.TORN


def test_with_a_configured_marker_a_directory_without_anything_of_a_checkpoint_is_none():
    facts = a_directory("plots", file("a.svg"), complete="DONE", settled=True)
    assert state(facts) == "not a checkpoint"


def test_an_unknown_directory_is_whole_when_it_has_been_quiet():
    files = (file("weights.pt", structure=WHOLE), file("notes.txt"))
    assert state(a_directory("run-1", *files, quiet=9.0)) == "not yet"
    assert state(a_directory("run-1", *files, quiet=10.0)) == "whole"
    assert state(a_directory("run-1", *files, settled=True)) == "whole"


def test_a_directory_the_trainer_declared_needs_no_quiet_and_no_marker():
    assert state(a_directory("x", file("__0_0.distcp"), declared=True)) == "whole"


def test_a_tensorboard_directory_is_no_checkpoint():
    facts = a_directory("version_0", file("events.out.tfevents.1.host"), file("hparams.yaml"))
    assert state(facts) == "not a checkpoint"


def test_an_empty_directory_is_no_checkpoint():
    assert state(a_directory("step-5", settled=True)) == "not a checkpoint"


# --- leftovers ---------------------------------------------------------------------------


def test_a_temporary_file_inside_keeps_a_directory_from_being_whole():
    assert state(trainer(file(".tmpAb12", at=300))) == "not yet"
    assert state(trainer(file(".tmpAb12", at=300), settled=True)) == "torn"


def test_a_leftover_of_an_earlier_killed_save_does_not_spoil_the_directory_for_ever():
    assert state(trainer(file(".tmpAb12.safetensors", at=50, structure=TORN))) == "whole"


def test_a_temporary_file_that_is_being_written_is_no_leftover():
    facts = trainer(file(".tmpAb12", at=50, writing=True))
    assert state(facts) == "not yet"


# --- laws --------------------------------------------------------------------------------

PATHS = st.sampled_from(
    ["model.safetensors", "optimizer.pt", "config.json", "trainer_state.json", ".metadata",
     "__0_0.distcp", "random_states_0.pkl", "a/b.pt", ".tmpX", "notes.txt", "commit_success.txt",
     "checkpoint-is-incomplete.txt", "custom_checkpoint_0.pkl"]
)  # fmt: skip
FILES = st.builds(
    FileFacts,
    path=PATHS,
    size=st.integers(0, 9),
    mtime_ns=st.integers(0, 5),
    writing=st.booleans(),
    structure=st.sampled_from(list(Structure)),
    needs=st.lists(st.tuples(PATHS, st.integers(0, 9)), max_size=2).map(tuple),
)
CANDIDATES = st.builds(
    CandidateFacts,
    name=st.text(string.ascii_letters + "-_=.0123456789", min_size=1, max_size=12),
    kind=st.just("directory"),
    files=st.lists(FILES, max_size=5, unique_by=lambda f: f.path).map(tuple),
    quiet=st.floats(0, 1000),
    longest_gap=st.floats(0, 1000),
    settled=st.booleans(),
    declared=st.booleans(),
    default_pattern=st.booleans(),
    family=st.none() | st.sampled_from(list(Layout)),
)


@given(CANDIDATES)
def test_nothing_is_torn_while_a_trainer_lives(facts):
    assert facts.settled or judge(facts).state is not State.TORN


@given(CANDIDATES)
def test_nothing_somebody_writes_is_whole_unless_the_trainer_said_so(facts):
    if any(one.writing for one in facts.files) and not facts.declared:
        assert judge(facts).state is not State.WHOLE


@given(CANDIDATES)
def test_what_is_not_whole_always_says_why(facts):
    found = judge(facts)
    assert found.state is State.WHOLE or found.reason


@given(CANDIDATES)
def test_a_directory_with_a_torn_file_that_is_no_leftover_is_never_whole(facts):
    torn = [f for f in facts.files if f.structure is TORN and not is_temporary(f.path)]
    if torn:
        assert judge(facts).state is not State.WHOLE


@given(CANDIDATES)
def test_judging_twice_says_the_same(facts):
    assert judge(facts) == judge(facts)
