"""How the page looks, by day and by night, on a desk and in a hand."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1d2126; --soft: #5d6670; --rule: #e2e5e9;
  --up: #c3cdd9; --trained: #2a6fdb; --notice: #c8321f; --kept: #1d7f4e; --again: #c8321f;
  --shade: rgb(0 0 0 / .18);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1c2025; --ink: #e7eaee; --soft: #9aa4af; --rule: #2e343b;
    --up: #414c59; --trained: #5f9cff; --notice: #ff7a66; --kept: #4cc38a; --again: #ff7a66;
    --shade: rgb(255 255 255 / .22);
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1024px; margin: 0 auto; padding: 28px 16px 56px; }
header { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.08rem; margin: 0 0 10px; }
.state { font-size: .82rem; font-weight: 600; padding: 2px 10px; border-radius: 99px;
  border: 1px solid currentColor; color: var(--soft); }
.state.good { color: var(--kept); } .state.live { color: var(--trained); }
.when { color: var(--soft); margin: 4px 0 20px; }
section, .tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
section { padding: 16px; margin-top: 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile { padding: 12px 14px; }
.tile b { display: block; font-size: 1.32rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .86rem; }
.tile small { display: block; color: var(--soft); font-size: .8rem; line-height: 1.35; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .name { fill: var(--ink); }
.grid { stroke: var(--rule); fill: none; }
.up { fill: var(--up); } .trained { fill: var(--trained); }
.notice { fill: var(--notice); } .false { fill: none; stroke: var(--soft); }
.cut { stroke: var(--notice); stroke-width: 2; fill: none; }
.kept { stroke: var(--kept); stroke-width: 1.5; fill: none; }
.line { fill: none; stroke: var(--trained); stroke-width: 1.6; stroke-linejoin: round; }
.again { fill: none; stroke: var(--again); stroke-width: 1.6; stroke-dasharray: 4 3; }
.resume { stroke: var(--ink); stroke-width: 1.5; fill: none; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0 0; padding: 0;
  list-style: none; color: var(--soft); font-size: .84rem; }
.legend svg { display: inline-block; width: 18px; height: 12px; vertical-align: -1px;
  margin-right: 6px; }
.narrow { display: none; }
/* A shade at the edge beyond which there are more columns; the covers move with the table. */
.scroll { overflow-x: auto; background:
  linear-gradient(to right, var(--card) 50%, transparent) 0 0 / 32px 100% no-repeat local,
  linear-gradient(to left, var(--card) 50%, transparent) 100% 0 / 32px 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) 0 0 / 14px 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) 100% 0 / 14px 100% no-repeat scroll; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: .8rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:last-child, th:last-child { padding-right: 0; }
tr:last-child td { border-bottom: 0; }
.bill td { white-space: normal; vertical-align: top; }
.bill td:first-child { width: 28%; }
.bill td { text-align: left; }
.note { color: var(--soft); font-size: .86rem; margin: 10px 0 0; overflow-wrap: anywhere; }
.name-of { max-width: 22ch; overflow: hidden; text-overflow: ellipsis; }
@media (max-width: 640px) {
  main { padding: 18px 12px 40px; }
  h1 { font-size: 1.35rem; }
  section { padding: 14px 12px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px; }
  .tile { padding: 10px 12px; } .tile b { font-size: 1.1rem; }
  .wide { display: none; } .narrow { display: block; }
  table { font-size: .84rem; } th, td { padding: 6px 7px; }
}
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } }
"""
