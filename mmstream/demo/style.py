"""How the demo's report looks: one style sheet, for wide and narrow screens and for paper. Colours as in `figures`."""

STYLE = """
:root { --ink: #1b2430; --muted: #5d6875; --line: #dfe4ea; --panel: #f3f6f9; --blue: #0072b2; --orange: #d55e00;
  --green: #009e73; color-scheme: light; }
* { box-sizing: border-box; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
body { margin: 0 auto; max-width: 62rem; padding: 3rem 1.25rem 4rem; color: var(--ink); background: #fff;
  font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
section { margin-top: 3.5rem; } h1, h2, h3, h4 { line-height: 1.2; text-wrap: balance; }
h1 { font-size: clamp(1.7rem, 5vw, 2.6rem); margin: .2rem 0 .8rem; letter-spacing: -.02em; }
h2 { font-size: 1.45rem; margin: 0 0 .6rem; letter-spacing: -.01em; } h3 { font-size: 1.05rem; margin: 0 0 .7rem; }
h4 { font-size: .9rem; margin: 1.1rem 0 .5rem; font-weight: 600; color: var(--muted); } p { margin: 0 0 1rem; }
section > p { max-width: 44rem; } small, .note { color: var(--muted); font-size: .85rem; font-weight: 400; }
.eyebrow { color: var(--blue); font-weight: 600; margin: 0; } .lead { font-size: 1.15rem; max-width: 46rem; }
.headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem; margin-top: 1.8rem; }
.headline div { border-top: 3px solid var(--blue); background: var(--panel); padding: 1rem 1.2rem;
  border-radius: 0 0 6px 6px; }
.headline b { display: block; font-size: 2.2rem; line-height: 1.1; letter-spacing: -.02em; }
.headline span { display: block; margin: .25rem 0 .1rem; }
.path { list-style: none; margin: 1.2rem 0 .8rem; padding: 0; display: grid; gap: 1.6rem;
  grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.path li { position: relative; background: var(--panel); border-radius: 6px; padding: .9rem 1rem; }
.path li:not(:last-child)::after { content: "→"; position: absolute; right: -1.28rem; top: calc(50% - .8em);
  color: var(--muted); font-size: 1.1rem; }
.path .name { display: block; font-size: .85rem; color: var(--blue); font-weight: 600; }
.path b { display: block; font-size: 1.5rem; line-height: 1.3; letter-spacing: -.01em; }
.path .unit { display: block; font-size: .9rem; line-height: 1.3; margin-bottom: .25rem; }
.path small { display: block; }
.path p { font-size: .85rem; line-height: 1.4; margin: .5rem 0 0; }
.answer { margin-top: 1.6rem; break-inside: avoid; }
.answer h3 small { margin-left: .5em; white-space: nowrap; }
.hits .true img { border: 2px solid var(--green); } .hits .true small { color: var(--green); font-weight: 600; }
.hits small { font-size: .78rem; }
.hits { list-style: none; margin: 0; padding: 0; display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); }
.hits img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--panel);
  border: 1px solid var(--line); border-radius: 6px; margin-bottom: .3rem; }
.hits b { font-size: .9rem; } .hits p { color: var(--muted); font-size: .78rem; line-height: 1.35; margin: 0;
  overflow-wrap: anywhere; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4;
  overflow: hidden; }
.panels { display: grid; gap: 2rem 3rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.panel { break-inside: avoid; } .verdict { margin-top: 1rem; font-weight: 600; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: right; padding: .45rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; } thead th { color: var(--muted); font-weight: 400; } tr.chance td { color: var(--muted); }
th:first-child, td:nth-child(2), thead th:nth-child(2) { text-align: left; }
.next { list-style: none; padding: 0; margin: 0; } .next p { margin: 0 0 .3rem; }
pre { background: var(--panel); border-radius: 6px; padding: .7rem 1rem; margin: 0 0 1.2rem; overflow-x: auto;
  font: .88rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
footer { margin-top: 4rem; border-top: 1px solid var(--line); padding-top: 1rem; color: var(--muted);
  font-size: .82rem; }
footer p { margin: 0 0 .3rem; }
@media (max-width: 40rem) {
  body { padding-top: 1.6rem; font-size: 16px; } .path { grid-template-columns: 1fr; gap: 1.5rem; }
  th, td { padding: .4rem .35rem; font-size: .78rem; white-space: normal; } pre { white-space: pre-wrap; }
  .hits { grid-template-columns: repeat(4, 1fr); gap: .8rem .6rem; } .hits p { font-size: .7rem; }
  .path li:not(:last-child)::after { content: "↓"; right: auto; left: 50%; top: auto; bottom: -1.5rem; }
}
@media print {
  body { font-size: 11pt; padding: 0; max-width: none; } section { margin-top: 1.6rem; } pre { white-space: pre-wrap; }
}
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .55rem .8rem; align-items: center; }
.bars .name { color: var(--muted); font-size: .9rem; } .bars .value { font-weight: 600; text-align: right; }
.track { position: relative; height: 1.5rem; background: var(--panel); border-radius: 3px; }
.fill { position: absolute; inset: 0 auto 0 0; background: var(--blue); border-radius: 3px; }
.range { position: absolute; top: 50%; height: 2px; background: var(--ink); }
.mark { position: absolute; top: -.22rem; bottom: -.22rem; width: 0; border-left: 3px solid; }
.mark.chance { border-color: var(--orange); margin-left: -1px; } .mark.ceiling { border-color: var(--green);
  margin-left: -3px; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; color: var(--muted); font-size: .85rem; margin: .9rem 0 0;
  padding: 0; list-style: none; }
.legend i { display: inline-block; vertical-align: -.1em; margin-right: .45em; height: .9em; }
.legend .chance { border-left: 3px solid var(--orange); } .legend .ceiling { border-left: 3px solid var(--green); }
.legend .score { width: 1.4em; background: var(--blue); border-radius: 2px; }
.legend .interval { width: 1.4em; height: 2px; background: var(--ink); vertical-align: .25em; }
figure.curve { margin: 0 0 2.4rem; } figure.curve figcaption { font-weight: 600; margin-bottom: .5rem; }
.plot { position: relative; margin-left: 3.4rem; border-left: 1px solid var(--line);
  border-bottom: 1px solid var(--line); }
.plot svg { display: block; width: 100%; height: 100%; overflow: visible; }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.plot .raw { stroke: var(--blue); stroke-opacity: .3; stroke-width: 1; } .plot .mean { stroke: var(--blue);
  stroke-width: 2.2; }
.plot .grid { stroke: var(--line); stroke-width: 1; } .plot .level { stroke: var(--orange); stroke-width: 1.5;
  stroke-dasharray: 5 4; }
.plot span { position: absolute; color: var(--muted); font-size: .8rem; line-height: 1; white-space: nowrap; }
.plot .y { right: calc(100% + .45rem); transform: translateY(-50%); } .plot .x { top: calc(100% + .45rem);
  transform: translateX(-50%); } .plot .x.last { transform: translateX(-100%); }
.plot .about { right: .2rem; transform: translateY(-120%); color: var(--orange); }
"""
