"""A folder of Hugging Face: `config.json`, and tensors by name, in one file or more."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from nested_jax.errors import import_extra, require

Tensors = dict[str, np.ndarray]
WEIGHTS = "model.safetensors"
# safetensors.numpy has no bfloat16, the type of most published weights.
DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype("bool"),  # masks of old files
    "U8": np.dtype("uint8"),
}
INDEX = f"{WEIGHTS}.index.json"


def read_folder(folder: str | Path) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors and the `config.json` of a folder.

    The tensors are those of ``model.safetensors``, or of the files that its index names.

    Raises:
      ValueError: no such folder or files, a file that is damaged, safetensors is not installed.
    """
    folder = Path(folder)
    index = folder / INDEX
    files = [folder / WEIGHTS]
    if index.is_file():
        places: dict[str, str] = _json(index).get("weight_map", {})
        files = [folder / name for name in sorted(set(places.values()))]
    for file in (folder / "config.json", *files):
        want = f"has no {file.name}; wants config.json and {WEIGHTS}, or the files of {INDEX}"
        require(file.is_file(), "folder", str(folder), want)
    tensors: Tensors = {}
    for file in files:
        tensors |= _read(file)
    if index.is_file():
        compare_names(tensors, dict.fromkeys(places))
    return tensors, _json(folder / "config.json")


def _read(file: Path) -> Tensors:
    library = import_extra("safetensors", "hf", "for the layouts of Hugging Face")
    try:
        found = library.deserialize(file.read_bytes())
    except library.SafetensorError as error:
        raise ValueError(f"file={str(file)!r}: is no safetensors file ({error})") from error
    tensors = {}
    for name, x in found:
        dtype = DTYPES.get(x["dtype"])
        want = f"wants one of {', '.join(DTYPES)}, tensor {name} of {file}"
        require(dtype is not None, "dtype", x["dtype"], want)
        tensors[name] = np.frombuffer(x["data"], dtype).reshape(x["shape"])
    return tensors


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"file={str(file)!r}: is not JSON ({error})") from error
    require(isinstance(found, dict), "file", str(file), "wants an object, {...}")
    return found


def compare_names(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...] | None]
) -> None:
    """Raise unless these are the tensors, of these shapes; None admits any shape."""
    for name in shapes:
        require(name in tensors, "tensor", name, f"is not among the {len(tensors)} of the files")
    for name, x in tensors.items():
        want = f"has no place in the model; it has {_some(shapes)}"
        require(name in shapes, "tensor", name, want)
        shape = shapes[name]
        want = f"has shape {list(x.shape)}, config.json says {list(shape or ())}"
        require(shape is None or x.shape == shape, "tensor", name, want)


def _some(names: Collection[str]) -> str:
    return f"{len(names)} tensors, {', '.join(sorted(names)[:2])} and so on"


def import_safetensors() -> Any:
    return import_extra("safetensors.numpy", "hf", "for the layouts of Hugging Face")
