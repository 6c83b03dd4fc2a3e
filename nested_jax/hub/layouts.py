"""The layouts of Hugging Face that a model can have, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nested_jax.config import ModelConfig
from nested_jax.errors import require
from nested_jax.hub.gpt2 import from_gpt2, gpt2_config, to_gpt2
from nested_jax.hub.llama import KINDS, from_llama, llama_config, to_llama
from nested_jax.hub.tensors import Tensors
from nested_jax.types import PyTree


class Layout(NamedTuple):
    """What there is to know about a layout; the functions refuse a model that it cannot hold."""

    config: Callable[[ModelConfig], dict[str, Any]]  # the config.json of a model
    write: Callable[[PyTree, ModelConfig], Tensors]
    read: Callable[[Tensors, Mapping[str, Any]], tuple[PyTree, ModelConfig]]


LAYOUTS = {
    "gpt2": Layout(gpt2_config, to_gpt2, from_gpt2),
    "llama": Layout(llama_config, to_llama, from_llama),
}


def layout_of(config: Mapping[str, Any]) -> Layout:
    """Return the layout of a `config.json`.

    Raises:
      ValueError: another kind of model.
    """
    kind = config.get("model_type")
    readers = LAYOUTS | dict.fromkeys(KINDS, LAYOUTS["llama"])
    require(kind in readers, "model_type", kind, f"wants one of {', '.join(readers)}")
    return readers[str(kind)]
