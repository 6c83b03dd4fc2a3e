"""The charts of the page as Vega-Lite specifications, each with the rows that it draws."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from eval.page.gather import Shown

Row = dict[str, Any]
MOST = 400  # points of a line
BIN = 64  # tokens of a point of the loss by position
BANDS = 5  # of depth
STROKE: dict[str, Any] = {"legend": {"symbolType": "stroke"}}


class Chart(NamedTuple):
    """One chart: what it says, its rows, and how they are drawn."""

    key: str
    title: str
    note: str
    rows: list[Row]
    spec: dict[str, Any]


def field(name: str, title: str = "", kind: str = "quantitative", **more: Any) -> dict[str, Any]:
    scale = {"scale": {"zero": False}} if kind == "quantitative" else {}
    return {"field": name, "type": kind, "title": title or name, **scale, **more}


def lines(
    x: dict[str, Any], y: dict[str, Any], dash: str = "", points: bool = False
) -> dict[str, Any]:
    """Return lines of the runs, dashed by another field; with a point at each value, if asked."""
    encoding = {"x": x, "y": y, "color": field("run", kind="nominal", **STROKE)}
    if dash:
        encoding["strokeDash"] = field(dash, kind="nominal", **STROKE)
    drawn = {"mark": {"type": "line", "tooltip": True}, "encoding": encoding}
    return {"layer": [drawn, dots(x, y)]} if points else drawn


def dots(x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the runs as points, with the legend of the lines."""
    encoding = {"x": x, "y": y, "color": field("run", kind="nominal", **STROKE)}
    return {"mark": {"type": "point", "filled": True, "tooltip": True}, "encoding": encoding}


def cells(x: str, y: str, value: str, title: str, limits: tuple[float, float]) -> dict[str, Any]:
    """Return a heat map for each panel of the rows, with its numbers written in."""
    middle = sum(limits) / 2
    light = {
        "condition": {"test": f"datum['{value}'] > {middle}", "value": "#111"},
        "value": "#fff",
    }
    axes = {"x": field(x, kind="ordinal", sort=None), "y": field(y, kind="ordinal", sort=None)}
    color = {**field(value, title), "scale": {"scheme": "viridis", "domain": limits}}
    text = {**field(value), "format": ".2f"}
    body = {
        "width": 260,
        "height": {"step": 26},
        "layer": [
            {"mark": {"type": "rect", "tooltip": True}, "encoding": {**axes, "color": color}},
            {
                "mark": {"type": "text", "fontSize": 10},
                "encoding": {**axes, "text": text, "color": light},
            },
        ],
    }
    return panels(body)


def panels(body: dict[str, Any]) -> dict[str, Any]:
    """Return a chart for each panel of the rows, one below the other."""
    facet = {"field": "panel", "type": "nominal", "title": None, "sort": None}
    return {"facet": facet, "columns": 1, "spec": body}


def thin(rows: list[Row]) -> list[Row]:
    """Return at most `MOST` of the rows, evenly, and the last."""
    if len(rows) <= MOST:
        return rows
    step = len(rows) / MOST
    return [rows[int(i * step)] for i in range(MOST - 1)] + [rows[-1]]


def charts(shown: Sequence[Shown]) -> list[Chart]:
    """Return the charts for which some run has rows."""
    made = (
        loss(shown),
        bits(shown),
        *memories(shown),
        passages(shown),
        positions(shown),
        written(shown),
        needles(shown),
        forgetting(shown),
    )
    names = [run.name for run in shown]
    return [chart._replace(spec=colored(chart.spec, names)) for chart in made if chart.rows]


def colored(spec: Any, names: list[str]) -> Any:
    """Return the chart with one color for each run, the same in all charts."""
    if isinstance(spec, list):
        return [colored(part, names) for part in spec]
    if not isinstance(spec, dict):
        return spec
    found = {key: colored(part, names) for key, part in spec.items()}
    if spec.get("field") == "run":
        found["scale"] = {"domain": names}
    return found


# --- over training -------------------------------------------------------------------------------


def loss(shown: Sequence[Shown]) -> Chart:
    rows: list[Row] = []
    for run in shown:
        for kind, name in (("training", "loss"), ("held out", "valid_loss")):
            found = [line for line in run.log.lines if line.get(name) is not None]
            rows += thin(
                [
                    {"run": run.name, "step": line["step"], "of": kind, "loss": line[name]}
                    for line in found
                ]
            )
    curves = lines(field("step"), field("loss", "nats per token"), "of")
    few = dots(field("step"), field("loss", "nats per token"))
    few["transform"] = [{"filter": "datum.of == 'held out'"}]  # one alone is no line
    spec = {"layer": [curves, few]}
    note = "Nats per token; the held-out loss is of a fixed text."
    return Chart("loss", "Loss", note, rows, spec)


def bits(shown: Sequence[Shown]) -> Chart:
    rows: list[Row] = []
    for run in shown:
        found = [x for x in run.log.lines if x.get("valid_bits_per_byte") is not None]
        rows += thin(
            [
                {"run": run.name, "step": x["step"], "bits per byte": x["valid_bits_per_byte"]}
                for x in found
            ]
        )
    spec: dict[str, Any] = lines(field("step"), field("bits per byte"), points=True)
    trigram = {run.name: run.summary.get("trigram_bits_per_byte") for run in shown}
    known = {name: value for name, value in trigram.items() if value}
    note = "Held-out text; does not depend on the tokenizer. "
    if known and rows:
        rule = {
            "mark": {"type": "rule", "strokeDash": [4, 4], "tooltip": True},
            "data": {"values": [{"run": n, "trigram": v} for n, v in known.items()]},
            "encoding": {
                "y": field("trigram", "bits per byte"),
                "color": field("run", kind="nominal"),
            },
        }
        spec = {"layer": [spec, rule]}
        each = ", ".join(f"{value:.4f} ({name})" for name, value in known.items())
        if len({f"{value:.4f}" for value in known.values()}) == 1 and len(known) == len(shown):
            each = f"{next(iter(known.values())):.4f}"
        note += f"Dashed: a byte trigram model of the same text, {each}."
    else:
        note += "No run has recorded the line of the trigram model."
    return Chart("bits", "Bits per byte", note, rows, spec)


def memories(shown: Sequence[Shown]) -> Iterator[Chart]:
    """Yield writes, blocked writes and change of every level over training."""
    about = {
        "writes": ("Writes", "Chunks that wrote a level since the log line before, over all rows."),
        "blocked": ("Blocked writes", "Chunks that the surprise gate kept from a level."),
        "change": ("Change", "Size of the fast weights over that of the slow ones."),
    }
    for name, (title, note) in about.items():
        rows: list[Row] = []
        for run in shown:
            levels = dict.fromkeys(
                key.split("/")[1]
                for line in run.log.lines
                for key in line
                if key.startswith("teach/level") and key.endswith(f"/{name}")
            )
            for level in levels:
                found = [x for x in run.log.lines if x.get(f"teach/{level}/{name}") is not None]
                rows += thin(
                    [
                        {
                            "run": run.name,
                            "step": x["step"],
                            "level": level,
                            title: x[f"teach/{level}/{name}"],
                        }
                        for x in found
                    ]
                )
        yield Chart(name, title, note, rows, lines(field("step"), field(title), "level"))


# --- of one text ---------------------------------------------------------------------------------


def passages(shown: Sequence[Shown]) -> Chart:
    """What a passage costs less when it comes again, by the distance (`eval repeat`)."""
    rows: list[Row] = []
    for run in shown:
        for name, group in run.results.get("repeat", {}).get("metrics", {}).items():
            text, _, distance = name.rpartition("@")
            for memory, found in (("never written", group), ("written", group.get("memorized"))):
                if found:
                    rows.append(
                        {
                            "panel": f"text: {text}",
                            "run": run.name,
                            "distance": int(distance),
                            "memory": memory,
                            "gain": found["gain"],
                            "low": found["gain_interval"][0],
                            "high": found["gain_interval"][1],
                        }
                    )
    distance = field("distance", "tokens between", kind="ordinal")
    gain = field("gain", "bits per token saved")
    bars = lines(distance, field("low", "bits per token saved"), "memory")
    bars["encoding"]["y2"] = {"field": "high"}
    bars["mark"] = {"type": "rule"}
    body = {"width": 260, "layer": [lines(distance, gain, "memory", True), bars]}
    note = (
        "What the second reading of a passage saves against a control that has not read it, "
        "by the distance between the readings; bars are 95 % over passages."
    )
    return Chart("repeat", "A passage again", note, rows, panels(body))


def positions(shown: Sequence[Shown]) -> Chart:
    rows: list[Row] = []
    for run in shown:
        tokens = run.results.get("inspect", {}).get("detail", {}).get("tokens", {})
        for name, kind in (("loss_without", "never written"), ("loss", "written")):
            values = tokens.get(name, [])
            for at in range(0, len(values), BIN):
                part = values[at : at + BIN]
                rows.append(
                    {
                        "run": run.name,
                        "token": at + len(part) // 2,
                        "memory": kind,
                        "loss": sum(part) / len(part),
                    }
                )
    spec = lines(
        field("token", "token of the text"), field("loss", "nats per token"), "memory", True
    )
    note = f"Means of {BIN} tokens of the text below, read with its memories and without."
    return Chart("positions", "Loss by position", note, rows, spec)


def written(shown: Sequence[Shown]) -> Chart:
    rows: list[Row] = []
    for run in shown:
        for chunk in run.results.get("inspect", {}).get("detail", {}).get("chunks", []):
            for name, what in chunk["memories"].items():
                rows.append(
                    {
                        "run": run.name,
                        "token": chunk["to"],
                        "memory": name,
                        "change": what["change"],
                        "norm": what.get("norm"),
                        "writes": what.get("writes"),
                        "blocked": what.get("blocked"),
                    }
                )
    spec = lines(field("token", "token of the text"), field("change"), "memory")
    note = "Size of what the memory holds after each chunk, over that of its start."
    return Chart("written", "What was written into each memory", note, rows, spec)


# --- of tasks ------------------------------------------------------------------------------------


def needles(shown: Sequence[Shown]) -> Chart:
    rows: list[Row] = []
    for run in shown:
        for task in ("niah", "passkey"):
            items = run.results.get(task, {}).get("items", [])
            groups = dict.fromkeys(item["group"] for item in items if "depth" in item)
            for group, band in itertools.product(groups, range(BANDS)):
                name, _, length = group.rpartition("@")
                hits = [
                    item["correct"]
                    for item in items
                    if item["group"] == group and int(item["depth"] * BANDS - 1e-9) == band
                ]
                if hits:
                    rows.append(
                        {
                            "panel": f"{run.name}: {name}",
                            "tokens": int(length),
                            "depth": f"from {100 * band // BANDS} %",
                            "answered": sum(hits) / len(hits),
                            "needles": len(hits),
                        }
                    )
    spec = cells("tokens", "depth", "answered", "share answered", (0.0, 1.0))
    return Chart("needles", "Needles", "Share answered exactly, by length and depth.", rows, spec)


def forgetting(shown: Sequence[Shown]) -> Chart:
    rows: list[Row] = []
    for run in shown:
        table = run.results.get("continual", {}).get("metrics", {}).get("matrix", {})
        for i, stage in enumerate(table.get("stages", [])):
            for j, segment in enumerate(table["segments"]):
                rows.append(
                    {
                        "panel": run.name,
                        "after": f"{i}: {stage}",
                        "segment": segment,
                        "loss": table["loss"][i][j],
                    }
                )
    losses = [row["loss"] for row in rows] or [0.0]
    limits = (min(losses), max(losses))
    spec = cells("segment", "after", "loss", "nats per token", limits)
    note = "Held-out loss of each segment after each stage, in nats per token."
    return Chart("forgetting", "Forgetting", note, rows, spec)
