"""Style and script of the page. Colors follow the reader's light or dark setting."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --soft: #59636e;
  --line: #d1d9e0; --panel: #f6f8fa; --gain: 26, 127, 55; --loss: 207, 34, 46; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #e6edf3; --soft: #9198a1;
  --line: #3d444d; --panel: #151b23; --gain: 63, 185, 80; --loss: 248, 81, 73; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
nav a { margin-right: .9rem; display: inline-block; } a { color: inherit; }
p.note { margin: .2rem 0 .6rem; color: var(--soft); }
.chart { width: 100%; } .wide { overflow-x: auto; }
.chart.vega-embed { display: block; width: 100%; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--soft); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--line); padding: .2rem .5rem; text-align: left;
  vertical-align: top; white-space: nowrap; }
th { background: var(--panel); }
pre, .text { font: .85rem/1.6 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; background: var(--panel); border: 1px solid var(--line);
  padding: .6rem; border-radius: .3rem; max-height: 32rem; overflow-y: auto; }
.text i { font-style: normal; } .text i.g { background: rgba(var(--gain), var(--a)); }
.text i.l { background: rgba(var(--loss), var(--a)); } .text i:hover { outline: 1px solid; }
.number { min-height: 1.5em; font-size: .85rem; color: var(--soft); }
.key { padding: 0 .4rem; } .g.key { background: rgba(var(--gain), .5); }
.l.key { background: rgba(var(--loss), .5); }
"""

SCRIPT = """
(function () {
  const dark = window.matchMedia('(prefers-color-scheme: dark)');
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function config() {
    const text = css('--text'), line = css('--line'), words = 'system-ui, sans-serif';
    const axis = {labelColor: text, titleColor: text, gridColor: line, domainColor: line,
                  tickColor: line};
    const names = {labelColor: text, titleColor: text};
    return {background: 'transparent', font: words, axis: axis, header: names,
            legend: Object.assign({orient: 'bottom', columns: 2, labelLimit: 240}, names),
            view: {stroke: 'transparent'}, title: {color: text}};
  }
  function draw() {
    return Promise.all(Array.from(document.querySelectorAll('.chart')).map(place => {
      const spec = JSON.parse(document.getElementById(place.id + '-spec').textContent);
      return vegaEmbed(place, spec, {actions: false, renderer: 'svg', config: config()});
    })).then(() => { document.documentElement.dataset.drawn = dark.matches ? 'dark' : 'light'; });
  }
  document.querySelectorAll('details.numbers').forEach(part => { part.open = false; });
  draw();
  dark.addEventListener('change', draw);
  document.querySelectorAll('.text').forEach(text => text.addEventListener('click', event => {
    const found = event.target.closest('i'), said = text.parentNode.querySelector('.number');
    if (found && said) { said.textContent = found.title; }
  }));
})();
"""
