"""The shape of the repository: import layers, copied code, unread fields, names in docstrings."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from nested_jax import config

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nested_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# An import goes from a layer to its own or to one before it.
LAYERS = [
    {"types", "errors", "machine"},
    {"config"},
    {"ops", "sharding", "data", "losses"},
    {"layers", "optim"},
    {"models"},
    {"teach", "outer_loss"},
    {"train", "hub", "generate", "doctor", "export"},
]
# Where a third-party package may be imported; absent here: anywhere.
PLACES = {
    "flax": {"layers", "models", "train"},
    "optax": {"optim", "teach", "train"},
    "orbax": {"train"},
    "grain": {"data"},
    "sentencepiece": {"data"},
    "ml_collections": {"config"},
}


def part(file: Path) -> str:
    """The first level of the package that a file belongs to."""
    relative = file.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "nested_jax":
                yield from (f"nested_jax.{alias.name}" for alias in node.names)


def test_imports_go_down():
    wrong = []
    for file in FILES:
        here = part(file)
        if here in ("__init__", "__main__"):
            continue
        for name in imports(file):
            top, _, rest = name.partition(".")
            if top == "nested_jax" and rest and layer(rest.split(".")[0]) > layer(here):
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
            if top in PLACES and here not in PLACES[top]:
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
            if top == "jax" and here == "data":
                wrong.append(f"{file.relative_to(ROOT)}: data workers must not start a backend")
    assert not wrong, "\n".join(wrong)


def test_configs_are_plain_data():
    allowed = {"configs", "ml_collections", "__future__", "typing", "nested_jax.data.mixture"}
    for file in (ROOT / "configs").rglob("*.py"):
        if "data" in file.parts:
            continue
        extra = [name for name in imports(file) if name.split(".")[0] not in allowed]
        assert not extra, (file, extra)


def test_no_function_is_written_twice():
    bodies = defaultdict(list)
    for file in [*FILES, *(ROOT / "eval").rglob("*.py"), ROOT / "launch.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = [n for n in node.body if not isinstance(n, ast.Expr)]
                if len(body) >= 6:
                    key = "\n".join(ast.dump(statement) for statement in body)
                    bodies[key].append(f"{file.relative_to(ROOT)}:{node.name}")
    twice = [places for places in bodies.values() if len(places) > 1]
    assert not twice, twice


def attributes_of_properties(file: Path) -> set[str]:
    """Attributes that the properties and methods of a file read, its checks apart."""
    found = set()
    for cls in ast.walk(ast.parse(file.read_text())):
        for node in cls.body if isinstance(cls, ast.ClassDef) else []:
            if isinstance(node, ast.FunctionDef) and node.name != "__post_init__":
                found |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
    return found


def test_every_config_field_is_read():
    source = "\n".join(
        file.read_text()
        for file in [*FILES, *(ROOT / "eval").rglob("*.py"), ROOT / "launch.py"]
        if file.parent.name != "config"
    )
    derived = set().union(
        *(attributes_of_properties(file) for file in (PACKAGE / "config").glob("*.py"))
    )
    unread = []
    for name, cls in vars(config).items():
        if not (
            dataclasses.is_dataclass(cls) and isinstance(cls, type) and name.endswith("Config")
        ):
            continue
        for field in dataclasses.fields(cls):
            pattern = rf"\.{field.name}\b|\"{field.name}\""
            if field.name not in derived and not re.search(pattern, source):
                unread.append(f"{name}.{field.name}")
    assert not unread, unread


def test_docstrings_name_parameters_that_exist():
    wrong = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            text = ast.get_docstring(node) or ""
            section = re.search(r"^Args:\n((?:  .*\n?|\n)*)", text, flags=re.MULTILINE)
            if section is None:
                continue
            named = re.findall(r"^  (\w+):", section.group(1), flags=re.MULTILINE)
            a = node.args
            real = {x.arg for x in [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg] if x}
            wrong += [f"{file.name}:{node.name}: {n}" for n in named if n not in real]
    assert not wrong, wrong


def test_no_unconditional_skips():
    for file in (ROOT / "tests").rglob("*.py"):
        text = file.read_text()
        if file.name == "test_repo.py":
            continue
        assert "mark.skip(" not in text, file
        assert not re.search(r"skipif\(\s*True", text), file
        for xfail in re.findall(r"mark\.xfail\([^)]*\)", text):
            assert "strict=True" in xfail, (file, xfail)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (
            r"make_mesh\((?![^)]*axis_types)[^)]*\)",
            "make_mesh passes axis_types: the default changed",
        ),
        (r"^\s*with\s+mesh\s*:", "use jax.set_mesh"),
        (r"jax\._src", "private"),
        (r"jax\.debug\.(print|breakpoint)", "debugging stays on a branch"),
    ],
)
def test_forbidden_patterns(pattern, why):
    for file in [*FILES, *(ROOT / "eval").rglob("*.py"), ROOT / "launch.py"]:
        text = file.read_text().replace("def make_mesh(", "def _(").replace("= make_mesh(", "= _(")
        found = [m.group(0) for m in re.finditer(pattern, text, flags=re.MULTILINE)]
        found = [f for f in found if "make_mesh" not in f or "jax.make_mesh" in f]
        assert not found, (file, why, found)
