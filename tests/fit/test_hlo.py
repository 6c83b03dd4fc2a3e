"""Programs whose shapes, loops and arithmetic can be counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from nested_jax.fit.cost import LAUNCH_S, REACHED, REACHED_BANDWIDTH, estimate
from nested_jax.fit.gpus import GPUS, gpu_named, target_config
from nested_jax.fit.hlo import Shape, parse, shapes_in
from nested_jax.fit.plan import largest_buffers

STEPS = 7
TEXT = """HloModule jit_f, is_scheduled=true

FileNames
1 "/home/me/nested_jax/ops/linear.py"
2 "/home/me/other/library.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=31 end_line=31 column=4 end_column=9}
2 {file_name_id=2 function_name_id=1 line=8 end_line=8 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=0}
2 {file_location_id=2 parent_frame_id=1}

%body (p: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %p = (s32[], f32[64,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[64,32]{1,0} get-tuple-element(%p), index=1
  %w = f32[32,32]{1,0} constant({...})
  %y = f32[64,32]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(f)/dot_general" stack_frame_id=2}
  %start = (f32[64,32]{1,0}, f32[64,32]{1,0}) all-reduce-start(%y), to_apply=%add
  %all-reduce = f32[64,32]{1,0} all-reduce-done(%start)
  ROOT %t = (s32[], f32[64,32]{1,0}) tuple(%i, %all-reduce)
}

ENTRY %main (a: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %a = (s32[], f32[64,32]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[64,32]{1,0}) while(%a), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"7"}}
}
""".replace("\\\n", "")


def test_shapes_of_a_tuple_type() -> None:
    assert shapes_in("(bf16[2,3]{1,0}, f32[], token[])") == [
        Shape("bf16", (2, 3)),
        Shape("f32", ()),
    ]
    assert Shape("bf16", (2, 3)).bytes == 12
    assert Shape("f32", ()).bytes == 4


def test_a_loop_is_counted_as_often_as_it_runs() -> None:
    gpu = GPUS["h200"]
    found = estimate(parse(TEXT), gpu)
    flops = 2 * 64 * 32 * 32
    size = 4 * (2 * 64 * 32 + 32 * 32)
    assert found.flops == STEPS * flops
    assert found.bytes == STEPS * size
    assert found.kernels == STEPS * 2  # the product and the collective
    product = max(
        size / (gpu.bandwidth * REACHED_BANDWIDTH), flops / (gpu.peak_bf16 * REACHED["tf32"])
    )
    moved = 4 * 64 * 32
    by_hand = STEPS * (product + LAUNCH_S + moved / gpu.link + LAUNCH_S)
    assert found.seconds == pytest.approx(by_hand, rel=1e-12)
    collective = found.collectives["all-reduce, in loops of 7"]
    assert (collective.count, collective.bytes) == (STEPS, STEPS * moved)


def test_a_kernel_is_named_by_the_innermost_line_of_this_package() -> None:
    module = parse(TEXT)
    assert module.source(module.computations["body"]["y"]) == "nested_jax/ops/linear.py:31"
    assert "nested_jax/ops/linear.py:31 dot" in estimate(module, GPUS["h200"]).rows


def test_the_largest_results_are_listed_once_per_line_and_shape() -> None:
    found = largest_buffers(parse(TEXT))
    assert [(b["shape"], b["bytes"], b["places"]) for b in found[:2]] == [
        ("f32[64,32]", 8192, 1),
        ("f32[64,32]", 8192, 2),
    ]
    assert {b["source"] for b in found[:2]} == {"nested_jax/ops/linear.py:31", "all-reduce-start"}


def test_a_program_that_this_machine_compiled() -> None:
    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=STEPS)[0]

    x, w = jnp.ones((64, 32)), jnp.ones((32, 32))
    module = parse(jax.jit(f).lower(x, w).compile().as_text())
    assert estimate(module, GPUS["h200"]).flops == STEPS * 2 * 64 * 32 * 32


def test_more_work_never_costs_less() -> None:
    def seconds(size: int) -> float:
        x = jax.ShapeDtypeStruct((size, size), jnp.float32)
        text = jax.jit(lambda a: a @ a + 1).lower(x).compile().as_text()
        return estimate(parse(text), GPUS["h200"]).seconds

    assert seconds(128) < seconds(1024) < seconds(4096)


@pytest.mark.parametrize("name", GPUS)
def test_every_card_is_described(name: str) -> None:
    gpu = GPUS[name]
    text = target_config(gpu)
    assert f"device_memory_size: {gpu.memory_bytes}" in text
    assert text.count("{") == text.count("}")
    assert gpu.usable_bytes < gpu.memory_bytes


def test_an_unknown_card_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--gpu='h900': wants one of a100, h100, h200, b200"):
        gpu_named("h900")
