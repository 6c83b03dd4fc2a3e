"""Imports: no circle, one direction, and each library in its place."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from repo.source import modules, parse

# An import goes from a layer to its own or to one before it.
LAYERS = [
    {
        "nested_jax.types",
        "nested_jax.errors",
        "nested_jax.files",
        "nested_jax.machine",
        "nested_jax.storage",
    },
    {"nested_jax.config"},
    {"nested_jax.ops", "nested_jax.sharding", "nested_jax.data", "nested_jax.losses"},
    {"nested_jax.layers", "nested_jax.optim"},
    {"nested_jax.models"},
    {"nested_jax.teach_chunk", "nested_jax.teach", "nested_jax.outer_loss", "nested_jax.surprise"},
    {
        "nested_jax.train",
        "nested_jax.hub",
        "nested_jax.fit",
        "nested_jax.generate",
        "nested_jax.read",
        "nested_jax.doctor",
        "nested_jax.status",
        "nested_jax.export",
    },
    {"nested_jax"},  # the public API: names of the layers before
    {"eval"},
    {"recipes", "launch"},
]
# Where a library may be imported; absent here: anywhere.
PLACES = {
    "flax": ("nested_jax.layers", "nested_jax.models", "nested_jax.train"),
    "optax": ("nested_jax.optim", "nested_jax.teach", "nested_jax.train"),
    "orbax": ("nested_jax.train.checkpoint",),
    "grain": ("nested_jax.data",),
    "sentencepiece": ("nested_jax.data",),
    "tokenizers": ("nested_jax.data",),
    "tiktoken": ("nested_jax.data",),
    "ml_collections": ("nested_jax.config", "configs", "launch"),
}
CONFIGS = ("__future__", "typing", "ml_collections", "configs")  # configs/ is plain data


class Import(NamedTuple):
    importer: str
    name: str
    where: str  # "file", "function", or "types": below TYPE_CHECKING
    line: int


def _walk(node: ast.AST, where: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for child in ast.iter_child_nodes(node):
        below = where
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            below = "function"
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            below = "types"
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, where
        else:
            yield from _walk(child, below)


def imports(root: Path) -> list[Import]:
    """Return every import; a name of ours is the file that it comes from."""
    files = modules(root)
    found = []
    for importer, file in files.items():
        package = importer if file.name == "__init__.py" else importer.rpartition(".")[0]
        for node, where in _walk(parse(file), "file"):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                above = package.split(".")[: len(package.split(".")) + 1 - node.level]
                base = node.module or ""
                if node.level:
                    base = ".".join([*above, base]).rstrip(".")
                inner = [f"{base}.{alias.name}" for alias in node.names]
                names = [name if name in files else base for name in inner]
            found += [Import(importer, name, where, node.lineno) for name in names]
    return found


def circle(root: Path, places: tuple[str, ...] = ("file",)) -> list[str]:
    """Return one circle of files that import each other, the first again at its end; or none."""
    graph: dict[str, set[str]] = {name: set() for name in modules(root)}
    for found in imports(root):
        if found.name in graph and found.where in places:
            graph[found.importer].add(found.name)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def late_imports(root: Path) -> set[tuple[str, str]]:
    """Return the imports of ours inside functions or for types only: (importer, name)."""
    files = modules(root)
    found = [i for i in imports(root) if i.where != "file" and i.name in files]
    return {(i.importer, i.name) for i in found}


def below(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def layer(name: str) -> int | None:
    """Return the number of a module's layer: that of the longest name that it is below."""
    fits = [(len(n), i) for i, names in enumerate(LAYERS) for n in names if below(name, n)]
    return max(fits)[1] if fits else None


def wrong_layers(root: Path) -> list[str]:
    """Return the imports that go up, and the files of the package that stand in no layer."""
    wrong = []
    package = LAYERS.index({"nested_jax"})
    for name in modules(root):
        if name != "nested_jax" and layer(name) == package:
            wrong.append(f"{name} stands in no layer: name it in LAYERS")
    for found in imports(root):
        here, there = layer(found.importer), layer(found.name)
        if here is not None and there is not None and there > here:
            wrong.append(f"{found.importer}:{found.line} imports {found.name}")
    return wrong


def wrong_places(root: Path) -> list[str]:
    """Return the imports of libraries outside their places, and of jax in the data code."""
    wrong = []
    for found in imports(root):
        library = found.name.split(".")[0]
        places = PLACES.get(library)
        if places and not any(below(found.importer, place) for place in places):
            wrong.append(f"{found.importer}:{found.line} imports {found.name}")
        if library == "jax" and below(found.importer, "nested_jax.data"):
            wrong.append(f"{found.importer}:{found.line}: data workers must not start a backend")
    return wrong


def wrong_configs(root: Path) -> list[str]:
    """Return the imports that make a config file more than plain data."""
    return [
        f"{found.importer}:{found.line} imports {found.name}"
        for found in imports(root)
        if below(found.importer, "configs")
        and not any(below(found.name, allowed) for allowed in CONFIGS)
    ]
