"""A start is told before what the started trainer says."""

from spotd.core import events as on
from spotd.shell.trainer.first_word import EARLY, FirstWord

STARTED = on.TrainerStarted(4711)


def said(step):
    return on.TrainerReported(step=step)


def test_what_it_says_too_early_comes_after_that_it_runs():
    posted = []
    word = FirstWord(posted.append)
    word.starting()
    word.of_trainer(said(1))
    word.of_trainer(said(2))
    assert posted == []
    word.of_host(STARTED)
    word.of_trainer(said(3))
    assert posted == [STARTED, said(1), said(2), said(3)]


def test_a_start_that_failed_keeps_nothing_back():
    posted = []
    word = FirstWord(posted.append)
    word.starting()
    failed = on.TrainerStartFailed("no such file", "")
    word.of_host(failed)
    word.of_trainer(said(1))
    assert posted == [failed, said(1)]


def test_an_adopted_trainer_is_passed_on_as_it_speaks_and_so_is_its_end():
    posted = []
    word = FirstWord(posted.append)
    word.of_trainer(said(7))
    ended = on.TrainerExited()
    word.of_host(ended)
    assert posted == [said(7), ended]


def test_a_start_of_which_nothing_is_heard_fills_no_memory():
    posted = []
    word = FirstWord(posted.append)
    word.starting()
    for step in range(10 * EARLY):
        word.of_trainer(said(step))
    word.of_host(STARTED)
    assert posted == [STARTED, *(said(step) for step in range(9 * EARLY, 10 * EARLY))]
