"""Random bytes and cut files, for every format that is read: a named error, or what was written.

Never another exception, never a file outside of the folder, never longer than a few seconds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_data import synthetic_source
from tiny import tiny_config, write_data

from nested_jax.config import DataConfig
from nested_jax.data.__main__ import main
from nested_jax.data.manifest import SourceSpec
from nested_jax.data.pipeline import open_data
from nested_jax.data.prepare.text_sources import records
from nested_jax.data.records import Problems
from nested_jax.data.shards import open_store
from nested_jax.data.tokenizers.tokenizer import load_tokenizer
from nested_jax.errors import raised_here
from nested_jax.files import HeldError, read_owner
from nested_jax.models.lm import build_model
from nested_jax.models.state import load_state, save_state
from nested_jax.train.checkpoint import DamagedError, saved_meta
from nested_jax.train.mirror import Mirror

few = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Return a function that damages the bytes of a file: cut, flipped, inserted, replaced."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "replace", "double"]))
    place, noise = draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=40))

    def act(data: bytes) -> bytes:
        at = int(place * len(data))
        if kind == "cut":
            return data[:at]
        if kind == "flip":
            flipped = bytearray(data)
            if data:
                flipped[min(at, len(data) - 1)] ^= noise[0] or 1
            return bytes(flipped)
        if kind == "insert":
            return data[:at] + noise + data[at:]
        return noise if kind == "replace" else data + data

    return act


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format: shards, index, tokenizer, mixture, records, state, lock, mirror."""
    root = tmp_path_factory.mktemp("made")
    write_data(root / "shards")
    rows = [{"text": synthetic_source(i)} for i in range(20)]
    (root / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "m.py").write_text(
        "def get_manifest(arg=None):\n    return {'name': 'm', 'sources': [{'name': 'corpus', "
        f"'dataset': {str(root / 'good.jsonl')!r}, 'rules': 'none'}}]}}\n"
    )
    good = ("--dataset", str(root / "good.jsonl"))
    for command in (
        ("tokenizer", *good, "--output-dir", f"{root}/tok", "--vocab-size", "400"),
        ("shard", *good, "--tokenizer-path", f"{root}/tok", "--output-dir", f"{root}/s/corpus"),
        ("mixture", f"{root}/m.py", "--shards", f"{root}/s", "--output", f"{root}/mixture.json"),
    ):
        assert main(list(command)) == 0
    (root / "owner").write_text(json.dumps({"host": "a", "pid": 1}))
    meta = root / "step" / "meta"
    meta.mkdir(parents=True)
    (meta / "metadata").write_text(json.dumps({"sha256": "0", "body": {"step": 1}}))
    below = root / "mirror" / "checkpoints"
    (below / "3" / "meta").mkdir(parents=True)
    (below / "3" / "meta" / "metadata").write_text("{}")
    files = {"meta/metadata": [2, "0" * 64]}
    listed = {"run": "r", "step": 3, "metrics_sha256": "0", "files": files}
    (below / "3.json").write_text(json.dumps(listed))
    return root


def read_mirror(root: Path) -> None:
    cfg = tiny_config(root / "shards", {"train.mirror": str(root / "mirror")})
    Mirror(root / "run", str(root / "mirror"), lambda _: None).restore(cfg)


def read_records(root: Path) -> None:
    spec = SourceSpec(name="x", dataset=str(root / "good.jsonl"))
    for record in records(spec, Problems(spec), lambda _: None):
        assert record.text.encode("utf-8", "surrogatepass")


FORMATS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "shard": ("shards/code-train-00000.bin", lambda root: open_store(root / "shards")),
    "offsets": ("shards/code-train-00000.doc", lambda root: open_store(root / "shards")),
    "index": ("shards/index.json", lambda root: open_store(root / "shards")),
    "tokenizer": ("shards/tokenizer.model", lambda root: load_tokenizer(root / "shards")),
    "mixture": ("mixture.json", lambda root: open_data(DataConfig(source=f"{root}/mixture.json"))),
    "records": ("good.jsonl", read_records),
    "lock": ("owner", lambda root: read_owner(root / "owner")),
    "checkpoint": ("step/meta/metadata", lambda root: saved_meta(root / "step")),
    "mirror": ("mirror/checkpoints/3.json", read_mirror),
}
NAMED = (OSError, DamagedError, HeldError)  # besides a ValueError of ours


def outcome(read: Callable[[], Any]) -> str:
    """Return "read" or "named"; any other exception is a defect, and raised."""
    try:
        read()
    except NAMED:
        return "named"
    except ValueError as error:
        if not raised_here(error):
            raise
        return "named"
    return "read"


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_named_or_read(name: str, made: Path, tmp_path: Path) -> None:
    file, read = FORMATS[name]
    outcomes = {"read": 0, "named": 0}
    number = iter(range(10_000))

    @few
    @given(damage())
    def check(act: Callable[[bytes], bytes]) -> None:
        root = tmp_path / f"{name}{next(number)}" / "made"
        shutil.copytree(made, root)
        (root / file).write_bytes(act((root / file).read_bytes()))
        outcomes[outcome(lambda: read(root))] += 1
        assert [p.name for p in root.parent.iterdir()] == ["made"], "written outside"
        shutil.rmtree(root.parent)

    check()
    # A line that cannot be read costs that line, and is counted: data/records.py.
    assert outcomes["named"] > 0 or name == "records"


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    model = build_model(tiny_config(Path("nowhere"), {"model.layers": 1}).model)
    state = model.init_state(model.init(jax.random.key(0)), 2)
    save_state(tmp_path / "state.npz", state)
    good = (tmp_path / "state.npz").read_bytes()
    found: list[str] = []

    @few
    @given(damage())
    def check(act: Callable[[bytes], bytes]) -> None:
        (tmp_path / "state.npz").write_bytes(act(good))
        found.append(outcome(lambda: load_state(tmp_path / "state.npz", state)))

    check()
    assert "named" in found
