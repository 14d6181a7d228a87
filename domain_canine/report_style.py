"""The look of the report: no requests, light and dark, from 320 pixels on."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1b1f24; --soft: #59636e; --line: #dfe3e8; --grid: #e8ebef;
  --train: #0067a8; --validation: #c24a00; --bar: #4a90c2; --hot: 222, 92, 16;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1216; --card: #181c22; --text: #e6e9ed; --soft: #9aa4b0; --line: #2c333c; --grid: #262c34;
    --train: #58b4f0; --validation: #ff9a52; --bar: #3d86ba; --hot: 214, 86, 12;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; font-variant-numeric: tabular-nums;
}
main { max-width: 1080px; margin: 0 auto; padding: 28px 16px 48px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 10px; }
h3 { font-size: 14px; margin: 0 0 6px; }
p { margin: 0 0 12px; max-width: 92ch; overflow-wrap: anywhere; }
footer { margin-top: 36px; }
.soft { color: var(--soft); font-size: 13px; }
.grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.grid + .card, .card + .grid, .card + .card { margin-top: 12px; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); margin: 18px 0 0; }
.tiles div, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.grid > .card { margin-top: 0; }
.tiles b { display: block; font-size: 20px; line-height: 1.3; font-weight: 600; }
.tiles .soft { display: block; line-height: 1.35; }
.card { min-width: 0; overflow-x: auto; }
.warning { border-left: 4px solid var(--validation); }
figure { margin: 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid var(--grid); vertical-align: baseline; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
tr:last-child td { border-bottom: 0; }
th:last-child, td:last-child { padding-right: 0; }
.n { text-align: right; }
td { overflow-wrap: break-word; }
code, .domain { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
code { font-size: 13px; }
.domain { font-size: 14px; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--soft); }
svg .mark { stroke: var(--soft); stroke-dasharray: 3 3; }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
polyline.training { stroke: var(--train); } circle.training { fill: var(--train); }
polyline.validation { stroke: var(--validation); stroke-dasharray: 6 3; } circle.validation { fill: var(--validation); }
rect.bar { fill: var(--bar); } rect.few { opacity: .4; }
.legend { display: flex; gap: 16px; margin-bottom: 6px; }
.legend i { display: inline-block; width: 20px; margin-right: 6px; vertical-align: 4px; }
.legend .training { border-top: 2px solid var(--train); }
.legend .validation { border-top: 2px dashed var(--validation); }
.columns { columns: 280px; column-gap: 32px; }
.row { display: grid; grid-template-columns: 20px 1fr 52px 72px; gap: 8px; align-items: center; break-inside: avoid; }
.row { padding: 1px 0; font-size: 14px; }
.row span { text-align: right; }
.track { height: 10px; background: var(--grid); border-radius: 2px; }
.track i { display: block; height: 100%; background: var(--bar); border-radius: 2px; }
s { text-decoration: none; padding: 2px 0; }
.s1 { background: rgba(var(--hot), .15); }
.s2 { background: rgba(var(--hot), .3); }
.s3 { background: rgba(var(--hot), .45); }
.s4 { background: rgba(var(--hot), .6); }
.s5 { background: rgba(var(--hot), .78); }
.scale { display: flex; flex-wrap: wrap; gap: 4px 8px; align-items: center; margin-bottom: 10px; }
.scale s { padding: 0 8px; border-radius: 2px; border: 1px solid var(--line); color: var(--text); }
mark { background: none; color: inherit; font-weight: 700; border-bottom: 2px solid var(--validation); }
.guess { display: inline-block; white-space: nowrap; margin-right: 14px; }
.right { font-weight: 700; }
details { margin-top: 8px; }
@media (max-width: 480px) {
  svg text { font-size: 15px; }
  table { font-size: 13px; }
  th, td { padding-right: 8px; }
  td:first-child { overflow-wrap: anywhere; }
}
summary { cursor: pointer; color: var(--soft); font-size: 13px; }
"""
