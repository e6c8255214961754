"""What a program costs: the arithmetic against closed forms and XLA's own count, the traffic against known programs."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from jaxdiff.models.attention import attend
from jaxdiff.training import costs
from jaxdiff.training.sharding import AXES

DEVICES = 8


def zeros(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)


def flops_of(f, *inputs) -> int:
    return costs.flops(jax.make_jaxpr(f)(*inputs))


def by_xla(f, *inputs) -> float:
    """XLA's count, which has the operations of each element, too."""
    return jax.jit(f).lower(*inputs).cost_analysis()["flops"]


def traffic_of(f, *inputs) -> costs.Traffic:
    return costs.read(jax.jit(f).lower(*inputs).compile().as_text())


def convolve(x, kernel, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1, 1), "padding": "VALID"},
        {"window_strides": (1, 1), "padding": "SAME"},
        {"window_strides": (2, 2), "padding": "SAME"},
        {"window_strides": (1, 1), "padding": [(2, 1), (1, 3)], "lhs_dilation": (2, 2)},
        {"window_strides": (1, 2), "padding": [(2, 2), (0, 0)], "rhs_dilation": (2, 1)},
        {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 2},
    ],
)
def test_convolutions_and_their_gradients_count_as_xla_counts_them(options):
    groups = options.get("feature_group_count", 1)
    x, kernel = zeros(3, 9, 8, 4), zeros(3, 3, 4 // groups, 6)
    f = partial(convolve, **options)
    assert flops_of(f, x, kernel) == by_xla(f, x, kernel)

    def with_gradients(x, kernel):
        out, pullback = jax.vjp(f, x, kernel)
        return out, pullback(jnp.ones_like(out))

    assert flops_of(with_gradients, x, kernel) == pytest.approx(by_xla(with_gradients, x, kernel), rel=0.02)


def test_products_count_twice_their_multiplications():
    assert flops_of(jnp.matmul, zeros(5, 7), zeros(7, 11)) == 2 * 5 * 7 * 11
    assert flops_of(jax.vmap(jnp.matmul), zeros(3, 5, 7), zeros(3, 7, 11)) == 3 * 2 * 5 * 7 * 11


def test_a_scan_counts_each_step_and_a_branch_its_costliest():
    x = zeros(5, 5)
    assert flops_of(lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=7)[0], x) == 7 * 2 * 125
    assert flops_of(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x), x) == 2 * 2 * 125


def test_what_is_spread_over_devices_counts_on_all_of_them():
    mesh = tiny.mesh_of(8)
    spread = jax.shard_map(lambda x, y: x @ y, mesh=mesh, in_specs=(P(AXES), P()), out_specs=P(AXES))
    assert flops_of(spread, zeros(16, 5), zeros(5, 3)) == 2 * 16 * 5 * 3


def test_attention_counts_its_products():
    q, k = zeros(2, 6, 3, 4), zeros(2, 10, 3, 4)
    product = 2 * 2 * 3 * 6 * 10 * 4
    assert flops_of(attend, q, k, k) == 2 * product
    assert flops_of(lambda q, k: jax.grad(lambda q, k: attend(q, k, k).sum(), (0, 1))(q, k), q, k) == (2 + 5) * product
    assert flops_of(lambda q, k: jax.jvp(attend, (q, k, k), (q, k, k)), q, k) == (2 + 6) * product


def test_the_traffic_of_a_product_is_its_inputs_and_its_output():
    x, y = zeros(64, 32), zeros(32, 16)
    assert traffic_of(jnp.matmul, x, y) == costs.Traffic(4 * (64 * 32 + 32 * 16 + 64 * 16), 0, ())


def test_a_loop_counts_as_often_as_it_runs():
    x = zeros(64, 64)

    def moved(length: int) -> int:
        return traffic_of(lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=length)[0], x).moved

    assert moved(12) - moved(7) == 5 * (moved(11) - moved(10)) >= 5 * 3 * x.nbytes


def test_a_slice_counts_what_it_takes_and_not_the_whole():
    table, chosen = zeros(10_000, 32), jnp.arange(4)
    assert traffic_of(lambda table, chosen: table[chosen] * 2, table, chosen).moved < table.nbytes / 100


def test_exchanges_are_told_with_their_sizes_and_groups():
    mesh = jax.make_mesh((2, 4), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def f(x, y):
        whole = jax.lax.all_gather(y, "fsdp", tiled=True)
        part = jax.lax.psum_scatter(whole * x.sum(), "fsdp", tiled=True)
        return part, jax.lax.psum(x, AXES)

    spread = jax.shard_map(f, mesh=mesh, in_specs=(P(AXES), P("fsdp")), out_specs=(P("fsdp"), P()), check_vma=False)
    found = traffic_of(spread, zeros(8, 128), zeros(4096)).collectives
    assert sorted(found) == [
        costs.Collective("all-gather", 4 * 4096, 4, ("f32",)),
        costs.Collective("all-reduce", 4 * 128, 8, ("f32",)),
        costs.Collective("reduce-scatter", 4 * 4096, 4, ("f32",)),
    ]
    assert [one.sent for one in sorted(found)] == [4 * 4096 * 3 / 4, 2 * 4 * 128 * 7 / 8, 4 * 4096 * 3 / 4]


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2},{3,4,5}}", 3),
        ("[4,2]<=[8]", 2),
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}", 4),
        ("mesh['data'=2,'fsdp'=4] {'data','fsdp'}", 8),
        ("mesh['data'=2,'fsdp'=4] {'data','fsdp':(1)2}", 4),
    ],
)
def test_the_size_of_a_group_is_read_in_every_notation(groups, size):
    text = f"""\
HloModule jit_f, num_partitions=8

ENTRY %main (p: f32[16]) -> f32[16] {{
  %p = f32[16]{{0}} parameter(0)
  ROOT %all = f32[16]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%add
}}
"""
    assert costs.read(text).collectives == (costs.Collective("all-reduce", 64, size, ("f32",)),)


def test_the_traffic_of_a_tpu_program_leaves_out_its_fast_memory():
    """An excerpt of a program for a v5e: a loop of four steps, tiles of 8 × 128, and arrays in memory 1."""
    text = """\
HloModule jit_f, is_scheduled=true, num_partitions=4

%body (p: (s32[], f32[100,3], f32[4,8,128])) -> (s32[], f32[100,3], f32[4,8,128]) {
  %p = (s32[]{:T(128)}, f32[100,3]{1,0:T(8,128)}, f32[4,8,128]{2,1,0:T(8,128)S(1)}) parameter(0)
  %x = f32[100,3]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %y = f32[4,8,128]{2,1,0:T(8,128)S(1)} get-tuple-element(%p), index=2
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %z = f32[100,3]{1,0:T(8,128)S(1)} add(%x, %x), backend_config={"window_config":{"estimated_cycles":"10"}}
  ROOT %t = (s32[]{:T(128)}, f32[100,3]{1,0:T(8,128)}, f32[4,8,128]{2,1,0:T(8,128)S(1)}) tuple(%i, %x, %y)
}

%less_than_4 (p.1: (s32[], f32[100,3], f32[4,8,128])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[100,3]{1,0:T(8,128)}, f32[4,8,128]{2,1,0:T(8,128)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %n = s32[]{:T(128)} constant(4)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %n), direction=LT
}

ENTRY %main (a: (s32[], f32[100,3], f32[4,8,128])) -> f32[100,3] {
  %a = (s32[]{:T(128)}, f32[100,3]{1,0:T(8,128)}, f32[4,8,128]{2,1,0:T(8,128)S(1)}) parameter(0)
  %loop = (s32[], f32[100,3]{1,0:T(8,128)}, f32[4,8,128]{2,1,0:S(1)}) while(%a), condition=%less_than_4, body=%body
  ROOT %b = f32[100,3]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""
    padded = 4 * 104 * 128
    assert costs.read(text) == costs.Traffic(moved=4 * 2 * padded, cycles=40, collectives=())
