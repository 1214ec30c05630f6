/** @file Style of report.html, light and dark. Lines have the colours of Okabe and Ito, told apart by most eyes. */
export const style = `
:root { --back: #fff; --fore: #1c2024; --soft: #60666d; --rule: #e2e5e9; --c1: #0072b2; --c2: #d55e00; --c3: #7a7f85; --c4: #00845f; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171a; --fore: #e6e8ea; --soft: #9aa1a9; --rule: #2c3137; --c1: #56b4e9; --c2: #f0883e; --c3: #9aa1a9; --c4: #2fc39a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem; background: var(--back); color: var(--fore); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .8rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
p { color: var(--soft); margin: .8rem 0 .4rem; }
.cards { display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; margin: 0; list-style: none; }
.cards li { border: 1px solid var(--rule); border-radius: 6px; padding: .4rem .8rem; color: var(--soft); font-size: .8rem; }
.cards b { display: block; color: var(--fore); font-size: 1.05rem; font-variant-numeric: tabular-nums; }
.charts, .maps, .small { display: grid; gap: .8rem; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); }
.maps { grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); }
svg { display: block; width: 100%; height: auto; border: 1px solid var(--rule); border-radius: 6px; font: 10px system-ui, sans-serif; fill: var(--soft); }
.title { fill: var(--fore); font-size: 11.5px; font-weight: 600; } .end { text-anchor: end; } .middle, .none { text-anchor: middle; }
.tick { font-variant-numeric: tabular-nums; } .grid { stroke: var(--rule); }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; } .dashed { stroke-dasharray: 4 3; } .band { opacity: .2; } .heat { fill: var(--c1); }
.line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); } .line.c3 { stroke: var(--c3); } .line.c4 { stroke: var(--c4); }
.band.c1, .dot.c1 { fill: var(--c1); } .band.c2, .dot.c2 { fill: var(--c2); } .band.c3, .dot.c3 { fill: var(--c3); } .band.c4, .dot.c4 { fill: var(--c4); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; } th { color: var(--soft); font-weight: 600; }
pre { border: 1px solid var(--rule); border-radius: 6px; padding: .8rem; overflow-x: auto; font-size: .8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; } dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
`;
