"""Hugging Face data sets as a source (extra ``hf``): streaming, from the Hub or a local copy.

A stream that breaks is opened again and goes on after the last row that came. ``--download`` gets
the files first, which are then read as any other Parquet: a killed run does not fetch them again.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from nested_jax.data.cache import Report
from nested_jax.data.manifest import SourceSpec
from nested_jax.data.records import Problems, row_record
from nested_jax.data.splits import split_of_name
from nested_jax.errors import import_extra

FALLBACKS = ("train", "validation", "test")  # tried in this order, after FALLBACK_SPLIT
RETRIES = 8  # in a row, without a row between them
LONGEST_PAUSE = 60.0  # seconds
MARK_ROWS = 1000  # rows between two places that a stream can be taken up from
# Packages whose errors mean that the network failed; those of the system are `OSError`s.
NETWORK = (
    "aiohttp",
    "datasets",
    "fsspec",
    "http",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "requests",
    "urllib3",
)


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
    for number, row in enumerate(unbroken(splits[chosen], spec.dataset, report)):
        for text, split, where in row_record(dict(row), f"{chosen}:{number}", spec, problems):
            yield text, split or own, where


def unbroken(
    rows: Any, name: str, report: Report, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Any]:
    """Yield every row of a stream once, in order, opening it again where it breaks.

    Raises:
      ValueError: it broke `RETRIES` times in a row.
    """
    marks = hasattr(rows, "state_dict")
    mark, at, given, failures = rows.state_dict() if marks else None, 0, 0, 0
    while True:
        try:
            for row in itertools.islice(iter(rows), given - at, None):
                given, failures = given + 1, 0
                yield row
                if marks and given % MARK_ROWS == 0:
                    mark, at = rows.state_dict(), given
            return
        except Exception as error:
            if not is_network(error):
                raise
            failures += 1
            pause(failures, f"{name}, row {given:,}", error, report, sleep)
            if marks:
                rows.load_state_dict(mark)


def is_network(error: Exception) -> bool:
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, (OSError, EOFError)) or package in NETWORK


def pause(
    failures: int, where: str, error: Exception, report: Report, sleep: Callable[[float], None]
) -> None:
    """Wait before the next try, longer after every failure; raise after the last one."""
    what = f"{type(error).__name__}: {str(error).strip()[:200]}"
    if failures > RETRIES:
        raise ValueError(f"{where}: broke {failures} times in a row, last with {what}") from error
    seconds = min(2.0 ** (failures - 1), LONGEST_PAUSE)
    report(f"{where}: broke ({what}); trying again in {seconds:.0f} s")
    sleep(seconds)


def download(
    spec: SourceSpec,
    folder: Path,
    report: Report,
    sleep: Callable[[float], None] = time.sleep,
) -> SourceSpec:
    """Fetch the files of ``hf:NAME`` into a folder, going on where an earlier try stopped.

    Returns:
      The source as local files.
    Raises:
      ValueError: `huggingface_hub` is not installed, another kind of source, no such files, or a
        network that fails again and again.
    """
    want = "--download wants a data set of the Hub, hf:OWNER/NAME"
    if not spec.dataset.startswith("hf:"):
        raise ValueError(f"dataset={spec.dataset!r}: {want}")
    hub = import_extra("huggingface_hub", "hf", f"to download {spec.dataset}")
    name, local = spec.dataset.removeprefix("hf:"), downloaded(spec, folder)
    pattern, failures = local.data_files, 0
    while True:
        try:
            hub.snapshot_download(
                name, repo_type="dataset", allow_patterns=pattern, local_dir=str(folder)
            )
            break
        except Exception as error:
            if not is_network(error):
                raise
            failures += 1
            pause(failures, f"{spec.dataset} {pattern}", error, report, sleep)
    files = sorted(folder.glob(pattern))
    if not files:
        raise ValueError(f"data_files={pattern!r}: {spec.dataset} has no such files; name them")
    size = sum(file.stat().st_size for file in files) / 1e9
    report(f"{spec.dataset}: {len(files)} files, {size:.1f} GB, in {folder}")
    return local


def downloaded(spec: SourceSpec, folder: Path) -> SourceSpec:
    """Return the source as the files that `download` puts into a folder."""
    pattern = spec.data_files or f"{spec.subset.replace('-', '/') or '**'}/*.parquet"
    return replace(spec, dataset=str(folder), data_files=pattern, subset="", split="")


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
