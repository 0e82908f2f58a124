"""Who gets a signal, told as the trees that were seen in life."""

from __future__ import annotations

import signal

from hypothesis import given
from hypothesis import strategies as st

from spotd.core.targets import Process, catches, choose

TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1


def mask(*numbers):
    return sum(1 << (n - 1) for n in numbers)


def process(pid, parent, command="python train.py", *, caught=(), ignored=(), comm=None, rank=None):
    words = tuple(command.split())
    comm = comm or words[0].rsplit("/", 1)[-1][:15]
    return Process(pid, parent, comm, words, mask(*caught), mask(*ignored), rank)


def auto(tree, number=TERM, *, main=10, purpose="stop"):
    return choose(tree, main, number, target="auto", purpose=purpose)


def test_a_trainer_that_catches_the_signal_gets_it():
    assert auto([process(10, 1, caught=[TERM])]) == (10,)


def test_a_trainer_that_does_not_catch_it_is_left_alone():
    assert auto([process(10, 1, caught=[INT])]) == ()


def test_a_trainer_that_ignores_it_is_left_alone():
    assert auto([process(10, 1, caught=[INT], ignored=[TERM])]) == ()


def test_below_a_shell_the_trainer_gets_it_and_not_the_shell():
    tree = [process(10, 1, "bash -c x", caught=[INT]), process(11, 10, caught=[TERM])]
    assert auto(tree) == (11,)


def test_a_shell_that_traps_the_signal_gets_it_for_its_children():
    tree = [process(10, 1, "bash run.sh", caught=[TERM]), process(11, 10, caught=[TERM])]
    assert auto(tree) == (10,)


def test_a_shell_catches_sigint_for_itself_only():
    for shell in ("bash -c x", "/bin/sh ./run.sh"):
        tree = [
            process(10, 1, shell, caught=[INT], comm="run.sh"),
            process(11, 10, caught=[INT]),
        ]
        assert auto(tree, INT) == (11,)


def test_below_a_shells_subshell_the_trainer_is_found():
    tree = [
        process(10, 1, "bash run.sh"),
        process(11, 10, "bash run.sh"),
        process(12, 11, caught=[TERM]),
    ]
    assert auto(tree) == (12,)


def test_accelerate_launch_is_passed_over_even_for_sigint():
    for launcher in ("python /venv/bin/accelerate launch t.py",
                     "python -m accelerate.commands.launch t.py"):  # fmt: skip
        tree = [process(10, 1, launcher, caught=[INT]), process(11, 10, caught=[INT, TERM])]
        assert auto(tree, INT) == (11,)
        assert auto(tree, TERM) == (11,)


def test_a_program_that_only_passes_signals_on_is_passed_over():
    for launcher in ("uv run torchrun t.py", "/usr/bin/timeout 3h python t.py", "sudo -u a sh"):
        agent = process(11, 10, "python /venv/bin/torchrun t.py", caught=[TERM])
        tree = [process(10, 1, launcher, caught=[TERM, INT]), agent]
        assert auto(tree) == ()
        assert auto([*tree, process(12, 11, caught=[TERM], rank="0")]) == (12,)


def ranks_below(agent, *, caught=(TERM,)):
    return [
        process(10, 1, agent, caught=[TERM, INT]),
        process(11, 10, "python -u t.py", caught=caught, rank="0"),
        process(12, 10, "python -u t.py", caught=caught, rank="1"),
        process(13, 11, "python -u t.py", caught=[TERM], rank="0", comm="pt_data_worker"),
        process(14, 12, "python -u t.py", caught=[TERM], rank="1"),
    ]


def test_under_torchrun_each_rank_gets_it_and_neither_agent_nor_workers():
    assert auto(ranks_below("python /venv/bin/torchrun t.py")) == (11, 12)
    assert auto(ranks_below("python -m torch.distributed.run t.py")) == (11, 12)


def test_an_agent_of_a_kind_unknown_to_us_is_known_by_its_ranks():
    assert auto(ranks_below("python my_launcher.py")) == (11, 12)


def test_ranks_that_catch_nothing_are_not_signalled_through_their_agent():
    assert auto(ranks_below("torchrun t.py", caught=[INT])) == ()


def test_an_agent_whose_ranks_have_not_begun_is_left_alone():
    assert auto([process(10, 1, "python /venv/bin/torchrun t.py", caught=[TERM])]) == ()


def test_a_rank_behind_a_shell_is_found():
    tree = [
        process(10, 1, "torchrun --no-python run.sh", caught=[TERM]),
        process(11, 10, "bash run.sh", rank="0"),
        process(12, 11, caught=[TERM], rank="0"),
    ]
    assert auto(tree) == (12,)


def test_a_rank_set_for_the_whole_tree_makes_nobody_an_agent():
    tree = [
        process(10, 1, caught=[TERM], rank="3"),
        process(11, 10, "python helper.py", caught=[TERM], rank="3"),
    ]
    assert auto(tree) == (10,)


def test_ranks_of_the_same_program_as_their_agent_are_no_workers():
    tree = [process(10, 1), process(11, 10, caught=[TERM], rank="0")]
    assert auto(tree) == (11,)


def test_dataloader_workers_never_get_it_though_they_inherit_the_handler():
    tree = [
        process(10, 1, caught=[]),
        process(11, 10, caught=[TERM], comm="pt_data_worker"),
        process(12, 10, caught=[TERM]),
    ]
    assert auto(tree) == ()


def test_orphans_get_it_when_nobody_below_the_main_process_does():
    tree = [process(10, 1, "bash -c x"), process(20, 1, caught=[TERM])]
    assert auto(tree) == (20,)


def test_orphans_beside_a_trainer_that_catches_it_are_its_helpers():
    tree = [process(10, 1, caught=[TERM]), process(20, 1, "metrics-service", caught=[TERM])]
    assert auto(tree) == (10,)


def test_a_program_whose_runtime_catches_everything_is_not_believed():
    go = process(11, 10, "wandb-core", caught=range(1, 65))
    assert not catches(go, TERM)
    assert auto([process(10, 1), go]) == ()


def test_main_is_the_commands_own_process_or_nobody():
    tree = [process(10, 1, "bash -c x"), process(11, 10, caught=[TERM])]
    assert choose(tree, 10, TERM, target="main", purpose="stop") == ()
    assert choose(tree, 11, TERM, target="main", purpose="stop") == (11,)


def test_group_is_everybody_parents_first_unless_nobody_catches_it():
    tree = [process(12, 11), process(11, 10, caught=[TERM]), process(10, 1, "bash -c x")]
    assert choose(tree, 10, TERM, target="group", purpose="stop") == (10, 11, 12)
    assert choose(tree, 10, USR1, target="group", purpose="stop") == ()


def test_a_signal_for_a_checkpoint_kills_nobody():
    tree = [process(10, 1, "bash -c x"), process(11, 10, caught=[USR1]), process(12, 11)]
    for target, expected in (("auto", (11,)), ("group", (11,)), ("main", ())):
        assert choose(tree, 10, USR1, target=target, purpose="checkpoint") == expected


def test_a_tree_whose_main_process_is_gone_still_has_targets():
    assert auto([process(20, 1, caught=[TERM])]) == (20,)


processes = st.lists(
    st.builds(
        Process,
        pid=st.integers(2, 12),
        parent=st.integers(1, 12),
        comm=st.sampled_from(["python", "bash", "pt_data_worker"]),
        command=st.sampled_from([("python", "t.py"), ("bash", "x"), ("torchrun",), ()]),
        caught=st.sampled_from([0, mask(TERM), mask(INT), mask(TERM, INT), (1 << 64) - 1]),
        ignored=st.sampled_from([0, mask(TERM)]),
        rank=st.sampled_from([None, "0", "1"]),
    ),
    unique_by=lambda p: p.pid,
    max_size=9,
)


@given(
    tree=processes,
    target=st.sampled_from(["auto", "main", "group"]),
    purpose=st.sampled_from(["stop", "checkpoint"]),
    number=st.sampled_from([TERM, INT]),
)
def test_whatever_the_tree_nobody_gets_it_twice_nor_without_anybody_catching_it(
    tree, target, purpose, number
):
    chosen = choose(tree, 10, number, target=target, purpose=purpose)
    by_pid = {p.pid: p for p in tree}
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(by_pid)
    if chosen:
        assert any(catches(by_pid[pid], number) for pid in chosen)
    if target == "auto" or purpose == "checkpoint":
        assert all(catches(by_pid[pid], number) for pid in chosen)
    if target == "auto":
        assert all(by_pid[pid].comm != "pt_data_worker" for pid in chosen)
