"""The shape of the repository: imports, copied code, unread fields, sizes, names in docstrings.

Every check of ``tests/repo`` is held to the repository, and to a small tree with the defect that
it is there to find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from repo import fields, house, imports

ROOT = Path(__file__).resolve().parent.parent
# Imports of ours inside functions, where they stand to keep a start of a command quick.
LATE: set[tuple[str, str]] = set()


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[Mapping[str, str]], Path]:
    """A function that writes files below a folder named like one of ours, and returns it."""

    def write(files: Mapping[str, str]) -> Path:
        root = tmp_path / "data" / "checkout"
        for name, text in files.items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return root

    return write


def test_no_file_imports_itself_by_way_of_others():
    assert imports.circle(ROOT) == []


def test_a_circle_is_found(tree):
    root = tree(
        {
            "eval/a.py": "from eval import b\n",
            "eval/b.py": "import eval.c\n",
            "eval/c.py": "from eval.a import x\n",
            "eval/d.py": "from eval.a import x\n\ndef f():\n    from eval import e\n",
            "eval/e.py": "from eval.d import f\n",
        }
    )
    assert set(imports.circle(root)) == {"eval.a", "eval.b", "eval.c"}
    assert imports.late_imports(root) == {("eval.d", "eval.e")}
    (root / "eval/c.py").write_text("")
    assert imports.circle(root) == []
    assert set(imports.circle(root, ("file", "function"))) == {"eval.d", "eval.e"}


def test_relative_imports_and_packages_count(tree):
    root = tree(
        {
            "eval/__init__.py": "from eval.a import x\n",
            "eval/a.py": "from . import b\n",
            "eval/b.py": "from eval import x\n",
        }
    )
    assert set(imports.circle(root)) == {"eval", "eval.a", "eval.b"}


def test_imports_inside_functions_are_known():
    assert imports.late_imports(ROOT) == LATE


def test_imports_go_down():
    assert imports.wrong_layers(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("nested_jax/types.py", "from nested_jax import config"),
        ("nested_jax/config/run.py", "from nested_jax.ops.linear import matmul"),
        ("nested_jax/ops/linear.py", "from nested_jax import layers"),
        ("nested_jax/train/trainer.py", "from eval.core import scoring"),
        ("nested_jax/train/trainer.py", "import nested_jax"),
        ("nested_jax/models/lm.py", "from nested_jax.teach import teach"),
        ("eval/core/cli.py", "import launch"),
        ("nested_jax/unheard_of.py", "import math"),
    ],
)
def test_an_import_upwards_is_found(tree, file, line):
    good = {"nested_jax/layers/basic.py": "from nested_jax.ops import linear\nimport json\n"}
    assert imports.wrong_layers(tree(good)) == []
    assert len(imports.wrong_layers(tree({file: f"{line}\n"}))) == 1


def test_libraries_are_imported_in_their_places():
    assert imports.wrong_places(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("eval/core/reader.py", "from flax import linen as nn"),
        ("nested_jax/models/lm.py", "import optax"),
        ("nested_jax/train/trainer.py", "import orbax.checkpoint as ocp"),
        ("nested_jax/train/trainer.py", "import grain"),
        ("eval/core/subject.py", "def f():\n    import sentencepiece"),
        ("nested_jax/models/lm.py", "from ml_collections import ConfigDict"),
        ("nested_jax/data/packing.py", "import jax.numpy as jnp"),
        ("nested_jax/data/text/plain_text.py", "def f():\n    from jax import numpy"),
    ],
)
def test_a_library_out_of_its_place_is_found(tree, file, line):
    good = {"nested_jax/train/checkpoint.py": "import jax\nimport orbax.checkpoint as ocp\n"}
    assert imports.wrong_places(tree(good)) == []
    assert len(imports.wrong_places(tree({file: f"{line}\n"}))) == 1


def test_configs_are_plain_data():
    assert imports.wrong_configs(ROOT) == []


@pytest.mark.parametrize("file", ["configs/pilot.py", "configs/data/sample.py"])
def test_a_config_that_is_not_plain_data_is_found(tree, file):
    """The tree of this test lies below a folder named data."""
    assert (
        imports.wrong_configs(tree({file: "import ml_collections\nfrom configs import common\n"}))
        == []
    )
    assert (
        len(imports.wrong_configs(tree({file: "import jax\nfrom nested_jax import data\n"}))) == 2
    )


def test_every_config_field_is_read():
    assert fields.unread_fields(ROOT) == []


CONFIG = """
class MemoryConfig:
    depth: int = 1
    width: int = 2
    name: str = ""

    def __post_init__(self):
        assert self.width > 0

    @property
    def deep(self):
        return self.depth > 1

class ModelConfig:
    memory: MemoryConfig
    layers: int = 1
    heads: int = 1
"""
USES = """
def build(cfg: ModelConfig, other: Other):
    memory, mine = cfg.memory, other.width
    print(cfg.layers, cfg.width, other.name)
    return memory.{field}

class Builder:
    def __init__(self, cfg: ModelConfig):
        self.memory, self.cfg = cfg.memory, cfg

    def run(self):
        return [getattr(self.cfg, part) for part in ("heads",)], self.memory.name
"""


def test_a_field_that_nothing_reads_is_found(tree):
    """Another class has a field of the same name, and a check reads it: neither is a use."""
    files = {"nested_jax/config/model.py": CONFIG, "nested_jax/models/lm.py": USES}
    read = {**files, "nested_jax/models/lm.py": USES.format(field="width")}
    unread = {**files, "nested_jax/models/lm.py": USES.format(field="deep")}
    assert fields.unread_fields(tree(read)) == []
    assert fields.unread_fields(tree(unread)) == ["MemoryConfig.width"]


def test_no_function_is_written_twice():
    assert house.copies(ROOT) == []


def test_a_copied_function_is_found(tree):
    body = "".join(f"    x{i} = {i}\n" for i in range(6))
    root = tree(
        {"eval/a.py": f'def f():\n    """One."""\n{body}', "eval/b.py": f"def g():\n{body}"}
    )
    assert house.copies(root) == [["eval/a.py:f", "eval/b.py:g"]]


def test_docstrings_name_parameters_that_exist():
    assert house.unknown_arguments(ROOT) == []


def test_a_docstring_that_names_another_parameter_is_found(tree):
    text = 'def f(a, *, b):\n    """Do.\n\n    Args:\n      a: one.\n      c: none.\n    """\n'
    assert house.unknown_arguments(tree({"eval/a.py": text})) == ["eval/a.py:f: c"]


def test_nothing_banned_is_used():
    assert house.banned(ROOT) == []


@pytest.mark.parametrize(
    "line",
    [
        "mesh = jax.make_mesh((2, 4), ('a', 'b'))",
        "with mesh:\n    pass",
        "from jax._src import core",
        "jax.debug.print('x')",
    ],
)
def test_what_is_banned_is_found(tree, line):
    good = "mesh = jax.make_mesh((2,), ('a',), axis_types=(Auto,))\nother = make_mesh(1)\n"
    assert house.banned(tree({"nested_jax/sharding.py": good})) == []
    assert len(house.banned(tree({"nested_jax/sharding.py": f"{line}\n"}))) == 1


def test_no_unconditional_skips():
    assert house.bad_skips(ROOT / "tests") == []


@pytest.mark.parametrize(
    "text",
    [
        "@pytest.mark.skip\ndef test_a(): pass",
        "@pytest.mark.skip(reason='slow')\ndef test_a(): pass",
        "@pytest.mark.skipif(True, reason='slow')\ndef test_a(): pass",
        "@pytest.mark.xfail(reason='known')\ndef test_a(): pass",
        "def test_a():\n    pytest.skip('later')",
    ],
)
def test_a_skip_without_condition_is_found(tree, text):
    good = (
        "@pytest.mark.xfail(strict=True, reason='known')\ndef test_a(): pass\n\n"
        "@pytest.mark.skipif(not found, reason='absent')\n"
        "def test_b():\n    if not found:\n        pytest.skip('absent')\n"
    )
    assert house.bad_skips(tree({"test_a.py": good})) == []
    assert len(set(house.bad_skips(tree({"test_a.py": f"{text}\n"})))) >= 1


def test_names_of_test_files_are_unique():
    assert house.names_that_repeat(ROOT / "tests") == []


def test_a_name_that_repeats_is_found(tree):
    root = tree({"a/test_x.py": "", "b/test_x.py": "", "b/conftest.py": "", "conftest.py": ""})
    assert house.names_that_repeat(root) == ["a/test_x.py and b/test_x.py"]


def test_costly_tests_are_there():
    """A test that was renamed would be back in the default suite without a word."""
    lines = (ROOT / "tests" / "costly.txt").read_text(encoding="utf-8").splitlines()
    assert lines == sorted(set(lines))
    for line in lines:
        file, _, name = line.partition("::")
        defined = f"def {name.partition('[')[0]}("
        assert defined in (ROOT / file).read_text(encoding="utf-8"), line


def test_every_folder_says_what_it_is_for():
    assert house.folders_without_purpose(ROOT) == []


def test_files_functions_and_folders_have_a_size_that_one_can_read():
    assert house.too_large(ROOT) == []


def test_what_is_too_large_is_found(tree):
    arguments = ", ".join(f"a{i}" for i in range(10))
    files = {f"eval/core/m{i}.py": "" for i in range(house.MOST_FILES + 1)}
    files["eval/a.py"] = "x = 1\n" * 401
    files["eval/b.py"] = "def f():\n" + "    x = 1\n" * 60
    files["eval/c.py"] = (
        f"def g({arguments}): pass\n\nclass A:\n    def h(self, {arguments[4:]}): pass\n"
    )
    wrong = house.too_large(tree(files))
    assert [line.split(": ")[0] for line in wrong] == [
        "eval/a.py",
        "eval/b.py:f",
        "eval/c.py:g",
        "eval/core",
    ]


def test_a_folder_that_does_not_say_what_it_is_for_is_found(tree):
    root = tree(
        {"eval/__init__.py": '"""Sums."""\n', "eval/a/b.py": "", "eval/c/__init__.py": "x = 1"}
    )
    assert [line.split(":")[0] for line in house.folders_without_purpose(root)] == [
        "eval/a",
        "eval/c",
    ]
