"""Fields of the configuration: every number has a range, every message a name that can be typed."""

from __future__ import annotations

import ast
import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

from nested_jax import config
from nested_jax.config import (
    Config,
    MemoryConfig,
    from_config_dict,
    parse_overrides,
)
from nested_jax.config.fields import LARGEST, Block, Range, block_of, hints
from nested_jax.config.schema import difference, leaves

ROOT = Path(__file__).resolve().parents[2]


def annotations(cls: type[Block] = Config, path: str = "") -> dict[str, Any]:
    """Return the annotation of every field that holds a value, by its path."""
    found: dict[str, Any] = {}
    for name, hint in hints(cls).items():
        inner = block_of(hint)
        found |= annotations(inner, f"{path}{name}.") if inner else {f"{path}{name}": hint}
    return found


FIELDS = annotations()


def numbers(hint: Any, marks: tuple[Any, ...] = ()) -> list[tuple[type, list[Range]]]:
    """Return the number types in an annotation, each with the ranges that stand at it."""
    if typing.get_origin(hint) is Annotated:
        return numbers(hint.__origin__, marks + hint.__metadata__)
    if hint in (int, float):
        return [(hint, [mark for mark in marks if isinstance(mark, Range)])]
    return [n for inner in typing.get_args(hint) for n in numbers(inner) if inner is not Ellipsis]


NUMBERS = {name: numbers(hint) for name, hint in FIELDS.items() if numbers(hint)}


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def beyond(kind: type, allowed: Range) -> list[Any]:
    """Return values outside the range: below, above, and what no number is."""
    low = allowed.above if allowed.above > -LARGEST else allowed.least - 1
    high = allowed.below if allowed.below < LARGEST else allowed.most + 1
    values = [low - (low == allowed.also), high, 10**400, True, "1", None]
    values += [float("nan"), float("inf"), -float("inf")]
    return [kind(v) if kind is float and abs(v) < 1e9 else v for v in values[:2]] + values[2:]


def test_the_table_holds_every_number():
    assert len(NUMBERS) > 60
    wrong = [name for name, found in NUMBERS.items() if any(len(r) != 1 for _, r in found)]
    assert not wrong, f"want one range each: {wrong}"


@pytest.mark.parametrize("path", NUMBERS)
def test_a_number_outside_its_range_is_refused_by_name(path):
    ((kind, (allowed,)),) = NUMBERS[path]
    in_tuple = "tuple" in str(FIELDS[path])
    refused = 0
    for bad in beyond(kind, allowed):
        if bad is None and type(None) in typing.get_args(FIELDS[path]):
            continue
        for value in (bad, [bad], (1, bad)) if in_tuple else (bad,):
            with pytest.raises(ValueError, match="wants") as error:
                from_config_dict(nested(path, value))
            assert str(error.value).startswith(f"{path}={value!r}: "), (value, str(error.value))
            refused += 1
    assert refused >= 8
    if kind is int:
        with pytest.raises(ValueError, match=re.escape(f"{path}=")):
            from_config_dict(nested(path, 1.5))


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_refuses_another_type_by_a_name_that_can_be_typed(path):
    """What the message names is what ``--config.PATH=`` takes."""
    with pytest.raises(ValueError, match="wants") as error:
        from_config_dict(nested(path, {"a": 1}))
    printed = str(error.value).split("=")[0]
    ((typed, _),) = parse_overrides([f"--config.{printed}=1"]).items()
    assert typed == path


@pytest.mark.parametrize(
    ("text", "allowed", "value"),
    [
        ("0 or more", Range(least=0), -1),
        ("0 or more, at most 2147483647", Range(least=0), 2**31),
        ("more than 0, at most 2", Range(above=0, most=2), 0),
        ("0 or more, less than 1", Range(least=0, below=1), 1),
        ("2 or more, or 0", Range(least=2, also=0), 1),
    ],
)
def test_a_range_in_words(text, allowed, value):
    assert value not in allowed
    assert allowed.text(value) == text


def test_what_is_made_directly_is_converted_and_checked_too():
    with pytest.raises(ValueError, match=r"^model\.memory\.depth=0: wants 1 or more$"):
        MemoryConfig(depth=0)
    with pytest.raises(ValueError, match=r"^model\.dim='wide': got str, wants int"):
        dataclasses.replace(Config().model, dim="wide")
    made = dataclasses.replace(Config().model.cms, periods=[4, 8], momentum=0)
    assert made.periods == (4, 8)
    assert made.momentum == (0.0,)


def test_messages_name_paths_that_exist():
    """A dotted name in a message of config/ is the full path of a field, or of a block."""
    blocks = {path.rpartition(".")[0] for path in FIELDS}
    first = {name for path in blocks for name in path.split(".")}
    checked = 0
    for file in (ROOT / "nested_jax" / "config").glob("*.py"):
        for text in messages(ast.parse(file.read_text())):
            for name in re.findall(r"(?<![\w.])[a-z]+(?:\.[a-z_0-9]+)+", text):
                if name.split(".")[0] in first:
                    assert name in blocks or name in FIELDS, f"{file.name}: {name}"
                    checked += 1
    assert checked > 25


def messages(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of what is wanted: assigned to `want`, or the last argument of `require`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("require"):
            text: ast.AST = node.args[-1]
        elif isinstance(node, ast.Assign) and "want" in ast.unparse(node.targets[0]):
            text = node.value
        else:
            continue
        inner = (part.value for part in ast.walk(text) if isinstance(part, ast.Constant))
        yield from (part for part in inner if isinstance(part, str))


def test_checks_name_fields_that_exist():
    """``self.require(ok, NAME, want)`` names a field below its class."""
    checked = 0
    for file in ("model.py", "run.py"):
        for cls in ast.parse((ROOT / "nested_jax" / "config" / file).read_text()).body:
            path = getattr(getattr(config, getattr(cls, "name", ""), None), "path", "")
            for node in ast.walk(cls):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "self.require":
                    name = node.args[1]
                    if isinstance(name, ast.Constant):
                        assert f"{path}{name.value}" in FIELDS, ast.unparse(node)
                        checked += 1
    assert checked > 20


# What may change between the runs of one workdir; everything else is another experiment.
FREE = """
    train.steps train.tokens train.epochs train.grad_accum train.device_rows train.eval_every
    train.eval_batch_size train.eval_tasks
    train.save_every train.keep_latest train.keep_every train.log_every train.async_save
    train.keep_best train.save_seconds train.mirror train.stall_factor
    train.profile_steps train.check_writes train.tensorboard train.wandb
    data.cache_dir model.remat model.attention model.loss_chunk
    teach.remat mesh.data mesh.fsdp mesh.model mesh.offload
""".split()  # noqa: SIM905


def test_these_fields_and_no_others_may_change_on_resume():
    fixed = {name for name, _ in leaves(Config(), free=False)}
    assert set(FIELDS) - fixed == set(FREE)


def test_difference_of_what_may_change_and_what_may_not():
    new = from_config_dict({"seed": 3, "train": {"steps": 7}, "mesh": {"fsdp": 4}})
    assert difference(Config(), new) == [
        "config.seed: 0 -> 3",
        "config.train.steps: 1000 -> 7",
        "config.mesh.fsdp: 1 -> 4",
    ]
    assert difference(Config(), new, free=False) == ["config.seed: 0 -> 3"]
