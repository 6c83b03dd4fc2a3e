"""Configurations of earlier versions: read as they were meant, or refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from nested_jax.config import from_saved, load_config
from nested_jax.config.legacy import REMOVED, RENAMED
from nested_jax.config.schema import difference, leaves, to_dict

# What a run of version 0.1.0 before the bounds stood at the fields wrote beside its checkpoints.
# Fields that had one value, and have one for each level or head now.
ONE_EACH = ("model.cms.optimizer", "model.cms.momentum", "model.memory.keep_init")
SAVED = json.loads((Path(__file__).parent / "saved_0.1.0.json").read_text())


def flat(data, path=""):
    for name, value in data.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def changed(**fields):
    saved = copy.deepcopy(SAVED)
    for name, value in fields.items():
        block, _, leaf = name.rpartition("__")
        target = saved
        for part in block.split("__"):
            target = target[part]
        target[leaf] = value
    return saved


def test_a_saved_configuration_is_read_as_it_was_meant():
    cfg = from_saved(SAVED)
    now = dict(leaves(cfg))
    kept = {name: value for name, value in flat(SAVED) if name in now}
    for name, value in kept.items():
        got = list(now[name]) if isinstance(now[name], tuple) else now[name]
        if name in ONE_EACH:
            value = [value]
        assert got == value, name
    assert cfg.optim.matrix_learning_rate == SAVED["optim"]["muon_learning_rate"] == 0.03
    gone = {name for name, _ in flat(SAVED)} - set(kept)
    assert gone == set(REMOVED) | set(RENAMED)
    assert from_saved(to_dict(cfg)) == cfg


def test_documents_start_where_they_started():
    """Rows were cut at multiples of the model's largest chunk; data.align says so now."""

    def align(saved):
        return from_saved(saved, aligned=False).data.align

    assert SAVED["data"]["align"] == 0
    assert align(SAVED) == 8  # teach.chunk
    assert align(changed(teach__mode="off")) == 1
    assert align(changed(data__align=16)) == 16
    synthetic = changed(data__source="synthetic", teach__mode="off")
    synthetic["data"]["task"]["train"] = ["copy,count=4"]
    assert align(synthetic) == 0  # a row is one document
    assert from_saved(SAVED).data.align == 0


def test_the_fall_of_the_teach_scale_is_one_field():
    cfg = from_saved(changed(teach__decay_start=7, teach__decay_steps=3))
    assert cfg.teach.decay == (7, 3)
    assert from_saved(SAVED).teach.decay == ()


@pytest.mark.parametrize("name", [n for n, gone in REMOVED.items() if gone.value is not None])
def test_a_removed_field_at_another_value_is_refused(name):
    other = {int: 3, float: 0.5, str: "other"}[type(REMOVED[name].value)]
    with pytest.raises(ValueError, match=rf"^{name}=.*an earlier version saved this; .* removed; "):
        from_saved(changed(**{name.replace(".", "__"): other}))


@pytest.mark.parametrize("name", [n for n, gone in REMOVED.items() if gone.value is None])
def test_a_removed_field_that_was_not_computed_is_dropped(name):
    changes = {name.replace(".", "__"): 3, "teach__decay_steps": 0}
    assert difference(from_saved(SAVED), from_saved(changed(**changes))) == []


@pytest.mark.parametrize("name", [*REMOVED, *RENAMED])
def test_who_types_an_old_name_is_told_what_to_do(name):
    want = rf"^{name}=1: (was removed; |is called {RENAMED.get(name)} now$)"
    with pytest.raises(ValueError, match=want):
        load_config("configs/test.py", {name: 1})
