"""What a checkpoint says of its run, and whether another start may go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nested_jax.config import Config, from_saved
from nested_jax.config.schema import difference, to_dict

Identity = Mapping[str, str]  # hashes of a run's data, by what they are of


def run_meta(cfg: Config, step: int, data: Identity) -> dict[str, Any]:
    """Return the part of ``meta`` that `check_fits` and `check_data` read."""
    return {
        "step": step,
        "config": to_dict(cfg),
        "tokenizer_sha256": data["tokenizer"],  # of synthetic tasks: the hash of their settings
        "data": dict(data),
    }


def config_of(meta: dict[str, Any]) -> Config:
    """Return the configuration of a checkpoint.

    Raises:
      ValueError: another version wrote it, with fields that this one does not have.
    """
    try:
        return from_saved(meta["config"], aligned="data" in meta)
    except ValueError as error:
        by = meta.get("versions", {}).get("nested-jax", "another version")
        raise ValueError(
            f"checkpoint {meta['step']} is of nested-jax {by}, whose configuration is not this "
            f"version's: {error}"
        ) from error


def check_fits(meta: dict[str, Any], cfg: Config) -> None:
    """Raise unless a run of `cfg` may go on from the checkpoint of `meta`."""
    if "source" in meta:
        raise ValueError(
            f"the workdir holds checkpoint {meta['step']}, which has parameters and no state of an "
            "optimizer. Take another --workdir, where train.init_from begins with them"
        )
    changed = difference(config_of(meta), cfg, free=False)
    if changed:
        raise ValueError(
            f"the workdir holds checkpoint {meta['step']} of another configuration "
            f"(checkpoint -> this run): {'; '.join(changed)}. Take another --workdir, or undo this"
        )


def check_data(meta: dict[str, Any], data: Identity) -> None:
    """Raise unless the run's data are those of the checkpoint of `meta`.

    A curve would otherwise go on over other text. Earlier versions recorded the tokenizer alone.

    Args:
      data: hashes by what they are of: the tokenizer, the training text, ...
    """
    known = meta.get("data", {"tokenizer": meta["tokenizer_sha256"]})
    changed = [
        f"{name} ({str(known.get(name))[:12]} -> {data[name][:12]})"
        for name in data
        if (name in known or "data" in meta) and known.get(name) != data[name]
    ]
    if changed:
        raise ValueError(
            f"the workdir holds checkpoint {meta['step']} of other data (checkpoint -> this run): "
            f"{'; '.join(changed)}. Bring those data back, or take another --workdir, where "
            "train.init_from can begin with its parameters"
        )
