"""Who is told what: each once, later when there was no time, at nobody's expense."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from spotd.cli import main
from spotd.core.actions import Announce
from spotd.shell.clouds import InstanceIdentity
from spotd.shell.messages import messenger
from spotd.shell.messages.messenger import Messenger
from spotd.shell.messages.send import Addresses, Delivery
from spotd.shell.messages.spool import LONGEST_WAIT, MOST, Spool
from spotd.shell.messages.words import Teller
from spotd.testing.stage import wait_until

TOLD = InstanceIdentity("i-1", "g5.xlarge", "us-east-1a", "us-east-1", "spot")


class Hook:
    """A webhook on loopback that takes, refuses, or hangs."""

    def __init__(self):
        self.heard, self.status, self.hang = [], 200, threading.Event()
        self.hanging = False
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if hook.hanging:
                    hook.hang.wait(30)
                    return
                if hook.status == 200:
                    hook.heard.append((json.loads(body), self.headers["Idempotency-Key"]))
                self.send_response(hook.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/SECRET"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def texts(self):
        return [body["text"] for body, _ in self.heard]


@pytest.fixture
def hook():
    found = Hook()
    yield found
    found.hang.set()
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def dead():
    """A URL where nobody listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    url = f"http://127.0.0.1:{server.server_port}/services/SECRET"
    server.server_close()
    return url


def make(tmp_path, url=None, topic=None, file=None):
    settings = SimpleNamespace(webhook_url=url, webhook_url_file=file, sns_topic_arn=topic)
    lines = []
    found = Messenger(lambda: settings, tmp_path / "messages", Teller("mono"), lines.append)
    found.lines, found.settings = lines, settings
    return found


def notice(wall=None):
    said = {"action": "stop", "seconds_left": 105, "step": 7}
    line = Announce("interruption_notice", "", 4, said)
    return line, time.time() if wall is None else wall


def turn_until(found, condition, what):
    wait_until(lambda: found.tick() is None or condition(), within=30, what=what)


# --- what is told --------------------------------------------------------------------


def words(teller, name, wall=0.0, **fields):
    return teller.words_for(Announce(name, "", 6, fields), wall, TOLD, "i-1")


def test_a_notice_names_instance_step_and_time_left():
    text = words(Teller("mono"), "interruption_notice", action="stop", seconds_left=105, step=41)
    assert text == "mono: stop notice on i-1 (g5.xlarge, us-east-1a) at step 41, 105 s left; saving"


def test_a_resume_is_told_after_a_boot_and_not_after_a_crash():
    teller = Teller("mono")
    assert words(teller, "trainer_started") is None, "a first start"
    words(teller, "interruption_notice", 100.0, action="stop", seconds_left=105)
    words(teller, "boot_classified", 800.0, boot="interrupted")
    text = words(teller, "trainer_started", 820.0, checkpoint="0007-x.pt", step=41)
    assert "12 min" in text
    assert "0007-x.pt (step 41)" in text
    assert words(teller, "trainer_started", 900.0, checkpoint="0007-x.pt") is None, "a crash"


def test_completion_is_told_once_also_over_restarts():
    teller = Teller("mono")
    assert words(teller, "completed") is not None
    again = Teller("mono")
    again.remember({"run": "mono", "completed": True, "returning": "", "gone": None}, alive=0.0)
    assert words(again, "completed") is None


def test_giving_up_is_told_without_what_the_trainer_printed():
    line = Announce("gave_up", "gave up: token=hunter2", 3)
    assert "hunter2" not in Teller("mono").words_for(line, 0.0, TOLD, "i-1")


def test_what_happens_all_the_time_is_told_to_nobody():
    for name in ("checkpoint_seen", "checkpoint_stored", "store_failed", "trainer_exited"):
        assert words(Teller("mono"), name) is None


# --- how it gets there ---------------------------------------------------------------


def test_a_message_arrives_once_as_slack_wants_it(tmp_path, hook):
    found = make(tmp_path, hook.url)
    found.teller.run = "<!channel> & co"
    found.take(*notice(), TOLD, "i-1")
    turn_until(found, lambda: found.lines, "the message")
    assert len(hook.heard) == 1
    assert hook.texts()[0].startswith("&lt;!channel&gt; &amp; co: stop notice")
    assert [line.name for line in found.lines] == ["message_sent"]
    assert found.spool.waiting() == []
    assert found.tick() > 10, "nothing more to do"


def test_an_endpoint_that_comes_back_gets_everything_in_order_and_once(tmp_path, hook, monkeypatch):
    monkeypatch.setattr(messenger, "LONGEST_PAUSE", 0.05)
    hook.status = 503
    found = make(tmp_path, hook.url)
    for n in range(3):
        found.teller.run = f"run-{n}"
        found.take(*notice(), TOLD, "i-1")
    turn_until(found, lambda: found.lines, "the trouble")
    hook.status = 200
    turn_until(found, lambda: not found.spool.waiting(), "an empty spool")
    assert [t[:5] for t in hook.texts()] == ["run-0", "run-1", "run-2"]
    assert len({key for _, key in hook.heard}) == 3
    failed = [line for line in found.lines if line.name == "message_failed"]
    assert len(failed) == 1, "said once, however often it was tried"


def test_nobody_ever_reads_the_url_in_a_line(tmp_path, dead, hook):
    for url, status in ((dead, 200), (hook.url, 403), (hook.url, 302)):
        hook.status = status
        found = make(tmp_path / f"{status}{url == dead}", url)
        (tmp_path / f"{status}{url == dead}").mkdir()
        found.take(*notice(), TOLD, "i-1")
        turn_until(found, lambda found=found: found.lines, "the trouble")
        assert "SECRET" not in str(found.lines)
        assert found.lines[0].priority == 4
    assert hook.heard == [], "a redirection is not followed"


def test_the_url_is_on_no_command_line(tmp_path, hook):
    hook.hanging = True
    found = make(tmp_path, hook.url)
    found.take(*notice(), TOLD, "i-1")
    found.tick()
    pid = found._helper.pid
    try:
        command = wait_until(
            lambda: (c := Path(f"/proc/{pid}/cmdline").read_text()) and "messages.send" in c and c,
            within=10, what="the helper",
        )  # fmt: skip
        assert "SECRET" not in command
        assert "SECRET" not in Path(f"/proc/{pid}/environ").read_text()
    finally:
        found._helper.kill()
        found._helper.wait()


def test_what_found_no_time_before_the_machine_went_is_sent_after_the_boot(tmp_path, hook):
    before = make(tmp_path, hook.url)
    before.take(*notice(time.time() - 3600), TOLD, "i-1")
    after = make(tmp_path, hook.url)
    turn_until(after, lambda: after.lines, "the message")
    assert len(hook.heard) == 1
    assert "(it was " in hook.texts()[0], "it says that it is late"


def test_two_helpers_never_send_the_same(tmp_path, hook):
    """A daemon was killed while its helper was at work; the next one's finds the lock taken."""
    found = make(tmp_path, hook.url)
    found.take(*notice(), TOLD, "i-1")
    orders = json.dumps({"spool": str(tmp_path / "messages"), "webhook_url": hook.url})
    with (tmp_path / "messages/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.run(
            [sys.executable, "-m", "spotd.shell.messages.send"],
            input=orders, text=True, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    assert (second.returncode, second.stdout) == (75, "")
    assert hook.heard == []
    assert len(found.spool.waiting()) == 1


def test_a_helper_that_hangs_is_ended_and_the_message_kept(tmp_path, hook, monkeypatch):
    monkeypatch.setattr(messenger, "PATIENCE", 0.5)
    hook.hanging = True
    found = make(tmp_path, hook.url)
    found.take(*notice(), TOLD, "i-1")
    turn_until(found, lambda: found.lines, "the trouble")
    assert found.lines[0].name == "message_failed"
    assert len(found.spool.waiting()) == 1


def test_a_url_in_a_file_is_read_at_each_sending(tmp_path, hook, dead, monkeypatch):
    monkeypatch.setattr(messenger, "LONGEST_PAUSE", 0.05)
    path = tmp_path / "url"
    path.write_text(dead + "\n")
    found = make(tmp_path, file=path)
    found.take(*notice(), TOLD, "i-1")
    turn_until(found, lambda: found.lines, "the trouble")
    path.write_text(hook.url + "\n")
    turn_until(found, lambda: hook.heard, "the message")


def test_nothing_is_kept_when_nobody_is_to_be_told(tmp_path):
    found = make(tmp_path)
    found.take(*notice(), TOLD, "i-1")
    assert found.tick() > 10
    assert not (tmp_path / "messages").exists()


# --- the spool and a pass over it, alone ---------------------------------------------


def deliver(spool, addresses, now=None):
    told = []
    done = Delivery(spool, addresses, told.append, time.time() if now is None else now).run()
    return done, told


def test_one_channel_that_fails_does_not_repeat_the_other(tmp_path, hook, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_SNS", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    spool = Spool(tmp_path / "s")
    spool.add("completed", "done", time.time(), ("webhook", "sns"))
    both = Addresses(hook.url, None, "arn:aws:sns:us-east-1:123456789012:t")
    for _ in range(2):
        done, told = deliver(spool, both)
        assert not done
        assert told[-1]["channel"] == "sns"
        assert not told[-1]["ok"]
    assert hook.texts() == ["done"]
    assert [m.to for m in spool.waiting()] == [("sns",)]


def test_a_channel_that_is_configured_no_more_is_not_waited_for(tmp_path, hook):
    spool = Spool(tmp_path / "s")
    spool.add("completed", "done", time.time(), ("webhook", "sns"))
    assert deliver(spool, Addresses(hook.url))[0]
    assert hook.texts() == ["done"]


def test_old_news_is_dropped_after_a_day_and_that_is_told(tmp_path, dead):
    spool = Spool(tmp_path / "s")
    spool.add("gave_up", "x", 1000.0, ("webhook",))
    done, told = deliver(spool, Addresses(dead), 1000.0 + LONGEST_WAIT + 1)
    assert done
    assert told[-1] == {"event": "gave_up", "channel": "webhook", "dropped": True}


def test_the_spool_is_bounded_and_foreign_files_are_passed_over(tmp_path):
    spool = Spool(tmp_path / "s")
    for n in range(MOST + 5):
        spool.add("completed", str(n), 1000.0 + n, ("webhook",))
    (tmp_path / "s/00000000000000000001-abcdef.webhook.json").write_text("[]")
    (tmp_path / "s/other.json").write_text("{}")
    texts = [m.text for m in spool.waiting()]
    assert texts == [str(n) for n in range(5, MOST + 5)]


def test_an_sns_topic_gets_the_message(tmp_path, account):
    sns, sqs = account.client("sns"), account.client("sqs")
    topic = sns.create_topic(Name="training")["TopicArn"]
    queue = sqs.create_queue(QueueName="q")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn["Attributes"]["QueueArn"])
    spool = Spool(tmp_path / "s")
    spool.add("interruption_notice", "mono: stop notice", time.time(), ("sns",))
    assert deliver(spool, Addresses(sns_topic_arn=topic)) == (
        True, [{"event": "interruption_notice", "channel": "sns", "ok": True}]
    )  # fmt: skip
    (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
    body = json.loads(message["Body"])
    assert body["Message"] == "mono: stop notice"
    assert body["Subject"] == "spotd: interruption_notice"


def test_a_topic_the_role_may_not_use_is_told_with_the_action(tmp_path, account, monkeypatch):
    topic = account.client("sns").create_topic(Name="training")["TopicArn"]
    for name, value in account.user_who_may("ec2:DescribeInstances").items():
        monkeypatch.setenv(name, value)
    account.policies_count()
    spool = Spool(tmp_path / "s")
    spool.add("completed", "x", time.time(), ("sns",))
    done, told = deliver(spool, Addresses(sns_topic_arn=topic))
    assert not done
    assert f"sns:Publish on {topic}" in told[0]["hint"]


# --- the verb ------------------------------------------------------------------------


@pytest.fixture
def configuration(tmp_path):
    def write(notify):
        path = tmp_path / "spotd.toml"
        path.write_text(
            f"""
            run = "mono"
            notify = {notify}
            trainer = {{command = "x", directory = "/"}}
            checkpoints = {{directory = "c"}}
            store = {{url = "file:///x"}}
            """
        )
        return str(path)

    return write


def test_the_test_message_is_sent_at_once(configuration, hook, capsys):
    assert main(["notify-test", "--config", configuration(f'{{webhook_url = "{hook.url}"}}')]) == 0
    assert hook.texts()[0].startswith("mono: a test message")
    assert capsys.readouterr().out == "webhook: told\n"


def test_a_test_message_that_nobody_takes_fails_with_the_reason(configuration, hook, capsys):
    hook.status = 410
    path = configuration(f'{{webhook_url = "{hook.url}"}}')
    assert main(["notify-test", "--json", "--config", path]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["channels"][0]["reason"] == "the webhook answers 410"
    assert main(["notify-test", "--config", configuration("{}")]) == 1
    assert "notify.webhook_url_file" in capsys.readouterr().err
