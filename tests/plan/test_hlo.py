"""What is read from optimised HLO: snippets as the TPU and the GPU compiler write it, and a program compiled here."""

import jax
import jax.numpy as jnp
import pytest

from s1jax.plan import hlo

TPU = """HloModule jit_step, is_scheduled=true

%body.1 (p.1: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %p.1 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x = bf16[8,4]{1,0:T(8,128)(2,1)} get-tuple-element(%p.1), index=1
  %gather = bf16[32,4]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, dimensions={0}, use_global_device_ids=true
  %reduced = bf16[32,4]{1,0} all-reduce(%gather), channel_id=2, to_apply=%add
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %x)
}

%condition.1 (p.2: (s32[], bf16[8,4])) -> pred[] {
  %p.2 = (s32[], bf16[8,4]) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %limit = s32[]{:T(128)} constant(28), metadata={op_name="x"}
  ROOT %less = pred[]{:T(512)} compare(%i.2, %limit), direction=LT
}

ENTRY %main.1 (a: bf16[8,4]) -> bf16[8,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,4]) tuple(%zero, %a)
  %loop = (s32[], bf16[8,4]) while(%start), condition=%condition.1, body=%body.1
  ROOT %out = bf16[8,4]{1,0} get-tuple-element(%loop), index=1
}
"""
GPU = """HloModule jit_step, is_scheduled=true

%fused (q.1: f32[28,3], q.2: s32[]) -> f32[1,3] {
  %q.1 = f32[28,3]{1,0} parameter(0)
  %q.2 = s32[] parameter(1)
  %zero.9 = s32[] constant(0)
  ROOT %ds = f32[1,3]{1,0} dynamic-slice(%q.1, %q.2, %zero.9), dynamic_slice_sizes={1,3}
}

%body.2 (p.1: (s32[], f32[28,3], bf16[16])) -> (s32[], f32[28,3], bf16[16]) {
  %p.1 = (s32[], f32[28,3]{1,0}, bf16[16]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p.1), index=0
  %w = f32[28,3]{1,0} get-tuple-element(%p.1), index=1
  %x = bf16[16]{0} get-tuple-element(%p.1), index=2
  %slice = f32[1,3]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused
  %start = ((bf16[16]{0}), bf16[2]{0}) reduce-scatter-start(%x), channel_id=3, dimensions={0}, to_apply=%add
  %square = bf16[4,4]{1,0} bitcast(%x)
  %product = bf16[4,4]{1,0} dot(%square, %square), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %done = bf16[2]{0} reduce-scatter-done(%start)
  %gather = ((bf16[2]{0}, f32[3]{0}), (bf16[16]{0}, /*index=1*/f32[24]{0})) all-gather-start(%done, %slice), channel_id=4
  %both = (bf16[16]{0}, f32[24]{0}) all-gather-done(%gather)
  ROOT %t = (s32[], f32[28,3]{1,0}, bf16[16]{0}) tuple(%i, %w, %x)
}

%condition.2 (p.2: (s32[], f32[28,3], bf16[16])) -> pred[] {
  %p.2 = (s32[], f32[28,3]{1,0}, bf16[16]{0}) parameter(0)
  ROOT %less = pred[] custom-call(%p.2), custom_call_target="x"
}

ENTRY %main.2 (a: (s32[], f32[28,3], bf16[16])) -> (s32[], f32[28,3], bf16[16]) {
  %a = (s32[], f32[28,3]{1,0}, bf16[16]{0}) parameter(0)
  ROOT %loop = (s32[], f32[28,3]{1,0}, bf16[16]{0}) while(%a), condition=%condition.2, body=%body.2, backend_config={"known_trip_count":{"n":"28"}}
}
"""  # noqa: E501


# The TPU compiler's two ways of running collectives beside products: parts of fusions, and calls on the SparseCore.
TPU_BESIDE = """HloModule jit_step, is_scheduled=true

%gathering (q.1: bf16[8,4]) -> (bf16[8,4], bf16[32,4], u32[]) {
  %q.1 = bf16[8,4]{1,0} parameter(0)
  %gather = bf16[32,4]{1,0} all-gather(%q.1), channel_id=1, dimensions={0}
  ROOT %c = (bf16[8,4], bf16[32,4], u32[]) custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}

%carrying_on (r.1: bf16[32,4]) -> bf16[32,4] {
  %r.1 = bf16[32,4]{1,0} parameter(0)
  ROOT %again = bf16[32,4]{1,0} custom-call(%r.1), custom_call_target="AsyncCollectiveDone"
}

%reducing (s.1: bf16[32,4]) -> bf16[32,4] {
  %s.1 = bf16[32,4]{1,0} parameter(0)
  ROOT %sum = bf16[32,4]{1,0} all-reduce(%s.1), channel_id=2, to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main.3 (a: bf16[8,4]) -> bf16[32,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  %async-collective-start = (bf16[8,4], bf16[32,4], u32[]) fusion(%a), kind=kCustom, calls=%gathering
  %part = bf16[32,4]{1,0} get-tuple-element(%async-collective-start), index=1
  %whole = bf16[32,4]{1,0} fusion(%part), kind=kCustom, calls=%carrying_on
  %call-start = ((bf16[32,4], token[]), bf16[32,4]) call-start(%whole), to_apply=%reducing
  %square = bf16[4,8]{1,0} bitcast(%a)
  %product = bf16[8,8]{1,0} convolution(%a, %square), dim_labels=bf_io->bf
  %call-done = bf16[32,4]{1,0} call-done(%call-start)
  %again-start = ((bf16[32,4], token[]), bf16[32,4]) call-start(%call-done), to_apply=%reducing
  %prepare = s32[] custom-call(), custom_call_target="PrepareAsyncCallStart"
  ROOT %again-done = bf16[32,4]{1,0} call-done(%again-start)
}
"""


TPU_SCATTER = """HloModule jit_step, is_scheduled=true

%all-reduce-scatter (input: f32[32,4]) -> f32[8,4] {
  %input = f32[32,4]{1,0} parameter(0)
  %sum = f32[32,4]{1,0} all-reduce(%input), channel_id=1, to_apply=%add
  %me = u32[] partition-id()
  %zero = u32[] constant(0)
  ROOT %mine = f32[8,4]{1,0} dynamic-slice(%sum, %me, %zero), dynamic_slice_sizes={8,4}
}

ENTRY %main.4 (a: f32[32,4]) -> f32[8,4] {
  %a = f32[32,4]{1,0} parameter(0)
  ROOT %fusion = f32[8,4]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_a_reduction_that_each_device_keeps_its_part_of():
    found = hlo.traffic(TPU_SCATTER)
    assert found.collectives == found.exposed == {"reduce-scatter": 32 * 4 * 4}


# A product over heads and one over stacked weights, whose slice stands in a fusion of its own.
TPU_PRODUCTS = """HloModule jit_step, is_scheduled=true

%slice_of (q.1: bf16[28,64,32], q.2: s32[]) -> bf16[64,32] {
  %q.1 = bf16[28,64,32]{2,1,0} parameter(0)
  %q.2 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %ds = bf16[1,64,32]{2,1,0} dynamic-slice(%q.1, %q.2, %zero, %zero), dynamic_slice_sizes={1,64,32}
  ROOT %b = bf16[64,32]{1,0} bitcast(%ds)
}

%same (r.1: bf16[16,64]) -> bf16[16,64] {
  %r.1 = bf16[16,64]{1,0} parameter(0)
  ROOT %b.2 = bf16[16,64]{1,0} bitcast(%r.1)
}

%product (p.2: s32[], p.1: bf16[28,64,32], p.0: bf16[16,64]) -> bf16[16,32] {
  %p.0 = bf16[16,64]{1,0} parameter(0)
  %p.1 = bf16[28,64,32]{2,1,0} parameter(1)
  %p.2 = s32[] parameter(2)
  %rows = bf16[16,64]{1,0} fusion(%p.0), kind=kLoop, calls=%same
  %weights = bf16[64,32]{1,0} fusion(%p.1, %p.2), kind=kLoop, calls=%slice_of
  ROOT %convolution = bf16[16,32]{1,0} convolution(%rows, %weights), dim_labels=bf_io->bf
}

ENTRY %main.5 (a: bf16[16,64], w: bf16[28,64,32], i: s32[], k: bf16[4,128,64]) -> bf16[16,4,128] {
  %a = bf16[16,64]{1,0} parameter(0)
  %w = bf16[28,64,32]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %k = bf16[4,128,64]{2,1,0} parameter(3)
  %fusion = bf16[16,32]{1,0} fusion(%a, %w, %i), kind=kOutput, calls=%product
  %a.1 = bf16[16,64,1]{1,0,2} bitcast(%a)
  ROOT %heads = bf16[16,4,128]{2,0,1} convolution(%a.1, %k), window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_0oi->b0f
}
"""  # noqa: E501


def test_products_and_the_bytes_they_move_on_a_tpu():
    found = hlo.traffic(TPU_PRODUCTS)
    rows, slice_ = 2 * 16 * 64, 2 * 64 * 32
    heads = 2 * 4 * 128 * 64 + 2 * 16 * 4 * 128
    assert found.work == [
        (1, 2 * 16 * 64 * 32, rows + slice_ + 4 + 2 * 16 * 32),
        (1, 2 * 16 * 64 * 4 * 128, rows + heads),
    ]
    assert found.memory == sum(moved for _, _, moved in found.work)


def test_collectives_beside_products_on_a_tpu():
    found = hlo.traffic(TPU_BESIDE)
    assert found.collectives == {"all-gather": 32 * 4 * 2, "all-reduce": 2 * 32 * 4 * 2}
    assert found.exposed == {"all-reduce": 32 * 4 * 2}  # the second, beside which nothing but preparations run
    assert found.synchronous == 0


def test_collectives_that_a_loop_waits_for():
    found = hlo.traffic(TPU)
    assert found.collectives == {"all-gather": 28 * 32 * 4 * 2, "all-reduce": 28 * 32 * 4 * 2}
    assert found.exposed == found.collectives
    assert found.synchronous == 1
    assert found.between == [(28 * 32 * 4 * 2, ()), (2 * 28 * 32 * 4 * 2, ())]


def test_asynchronous_collectives_and_slices_of_stacked_weights():
    found = hlo.traffic(GPU)
    assert found.collectives == {"reduce-scatter": 28 * 16 * 2, "all-gather": 28 * (16 * 2 + 24 * 4)}
    assert found.exposed == {"all-gather": 28 * (16 * 2 + 24 * 4)}  # the product runs beside the other one
    assert found.synchronous == 0
    slice_, product = 2 * 3 * 4 + 4, 3 * 16 * 2  # a slice is read, not the stack; the index; a slice is written
    assert found.memory == 28 * (slice_ + product)


PERMUTE = """HloModule jit_step, is_scheduled=true

ENTRY %main.6 (a: bf16[8,64]) -> bf16[8,64] {
  %a = bf16[8,64]{1,0} parameter(0)
  %start = (bf16[8,64]{1,0}, bf16[8,64]{1,0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
  ROOT %done = bf16[8,64]{1,0} collective-permute-done(%start)
}
"""  # noqa: E501


def test_the_tokens_of_an_asynchronous_start_are_no_data():
    found = hlo.traffic(PERMUTE)
    assert found.collectives == {"collective-permute": 2 * 8 * 64}
    assert found.between == [(2 * 8 * 64, (0, 1))]


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("{{0,4},{1,5},{2,6},{3,7}}", (0, 4)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("[2,4]<=[2,2,2]T(1,0,2)", (0, 1, 4, 5)),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", (0, 1, 2, 3)),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", (0, 4)),
        ("mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}", (0, 1, 4, 5)),
        ("mesh['axis_0'=8] {'axis_0':(1)2}", ()),  # a part of an axis: taken for all
        ("{}", ()),
    ],
)
def test_devices_of_a_collective(groups, first):
    text = TPU.replace("all-gather(%x), channel_id=1,", f"all-gather(%x), channel_id=1, replica_groups={groups},")
    assert hlo.traffic(text).between[0] == (28 * 32 * 4 * 2, first)


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="compares with no constant"):
        hlo.traffic(GPU.replace("known_trip_count", "trip_count"))


@pytest.mark.parametrize(
    ("before", "limit", "start"),
    [
        ("", "%limit.1 = s32[] constant(7)", "%zero"),
        ("%fused (p: s32[]) -> pred[] {\n  %p = s32[] parameter(0)\n  %seven = s32[] constant(7)\n"
         "  ROOT %less.1 = pred[] compare(%p, %seven), direction=LT\n}\n\n", "", "%zero"),
        ("", "%limit.1 = s32[] get-tuple-element(%c), index=1", "%copied"),
    ],
)  # fmt: skip
def test_the_limit_of_a_loop_is_found_where_compilers_leave_it(before, limit, start):
    """In the condition, in a fusion that it calls, or in what the loop carries from its start on."""
    less = "fusion(%i), kind=kLoop, calls=%fused" if before else "compare(%i, %limit.1), direction=LT"
    text = f"""HloModule jit_step, is_scheduled=true

{before}%condition (c: (s32[], s32[], f32[4])) -> pred[] {{
  %c = (s32[], s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  {limit}
  ROOT %less = pred[] {less}
}}

%body (b: (s32[], s32[], f32[4])) -> (s32[], s32[], f32[4]) {{
  %b = (s32[], s32[], f32[4]) parameter(0)
  %x = f32[4]{{0}} get-tuple-element(%b), index=2
  %sum = f32[4]{{0}} all-reduce(%x), to_apply=%add
  ROOT %next = (s32[], s32[], f32[4]) tuple(%i, %i, %sum)
}}

ENTRY %main (a: f32[4]) -> (s32[], s32[], f32[4]) {{
  %a = f32[4]{{0}} parameter(0)
  %zero = s32[] constant(0)
  %limit = s32[] constant(7)
  %copied = s32[] copy(%limit)
  %carry = (s32[], s32[], f32[4]) tuple(%zero, {start}, %a)
  ROOT %loop = (s32[], s32[], f32[4]) while(%carry), condition=%condition, body=%body
}}
"""
    assert hlo.traffic(text).collectives == {"all-reduce": 7 * 4 * 4}


def test_a_program_compiled_here():
    weights = jnp.ones((6, 64, 64))

    def run(x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    found = hlo.traffic(jax.jit(run).lower(jnp.ones((32, 64))).compile().as_text())
    least = 6 * 64 * 64 * 4  # every weight once
    assert least <= found.memory <= 8 * least
    assert found.collectives == {}
    assert found.operations == 6 * 2 * 32 * 64 * 64
