"""The page, put together."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from spotd.bill.parts import PARTS
from spotd.cli.cost import UNKNOWN, dollars, duration, hours, lost_in, savings, steps_lost
from spotd.core.status import age
from spotd.core.words import megabytes
from spotd.report import charts
from spotd.report.escaping import escape
from spotd.report.style import STYLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spotd.bill.parts import Interruption
    from spotd.bill.reckoning import Bill, Prices
    from spotd.core.checkpoint import StoredCheckpoint
    from spotd.report.gather import Story

MOST_ROWS = 40  # of a table; the newest
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_HEADS = ("", "action", "save", "store", "off", "boot", "restore", "first step", "lost")


def page(story: Story) -> str:
    """Returns the whole file."""
    body = [_head(story), _tiles(story)]
    if story.records:
        body.append(_section("Timeline", charts.timeline(story) + _timeline_legend()))
    loss = charts.loss(story)
    if loss:
        body.append(_section("Loss", loss + _loss_legend()))
    elif charts.steps(story):
        body.append(_section("Steps", charts.steps(story)))
    if story.bill is not None and story.bill.interruptions:
        body.append(_section("Interruptions", _interruptions(story.bill.interruptions)))
    if story.bill is not None:
        body.append(_section("Cost", _cost(story.bill, story.prices)))
    if story.checkpoints:
        body.append(_section("Checkpoints in the store", _checkpoints(story.checkpoints)))
    body += [f'<p class="note">Missing: {escape(t)}</p>' for t in story.troubles]
    title = escape(f"{story.run} - spotd")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inner}</section>"


def _head(story: Story) -> str:
    kind, state = "", "stopped"
    if story.complete:
        kind, state = "good", "complete"
    elif story.bill is not None and story.bill.running:
        kind, state = "live", "running"
    elif story.bill is None:
        state = "not started"
    when = time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(story.now))
    span = ""
    if story.bill is not None:
        first = time.strftime("%Y-%m-%d %H:%M", time.localtime(story.bill.first))
        boots = _many(story.bill.boots, "boot")
        span = f"since {first}, {boots} on {_many(story.bill.instances, 'instance')}; "
    return (
        f'<header><h1>{escape(story.run)}</h1><span class="state {kind}">{state}</span></header>'
        f'<p class="when">{span}as of {escape(when)}</p>'
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# --- tiles ---------------------------------------------------------------------------


def _tiles(story: Story) -> str:
    bill = story.bill
    tiles = []
    if bill is not None:
        tiles.append(("trained", hours(bill.trained), f"of {duration(bill.up)} up"))
        told = sum(1 for i in bill.interruptions if i.action)
        count = len(bill.interruptions)
        tiles.append(("interruptions", str(count), f"{told} with notice" if count else ""))
        seconds = UNKNOWN if bill.lost_seconds is None else f"{age(bill.lost_seconds)} of training"
        tiles.append(("steps repeated", steps_lost(bill), seconds))
        tiles.append(("paid", dollars(bill.paid).replace(" to $", "\u2013"), _saved(bill)))
    if story.points:
        last = max(story.points, key=lambda p: p.time)
        loss = f"loss {last.loss:.4g}" if last.loss is not None else ""
        tiles.append(("last step", f"{last.step}", loss))
    newest = story.checkpoints[-1] if story.checkpoints else None
    if newest is not None:
        ago = age(story.now - newest.created)
        tiles.append(
            ("checkpoints", str(len(story.checkpoints)), f"in the store, newest {ago} old")
        )
    cells = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<small>{escape(more)}</small></div>"
        for name, value, more in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _saved(bill: Bill) -> str:
    saved = savings(bill)
    if saved is None or bill.on_demand is None or bill.on_demand.low <= 0:
        return ""
    return f"{100 * saved.low / bill.on_demand.low:.0f} % less than on demand"


# --- legends -------------------------------------------------------------------------


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 18 12" aria-hidden="true">{mark}</svg>{escape(text)}</li>'
        for mark, text in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _timeline_legend() -> str:
    return _legend(
        (
            ('<rect class="trained" y="1" width="18" height="10"/>', "training"),
            ('<rect class="up" y="1" width="18" height="10"/>', "up, not training"),
            ('<path class="notice" d="M9 11l-4.5 -8h9z"/>', "interruption notice"),
            ('<path class="false" d="M9 11l-4.5 -8h9z"/>', "notice not carried out"),
            ('<path class="cut" d="M5 2l8 8m0 -8l-8 8"/>', "down without warning"),
            ('<path class="kept" d="M9 1v10"/>', "checkpoint stored"),
        )
    )


def _loss_legend() -> str:
    return _legend(
        (
            ('<path class="line" d="M0 6h18"/>', "in the weights"),
            ('<path class="again" d="M0 6h18"/>', "lost, trained again"),
            ('<path class="resume" d="M9 1v10"/>', "resumed here"),
        )
    )


# --- tables --------------------------------------------------------------------------


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    top = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    head = f"<thead><tr>{top}</tr></thead>" if any(heads) else ""
    table = f'<table class="{kind}">{head}<tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _interruptions(found: Sequence[Interruption]) -> str:
    rows = []
    for i in found[-MOST_ROWS:]:
        when = time.strftime("%d %b %H:%M", time.localtime(i.at))
        parts = ["-" if v is None else _part(v) for v in (getattr(i, p) for p in PARTS)]
        rows.append((when, i.action or "no notice", *parts, lost_in(i)))
    more = len(found) - len(rows)
    note = f'<p class="note">and {more} before these</p>' if more else ""
    return _table(_HEADS, rows) + note


def _part(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else age(seconds)  # noqa: PLR2004 - tenths matter


def _cost(bill: Bill, prices: Prices) -> str:
    def by(source: str) -> str:
        return f", by {source}" if source else ""

    unpriced = f"; {UNKNOWN} for {age(bill.unpriced)} without a price" if bill.unpriced else ""
    paid = dollars(bill.paid) + (by(prices.spot_source) if bill.paid is not None else "")
    plain = dollars(bill.on_demand) + (
        by(prices.on_demand_source) if bill.on_demand is not None else ""
    )
    rows = [
        ("Paid for instances", paid + unpriced),
        ("First hours not billed", f"{dollars(bill.credit)}, taken off already"),
        ("The same hours on demand", plain),
        ("Saved", dollars(savings(bill))),
    ]
    if bill.off.high is None or bill.off.high > 0:
        rows.append(("Disks while stopped", f"{dollars(bill.disk)} in {duration(bill.off)}"))
    notes = "".join(
        f'<p class="note">Not looked up: {escape(reason)}</p>' for reason in prices.why_not
    )
    return _table((), [r for r in rows if r[1] != "$0.00, taken off already"], "bill") + notes


def _checkpoints(found: Sequence[StoredCheckpoint]) -> str:
    rows = [
        (
            c.id,
            "-" if c.step is None else str(c.step),
            megabytes(c.size),
            time.strftime("%d %b %H:%M", time.localtime(c.created)),
            c.instance_id,
        )
        for c in reversed(found[-MOST_ROWS:])
    ]
    return _table(("", "step", "size", "made", "by"), rows)
