"""`spotd report`: one page that needs nothing, and that a real browser shows as it should."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from spotd.bill.reckoning import Prices, reckon
from spotd.cli import main
from spotd.core.checkpoint import StoredCheckpoint
from spotd.core.curve import Point
from spotd.core.ledger import BootRecord, NoticeRecord, parse
from spotd.report.axes import Axis, round_powers, round_steps, round_times, short
from spotd.report.charts import lines_of, resumes
from spotd.report.gather import MOST_POINTS, Story, points_of, stored_of
from spotd.report.page import page

H = 3600.0
NASTY = '<script>alert("x")</script>&\'"'


def boots(count):
    found = []
    for n in range(count):
        b = BootRecord(
            "mono", f"i-{NASTY}" if n % 2 else "i-1", f"b{n}", "interrupted", "g5.xlarge",
            "us-east-1a", "us-east-1", "spot", booted=n * 6 * H + 1e9, began=n * 6 * H + 1e9 + 9,
            started=n * 6 * H + 1e9 + 20, seen=n * 6 * H + 1e9 + 5 * H, spot_price=0.4,
        )  # fmt: skip
        at = b.seen - 60
        b.notices.append(NoticeRecord(NASTY, at, at + 105, at, at + 4, at + 20, at + 21))
        found.append(b)
    return found


def story(count=3, points=400):
    records = boots(count)
    now = records[-1].seen + 10
    last = records[-1]
    bill = reckon(
        records, Prices(on_demand={"g5.xlarge": 1.0}, why_not=(NASTY,)), now=now,
        running=(last.instance_id, last.boot_id),
    )  # fmt: skip
    curve = tuple(
        Point(1e9 + 60 * n, 1 + n // 150, n - 20 * (n // 150), 0.5 + 4 * math.exp(-n / 50))
        for n in range(points)
    )
    checkpoint = StoredCheckpoint(
        f"00000001-{NASTY}", 1, 1, NASTY, "file", 2_000_000_000, 7, 1e9 + H, 0, NASTY
    )
    stored = ((1e9 + H, NASTY),)
    return Story(NASTY, now, tuple(records), bill, Prices(), curve, stored, (checkpoint,), False,
                 (NASTY,))  # fmt: skip


class Reader(HTMLParser):
    """Notes what a page is made of, and whether every element is closed."""

    VOID = frozenset({"meta", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("href", "src", "action", "xlink:href")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_the_page_needs_no_network_and_runs_nothing():
    text = page(story())
    found = read(text)
    assert found.links == []
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(found.tags)
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|https?://", text)


def test_whatever_others_wrote_is_shown_and_nothing_else():
    found = read(page(story()))
    assert "script" not in found.tags
    assert any(NASTY in text for text in found.text)


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("points", [0, 1, 2, 400])
def test_any_amount_of_history_makes_a_page(count, points):
    found = read(page(story(count, points)))
    assert found.tags.count("h1") == 1
    assert ("polyline" in found.tags) == (points >= 2)


def test_a_run_of_which_nothing_is_known_has_a_page_too():
    assert "not started" in page(Story("mono", 1e9))


def test_steps_are_shown_where_no_loss_is_reported():
    blind = tuple(Point(1e9 + n, 1, n, None) for n in range(10))
    assert "Steps over time" in page(Story("mono", 1e9 + 20, points=blind))


def test_the_verb_writes_the_file_and_says_where(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    ledger = tmp_path / "state/mono/ledger"
    ledger.mkdir(parents=True)
    record = boots(1)[0]
    (ledger / record.name).write_bytes(record.to_bytes())
    (tmp_path / "spotd.toml").write_text(
        f"""
        run = "mono"
        trainer = {{command = "x", directory = "/"}}
        checkpoints = {{directory = "c"}}
        store = {{url = "file://{tmp_path}/store"}}
        paths = {{state = "{tmp_path}/state", runtime = "{tmp_path}/run"}}
        """
    )
    assert main(["report", "--offline", "--config", "spotd.toml"]) == 0
    assert capsys.readouterr().out == "mono.html\n"
    assert "<h1>mono</h1>" in (tmp_path / "mono.html").read_text()
    main(["report", "--offline", "--config", "spotd.toml", "--output", "-"])
    assert capsys.readouterr().out.startswith("<!doctype html>")


# --- what is drawn -------------------------------------------------------------------


def test_what_was_trained_again_is_a_line_of_its_own():
    first = [Point(n, 1, n, 1.0) for n in range(10)]
    second = [Point(20 + n, 2, 6 + n, 1.0) for n in range(10)]
    found = [(kind, [p.step for p in line]) for kind, line in lines_of(first + second)]
    assert found[0] == ("line", list(range(6)))
    assert found[1] == ("again", list(range(5, 10)))
    assert found[2] == ("line", list(range(6, 16)))
    assert [p.step for p in resumes(first + second)] == [6]


def curve_of(boot, first_step, began, count=10):
    """A boot's record with a curve, as it is read back from the store."""
    record = BootRecord("mono", f"i-{boot}", boot, booted=began, began=began, seen=began + 100.0)
    for n in range(count):
        record.plot(Point(began + 2.0 * n, 1, first_step + n, 1.0))
    return parse(record.to_bytes(), "mono")


def test_the_loss_of_other_machines_comes_from_their_records_and_attempts_stay_apart():
    records = [curve_of("a", 0, 1000.0), curve_of("b", 8, 2000.0), curve_of("c", 17, 3000.0)]
    dense = [Point(2000.0 + n, 1, 8 + n, 1.0) for n in range(20)]
    # From a laptop all of it is the records'; on b's machine b's own file is used instead.
    assert [p.step for p in points_of([], records, [])] == [
        *range(10),
        *range(8, 18),
        *range(17, 27),
    ]
    found = points_of(dense, records, [records[1]])
    assert [p.step for p in found] == [*range(10), *range(8, 28), *range(17, 27)]
    kinds = [(kind, [p.step for p in line]) for kind, line in lines_of(found)]
    assert kinds[:2] == [("line", list(range(8))), ("again", [7, 8, 9])]
    assert [p.step for p in resumes(found)] == [8, 17]


def test_many_boots_make_a_picture_of_bounded_size_with_every_attempt_in_it():
    records = [curve_of(f"b{n}", n * 100, 1000.0 * n + 1, count=100) for n in range(100)]
    found = points_of([], records, [])
    assert len(found) <= MOST_POINTS + len(records)
    assert len({p.boot for p in found}) == len(records)
    assert found[-1].step == 99 * 100 + 99


def test_checkpoints_deleted_by_now_were_stored_all_the_same_and_marks_are_bounded():
    entries = [{"event": "checkpoint_stored", "checkpoint": "a", "time": 5.0}, {"event": "x"}]
    kept = StoredCheckpoint("b", 2, 1, "b", "file", 1, None, 9.0, 0, "i-1")
    assert stored_of(entries, [kept]) == ((5.0, "a"), (9.0, "b"))
    many = [
        {"event": "checkpoint_stored", "checkpoint": str(n), "time": float(n)} for n in range(5000)
    ]
    assert len(stored_of(many, ())) <= 500


def test_axes_carry_round_numbers():
    assert round_steps(0, 9.7, 5) == [0, 2, 4, 6, 8]
    assert round_steps(3, 3, 5) == [3]
    assert round_powers(0.02, 30, 6) == pytest.approx([0.1, 1, 10])
    labels = [label for _, label in round_times(0, 7200, 5)]
    assert len(labels) in (4, 5)
    assert [short(v) for v in (0, 12000, 1.5e6, 0.25)] == ["0", "12k", "1.5M", "0.25"]


def test_a_value_beyond_the_axis_stays_in_the_picture():
    axis = Axis(0, 10, 100, 200)
    assert [axis.at(v) for v in (-5, 0, 5, 10, 99)] == [100, 100, 150, 200, 200]
    assert Axis(3, 3, 100, 200).at(3) == 150
    assert Axis(0.01, 100, 0, 100, log=True).at(1) == 50


# --- in a real browser ---------------------------------------------------------------

FRAMES = """<body><iframe id="a" src="page.html" width="{width}" height="900"></iframe>
<pre id="said"></pre><script>
onload = () => {{
  const d = document.getElementById("a").contentDocument, e = d.documentElement;
  const small = [...d.querySelectorAll("svg text")].filter(t => t.getClientRects().length)
    .map(t => t.getBoundingClientRect().height);
  const shown = [...d.querySelectorAll(".wide, .narrow")].filter(x => x.offsetParent)
    .map(x => x.className);
  document.getElementById("said").textContent = JSON.stringify({{
    overflow: e.scrollWidth - e.clientWidth, text: Math.min(...small), shown: [...new Set(shown)]
  }});
}};
</script></body>"""


@pytest.mark.parametrize(("width", "shown"), [(320, "narrow"), (390, "narrow"), (1280, "wide")])
def test_a_real_browser_shows_it_without_scrolling_sideways_and_with_letters_one_can_read(
    tmp_path, width, shown
):
    import json

    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs chromium: apt-get install chromium")
    (tmp_path / "page.html").write_text(page(story()))
    (tmp_path / "frame.html").write_text(FRAMES.format(width=width))
    done = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu",
         f"--user-data-dir={tmp_path}/profile", "--allow-file-access-from-files", "--dump-dom", f"file://{tmp_path}/frame.html"],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    found = re.search(r'<pre id="said">(\{.*?\})</pre>', done.stdout)
    if found is None:
        pytest.skip(f"chromium does not run here: {done.stderr[-300:]}")
    told = json.loads(found[1].replace("&quot;", '"'))
    assert told["overflow"] == 0
    assert told["shown"] == [shown]
    assert told["text"] >= 10
