"""Configuration: strict conversion, overrides, config files, cross-field checks."""

from __future__ import annotations

import importlib
import json
import re

import jax
import pytest

from configs import common
from nested_jax.config import Config, from_config_dict, load_config, parse_overrides
from nested_jax.config.schema import difference, to_dict
from nested_jax.errors import raised_here

FILES = ["pilot", "mid", "target", "test", "transformer", "titan_baseline"]
SIZES = ["test", "smoke", "pilot", "mid", "target"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"model": {"dimm": 64}}, r"model\.dimm=64: unknown field; did you mean model\.dim\?"),
        ({"modle": {}}, r"did you mean model\?"),
        ({"model": {"dim": "wide"}}, r"model\.dim='wide': got str, wants int"),
        ({"model": {"dim": True}}, r"model\.dim=True: got bool, wants int"),
        ({"model": 3}, r"model=3: got int, wants a block of fields"),
        (
            {"model": {"block": "mamba"}},
            r"wants one of 'transformer', 'gpt2', 'gpt2_cms', 'hope_attention'",
        ),
        ({"model": {"dim": 100, "heads": 3}}, r"model\.heads=3: must divide model\.dim=100"),
        ({"model": {"heads": 4, "kv_heads": 3}}, r"model\.kv_heads=3: must divide"),
        ({"model": {"cms": {"periods": (4, 6)}}}, r"6 is no multiple of 4"),
        ({"model": {"cms": {"inner_lr": (1.0, 2.0, 3.0)}}}, r"wants one, or one for each"),
        (
            {"model": {"block": "titans_lmm", "memory": {"rule": "dgd", "erase_gate": True}}},
            r"model\.memory\.erase_gate=True: belongs to model\.block='hope'; got 'titans_lmm'",
        ),
        (
            {"model": {"memory": {"erase_gate": True}}},
            r"model\.memory\.rule='dgd', .* got 'titans'",
        ),
        (
            {"model": {"memory": {"erase_init": (0.1,)}}},
            r"model\.memory\.erase_init=\(0\.1,\): wants model\.memory\.erase_gate=True",
        ),
        (
            {"model": {"memory": {"rule": "dgd", "erase_gate": True, "erase_stretch": -0.1}}},
            r"model\.memory\.erase_stretch=-0\.1: wants 0 or more",
        ),
        ({"teach": {"meta_gradient": "half"}}, r"'through', 'stop' or int"),
        ({"teach": {"meta_gradient": 0}}, r"teach\.meta_gradient=0"),
        ({"train": {"batch_size": 6, "grad_accum": 4}}, r"must divide train\.batch_size=6"),
        ({"mesh": {"data": -1, "fsdp": -1}}, r"mesh\.fsdp=-1: wants a size: mesh\.data takes"),
        ({"data": {"segments": ("a",), "weights": (1.0, 2.0)}}, r"wants one weight for each"),
    ],
)
def test_bad_config_names_field_value_and_form(data, message):
    with pytest.raises(ValueError, match=message):
        from_config_dict(data)


def teaching(**fields):
    return {"model": {"block": "hope_attention"}, "teach": {"mode": "exact", **fields}}


def test_chunks_must_fit():
    with pytest.raises(ValueError, match=r"data\.align=4: must be a multiple of teach\.chunk=64"):
        from_config_dict(teaching() | {"data": {"seq_len": 100}})
    with pytest.raises(ValueError, match=r"data\.seq_len=100: must be a multiple of data\.align=8"):
        from_config_dict({"data": {"seq_len": 100, "align": 8}})
    with pytest.raises(ValueError, match="must divide the fastest period"):
        from_config_dict(teaching(chunk=48) | {"data": {"seq_len": 96}})
    with pytest.raises(ValueError, match=r"teach\.levels=\(2,\): wants some of \(0, 1\)"):
        from_config_dict(teaching(levels=(2,)))


@pytest.mark.parametrize("layers", [(0,), (2, 3), (), (4,)])
def test_layers_without_fast_weights_cannot_be_taught(layers):
    """The last of four blocks has fast weights; the others would be left out without a word."""
    want = rf"^teach\.layers={re.escape(repr(layers))}: wants some of \(3,\), which have fast"
    with pytest.raises(ValueError, match=want):
        from_config_dict(teaching(layers=layers))
    assert from_config_dict(teaching(layers=(3,))).teach.layers == (3,)


@pytest.mark.parametrize(
    ("data", "want"),
    [
        ({"seq_len": 512}, 64),
        ({"seq_len": 96}, 32),
        ({"seq_len": 33}, 1),
        ({"seq_len": 512, "align": 128}, 128),
        ({"seq_len": 512, "align": 1}, 1),
    ],
)
def test_rows_are_cut_by_the_data_alone(data, want):
    plain = from_config_dict({"data": data})
    written = {"model": {"block": "hope_attention", "cms": {"periods": (128,)}}}
    chunk = min(want, 16)
    for teach in ({"mode": "off"}, {"mode": "exact", "chunk": chunk}):
        assert from_config_dict(written | {"teach": teach, "data": data}).align == want
    assert plain.align == want


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (teaching(chunk=32) | {"data": {"align": 16}}, r"data\.align=16: .*teach\.chunk=32;"),
        (
            {"model": {"block": "titans_lmm", "memory": {"chunk": 48}}},
            r"data\.align=64: .*model\.memory \(chunks and segments\)=48; .* every model",
        ),
        (
            {"model": {"block": "titans_mac", "memory": {"chunk": 64, "segment": 128}}},
            r"data\.align=64: .*\(chunks and segments\)=128; .* every model",
        ),
        (
            {
                "model": {"block": "titans_lmm", "memory": {"chunk": 16}},
                "data": {"source": "synthetic", "seq_len": 40, "task": {"train": ("copy",)}},
            },
            r"data\.seq_len=40: must be a multiple of model\.memory",
        ),
    ],
)
def test_a_chunk_that_no_alignment_of_the_data_fits_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        from_config_dict(fields)


def test_types_convert_without_loss():
    cfg = from_config_dict({"optim": {"learning_rate": 1}, "teach": {"surprise_threshold": None}})
    assert isinstance(cfg.optim.learning_rate, float)
    assert cfg.teach.surprise_threshold is None
    assert from_config_dict({"model": {"cms": {"periods": [4, 8]}}}).model.cms.periods == (4, 8)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("size", SIZES)
def test_every_config_file_loads_and_traces(file, size):
    cfg = load_config(f"configs/{file}.py:{size}")
    assert from_config_dict(json.loads(json.dumps(to_dict(cfg)))) == cfg
    assert cfg.model.size == ("mid_smoke" if (file, size) == ("mid", "smoke") else size)
    assert hash(cfg) == hash(load_config(f"configs/{file}.py:{size}"))


@pytest.mark.parametrize("size", ["test", "smoke", "124m_10b"])
def test_gpt2_has_its_own_sizes(size):
    cfg = load_config(f"configs/gpt2.py:{size}")
    assert from_config_dict(json.loads(json.dumps(to_dict(cfg)))) == cfg
    assert cfg.model.size == size
    assert cfg.model.vocab_size >= cfg.data.vocab_size
    joined = load_config(f"configs/gpt2.py:{size},documents=joined", {"data.align": 0})
    assert (cfg.align, joined.align) == (1, cfg.data.seq_len)  # a joined row is one document


def test_baselines_match_in_parameters_within_two_percent():
    import math

    from nested_jax import build_model

    def count(spec):
        info = build_model(load_config(spec).model).param_info()
        return sum(math.prod(i.shape) for i in jax.tree.leaves(info))

    for size in SIZES:
        hope, base = count(f"configs/pilot.py:{size}"), count(f"configs/transformer.py:{size}")
        assert abs(hope / base - 1) < 0.02, (size, hope, base)


def test_overrides():
    cfg = load_config(
        "configs/test.py", {"optim.learning_rate": 0.5, "model.cms.periods": (32, 64)}
    )
    assert cfg.optim.learning_rate == 0.5
    assert cfg.model.cms.periods == (32, 64)
    with pytest.raises(ValueError, match=r"optim\.lerning_rate=1: unknown field; did you mean"):
        load_config("configs/test.py", {"optim.lerning_rate": 1})
    with pytest.raises(ValueError, match="is a field, not a block"):
        load_config("configs/test.py", {"seed.x": 1})
    assert parse_overrides(["--config.a.b=(1, 2)", "--config.c=text", "--config.d=None"]) == {
        "a.b": (1, 2),
        "c": "text",
        "d": None,
    }
    with pytest.raises(ValueError, match=r"wants --config\.FIELD=VALUE"):
        parse_overrides(["--confg.x=1"])


def test_steps_follow_from_tokens():
    budget = {"train": {"tokens": 3_000, "steps": 0, "batch_size": 4}, "data": {"seq_len": 64}}
    cfg = from_config_dict(budget)
    assert cfg.train.steps == 12  # 11 of 256 tokens are too few
    assert from_config_dict(to_dict(cfg)) == cfg  # as a saved one is read
    with pytest.raises(ValueError, match=r"train\.tokens=3000: gives 12 steps of 256 tokens; got"):
        from_config_dict({**budget, "train": {**budget["train"], "steps": 7}})
    with pytest.raises(ValueError, match=r"train\.steps=0: wants 1 or more, or train\.tokens"):
        from_config_dict({"train": {"steps": 0}})


@pytest.mark.parametrize(("size", "billions"), [("pilot", 3), ("mid", 30), ("target", 100)])
def test_a_recipe_reads_its_budget_in_half_a_million_tokens_per_step(size, billions):
    for file in ("pilot", "transformer", "titan_baseline"):
        cfg = load_config(f"configs/{file}.py:{size}")
        per_step = cfg.train.batch_size * cfg.data.seq_len
        assert per_step == 2**19
        assert 0 <= cfg.train.steps * per_step - billions * 10**9 < per_step
        assert cfg.data.source != "stdlib"


def test_what_is_typed_wins_over_the_other_way_to_say_it():
    file = "configs/pilot.py"
    assert load_config(file).train.device_rows > 0
    typed = load_config(file, {"train.steps": 7, "train.grad_accum": 4}).train
    assert (typed.steps, typed.tokens, typed.grad_accum, typed.device_rows) == (7, 0, 4, 0)
    assert load_config(f"{file}:steps=7").train.tokens == 0
    assert load_config(f"{file}:smoke,tokens=40960").train.steps == 10
    assert load_config(f"{file}:smoke", {"train.tokens": 40_961}).train.steps == 11
    with pytest.raises(ValueError, match=r"train\.tokens=10: gives 1 steps"):
        load_config(file, {"train.steps": 7, "train.tokens": 10})
    with pytest.raises(ValueError, match=r"train\.device_rows=2: wants train\.grad_accum=1, got 4"):
        load_config(file, {"train.grad_accum": 4, "train.device_rows": 2})


def test_levels_are_written_where_something_reads_them():
    for size, levels in (("pilot", 3), ("mid_smoke", 4), ("mid", 4), ("target", 4)):
        cfg = load_config(f"configs/pilot.py:{size}")
        assert len(cfg.model.cms.periods) == levels
        assert cfg.model.cms.periods[-1] == cfg.data.seq_len // 2
        assert cfg.teach.chunk == cfg.model.cms.periods[0]


def test_config_arguments():
    assert load_config("configs/pilot.py:smoke,steps=7,lr=1e-4").train.steps == 7
    with pytest.raises(ValueError, match="known sizes"):
        load_config("configs/pilot.py:huge")
    with pytest.raises(ValueError, match="known: size, block"):
        load_config("configs/pilot.py:smoke,stepps=7")
    with pytest.raises(ValueError, match="no such file"):
        load_config("configs/nothing.py")


ARGUMENTS = {
    "pilot": "test",
    "mid": "size=test",
    "target": "size=test",
    "test": "test",
    "transformer": "test",
    "titan_baseline": "test",
    "char_lstm": "test",
    "real_text": "test",
    "synthetic": "mqar",
    "gpt2": "test",
}
NUMBERS = ("2", "-1", "0", "1.5", "128", "2e2", "1e999", "nan", "99999999999")
VALUES = (*NUMBERS, "True", "off", "through", "lstm", "")


def refusal(spec: str) -> ValueError | None:
    """Return the error of a config that is refused, None for one that loads."""
    try:
        load_config(spec)
    except ValueError as error:
        return error
    return None


@pytest.mark.parametrize("file", ARGUMENTS)
def test_every_argument_of_every_config_file_loads_or_is_refused(file):
    """Whatever is typed: no file fails otherwise, and each field can be set."""
    module = importlib.import_module(f"configs.{file}")
    known = [*getattr(module, "FIELDS", common.FIELDS)]
    settings = ["tokens", "pairs", "count", "gap", "vocab"] if file == "synthetic" else []
    unset = set(known)
    for name in [*known, *settings]:
        errors = [refusal(f"configs/{file}.py:{ARGUMENTS[file]},{name}={v}") for v in VALUES]
        assert all(error is None or raised_here(error) for error in errors), name
        unset -= {name} if None in errors else set()
    assert unset <= {"source", "block", "model", "documents"}  # their values are names


@pytest.mark.parametrize("file", ARGUMENTS)
def test_every_config_file_loads_or_refuses_every_size(file):
    for size in (*common.SIZES, "huge"):
        error = refusal(f"configs/{file}.py:{size}")
        assert error is None or "known sizes" in str(error) or file == "synthetic"


def test_fields_that_are_a_name_or_a_number():
    assert load_config("configs/test.py:meta=2").teach.meta_gradient == 2
    assert load_config("configs/test.py:meta=stop").teach.meta_gradient == "stop"
    with pytest.raises(ValueError, match=r"train\.steps='many': wants a number like 12"):
        load_config("configs/test.py:steps=many")


def test_difference_lists_changed_fields():
    old = Config()
    new = from_config_dict({"model": {"cms": {"momentum": 0.5}}, "seed": 3})
    assert difference(old, new) == [
        "config.seed: 0 -> 3",
        "config.model.cms.momentum: (0.9,) -> (0.5,)",
    ]
