"""The page of runs: what stands on it, that every chart compiles, and how a browser shows it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
VEGA = importlib.util.find_spec("vl_convert") is not None
BROWSER = VEGA and bool(CHROMIUM) and importlib.util.find_spec("playwright") is not None
TEXT = ["def ", "f", "(x)", "</script>", ":\n"]


def result(task: str, name: str, **more: Any) -> dict[str, Any]:
    about = {"name": name, "step": 20, "block": "hope", "parameters": 9}
    return {"task": task, "subject": about, "metrics": {}, "seconds": 1.0, "device": "toy", **more}


def run(folder: Path, rate: float, written: bool) -> Path:
    """Write the workdir of a run that has ended, with results."""
    (folder / "eval").mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for step in range(1, 21):
        line = {"step": step, "tokens": 9 * step, "loss": 4 - step * rate, "step_s": 0.5}
        teach = {
            "teach/level0/writes": 3.0,
            "teach/level0/blocked": 1.0,
            "teach/level0/change": 0.1,
        }
        lines.append(line | (teach if written else {}))
    lines.append({"step": 20, "valid_loss": 3.0, "valid_bits_per_byte": 1.9})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"model": {"block": "hope"}, "optim": {"learning_rate": rate}, "data": {"source": "x"}}
    (folder / "config.json").write_text(json.dumps(config))
    summary = {"valid_loss": 3.0, "trigram_bits_per_byte": 2.7411, "versions": {"jax": "9"}}
    (folder / "summary.json").write_text(json.dumps(summary | {"device": "toy"}))
    gain = [0.5, -0.25, 0.0, 3.0, 0.125]
    tokens = {"text": TEXT, "id": list(range(5)), "gain": gain, "surprise": [1.0] * 5}
    tokens |= {"loss_without": [4.0] * 5, "loss": [4.0 - g for g in gain], "entropy": [2.0] * 5}
    row = {"cms_fast": {"writes": 1, "blocked": 0, "norm": 0.5, "change": 0.1}}
    detail = {"text": "own", "memories": ["cms_fast"], "tokens": tokens,
              "chunks": [{"from": 0, "to": 5, "memories": row}]}  # fmt: skip
    items = [
        {"id": str(i), "group": "s1@256", "depth": i / 9, "correct": i % 2 == 0} for i in range(10)
    ]
    matrix = {"stages": ["before", "a"], "segments": ["a", "b"], "loss": [[3.0, 3.5], [2.5, 3.75]]}
    saved = {"gain": 0.0, "gain_interval": [-0.125, 0.125]}
    wrote = {d: {"gain": 2.0 - d / 256, "gain_interval": [0.5, 2.5]} for d in (128, 256)}
    again = {f"run@{d}": {**saved, "memorized": wrote[d]} for d in wrote}
    for name, more in (
        ("repeat", {"metrics": again}),
        ("inspect", {"detail": detail}),
        ("niah", {"items": items}),
        ("continual", {"metrics": {"matrix": matrix}}),
    ):
        (folder / "eval" / f"{name}.json").write_text(json.dumps(result(name, folder.name, **more)))
    return folder


class Parts(HTMLParser):
    """Counts elements and the text of tables; keeps JSON, and what points elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.ids: list[str] = []
        self.specs: list[dict[str, Any]] = []
        self.outside: list[str] = []
        self.open: list[str] = []
        self.json = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.count[tag] += 1
        self.ids += [given["id"] or ""] if "id" in given else []
        self.json = given.get("type") == "application/json"
        links = [given.get(key) or "" for key in ("src", "href")]
        self.outside += [link for link in links if link and link[0] != "#" and link != "data:,"]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.json:
            self.specs.append(json.loads(data))
            self.json = False


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    runs = [str(run(folder / name, rate, written)) for name, rate, written in
            (("low", 0.01, True), ("high", 0.05, True), ("plain", 0.02, False))]  # fmt: skip
    assert main(["report", *runs, "--no-model", "--out", str(folder / "r.html")]) == 0
    return folder / "r.html"


NONE: dict[str, Any] = {"values": []}
CHARTS = ("loss", "bits", "writes", "blocked", "change")  # of training
CHARTS += ("repeat", "positions", "written", "needles", "forgetting")


@pytest.mark.skipif(not VEGA, reason="wants the extra eval")
def test_a_page_has_every_section_as_charts_and_as_tables(page: Path) -> None:
    text = page.read_text()
    found = Parts(text)
    assert not found.open
    assert not found.outside
    assert len(text) < 3e6
    assert [key for key in found.ids if key in CHARTS] == list(CHARTS)
    assert len(found.specs) == len(CHARTS)
    assert found.count["table"] >= len(CHARTS) + 4
    assert found.count["i"] == 3 * len(TEXT)
    assert 'class="g" style="--a:0.21" title="0: loss without 4.000, loss 3.500, gain 0.500' in text
    assert 'class="l" style="--a:0.11"' in text
    assert "&lt;/script&gt;</i>" in text
    assert "model of the same text, 2.7411." in text
    assert re.search(r"<td>optim.learning_rate</td><td>0.01</td><td>0.05</td>", text)
    loss = {
        (row["run"], row["step"], row["of"]): row["loss"]
        for row in found.specs[0]["data"]["values"]
    }
    assert loss["high", 20, "training"] == 4 - 20 * 0.05
    assert loss["high", 20, "held out"] == 3.0
    assert {row["run"] for row in found.specs[2]["data"]["values"]} == {"low", "high"}
    saved = {
        (row["distance"], row["memory"]): row["gain"]
        for row in found.specs[5]["data"]["values"]
        if row["run"] == "low"
    }
    assert saved == {(128, "never written"): 0, (128, "written"): 1.5,
                     (256, "never written"): 0, (256, "written"): 1.0}  # fmt: skip
    bands = {row["depth"]: row["answered"] for row in found.specs[8]["data"]["values"]}
    assert len(bands) == 5
    assert bands["from 0 %"] == 0.5


@pytest.mark.skipif(not VEGA, reason="wants the extra eval")
def test_every_chart_compiles(page: Path) -> None:
    import vl_convert

    for spec in Parts(page.read_text()).specs:
        drawn = {**spec, "width": 300} if spec.get("width") == "container" else spec
        marks = len(re.findall("<path", vl_convert.vegalite_to_svg(drawn)))
        assert marks > len(re.findall("<path", vl_convert.vegalite_to_svg({**drawn, "data": NONE})))


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="wants Chromium, and the extras eval and browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it(page: Path, scheme: str, width: int, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        size = {"width": width, "height": 900}
        tab = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: said.append(request.url) if "file:" not in request.url and
               not request.url.startswith("data:") else None)  # fmt: skip
        tab.goto(page.as_uri())
        tab.wait_for_function("document.documentElement.dataset.drawn")
        assert tab.evaluate("document.documentElement.dataset.drawn") == scheme
        assert tab.locator(".chart svg").count() == len(CHARTS)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert not tab.locator("details.numbers[open]").count()
        back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
        tab.locator(".text i").nth(3).click()
        assert "gain 3.000" in tab.locator(".number").first.inner_text()
        tab.emulate_media(color_scheme="dark" if scheme == "light" else "light")
        other = "dark" if scheme == "light" else "light"
        tab.wait_for_function(f"document.documentElement.dataset.drawn == '{other}'")
        browser.close()
        plain = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = plain.new_context(java_script_enabled=False).new_page()
        tab.goto(page.as_uri())
        assert tab.locator("details.numbers[open] table").count() >= len(CHARTS)
        plain.close()
    assert said == []


@pytest.mark.parametrize(
    ("words", "want"),
    [
        ("ODD --out ODD/a.html", "no {odd}/metrics.jsonl"),
        ("ODD --out ODD/a.txt", "--out='{odd}/a.txt': wants a name that ends with .html"),
        ("ODD --out ODD/a.html --max-tokens 1", "--max-tokens=1: wants 2 or more"),
    ],
)
def test_what_is_no_run(words: str, want: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "eval").mkdir()
    assert main(["report", *words.replace("ODD", str(tmp_path)).split()]) == 2
    said = capsys.readouterr().err
    assert want.format(odd=tmp_path) in said or (not VEGA and "vl_convert is not installed" in said)
