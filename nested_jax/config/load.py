"""Load a config file, apply overrides, validate.

A config file is a Python program, ``get_config(arg) -> ConfigDict``, that ends in plain data. It
stops here: below this module only frozen dataclasses travel, and each layer receives its own.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_collections

from nested_jax.config.legacy import upgrade
from nested_jax.config.run import Config
from nested_jax.config.schema import from_dict

# Two fields that say the same in two ways, and the value with which each says nothing.
EITHER = (("train.steps", "train.tokens"), ("train.grad_accum", "train.device_rows"))
NONE = {"train.steps": 0, "train.tokens": 0, "train.grad_accum": 1, "train.device_rows": 0}


def from_config_dict(config: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """Convert plain nested data into a validated `Config`.

    Raises:
      ValueError: an unknown field (with its nearest known name), a value of the wrong type, or a
        combination that cannot work.
    """
    data = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return from_dict(data, Config)


def from_saved(saved: Mapping[str, Any], aligned: bool = True) -> Config:
    """Convert the configuration that this or an earlier version saved beside its checkpoints.

    Args:
      aligned: documents start at multiples of data.align. In versions that kept no hash of their
        data (False) they started at multiples of the model's largest chunk; data.align gets it.
    Raises:
      ValueError: a removed field has another value than the code has now.
    """
    data = upgrade(saved)
    if aligned or data["data"]["source"] == "synthetic":
        return from_config_dict(data)
    rows = data["data"]
    cfg = from_config_dict({**data, "data": {**rows, "align": rows["seq_len"]}})
    return replace(cfg, data=replace(cfg.data, align=math.lcm(rows["align"] or 1, cfg.chunk)))


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """Parse ``--config.model.dim=512`` into ``{"model.dim": 512}``.

    Raises:
      ValueError: an argument of another form.
    """
    overrides = {}
    for argument in arguments:
        name, equals, text = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals or not name:
            raise ValueError(f"{argument!r}: wants --config.FIELD=VALUE")
        overrides[name] = _literal(text)
    return overrides


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def load_config(spec: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Load ``FILE.py[:ARG]`` or the ``config.json`` of a run, apply overrides and validate.

    Args:
      spec: path of a config file; what follows the colon is given to its ``get_config``.
      overrides: dotted field names to values, ``{"model.block": "hope"}``.
    Raises:
      ValueError: no such file, a bad argument, an unknown field, a wrong type or combination.
    """
    filename, _, arg = spec.partition(":")
    file = Path(filename).resolve()
    if not file.is_file():
        want = "wants FILE.py, FILE.py:ARG, or the config.json of a run"
        raise ValueError(f"--config={spec!r}: no such file; {want}")
    saved = file.suffix == ".json"
    data = upgrade(json.loads(file.read_text("utf-8"))) if saved else _run_config_file(file, arg)
    overrides = dict(overrides or {})
    for one, other in EITHER:
        if (one in overrides) != (other in overrides):  # what is typed wins over the file
            overrides |= {other: NONE[other]} if one in overrides else {one: NONE[one]}
    for name, value in overrides.items():
        *blocks, leaf = name.split(".")
        target, walked = data, ""
        for block in blocks:
            _known_block(target, block, walked)
            target = target.setdefault(block, {})
            walked += f"{block}."
        target[leaf] = value
    return from_config_dict(data)


def _known_block(target: Any, block: str, walked: str) -> None:
    if not isinstance(target, dict) or not isinstance(target.get(block, {}), dict):
        raise ValueError(f"{walked}{block}: is a field, not a block of fields")


def _run_config_file(file: Path, arg: str) -> dict[str, Any]:
    root = str(file.parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)  # config files import configs.common
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{file}: a config file defines get_config(arg=None)")
    return module.get_config(arg or None).to_dict()
