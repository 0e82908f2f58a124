"""`spotd status`: what the one status line cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spotd.cli.common import add_options, control_socket, print_json, settings_of
from spotd.core.status import SILENT, age
from spotd.core.words import megabytes, readable
from spotd.errors import EXIT_DONE
from spotd.shell.control import ask

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Any) -> None:
    """Adds the verb to the command line."""
    add_options(verbs.add_parser("status", help="how the run is doing"))


def run(options: argparse.Namespace) -> int:
    """Prints the status of the running daemon."""
    settings = settings_of(options)
    answer = next(ask(control_socket(settings), "status"))
    if options.json:
        print_json(answer["data"])
    else:
        print(render(answer["data"]))
    return EXIT_DONE


def render(s: dict[str, Any]) -> str:
    """Returns the status as text."""
    t, c, i = s["trainer"], s["checkpoint"], s["interruption"]
    rows = [
        ("run", f"{s['run']} on {s['instance_id']}"),
        ("state", f"{s['state']} since {s['since']}" + (f": {s['reason']}" if s["reason"] else "")),
    ]
    if t["pid"] is not None:
        adopted = ", adopted" if t["adopted"] else ""
        rows.append(
            ("trainer", f"pid {t['pid']}, attempt {s['attempt']}, started {t['started']}{adopted}")
        )
    if t["step"] is not None:
        of = f" of {t['total_steps']}" if t["total_steps"] else ""
        loss = f", loss {t['loss']:.4g}" if t["loss"] is not None else ""
        rows.append(("step", f"{t['step']}{of}{loss}"))
    rows += _checkpoint_rows(c)
    rows.append(("store", _store(s["store"])))
    if i is not None:
        rows.append(("notice", f"{i['action']} at {i['deadline']}, {i['seconds_left']:.0f} s left"))
    rows.append(("metadata", _imds(s["imds"])))
    n = s["counts"]
    rows.append(
        (
            "so far",
            (
                f"{n['interruptions']} interruptions, {n['not_carried_out']} not carried out, "
                f"{n['restarts']} restarts, {n['crashes']} crashes, {s['lost_steps']} steps lost"
            ),
        )
    )
    text = "\n".join(f"{name:>10}  {readable(value)}" for name, value in rows)
    if t["last_lines"]:
        text += "\n\nlast lines of the trainer that ended:\n  " + "\n  ".join(
            map(readable, t["last_lines"])
        )
    return text


def _checkpoint_rows(c: dict[str, Any]) -> list[tuple[str, str]]:
    newest = c["newest"]
    if newest is None:
        return [("checkpoint", "none yet")]
    step = f", step {newest['step']}" if newest["step"] is not None else ""
    where = "in the store" if newest["stored"] else "NOT in the store yet"
    size = megabytes(newest["size"])
    rows = [("checkpoint", f"{newest['name']}{step}, {size}, {newest['created']}, {where}")]
    if c["upload"] is not None:
        u = c["upload"]
        share = 100 * u["sent"] // max(1, u["size"])
        silent = u.get("quiet", 0.0)
        quiet = f", nothing acknowledged for {age(silent)}" if silent >= SILENT else ""
        rows.append(("upload", f"{u['id']}: {share} % of {megabytes(u['size'])}{quiet}"))
    if c["fits_notice"] is False:
        save = c.get("seconds_to_save")
        saving = "" if save is None else f"saving takes {save:.0f} s and "
        text = f"{saving}storing {c['seconds_to_store']:.0f} s: more than a notice leaves"
        rows.append(("WARNING", text))
    return rows


def _store(store: dict[str, Any]) -> str:
    if store["status"] == "refused":
        return f"run held by {store['holder']}"
    if store["reason"]:
        hint = f" ({store['hint']})" if store["hint"] else ""
        return f"does not answer: {store['reason']}{hint}"
    if store["status"] != "open":
        return "not asked yet"
    damaged = store.get("damaged")
    passed_over = f", passed over as damaged: {', '.join(damaged)}" if damaged else ""
    kept = f"{len(store['checkpoints'])} checkpoints, lease generation {store['generation']}"
    return kept + passed_over


def _imds(m: dict[str, Any]) -> str:
    if m["blind_since"]:
        return f"BLIND since {m['blind_since']}: {m['reason']}"
    text = f"answered {m['last_ok']}" if m["last_ok"] else "no answer yet"
    return f"{text}; rebalance recommended {m['rebalance']}" if m["rebalance"] else text
