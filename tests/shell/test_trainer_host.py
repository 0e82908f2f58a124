"""A trainer as a plain process: its start, its environment, its end."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hosting import RUN, Hosted, alive, wait_for

from spotd.core import actions, events
from spotd.shell.trainer import output, proc, watching


@pytest.fixture
def hosted():
    # Not pytest's own directory: no other user may enter that.
    with tempfile.TemporaryDirectory(prefix="spotd-test-") as directory:
        Path(directory).chmod(0o755)
        made = Hosted(Path(directory))
        yield made
        made.clean_up()


def needs_root():
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")


SLEEP = ("sleep", "600")


def test_an_exit_is_reported_with_its_status_and_last_lines(hosted):
    hosted.use("sh", "-c", "seq 100; echo '\033[31mred\033[0m'; printf 'a\\rb\\n'; exit 3")
    hosted.start()
    exited = hosted.exited()
    assert (exited.status, exited.signal) == (3, None)
    assert exited.last_lines[-3:] == ("100", "red", "b")
    assert len(exited.last_lines) == 20


def test_the_lines_of_the_attempt_before_are_not_this_ones(hosted):
    hosted.use("sh", "-c", "echo attempt $SPOTD_ATTEMPT")
    for attempt in (1, 2):
        hosted.start(attempt=attempt)
        assert hosted.exited().last_lines == (f"attempt {attempt}",)


def test_a_death_by_signal_is_reported_as_such(hosted):
    hosted.use("sh", "-c", "kill -SEGV $$")
    hosted.start()
    exited = hosted.exited()
    assert (exited.status, exited.signal) == (None, signal.SIGSEGV)
    assert "SIGSEGV" in exited.reason


def test_killing_ends_it_and_is_told_as_its_exit(hosted):
    hosted.use(*SLEEP)
    pid = hosted.start()
    assert hosted.host.main_pid == pid
    assert hosted.host.tree() == (pid,)
    exited = hosted.kill()
    assert exited.signal == signal.SIGKILL
    assert not alive(pid)
    assert hosted.host.main_pid is None


def test_a_second_trainer_is_never_started_beside_the_first(hosted):
    hosted.use(*SLEEP)
    hosted.start()
    assert "already" in hosted.start_refused().reason


def test_a_kill_while_it_is_being_started_is_not_forgotten(hosted):
    hosted.use(*SLEEP)
    hosted.host.start(actions.StartTrainer(1, None, 100.0))
    hosted.host.kill(actions.KillTrainer("at once"))
    pid = hosted.next(events.TrainerStarted).pid
    assert hosted.exited().signal == signal.SIGKILL
    assert not alive(pid)


def test_signals_without_a_trainer_go_nowhere(hosted):
    assert hosted.signal() == ()


def test_the_first_start_is_told_nothing_of_a_checkpoint(hosted):
    hosted.use("sh", "-c", 'env -0 > env; echo "[$1]" > argument', "sh", "{checkpoint}",
               resume_arguments=("--resume", "{checkpoint}"))  # fmt: skip
    hosted.start(attempt=1, grace=97.5)
    hosted.exited()
    told = environment(hosted)
    assert "SPOTD_RESUME_FROM" not in told
    assert told["SPOTD_RUN"] == RUN
    assert told["SPOTD_ATTEMPT"] == "1"
    assert told["SPOTD_CHECKPOINT_DIR"] == str(hosted.work / "checkpoints")
    assert told["SPOTD_SOCKET"] == str(hosted.directory / "trainer.sock")
    assert told["SPOTD_STOP_GRACE"] == "97.5"
    assert told["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "97"
    assert hosted.file("argument") == "[]\n"


def test_a_later_start_is_told_where_to_go_on(hosted):
    hosted.use("sh", "-c", 'env -0 > env; echo "$@" > arguments', "sh", "from={checkpoint}",
               resume_arguments=("--resume", "{checkpoint}"))  # fmt: skip
    hosted.start(attempt=2, resume_from="step {x}.pt")
    hosted.exited()
    path = str(hosted.work / "checkpoints" / "step {x}.pt")
    assert environment(hosted)["SPOTD_RESUME_FROM"] == path
    assert hosted.file("arguments") == f"from={path} --resume {path}\n"


def environment(hosted):
    content = (hosted.work / "env").read_text()
    return dict(entry.split("=", 1) for entry in content.split("\0") if entry)


def test_nothing_of_the_daemons_environment_reaches_the_trainer(hosted, monkeypatch):
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID",
                 "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
                 "INVOCATION_ID", "JOURNAL_STREAM", "STATE_DIRECTORY", "PYTHONPATH", "LD_PRELOAD",
                 "CREDENTIALS_DIRECTORY"):  # fmt: skip
        monkeypatch.setenv(name, "")
    hosted.use("sh", "-c", "env -0 > env")
    hosted.start()
    hosted.exited()
    names = set(environment(hosted))
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {
        "HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "PYTHONUNBUFFERED",
        "SPOTD_RUN", "SPOTD_ATTEMPT", "SPOTD_CHECKPOINT_DIR", "SPOTD_STOP_GRACE", "SPOTD_SOCKET",
        "SPOTD_TRAINER_TOKEN", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT",
    }  # fmt: skip


def test_the_users_environment_is_added_file_first(hosted):
    (hosted.work / "trainer.env").write_text(
        '# secrets\nexport A=1\nB=\'two words\'\nC="a \\"b\\""\nD=from file\nSPOTD_RUN=other\n'
    )
    hosted.use("sh", "-c", "env -0 > env", environment_file="trainer.env",
               environment={"D": "from the configuration"})  # fmt: skip
    hosted.start()
    hosted.exited()
    told = environment(hosted)
    assert [told[name] for name in "ABCD"] == [
        "1", "two words", 'a "b"', "from the configuration",
    ]  # fmt: skip
    assert told["SPOTD_RUN"] == RUN


def test_the_trainer_starts_with_default_signals_priority_and_no_other_descriptors(hosted):
    old = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        hosted.use(
            "sh", "-c",
            "ls /proc/self/fd > fds; grep Sig /proc/self/status > signals; "
            "nice > nice; readlink /proc/self/fd/0 > stdin; umask > umask",
        )  # fmt: skip
        hosted.start()
        hosted.exited()
    finally:
        signal.signal(signal.SIGUSR2, old)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    masks = dict(line.split(":\t") for line in hosted.file("signals").splitlines())
    own = 0b11 << 31  # glibc's own two signals, which some library here may have touched
    masks["SigIgn"] = f"{int(masks['SigIgn'], 16) & ~own:x}"
    assert int(masks["SigBlk"], 16) == 0
    assert int(masks["SigIgn"], 16) == 0
    assert len(hosted.file("fds").split()) == 5  # three, the lock, and that of ls itself
    assert hosted.file("stdin") == "/dev/null\n"
    assert hosted.file("umask") == "0022\n"
    assert hosted.file("nice") == "0\n"


def test_the_daemons_protection_from_the_memory_killer_is_not_inherited(hosted):
    if os.geteuid() != 0:
        pytest.skip("only root can protect itself from the memory killer")
    score = Path("/proc/self/oom_score_adj")
    before = score.read_text()
    try:
        score.write_text("-500")
    except OSError:
        pytest.skip("the score cannot be lowered in this container")
    try:
        hosted.use("sh", "-c", "cat /proc/self/oom_score_adj > score")
        hosted.start()
        hosted.exited()
    finally:
        score.write_text(before)
    assert hosted.file("score") == "0\n"


def test_output_goes_to_a_file_that_only_grows(hosted):
    hosted.use("sh", "-c", "echo out; echo err >&2")
    for attempt in (1, 2):
        hosted.start(attempt=attempt)
        hosted.exited()
    log = hosted.directory / "state" / RUN / "trainer.log"
    assert log.read_text() == "out\nerr\n" * 2
    assert stat.S_IMODE(log.stat().st_mode) & 0o007 == 0


def test_a_log_past_its_size_is_rotated_at_the_next_start(hosted):
    hosted.use("echo", "new")
    directory = hosted.directory / "state" / RUN
    directory.mkdir(parents=True)
    with (directory / "trainer.log").open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    hosted.start()
    hosted.exited()
    assert (directory / "trainer.log").read_text() == "new\n"
    assert (directory / "trainer.log.1").exists()


def test_a_log_is_bounded_while_the_trainer_writes_it(hosted, monkeypatch):
    monkeypatch.setattr(output, "LARGEST_LOG", 100_000)
    monkeypatch.setattr(watching, "_SWEEP_YOUNG", 0.02)
    hosted.use("sh", "-c", "while :; do seq 1000; [ -e enough ] && break; done; echo the end")
    directory = hosted.directory / "state" / RUN
    hosted.start()
    wait_for((directory / "trainer.log.1").exists)
    wait_for(lambda: (directory / "trainer.log").stat().st_size < 100_000)
    (hosted.work / "enough").touch()
    assert hosted.exited().last_lines[-1] == "the end"
    assert stat.S_IMODE((directory / "trainer.log.1").stat().st_mode) & 0o007 == 0


def test_a_log_is_cut_at_no_line_that_was_written_before(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "LARGEST_LOG", 1000)
    log = tmp_path / "trainer.log"
    log.write_bytes(b"x" * 1001)
    with log.open("ab") as trainer:
        output.bound(f"file:{log}")
        trainer.write(b"goes on\n")
    assert log.read_bytes() == b"goes on\n"
    assert (tmp_path / "trainer.log.1").read_bytes() == b"x" * 1001
    output.bound("journal:whatever")
    output.bound(f"file:{tmp_path / 'not there'}")


# --- what cannot be started ------------------------------------------------------------


def test_an_unknown_user_is_named(hosted):
    hosted.use("true", user="no-such-user-here")
    assert "'no-such-user-here'" in hosted.start_refused().reason


def test_a_command_that_is_nowhere_names_the_path_that_was_searched(hosted):
    hosted.use("no-such-command", environment={"PATH": "/nowhere:/usr/bin"})
    refused = hosted.start_refused()
    assert "'no-such-command'" in refused.reason
    assert "/nowhere:/usr/bin" in refused.reason


def test_the_command_is_searched_in_the_trainers_own_path(hosted):
    program = hosted.program("bin-train", "#!/bin/sh\necho found\n")
    program.chmod(0o755)
    hosted.use("bin-train", environment={"PATH": f"{hosted.work}:/usr/bin:/bin"})
    hosted.start()
    assert hosted.exited().last_lines == ("found",)


def test_a_relative_command_that_does_not_exist_says_where_it_was_looked_for(hosted):
    hosted.use("./train.sh")
    refused = hosted.start_refused()
    assert "./train.sh does not exist" in refused.reason
    assert str(hosted.work) in refused.hint


def test_a_command_that_may_not_be_executed_says_so(hosted):
    hosted.program("train.sh", "#!/bin/sh\n").chmod(0o644)
    hosted.use("./train.sh")
    assert "may not execute ./train.sh" in hosted.start_refused().reason


def test_a_script_without_its_interpreter_says_so(hosted):
    hosted.program("train.sh", "#!/no/such/python\n").chmod(0o755)
    hosted.use("./train.sh")
    assert "interpreter" in hosted.start_refused().reason


def test_a_text_that_is_no_program_says_so(hosted):
    hosted.program("train.sh", "echo no first line\n").chmod(0o755)
    hosted.use("./train.sh")
    refused = hosted.start_refused()
    assert "no program" in refused.reason
    assert "first line" in refused.hint


def test_a_missing_directory_is_named(hosted):
    hosted.use("true", directory=hosted.work / "gone")
    assert f"{hosted.work / 'gone'} does not exist" in hosted.start_refused().reason


def test_an_environment_file_that_is_missing_or_no_such_file_is_named(hosted):
    hosted.use("true", environment_file="trainer.env")
    assert "trainer.env" in hosted.start_refused().reason
    hosted.program("trainer.env", "A=1\nsecret stuff\n")
    refused = hosted.start_refused()
    assert "line 2 is not NAME=value" in refused.reason
    assert "secret" not in refused.reason


def test_after_a_refused_start_a_good_one_works(hosted):
    hosted.use("./train.sh")
    hosted.start_refused()
    hosted.use("true")
    hosted.start()
    assert hosted.exited().status == 0


# --- another user ------------------------------------------------------------------------


def test_it_runs_as_its_user_with_that_users_groups(hosted):
    needs_root()
    hosted.use("sh", "-c", "id -u; id -g; id -G; echo $HOME $USER $LOGNAME", user="nobody")
    hosted.start()
    lines = hosted.exited().last_lines
    entry = pwd.getpwnam("nobody")
    groups = os.getgrouplist("nobody", entry.pw_gid)
    assert lines[:2] == (str(entry.pw_uid), str(entry.pw_gid))
    assert {int(group) for group in lines[2].split()} == set(groups)
    assert lines[3] == f"{entry.pw_dir} nobody nobody"


def test_a_directory_closed_to_the_user_is_said_to_be(hosted):
    needs_root()
    hosted.work.chmod(0o700)
    hosted.use("true", user="nobody")
    refused = hosted.start_refused()
    assert "'nobody' may not enter" in refused.reason
    assert "namei" in refused.hint


def test_a_command_closed_to_the_user_is_said_to_be(hosted):
    needs_root()
    hosted.program("train.sh", "#!/bin/sh\n").chmod(0o700)
    hosted.use("./train.sh", user="nobody")
    assert "'nobody' may not execute" in hosted.start_refused().reason


def test_an_environment_file_of_the_users_cannot_show_it_what_only_root_may_read(hosted):
    needs_root()
    secret = hosted.directory / "secret"
    secret.write_text("SECRET=1\n")
    secret.chmod(0o600)
    (hosted.work / "trainer.env").symlink_to(secret)
    hosted.use("env", user="nobody", environment_file="trainer.env")
    assert "trainer.env" in hosted.start_refused().reason


def test_an_environment_file_that_only_root_controls_may_be_secret(hosted):
    needs_root()
    # /tmp is anybody's, so nothing below it is root's alone.
    with tempfile.TemporaryDirectory(dir="/etc", prefix="spotd-test-") as directory:
        path = Path(directory) / "trainer.env"
        path.write_text("SECRET=told\n")
        path.chmod(0o600)
        hosted.use("sh", "-c", "echo $SECRET", user="nobody", environment_file=path)
        hosted.start()
        assert hosted.exited().last_lines == ("told",)


def test_only_root_can_become_another_user(hosted):
    if os.geteuid() == 0:
        pytest.skip("root can become any user")
    hosted.use("true", user="root")
    assert "does not run as root" in hosted.start_refused().reason


# --- nothing is left behind -------------------------------------------------------------


DAEMONISE = r"""
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            if "bare" in sys.argv:
                open("daemon", "w").write(f"{os.getpid()}\n")
                os.execve("/bin/sleep", ["sleep", "600"], {})
            if "closed" in sys.argv:
                os.closerange(3, 100)
            open("daemon", "w").write(f"{os.getpid()}\n")
            time.sleep(600)
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize("how", ["", "closed"])
def test_a_daemon_it_made_of_itself_ends_with_it(hosted, how):
    hosted.python(DAEMONISE, how)
    hosted.start()
    exited = hosted.exited()
    assert exited.status == 0
    assert "1 of its processes" in exited.reason
    assert not alive(int(hosted.file("daemon")))
    assert hosted.marked() == []


def test_a_daemon_that_shed_its_environment_too_ends_with_it(hosted):
    hosted.python(DAEMONISE, "bare")
    hosted.start()
    assert hosted.exited().status == 0
    assert not alive(int(hosted.file("daemon")))


def test_a_child_in_a_session_of_its_own_ends_with_it(hosted):
    hosted.use("sh", "-c", "setsid sleep 600 & echo $! > child; sleep 0.1")
    hosted.start()
    assert hosted.exited().status == 0
    assert not alive(int(hosted.file("child")))


def test_a_child_that_ends_by_itself_is_given_the_moment_it_needs(hosted):
    hosted.use("sh", "-c", "(sleep 0.2; echo saved > saved) &")
    hosted.start()
    exited = hosted.exited()
    assert hosted.file("saved") == "saved\n"
    assert exited.reason == ""


def test_orphans_leave_no_zombies(hosted, monkeypatch):
    monkeypatch.setattr(watching, "_STRAY", 0.0)
    hosted.use("sh", "-c", "for i in 1 2 3; do (setsid sleep 0.0$i &); done; exec sleep 600")
    others = zombies()  # of tests before this one, which are not the host's
    hosted.start()
    wait_for(lambda: zombies() <= others, what="the end of the last zombie")
    hosted.kill()
    assert zombies() <= others


def zombies():
    mine = [s for pid in proc.pids() if (s := proc.stat(pid)) and s.parent == os.getpid()]
    return {s.pid for s in mine if s.comm in ("sleep", "setsid", "sh") and not s.alive}


def test_a_child_of_the_daemons_own_is_left_to_whoever_waits_for_it(hosted):
    own = subprocess.Popen(["true"], start_new_session=True)
    hosted.use("sleep", "1.2")
    hosted.start()
    hosted.exited()
    assert own.wait(5) == 0


def test_activity_grows_while_anything_is_written_and_never_shrinks(hosted):
    hosted.use("sh", "-c", "dd if=/dev/zero of=/dev/null bs=1000 count=1000 2>/dev/null; "
                           "echo done > done; exec sleep 600")  # fmt: skip
    hosted.start()
    hosted.file("done")
    seen = []
    for _ in range(2):
        hosted.host.measure_activity()
        seen.append(hosted.next(events.ActivityMeasured).counter)
    assert seen[0] > 0
    assert seen[1] >= seen[0]


# --- preflight ---------------------------------------------------------------------------


def preflight(hosted, *command, timeout=20.0):
    hosted.use("true", preflight=command, preflight_timeout=timeout)
    hosted.host.run_preflight()
    return hosted.posted.get(timeout=30)


def test_a_preflight_that_succeeds_passes(hosted):
    assert preflight(hosted, "true") == events.PreflightPassed()


def test_a_preflight_that_fails_says_its_last_line(hosted):
    failed = preflight(hosted, "sh", "-c", "echo first; echo 'no device found' >&2; exit 9")
    assert failed == events.PreflightFailed("sh ended with status 9: no device found")


def test_a_preflight_that_hangs_is_ended_whole(hosted):
    failed = preflight(
        hosted, "sh", "-c", "sleep 600 & echo $! > child; echo waiting; wait", timeout=0.5
    )
    assert failed == events.PreflightFailed("sh took longer than 0.5 s: waiting")
    assert not alive(int(hosted.file("child")))


def test_a_preflight_that_cannot_be_executed_says_why(hosted):
    failed = preflight(hosted, "no-such-command")
    assert "no-such-command" in failed.reason


def test_a_preflight_runs_as_the_trainers_user(hosted):
    needs_root()
    hosted.use("true", user="nobody")
    failed = preflight(hosted, "sh", "-c", "id -un; exit 1")
    assert failed.reason.endswith(": nobody")


def test_the_interpreter_of_the_tests_is_not_the_trainers_business(hosted):
    hosted.use(sys.executable, "-c", "import sys; print(sys.flags.isolated, sys.flags.no_site)")
    hosted.start()
    assert hosted.exited().last_lines == ("0 0",)


def test_a_death_for_want_of_memory_is_told_by_the_kernels_evidence(hosted):
    needs_root()
    group = Path(f"/sys/fs/cgroup/memory/spotd-test-oom-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no memory control group can be made here")
    try:
        (group / "memory.limit_in_bytes").write_text(str(48 << 20))
        hosted.use("sh", "-c", f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -c "
                               "'x = bytearray(300 << 20); print(len(x))'")  # fmt: skip
        pid = hosted.start()
        exited = hosted.exited()
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), what="the group to empty")
        group.rmdir()
    assert exited.signal == signal.SIGKILL
    assert exited.reason == f"out of memory: the kernel killed {exited.reason.split()[6]} ({pid})"
