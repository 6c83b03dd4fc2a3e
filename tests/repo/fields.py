"""Fields of the configuration that nothing reads.

A read is an attribute taken of a value that is known to be of the field's class: by annotation,
by the fields and properties on the way to it, or by what a function of ours returns.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from repo.source import modules, parse

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Known(NamedTuple):
    """What the project says about types: names of classes throughout."""

    members: dict[str, dict[str, str]]  # class -> field or property -> its class
    returns: Mapping[str, str]  # function -> the class that it returns
    bases: Mapping[str, tuple[str, ...]]


def class_of(annotation: ast.expr | None) -> str:
    """Return the one class that an annotation names, ``None`` and quotes aside, or nothing."""
    if annotation is None:
        return ""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.BinOp):
        sides = [class_of(annotation.left), class_of(annotation.right)]
        found = [side for side in sides if side not in ("", "None")]
        return found[0] if len(found) == 1 else ""
    if isinstance(annotation, ast.Attribute):
        return annotation.attr
    return annotation.id if isinstance(annotation, ast.Name) else ""


def learn(root: Path) -> Known:
    """Collect the annotations of the whole project."""
    members: dict[str, dict[str, str]] = defaultdict(dict)
    returns: dict[str, str] = {}
    bases = {}
    for file in modules(root).values():
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = tuple(class_of(base) for base in node.bases)
                for part in node.body:
                    if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                        members[node.name][part.target.id] = class_of(part.annotation)
                    elif isinstance(part, Function):
                        members[node.name][part.name] = class_of(part.returns)
            elif isinstance(node, Function):
                returns[node.name] = class_of(node.returns)
    return Known(members, returns, bases)


class Reads(ast.NodeVisitor):
    """Collect ``(class, attribute)`` of every attribute whose owner's class is known."""

    def __init__(self, known: Known, in_config: bool) -> None:
        self.known, self.found = known, set[tuple[str, str]]()
        self.in_config = in_config
        self.scope: dict[str, str] = {}
        self.owner = ""
        self.function: ast.AST = ast.Module([], [])

    def kind(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return self.scope.get(node.id, "")
        if isinstance(node, ast.Attribute):
            return self.member(self.kind(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self.result(node.func, node.args)
        if isinstance(node, ast.BoolOp):
            return next(filter(None, map(self.kind, node.values)), "")
        if isinstance(node, ast.IfExp):
            return self.kind(node.body) or self.kind(node.orelse)
        if isinstance(node, ast.NamedExpr):
            return self.kind(node.value)
        return ""

    def result(self, func: ast.expr, args: list[ast.expr]) -> str:
        if isinstance(func, ast.Attribute) and self.kind(func.value):
            return self.member(self.kind(func.value), func.attr)
        name = class_of(func)
        if name == "replace" and args:  # dataclasses.replace gives what it takes
            return self.kind(args[0])
        return name if name in self.known.members else self.known.returns.get(name, "")

    def member(self, cls: str, name: str) -> str:
        for line in [cls, *self.known.bases.get(cls, ())]:
            if name in self.known.members.get(line, {}):
                return self.known.members[line][name]
        return ""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before, self.owner = self.owner, node.name
        self.generic_visit(node)
        self.owner = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        checks = node.name.strip("_").startswith("check") or node.name == "__post_init__"
        if self.in_config and checks:
            return  # a check of a field is not a use of it
        before, within = dict(self.scope), self.function
        self.function = node
        arguments = node.args
        for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            self.scope[a.arg] = class_of(a.annotation)
        if self.owner and arguments.args and arguments.args[0].arg == "self":
            self.scope["self"] = self.owner
        self.generic_visit(node)
        self.scope, self.function = before, within

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                if isinstance(name, ast.Name):
                    self.scope[name.id] = self.kind(value)
                elif isinstance(name, ast.Attribute) and class_of(name.value) == "self":
                    members = self.known.members.setdefault(self.owner, {})
                    members[name.attr] = members.get(name.attr) or self.kind(value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self.scope[node.target.id] = class_of(node.annotation)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self.scope[node.target.id] = self.kind(node.value)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load) and self.kind(node.value):
            self.found.add((self.kind(node.value), node.attr))

    def visit_Call(self, node: ast.Call) -> None:
        """``getattr(cfg.train, name)`` reads the fields that its function names in quotes."""
        self.generic_visit(node)
        if class_of(node.func) == "getattr" and len(node.args) >= 2:
            for part in ast.walk(self.function):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    self.found.add((self.kind(node.args[0]), part.value))


def unread_fields(root: Path) -> list[str]:
    """Return the fields of the classes in config/ that nothing outside their checks reads."""
    known = learn(root)
    fields: dict[str, set[str]] = {}
    config = root / "nested_jax" / "config"
    for file in modules(root).values():
        for node in ast.walk(parse(file)) if config in file.parents else []:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                parts = [p for p in node.body if isinstance(p, ast.AnnAssign)]
                fields[node.name] = {p.target.id for p in parts if isinstance(p.target, ast.Name)}
    read = set()
    for file in [*modules(root).values()] * 2:  # the second time with what ``self.x = ...`` taught
        reads = Reads(known, config in file.parents)
        reads.visit(parse(file))
        read |= reads.found
    return sorted(
        f"{cls}.{name}"
        for cls, names in fields.items()
        for name in names
        if (cls, name) not in read
    )
