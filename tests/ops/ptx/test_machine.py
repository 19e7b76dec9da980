"""The machine on PTX written by hand: what instructions compute, and what is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.ops.ptx.counters import Counts, sectors, wavefronts
from tests.ops.ptx.fault import Fault
from tests.ops.ptx.global_memory import Buffer
from tests.ops.ptx.machine import Machine
from tests.ops.ptx.program import Module

pytestmark = pytest.mark.slow

# %rd1 is where a thread's 16 bytes of the result lie, %rd2 those of its input, %r1 its number and
# %r2 its four bytes of shared memory.
KERNEL = """
.version 9.0
.target sm_80
.address_size 64

.extern .shared .align 16 .b8 dynamic[];

.visible .entry kernel(
	.param .u64 kernel_param_0,
	.param .u64 kernel_param_1
)
{{
	.reg .pred %p<8>;
	.reg .b16 %h<8>;
	.reg .b32 %r<40>;
	.reg .f32 %f<16>;
	.reg .b64 %rd<16>;
	.reg .f64 %d<8>;
	.local .align 16 .b8 own[16];
	.shared .align 16 .b8 memory[1024];
	ld.param.u64 %rd1, [kernel_param_0];
	ld.param.u64 %rd2, [kernel_param_1];
	mov.u32 %r1, %tid.x;
	mad.wide.u32 %rd1, %r1, 16, %rd1;
	mad.wide.u32 %rd2, %r1, 16, %rd2;
	mov.u32 %r2, memory;
	mad.lo.s32 %r2, %r1, 4, %r2;
	{body}
	ret;
}}
"""
COPY_OF_FOUR = "cp.async.ca.shared.global [%r2], [%rd2], 4;"
COPY_OF_SIXTEEN = "shl.b32 %r3, %r1, 4; cp.async.cg.shared.global [%r3], [%rd2], 16"
LOAD_AND_STORE = "ld.shared.b32 %r4, [%r2]; st.global.b32 [%rd1], %r4;"


def run(
    body: str,
    given: np.ndarray | None = None,
    *,
    threads: int = 32,
    blocks: int = 1,
    dynamic_shared: int = 0,
    observer: Counts | None = None,
) -> np.ndarray:
    """Run a kernel on 16 bytes of input of every thread; return its 16 bytes as words."""
    source = np.zeros((threads, 4), np.uint32)
    if given is not None:
        source.view(given.dtype)[:, : given[0].size] = given.reshape(threads, -1)
    result = np.zeros((threads, 4), np.uint32)
    Machine(Module(KERNEL.format(body=body))).launch(
        "kernel",
        (blocks, 1, 1),
        (threads, 1, 1),
        struct.pack("<QQ", result.ctypes.data, source.ctypes.data),
        [
            Buffer("result", result.ctypes.data, result.nbytes, writable=True),
            Buffer("input", source.ctypes.data, source.nbytes),
        ],
        dynamic_shared=dynamic_shared,
        observer=observer,
    )
    return result


def words(*values: int) -> np.ndarray:
    """As many words for each of 32 threads."""
    return np.array([[value % (1 << 32) for value in values]] * 32, np.uint32)


INTEGERS = {
    "add.s32 %r9, %r5, %r6": ((7, -9), -2),
    "sub.s32 %r9, 0, %r5": ((7,), -7),
    "mul.lo.s32 %r9, %r5, %r6": ((1 << 20, 1 << 13), 0),
    "mul.hi.s32 %r9, %r5, %r6": ((-(1 << 20), 1 << 20), -(1 << 8)),
    "mul.hi.u32 %r9, %r5, %r6": ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFE),
    "mad.lo.s32 %r9, %r5, %r6, %r7": ((3, -4, 5), -7),
    "div.s32 %r9, %r5, %r6": ((-7, 2), -3),
    "rem.s32 %r9, %r5, %r6": ((-7, 2), -1),
    "div.u32 %r9, %r5, %r6": ((0xFFFFFFFF, 2), 0x7FFFFFFF),
    "min.s32 %r9, %r5, %r6": ((-1, 1), -1),
    "max.u32 %r9, %r5, %r6": ((-1, 1), -1),
    "abs.s32 %r9, %r5": ((-5,), 5),
    "neg.s32 %r9, %r5": ((5,), -5),
    "shl.b32 %r9, %r5, %r6": ((1, 33), 0),
    "shr.s32 %r9, %r5, 4": ((-256,), -16),
    "shr.u32 %r9, %r5, %r6": ((-1, 40), 0),
    "shf.l.wrap.b32 %r9, %r5, %r6, %r7": ((0x89ABCDEF, 0x01234567, 36), 0x12345678),
    "shf.r.clamp.b32 %r9, %r5, %r6, %r7": ((0x89ABCDEF, 0x01234567, 36), 0x01234567),
    "prmt.b32 %r9, %r5, %r6, 0x5410": ((0x22221111, 0x44443333), 0x33331111),
    "prmt.b32 %r9, %r5, %r6, %r7": ((0x80, 0x11223344, 0x7F80), 0x1100FF80),
    "lop3.b32 %r9, %r5, %r6, %r7, 0xEA": ((0b1100, 0b1010, 0b0001), 0b1001),
    "bfe.u32 %r9, %r5, %r6, %r7": ((0x12345678, 8, 12), 0x456),
    "bfe.s32 %r9, %r5, %r6, %r7": ((0x12345F78, 8, 4), -1),
    "bfi.b32 %r9, %r5, %r6, 8, 12": ((0xABC, 0x11111111), 0x111ABC11),
    "not.b32 %r9, %r5": ((0,), -1),
    "cvt.s32.s8 %r9, %r5": ((0x1FF,), -1),
    "cvt.u32.u16 %r9, %r5": ((0x12345,), 0x2345),
    "cvt.sat.u8.s32 %r9, %r5": ((-3,), 0),
}


@pytest.mark.parametrize("instruction", INTEGERS)
def test_an_integer_instruction_computes_what_the_documentation_says(instruction):
    operands, expected = INTEGERS[instruction]
    result = run(
        f"ld.global.v4.b32 {{%r5, %r6, %r7, %r8}}, [%rd2]; {instruction}; "
        "st.global.b32 [%rd1], %r9;",
        words(*operands),
    )
    assert (result[:, 0] == expected % (1 << 32)).all()


NAN = float("nan")
FLOATS = {
    "add.rn.f32 %f9, %f5, %f6": ((1.0, 2.0**-24), 1.0),
    "fma.rn.f32 %f9, %f5, %f6, %f7": ((1 + 2.0**-12, 1 - 2.0**-12, -1.0), -(2.0**-24)),
    "mul.f32 %f9, %f5, %f6": ((3.0, 0.5), 1.5),
    "div.rn.f32 %f9, %f5, %f6": ((1.0, 3.0), np.float32(1) / np.float32(3)),
    "rcp.rn.f32 %f9, %f5": ((0.0,), np.inf),
    "min.f32 %f9, %f5, %f6": ((NAN, 2.0), 2.0),
    "max.NaN.f32 %f9, %f5, %f6": ((NAN, 2.0), NAN),
    "abs.f32 %f9, %f5": ((-0.5,), 0.5),
    "setp.ltu.f32 %p1, %f5, %f6; selp.f32 %f9, 0f3F800000, 0f00000000, %p1": ((NAN, 0.0), 1.0),
    "setp.ne.f32 %p1, %f5, %f6; selp.f32 %f9, 0f3F800000, 0f00000000, %p1": ((NAN, 0.0), 0.0),
    "setp.num.f32 %p1, %f5, %f6; selp.f32 %f9, 0f3F800000, 0f00000000, %p1": ((NAN, 0.0), 0.0),
    "cvt.rn.bf16.f32 %h1, %f5; cvt.f32.bf16 %f9, %h1": ((1 + 3 * 2.0**-8,), 1 + 2.0**-6),
    "cvt.rn.f16.f32 %h1, %f5; cvt.f32.f16 %f9, %h1": ((1 + 2.0**-11,), 1.0),
    "cvt.rna.tf32.f32 %f9, %f5": ((1 + 2.0**-11,), 1 + 2.0**-10),
    "cvt.rn.bf16x2.f32 %f9, %f5, %f6": ((1.0, 0.0), 1.0),
    "cvt.rzi.s32.f32 %r9, %f5; cvt.rn.f32.s32 %f9, %r9": ((-1.7,), -1.0),
    "cvt.rni.u32.f32 %r9, %f5; cvt.rn.f32.u32 %f9, %r9": ((-5.0,), 0.0),
    "cvt.rmi.f32.f32 %f9, %f5": ((-1.2,), -2.0),
    "cvt.sat.f32.f32 %f9, %f5": ((1.5,), 1.0),
    "cvt.f64.f32 %d1, %f5; fma.rn.f64 %d1, %d1, %d1, %d1; cvt.rn.f32.f64 %f9, %d1": ((3.0,), 12.0),
}


@pytest.mark.parametrize("instruction", FLOATS)
def test_a_float_instruction_computes_what_the_documentation_says(instruction):
    operands, expected = FLOATS[instruction]
    given = np.array([operands] * 32, np.float32)
    result = run(
        f"ld.global.nc.v4.f32 {{%f5, %f6, %f7, %f8}}, [%rd2]; {instruction}; "
        "st.global.f32 [%rd1], %f9;",
        given,
    )
    assert np.array_equal(
        result.view(np.float32)[:, 0], np.full(32, expected, np.float32), equal_nan=True
    )


def test_multiplication_to_128_bits_is_right_for_every_sign():
    given = np.random.default_rng(0).integers(-(1 << 63), 1 << 63, (32, 2), dtype=np.int64)
    for kind, values in (("s64", given), ("u64", given.view(np.uint64))):
        result = run(
            f"ld.global.v2.b64 {{%rd3, %rd4}}, [%rd2]; mul.hi.{kind} %rd5, %rd3, %rd4; "
            "st.global.b64 [%rd1], %rd5;",
            given,
        )
        expected = [(int(a) * int(b) >> 64) % (1 << 64) for a, b in values]
        assert result.view(np.uint64)[:, 0].tolist() == expected


def test_threads_that_leave_a_loop_at_different_times_come_together_again():
    result = run(
        "mov.u32 %r4, 0; mov.u32 %r5, 0;"
        "LOOP: setp.ge.u32 %p1, %r4, %r1; @%p1 bra DONE;"
        "add.u32 %r5, %r5, %r4; add.u32 %r4, %r4, 1; bra LOOP;"
        "DONE: setp.eq.u32 %p2, %r1, 3; @%p2 add.u32 %r5, %r5, 1000; @!%p2 add.u32 %r5, %r5, 1;"
        "shfl.sync.bfly.b32 %r6|%p3, %r5, 1, 31, -1; st.global.v2.b32 [%rd1], {%r5, %r6};"
    )
    sums = np.array([n * (n - 1) // 2 + (1000 if n == 3 else 1) for n in range(32)])
    assert np.array_equal(result[:, 0], sums)
    assert np.array_equal(result[:, 1], sums[np.arange(32) ^ 1])


def test_every_memory_is_reached_by_generic_addresses():
    result = run(
        "mov.u64 %rd3, own; cvta.local.u64 %rd3, %rd3; st.u32 [%rd3+4], %r1;"
        "mov.u64 %rd4, dynamic; cvta.shared.u64 %rd4, %rd4; mad.wide.u32 %rd4, %r1, 4, %rd4;"
        "ld.local.u32 %r4, [own+4]; st.u32 [%rd4], %r4; ld.u32 %r5, [%rd4];"
        "mov.b64 %rd5, kernel_param_1; cvta.param.u64 %rd5, %rd5; ld.u64 %rd6, [%rd5];"
        "ld.u32 %r6, [%rd6]; st.v2.u32 [%rd1], {%r5, %r6};",
        words(77),
        dynamic_shared=128,
    )
    assert np.array_equal(result[:, 0], np.arange(32)) and (result[:, 1] == 77).all()


@pytest.mark.parametrize("taken", [0, 5, 16])
def test_a_copy_fills_with_zeros_what_it_does_not_take(taken):
    given = np.arange(32 * 16, dtype=np.uint8).reshape(32, 16)
    result = run(
        f"{COPY_OF_SIXTEEN}, {taken}; cp.async.wait_all;"
        "ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3];"
        "st.global.v4.b32 [%rd1], {%r4, %r5, %r6, %r7};",
        given,
    )
    given[:, taken:] = 0
    assert np.array_equal(result.view(np.uint8).reshape(32, 16), given)


def test_the_last_groups_of_copies_may_stay_under_way():
    two = f"{COPY_OF_FOUR} cp.async.commit_group; add.u32 %r2, %r2, 128; {COPY_OF_FOUR}"
    two += "cp.async.commit_group; cp.async.wait_group 1;"
    assert (run(f"{two} sub.u32 %r2, %r2, 128; {LOAD_AND_STORE}", words(5))[:, 0] == 5).all()
    with pytest.raises(Fault, match="under way"):
        run(f"{two} {LOAD_AND_STORE}")


SHARE = "st.shared.b32 [%r2], %r1;"
NEIGHBOUR = "xor.b32 %r2, %r2, {}; ld.shared.b32 %r4, [%r2]; st.global.b32 [%rd1], %r4;"
REFUSED = {
    "race: reads": f"{SHARE} {NEIGHBOUR.format(4)}",
    "race: writes": f"{SHARE} bar.sync 0; {NEIGHBOUR.format(4)} xor.b32 %r2, %r2, 4; {SHARE}",
    "race: writes 0x0 of shared": "st.shared.b32 [memory], %r1;",
    "never written": LOAD_AND_STORE,
    "of 1024 bytes of shared memory": f"add.u32 %r2, %r2, 1024; {SHARE}",
    "misaligned": f"add.u32 %r2, %r2, 2; {SHARE}",
    "0x.*which is misaligned": "st.global.b64 [%rd1+4], %rd1;",
    "reads 4 bytes at .* outside of all buffers": "ld.global.b32 %r4, [%rd1+-16];",
    "writes to input": "st.global.b32 [%rd2], %r1;",
    "thread 31 of the grid wrote": (
        "ld.param.u64 %rd1, [kernel_param_0]; st.global.b32 [%rd1], %r1;"
    ),
    "a copy is under way": f"{COPY_OF_FOUR} {LOAD_AND_STORE}",
    "writes .* a copy is under way": f"{COPY_OF_FOUR} {SHARE}",
    "race: reads .* thread": f"{COPY_OF_FOUR} cp.async.wait_all; {NEIGHBOUR.format(4)}",
    "race: writes .* read": (
        f"{SHARE} bar.sync 0; {NEIGHBOUR.format(4)} xor.b32 %r2, %r2, 8; {COPY_OF_FOUR}"
    ),
    "at another barrier": (
        "setp.eq.u32 %p1, %r1, 3; @%p1 bra A; bar.sync 0; bra B; A: bar.sync 0; B:"
    ),
    "waits at a barrier for ever": "setp.eq.u32 %p1, %r1, 3; @%p1 bra END; bar.sync 0; END:",
    "with 31 of its lanes": (
        "setp.eq.u32 %p1, %r1, 3; @!%p1 mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%f1, %f2, %f3, %f4}, {%r4, %r5, %r6, %r7}, {%r8, %r9}, {%f1, %f2, %f3, %f4};"
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_kernel_may_do_is_refused(what):
    with pytest.raises(Fault, match=what) as caught:
        run(REFUSED[what])
    assert str(caught.value).startswith("kernel\n  line ")


def test_blocks_may_not_write_the_same():
    with pytest.raises(Fault, match="which thread 32 of the grid wrote"):
        run("st.global.b32 [%rd1], %r1;", blocks=2)


def test_a_barrier_orders_a_block_and_one_of_a_warp_its_own_threads_only():
    share = f"{SHARE} {{}}; {NEIGHBOUR}"
    assert np.array_equal(
        run(share.format("bar.sync 0", 128), threads=64)[:, 0], np.arange(64) ^ 32
    )
    assert np.array_equal(
        run(share.format("bar.warp.sync -1", 4), threads=64)[:, 0], np.arange(64) ^ 1
    )
    with pytest.raises(Fault, match="race"):
        run(share.format("bar.warp.sync -1", 128), threads=64)
    # And what they have read, they may overwrite after it.
    again = f"{share.format('bar.warp.sync -1', 4)} bar.warp.sync -1; {SHARE}"
    run(again)


@pytest.mark.parametrize("operation", ["frobnicate.b32", "add.sat.s32", "add.rn.bf16", "ex2.f32"])
def test_an_unknown_instruction_is_an_error_that_names_it(operation):
    with pytest.raises(NotImplementedError, match=f"kernel: .* {operation}"):
        run(f"{operation} %r4, %r1, %r1;")


def to_bits(values: np.ndarray, kind: str) -> np.ndarray:
    """The 16 bits of numbers that have no more."""
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_matrices_that_ldmatrix_loads_are_multiplied(kind):
    generator = np.random.default_rng(0)
    a, b = (generator.integers(-8, 9, size).astype(np.float64) for size in ((16, 16), (16, 8)))
    # Row by row: A's quarters and, transposed by .trans, B's halves, in the order of registers.
    quarters = [a[i : i + 8, j : j + 8] for j in (0, 8) for i in (0, 8)]
    rows = np.concatenate([*quarters, b[:8], b[8:]])
    given = np.zeros((64, 8), np.uint16)
    given[: len(rows)] = to_bits(rows, kind)
    result = run(
        f"{COPY_OF_SIXTEEN}; cp.async.wait_all; bar.sync 0; setp.ge.u32 %p1, %r1, 32; @%p1 bra END;"
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r3];"
        "add.u32 %r3, %r3, 512;"
        "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r8, %r9}, [%r3];"
        f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
        "{%f1, %f2, %f3, %f4}, {%r4, %r5, %r6, %r7}, {%r8, %r9}, {%f5, %f5, %f5, %f5};"
        "st.global.v4.f32 [%rd1], {%f1, %f2, %f3, %f4}; END:",
        given,
        threads=64,
    )
    sums = result.view(np.float32)[:32].reshape(8, 4, 2, 2)  # group, member, upper or lower, column
    assert np.array_equal(sums.transpose(2, 0, 1, 3).reshape(16, 8), a @ b)


def test_tensor_cores_ignore_the_lowest_bits_of_tf32():
    one, more = 0x3F800000, 0x3F801FFF
    product = (
        "mov.b32 %r4, {}; mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{{%f1, %f2, %f3, %f4}}, {{%r4, %r4, %r4, %r4}}, {{%r4, %r4}}, {{%f5, %f5, %f5, %f5}};"
        "st.global.v4.f32 [%rd1], {{%f1, %f2, %f3, %f4}};"
    )
    for bits in (one, more):
        assert (run(product.format(bits)).view(np.float32) == 8).all()


@pytest.mark.parametrize(
    ("stride", "size", "expected"),
    [(0, 4, 1), (4, 4, 1), (8, 4, 2), (128, 4, 32), (132, 4, 1), (2, 2, 1), (8, 8, 2), (16, 16, 4)],
)
def test_wavefronts_are_those_of_32_banks(stride, size, expected):
    lanes = np.arange(32)
    assert wavefronts(lanes * stride, lanes, size) == expected


def test_counts_are_of_warps_and_sectors():
    counts = Counts()
    run(f"{SHARE} {LOAD_AND_STORE}", threads=64, observer=counts)
    assert counts.instructions["shared store"] == counts.instructions["global store"] == 2
    assert counts.wavefronts == {"store": 2, "load": 2}
    assert set(counts.sectors) == {"store"}
    assert sectors(np.arange(32) * 4, np.arange(32)) == 4
