"""Dashboard and alerts, by the real tools' checkers, and against the figures there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from spotd.core.metrics import families
from spotd.core.state import Now, Policy, State
from spotd.core.tally import Tally

MONITORING = Path(__file__).resolve().parents[2] / "packaging/monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())


@pytest.fixture
def promtool():
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("needs promtool: apt-get install prometheus")

    def run(*words, cwd=MONITORING):
        done = subprocess.run(
            [found, *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def expressions():
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["expr"]


def test_prometheus_takes_the_alerts(promtool):
    promtool("check", "rules", "alerts.yaml")


def test_the_alerts_fire_when_they_should_and_not_before(promtool):
    promtool("test", "rules", "alerts_test.yaml")


def test_prometheus_understands_every_question_of_the_dashboard(promtool, tmp_path):
    rules = [
        {"record": f"panel:{n}", "expr": e.replace("$instance", ".*")}
        for n, e in enumerate(expressions())
    ]
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "d", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yaml")


def test_grafanas_own_model_knows_every_field_of_the_dashboard():
    model = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    read = json.loads(JSONEncoder().encode(model.Dashboard.from_json(DASHBOARD)))
    # The model is of every data source; these two are Prometheus's own.
    own = {".annotations.list[0].titleFormat", ".annotations.list[0].step"}
    assert set(missing(DASHBOARD, read)) == own


def missing(wanted, found, place=""):
    """Where what was read back lacks something, or has it changed."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for name, value in wanted.items():
            if name in found:
                yield from missing(value, found[name], f"{place}.{name}")
            else:
                yield f"{place}.{name}"
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for n, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from missing(one, other, f"{place}[{n}]")
    elif wanted != found:
        yield place


def test_alerts_and_dashboard_ask_only_for_figures_that_exist_and_states_that_are_one():
    state = State(policy=Policy(), run="r")
    there_are = {m.name for m in families(state, Tally(), Now(0.0, 0.0))}
    texts = [(MONITORING / "alerts.yaml").read_text(), *expressions()]
    asked = {name for text in texts for name in re.findall(r"\bspotd_[a-z_]+", text)}
    assert asked <= there_are
    states = {s["state"] for m in families(state, Tally(), Now(0.0, 0.0)) for s, _ in m.samples
              if "state" in s}  # fmt: skip
    named = re.findall(r'state=~?"([^"]+)"', "\n".join(texts))
    assert {s for each in named for s in each.split("|")} <= states


def test_no_two_panels_of_the_dashboard_overlap():
    taken = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]
    ids = [p["id"] for p in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_document_names_every_metric_and_no_other():
    text = (MONITORING.parents[1] / "docs/monitoring.md").read_text()
    rows = re.findall(r"^\| `(spotd_\w+)(?:\{[a-z,]+\})?` \| (\w+) \| (.*) \|$", text, re.MULTILINE)
    found = families(State(policy=Policy(), run="r"), Tally(), Now(0.0, 0.0))
    assert rows == [(m.name, m.kind, m.help) for m in found]


def test_the_document_names_every_alert():
    text = (MONITORING.parents[1] / "docs/monitoring.md").read_text()
    alerts = re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yaml").read_text())
    assert re.findall(r"^\| `(Spotd\w+)` \|", text, re.MULTILINE) == alerts
