"""The page: sections of charts with their numbers as tables, texts by token, configuration."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from eval.core.report import number
from eval.page.assets import SCRIPT, STYLE
from eval.page.charts import Chart, charts
from eval.page.gather import Shown, differing, flatten
from nested_jax.errors import import_extra

STRONG = 2.0  # nats of gain or loss whose color is full
TABLE_ROWS = 200  # of a table; the file of the run has all


def page(shown: Sequence[Shown], command: str) -> str:
    """Return the page as one HTML text that needs nothing else."""
    bundle = import_extra("vl_convert", "eval", "to draw charts").javascript_bundle()
    drawn = charts(shown)
    sections = [overview(shown), *map(chart_section, drawn)]
    sections += [texts(shown), samples(shown), absent(shown, drawn), setup(shown, command)]
    found = [section for section in sections if section]
    links = "".join(
        f'<a href="#{part.split(chr(34))[1]}">{part.split("<h2>")[1].split("</h2>")[0]}</a>'
        for part in found
    )
    title = escape(", ".join(run.name for run in shown))
    script = bundle.replace("</script", "<\\/script")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>'
        f"<body><h1>{title}</h1><nav>{links}</nav>{''.join(found)}"
        f"<script>{script}</script><script>{SCRIPT}</script></body></html>\n"
    )


def section(key: str, title: str, *parts: str) -> str:
    return f'<section id="{key}"><h2>{escape(title)}</h2>{"".join(parts)}</section>\n'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    head = "".join(f"<th>{escape(str(x))}</th>" for x in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell(x))}</td>' for x in row)}</tr>" for row in rows
    )
    thead = f"<thead><tr>{head}</tr></thead>"
    return f'<div class="wide"><table>{thead}<tbody>{body}</tbody></table></div>'


def cell(value: Any) -> str:
    return "" if value is None else number(value)


def folded(title: str, body: str, kind: str = "numbers") -> str:
    """Return what can be opened; it is open until a script closes it."""
    return f'<details class="{kind}" open><summary>{escape(title)}</summary>{body}</details>'


def data(value: Any) -> str:
    """Return JSON that can stand inside a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


# --- sections ------------------------------------------------------------------------------------

SUMMARY = (
    "step",
    "train_loss",
    "valid_loss",
    "valid_bits_per_byte",
    "trigram_bits_per_byte",
    "parameters",
    "tokens",
    "tokens_per_s",
    "seconds",
    "peak_memory_bytes",
)


def overview(shown: Sequence[Shown]) -> str:
    rows = []
    for run in shown:
        last = run.log.lines[-1]
        own = {**{k: last.get(k) for k in SUMMARY}, **run.summary}
        block = run.config["model"].get("block", "")
        rows.append([run.name, block, *(own.get(key) for key in SUMMARY)])
    running = [run.name for run in shown if not run.summary]
    more = note(f"Not at its end, or it failed: {', '.join(running)}.") if running else ""
    return section("overview", "Runs", table(["run", "block", *SUMMARY], rows), more)


def chart_section(chart: Chart) -> str:
    width = {} if "facet" in chart.spec else {"width": "container", "height": 240}
    schema = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is fetched
    spec = {"$schema": schema, "data": {"values": chart.rows}, **width, **chart.spec}
    key = f"chart-{chart.key}"
    columns = list(dict.fromkeys(name for row in chart.rows for name in row))
    step = max(1, -(-len(chart.rows) // TABLE_ROWS))
    rows = chart.rows[::-step][::-1]
    title = "Numbers" if step == 1 else f"Numbers: every {step}th of {len(chart.rows):,} rows"
    body = table(columns, [[row.get(name) for name in columns] for row in rows])
    return section(
        chart.key,
        chart.title,
        note(chart.note),
        f'<div class="wide"><div class="chart" id="{key}" role="img" '
        f'aria-label="{escape(chart.title)}"></div></div>',
        f'<script type="application/json" id="{key}-spec">{data(spec)}</script>',
        folded(title, body),
    )


def texts(shown: Sequence[Shown]) -> str:
    """Return the inspected text of every run, each token colored by what memory gained there."""
    parts = []
    for run in shown:
        detail = run.results.get("inspect", {}).get("detail")
        if not detail:
            continue
        tokens = detail["tokens"]
        gains = tokens["gain"]
        said = f"{detail['text']}; on average {sum(gains) / len(gains):+.4f} nats per token"
        if not detail["memories"]:
            said += "; this model has no memory that is written"
        words = [token(tokens, i) for i in range(len(gains))]
        worst, best = (sorted(range(len(gains)), key=lambda i: s * gains[i])[:12] for s in (1, -1))
        listed = [
            [tokens["text"][i], i, *(tokens[k][i] for k in NUMBERS if k in tokens)]
            for i in (*best, *worst[::-1])
        ]
        header = ["token", "place", *(k for k in NUMBERS if k in tokens)]
        parts.append(
            f"<div><h3>{escape(run.name)}</h3>{note(said)}"
            f'<div class="text">{"".join(words)}</div><p class="number"></p>'
            + folded("The tokens that gained and lost the most", table(header, listed))
            + "</div>"
        )
    if not parts:
        return ""
    colors = (
        '<p class="note"><span class="g key">cheaper with memory</span> '
        '<span class="l key">dearer with memory</span> Hover or tap for the numbers.</p>'
    )
    return section("text", "Token by token", colors, *parts)


NUMBERS = ("loss_without", "loss", "gain", "surprise", "entropy")


def token(tokens: dict[str, list[Any]], i: int) -> str:
    gain = tokens["gain"][i]
    strength = round(min(abs(gain) / STRONG, 1.0) * 0.85, 2)
    numbers = ", ".join(f"{k.replace('_', ' ')} {tokens[k][i]:.3f}" for k in NUMBERS if k in tokens)
    color = f' class="{"g" if gain > 0 else "l"}" style="--a:{strength}"' if strength else ""
    return f'<i{color} title="{i}: {numbers}">{escape(tokens["text"][i])}</i>'


def samples(shown: Sequence[Shown]) -> str:
    parts = [
        f"<h3>{escape(run.name)}</h3><pre>{escape(prompt)}<b>{escape(text)}</b></pre>"
        for run in shown
        for prompt, text in run.samples
    ]
    said = note("What a model writes (bold) after the beginning of a text.")
    return section("samples", "Samples", said, *parts) if parts else ""


def absent(shown: Sequence[Shown], drawn: Sequence[Chart]) -> str:
    """Return how to make what is not there."""
    have = {chart.key for chart in drawn}
    run = shown[0].workdir
    how = {
        "repeat": f"python -m eval repeat --checkpoint {run} --memorize",
        "needles": f"python -m eval niah --checkpoint {run} --context-lengths 256,512",
        "forgetting": f"python -m eval continual --checkpoint {run} --segments LIST.yaml",
    }
    rows = [[key, command] for key, command in how.items() if key not in have]
    return section("absent", "Not measured", table(["section", "command"], rows)) if rows else ""


def setup(shown: Sequence[Shown], command: str) -> str:
    """Return configuration, device, versions and commands."""
    names = [run.name for run in shown]
    parts: list[str] = []
    rows: list[list[Any]] = []
    if len(shown) > 1:
        rows = [[field, *map(str, values)] for field, values in differing(shown).items()]
        parts.append("<h3>What differs</h3>" + table(["field", *names], rows))
    about = ("device", "git_commit", "valid_text_sha256", "train_order_sha256")
    rows = [[key, *(run.summary.get(key) for run in shown)] for key in about]
    versions = dict.fromkeys(itertools.chain(*(run.summary.get("versions", {}) for run in shown)))
    rows += [
        [key, *(run.summary.get("versions", {}).get(key) for run in shown)] for key in versions
    ]
    parts.append("<h3>Device and versions</h3>" + table(["", *names], rows))
    commands = [command, *(line for run in shown for line in commands_of(run))]
    parts.append("<h3>Commands</h3><pre>" + escape("\n".join(commands)) + "</pre>")
    fields = dict.fromkeys(name for run in shown for name in flatten(run.config))
    rows = [[name, *(str(flatten(run.config).get(name, "")) for run in shown)] for name in fields]
    parts.append(folded("The whole configuration", table(["field", *names], rows)))
    return section("setup", "Set-up", *parts)


def commands_of(run: Shown) -> list[str]:
    """Return the command of each result that is shown; the configuration is the run's."""
    kept = []
    for task, result in run.results.items():
        words = [f"python -m eval {task} --checkpoint {run.workdir}"]
        for key, value in result.get("options", {}).items():
            if value in (None, False, [], ""):
                continue
            flag = f"--{key.replace('_', '-')}"
            words.append(flag if value is True else f"{flag} {value}")
        kept.append(f"{' '.join(words)}   # {result['file']}")
    return kept
