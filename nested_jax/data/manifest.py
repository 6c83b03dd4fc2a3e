"""What a corpus is: one typed record a source, and the Python manifests that list them.

A manifest is a file in ``configs/data/`` with ``get_manifest(arg=None)``, plain nested data: a name
and a list of sources. Unknown fields and wrong types are errors that name the nearest field.
"""

from __future__ import annotations

import importlib.util
import math
import os
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from nested_jax.config.fields import convert
from nested_jax.config.schema import from_dict, unknown_fields
from nested_jax.errors import require

ENV_FIELDS = {  # KEY_SUFFIX of the environment -> field of a source
    "DATASET": "dataset",
    "SUBSET": "subset",
    "SPLIT": "split",
    "TEXT_COLUMN": "text_column",
    "LIMIT": "limit",
    "LANG": "lang",
    "LANG_THRESHOLD": "lang_threshold",
    "MIN_CHARS": "min_chars",
    "MAX_CHARS": "max_chars",
}


@dataclass(frozen=True)
class SourceSpec:
    """One source of text: where it is, what is kept of it, and what may be done with it."""

    name: str = "corpus"  # of the source, its shards and its segment
    key: str = ""  # prefix of its environment variables, NL_SHARD_DIR_KEY; "" is the name
    dataset: str = ""  # file, folder, glob, "stdlib[:SEGMENT]", or "hf:NAME"
    subset: str = ""  # Hugging Face configuration
    split: str = ""  # split that is read; "" is all of local files, and `train` of the Hub's
    data_files: str = ""  # glob below a local folder, or data_files of a Hugging Face loader
    text_column: str = "text"  # of JSON lines and Parquet
    unit: Literal["line", "paragraph", "file"] = "line"  # documents of plain text files
    limit: int = 0  # documents that are kept for training; 0 is all
    sample_limit: int = 100_000  # documents that the tokenizer learns from
    weight: float = 1.0  # of sampling
    license: str = ""  # terms of the text, recorded in the mixture
    url: str = ""  # where it comes from, recorded in the mixture
    rules: Literal["prose", "code", "none"] = "prose"  # set of filter rules
    lang: str = ""  # ISO 639-1 code that documents must be in; "" is any (extra `data`)
    lang_threshold: float = 0.85  # least probability of `lang`
    min_chars: int = 1  # shortest document
    max_chars: int = 0  # longest document; 0 is any length
    max_bad: float = 0.01  # share of unreadable records above which reading stops

    def __post_init__(self) -> None:
        require(
            bool(self.name) and not set(self.name) & set("/\\ "),
            "name",
            self.name,
            "wants a name without spaces and slashes",
        )
        for field in ("limit", "sample_limit", "min_chars", "max_chars"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "wants 0 or more")
        fits = 0 < self.weight < math.inf
        require(fits, "weight", self.weight, "wants a finite weight above 0")
        for field in ("lang_threshold", "max_bad"):
            require(0 <= getattr(self, field) <= 1, field, getattr(self, field), "wants [0, 1]")

    @property
    def env_key(self) -> str:
        return self.key or self.name.upper().replace("-", "_")


@dataclass(frozen=True)
class Manifest:
    """A named list of sources."""

    name: str
    sources: tuple[SourceSpec, ...]


def folder_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder: each folder in it is a source, and each file a document.

    Raises:
      ValueError: no folder in it.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    require(bool(names), "manifest", str(folder), "has no folders; wants one for each segment")
    how = {"unit": "file", "rules": "none"}
    sources = [{"name": n.replace(" ", "_"), "dataset": str(folder / n), **how} for n in names]
    return make_manifest({"name": folder.resolve().name, "sources": sources}, str(folder))


def load_manifest(spec: str) -> Manifest:
    """Load ``FILE.py[:ARG]``, or a folder of texts; apply the environment (`from_environment`).

    Raises:
      ValueError: no such file, no ``get_manifest``, a field that does not exist, two equal names.
    """
    if Path(spec).is_dir():
        return folder_manifest(Path(spec))
    filename, _, arg = spec.partition(":")
    file = Path(filename)
    if not file.is_file():
        want = "wants FILE.py, FILE.py:ARG, or a folder of folders of texts"
        raise ValueError(f"manifest {spec!r}: no such file; {want}")
    module_spec = importlib.util.spec_from_file_location(f"_manifest_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"manifest {spec!r}: wants a Python file, FILE.py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not callable(getattr(module, "get_manifest", None)):
            raise ValueError("a manifest defines get_manifest(arg=None)")
        data = module.get_manifest(arg or None)
    except Exception as error:  # of a user's program: whatever it raises is bad input
        raise ValueError(f"{last_place(error, file)}: {type(error).__name__}: {error}") from error
    return make_manifest(data, str(file))


def last_place(error: Exception, file: Path) -> str:
    """Return FILE:LINE of the last line of `file` that an error went through, or is about."""
    walked = traceback.walk_tb(error.__traceback__)
    here = file.resolve()
    lines = [at for frame, at in walked if Path(frame.f_code.co_filename).resolve() == here]
    if isinstance(error, SyntaxError) and error.lineno:
        lines.append(error.lineno)
    return ":".join(map(str, [file, *lines[-1:]]))


def make_manifest(data: Mapping[str, Any], where: str) -> Manifest:
    """Convert plain nested data into a manifest, strictly, with the environment applied."""
    if not isinstance(data, Mapping) or not isinstance(data.get("sources"), (list, tuple)):
        raise ValueError(f"{where}: wants {{'name': ..., 'sources': [{{...}}, ...]}}")
    for i, source in enumerate(data["sources"]):
        require(isinstance(source, Mapping), f"{where}: sources[{i}]", source, "wants {...}")
    unknown_fields(f"{where}: ", data, {"name": str, "sources": tuple})
    sources = tuple(
        from_environment(from_dict(source, SourceSpec, f"{where}: sources[{i}]."))
        for i, source in enumerate(data["sources"])
    )
    names = [source.name for source in sources]
    require(len(sources) > 0, f"{where}: sources", names, "wants at least one")
    require(len(set(names)) == len(names), f"{where}: sources", names, "wants different names")
    return Manifest(str(data.get("name", Path(where).stem)), sources)


def from_environment(source: SourceSpec) -> SourceSpec:
    """Return the source with the fields that the environment sets, ``RW_LIMIT=1000`` and the like.

    Raises:
      ValueError: a variable whose value is not of the field's type.
    """
    hints = get_type_hints(SourceSpec)
    changes = {}
    for suffix, field in ENV_FIELDS.items():
        variable = f"{source.env_key}_{suffix}"
        if variable in os.environ:
            changes[field] = parse(variable, os.environ[variable], hints[field])
    return replace(source, **changes)


def parse(name: str, text: str, hint: Any) -> Any:
    """Return the text of a variable or flag as the type `hint`, or raise naming it."""
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"{name}={text!r}: wants {hint.__name__}") from None
    return convert(name, text, hint)


def spec_dict(source: SourceSpec) -> dict[str, Any]:
    return asdict(source)
