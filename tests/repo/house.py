"""House rules that are not imports: sizes, copies, docstrings, skips and banned calls."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from repo.source import functions, modules, parse

MOST_LINES = 400  # of a file
MOST_FUNCTION_LINES = 60
MOST_ARGUMENTS = 9  # named ones, `self` apart
MOST_FILES = 20  # of a folder, its __init__ included
COPIED_STATEMENTS = 6  # a function body this long stands in one place


def too_large(root: Path) -> list[str]:
    """Return the files, functions and folders above the limits of the house."""
    wrong = []
    folders: dict[Path, int] = defaultdict(int)
    for file in modules(root).values():
        place = file.relative_to(root)
        folders[place.parent] += 1
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            wrong.append(f"{place}: {lines} lines, at most {MOST_LINES}")
        for node in functions(file):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MOST_FUNCTION_LINES:
                wrong.append(f"{place}:{node.name}: {length} lines, at most {MOST_FUNCTION_LINES}")
            a = node.args
            count = len({x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)} - {"self", "cls"})
            if count > MOST_ARGUMENTS:
                wrong.append(f"{place}:{node.name}: {count} arguments, at most {MOST_ARGUMENTS}")
    for folder, count in folders.items():
        if count > MOST_FILES:
            wrong.append(f"{folder}: {count} files, at most {MOST_FILES}")
    return wrong


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    a = node.args
    return {x.arg for x in [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg] if x}


def folders_without_purpose(root: Path) -> list[str]:
    """Return the folders of code whose ``__init__.py`` does not start with a sentence."""
    wrong = []
    for folder in sorted({file.parent for file in modules(root).values()} - {root}):
        init = folder / "__init__.py"
        text = (ast.get_docstring(parse(init)) or "") if init.is_file() else ""
        if not text.split("\n\n")[0].rstrip().endswith("."):
            wrong.append(
                f"{folder.relative_to(root)}: __init__.py wants one line on what it is for"
            )
    return wrong


def copies(root: Path) -> list[list[str]]:
    """Return the places of function bodies that stand twice."""
    bodies = defaultdict(list)
    for file in modules(root).values():
        for node in functions(file):
            body = [n for n in node.body if not isinstance(n, ast.Expr)]
            if len(body) >= COPIED_STATEMENTS:
                key = "\n".join(ast.dump(statement) for statement in body)
                bodies[key].append(f"{file.relative_to(root)}:{node.name}")
    return [places for places in bodies.values() if len(places) > 1]


def unknown_arguments(root: Path) -> list[str]:
    """Return the names below ``Args:`` that are no parameters."""
    wrong = []
    for file in modules(root).values():
        for node in functions(file):
            text = ast.get_docstring(node) or ""
            section = re.search(r"^Args:\n((?:  .*\n?|\n)*)", text, flags=re.MULTILINE)
            named = (
                re.findall(r"^  (\w+):", section.group(1), flags=re.MULTILINE) if section else []
            )
            missing = [name for name in named if name not in parameters(node)]
            wrong += [f"{file.relative_to(root)}:{node.name}: {name}" for name in missing]
    return wrong


BANNED = {
    r"^\s*with\s+mesh\s*:": "use jax.set_mesh",
    r"jax\._src": "private",
    r"jax\.debug\.(print|breakpoint)": "debugging stays on a branch",
}


def banned(root: Path) -> list[str]:
    """Return the lines that hold what the house bans."""
    wrong = []
    for file in modules(root).values():
        place = file.relative_to(root)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            wrong += [
                f"{place}:{number}: {why}" for what, why in BANNED.items() if re.search(what, line)
            ]
        for node in ast.walk(parse(file)):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "jax.make_mesh"
                and "axis_types" not in {keyword.arg for keyword in node.keywords}
            ):
                wrong.append(f"{place}:{node.lineno}: make_mesh wants axis_types, written out")
    return wrong


def names_that_repeat(tests: Path) -> list[str]:
    """Return the names that two test files have: pytest imports each as a module of that name."""
    places = defaultdict(list)
    for file in sorted(tests.rglob("*.py")):
        if file.name not in ("conftest.py", "__init__.py"):
            places[file.name].append(str(file.relative_to(tests)))
    return [" and ".join(files) for files in places.values() if len(files) > 1]


def bad_skips(tests: Path) -> list[str]:
    """Return the tests that are skipped without a condition, and the xfails that are not strict."""
    wrong = []
    for file in sorted(tests.rglob("*.py")):
        for node in ast.walk(parse(file)):
            text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Call) else ""
            where = f"{file.relative_to(tests)}:{getattr(node, 'lineno', 0)}: {text}"
            if text.endswith("mark.skip") or re.match(r"pytest\.mark\.skipif\((True|1)\b", text):
                wrong.append(where)
            if text.startswith("pytest.mark.xfail(") and "strict=True" not in text:
                wrong.append(where)
            if isinstance(node, ast.FunctionDef) and any(map(_is_skip, node.body)):
                wrong.append(f"{file.relative_to(tests)}:{node.name} skips itself always")
    return wrong


def _is_skip(node: ast.stmt) -> bool:
    """A statement ``pytest.skip(...)`` that stands below no condition."""
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.skip"
