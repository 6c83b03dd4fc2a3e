"""Hugging Face data sets as a source (extra ``hf``): streaming, from the Hub or a local copy."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nested_jax.data.cache import Report
from nested_jax.data.manifest import SourceSpec
from nested_jax.data.records import Problems, row_record
from nested_jax.data.splits import split_of_name
from nested_jax.errors import import_extra

FALLBACKS = ("train", "validation", "test")  # tried in this order, after FALLBACK_SPLIT


def hf_records(
    spec: SourceSpec, problems: Problems, report: Report
) -> Iterator[tuple[str, str | None, str]]:
    """Yield the rows of ``hf:NAME``; NAME is a data set of the Hub or a folder that holds a copy.

    Where the split is not there, another one is read, and `report` says which and why. Rows without
    a split of their own have that of the data set's that they were read from: what it holds out is
    never trained on, unless FALLBACK_SPLIT names it in place of a missing one.

    Raises:
      ValueError: `datasets` is not installed, or the data set cannot be reached.
    """
    datasets = import_extra("datasets", "hf", f"to read {spec.dataset}")
    splits = load(datasets, spec)
    chosen, own = choose_split(list(splits), spec, report)
    for number, row in enumerate(splits[chosen]):
        for text, split, where in row_record(dict(row), f"{chosen}:{number}", spec, problems):
            yield text, split or own, where


def load(datasets: Any, spec: SourceSpec) -> Any:
    """Return the splits of a data set, streaming unless they were saved with ``save_to_disk``."""
    name = spec.dataset.removeprefix("hf:")
    saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            loaded = datasets.load_from_disk(name)
            return loaded if isinstance(loaded, dict) else {spec.split or "train": loaded}
        return datasets.load_dataset(
            name,
            name=spec.subset or None,
            data_files=spec.data_files or None,
            streaming=True,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"dataset={spec.dataset!r} subset={spec.subset!r}: cannot be loaded ({error}); it "
            "wants a network, a cached copy with HF_HUB_OFFLINE=1, or a local folder"
        ) from error


def choose_split(known: list[str], spec: SourceSpec, report: Report) -> tuple[str, str | None]:
    """Return the name of the data set's split that is wanted, and which of ours its rows are.

    A name of the same split serves, ``validation`` for ``valid``; else the first fallback that is
    there, loudly.
    """
    wanted = spec.split or "train"
    same = [name for name in known if split_of_name(name) == split_of_name(wanted) is not None]
    for name in (wanted, *same):
        if name in known:
            return name, split_of_name(name)
    asked = os.environ.get("FALLBACK_SPLIT", "")
    chosen = next(split for split in itertools.chain((asked,), FALLBACKS, known) if split in known)
    report(
        f"WARNING: {spec.dataset} has no split {wanted!r} (it has {', '.join(known)}); "
        f"reading {chosen!r} instead"
    )
    return chosen, None if chosen == asked else split_of_name(chosen)
