"""Every kernel equals its definition: value, gradient, second order; where it cannot, it yields.

Tolerances: a kernel sums in another order than numpy and has its own exp (1 ulp), so results differ
by some ulp of the largest entry, as many as the square root of the number of terms.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml import kernels
from tinygrad_ml.estimators.likelihood import summed_gradient, summed_hessian, summed_product
from tinygrad_ml.fused import accelerated, fused

pytestmark = pytest.mark.skipif(kernels.level() == "off", reason="no C kernels were built, or off")

TOLERANCE = {"float32": 5e-6, "float64": 1e-13}  # 40 ulp, 450 ulp: see above
LENGTHS = [1, 2, 3, 7, 16, 17, 33]


def pair(name):
    """A function with its kernel, and its definition."""
    name = name.removeprefix("masked_").removesuffix("_of_one")
    definition = getattr(tg.functional, name)
    definition = getattr(definition, "definition", definition)
    return fused(getattr(kernels, name))(definition), definition


def rms_norm(draw, normal):
    d = draw(st.sampled_from(LENGTHS))
    return [normal(draw(st.integers(1, 70)), d), normal(d)], {}


def swiglu(draw, normal):
    shape = draw(st.sampled_from([(), (1,), (5, 7), (3, 1, 4), (70, 130)]))
    return [np.asarray(3 * normal(*shape)), np.asarray(normal(*shape))], {}


def rope(draw, normal):
    b, h, t, half = (draw(st.integers(1, n)) for n in (2, 3, 9, 17))
    angles = normal(t, half)
    return [normal(b, h, t, 2 * half), np.cos(angles), np.sin(angles)], {}


def attention(draw, normal):
    b, group, hk = (draw(st.integers(1, n)) for n in (2, 3, 2))
    t, past, d = draw(st.integers(1, 40)), draw(st.integers(0, 9)), draw(st.sampled_from(LENGTHS))
    keys = (b, hk, t + past, d)
    causal = draw(st.booleans())
    return [normal(b, group * hk, t, d), normal(*keys), normal(*keys)], {"causal": causal}


def masked_attention(draw, normal):
    """Any mask of bools that broadcasts, also one that hides everything from a row."""
    (q, k, v), options = attention(draw, normal)
    shape = (*q.shape[:3], k.shape[2])
    shape = tuple(draw(st.sampled_from([1, n])) for n in shape)[draw(st.integers(0, 2)) :]
    chance = draw(st.sampled_from([0.05, 0.5, 0.95]))
    mask = np.random.default_rng(draw(st.integers(0, 99))).random(shape) < chance
    return [q, k, v, mask], options


def masked_attention_of_one(draw, normal):
    """One query a head, as when a text is written; its keys are part of longer rows."""
    b, group, hk, s = (draw(st.integers(1, n)) for n in (2, 4, 2, 70))
    d = draw(st.sampled_from([*LENGTHS, 48]))
    keys, values = (normal(b, hk, s + 3, d)[:, :, 1 : s + 1] for _ in range(2))
    arrays = [normal(b, group * hk, 1, d), keys, values]
    if draw(st.booleans()):
        rows = draw(st.lists(st.sampled_from([0.0, 0.05, 0.5, 1.0]), min_size=b, max_size=b))
        mask = np.random.default_rng(0).random((b, 1, 1, s)) < np.reshape(rows, (b, 1, 1, 1))
        mask[..., draw(st.integers(1, s)) :] = False
        arrays.append(mask)
    return arrays, {"causal": draw(st.booleans())}


def linear_cross_entropy(draw, normal):
    rows, d, v = (draw(st.sampled_from(LENGTHS)) for _ in range(3))
    targets = draw(st.lists(st.sampled_from([-100, 0, v - 1]), min_size=rows, max_size=rows))
    reduction = draw(st.sampled_from(["mean", "sum", "none"]))
    return [normal(rows, d), normal(v, d), np.array(targets)], {"reduction": reduction}


def add_rms_norm(draw, normal):
    (x, weight), options = rms_norm(draw, normal)
    return [x, normal(*x.shape), weight], options


def linear_maps(draw, normal):
    rows, (d, *widths) = (
        draw(st.integers(8, 70)),
        (draw(st.sampled_from([1, 7, 33, 70, 130])) for _ in range(4)),
    )
    return [normal(rows, d), *(normal(n, d) for n in widths)], {}


def affine(draw, normal):
    lead = draw(st.sampled_from([(8,), (2, 5), (70,)]))
    d, n = (draw(st.sampled_from([1, 7, 33, 70, 130])) for _ in range(2))
    return [normal(*lead, d), normal(n, d), normal(n)], {}


def gelu(draw, normal):
    return [np.asarray(4 * normal(*draw(st.sampled_from([(), (1,), (5, 7), (90, 130)]))))], {}


def embedding(draw, normal):
    v, d = (draw(st.sampled_from(LENGTHS)) for _ in range(2))
    shape = draw(st.sampled_from([(), (1,), (3, 5), (40,)]))
    return [normal(v, d), np.random.default_rng(0).integers(0, v, shape)], {}


CASES = [gelu, affine, embedding, rms_norm, add_rms_norm, swiglu, rope, attention, masked_attention,
         masked_attention_of_one,
         linear_maps, linear_cross_entropy]  # fmt: skip
every_kernel = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)


@st.composite
def arguments(draw, case, dtype=None, strided=True):
    """Arrays and options for a kernel; some of the arrays transposed or with steps between."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = dtype or draw(st.sampled_from(["float32", "float64"]))

    def normal(*shape):
        x = rng.standard_normal(shape)
        layout = draw(st.sampled_from("CFS")) if strided and shape else "C"
        if layout == "S":
            x = np.stack([x, x], axis=-1)[..., 0]  # every second number in memory
        return np.asarray(x.astype(dtype, order="K"), order=layout.replace("S", "K"))

    arrays, options = case(draw, normal)
    return [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays], options


def tensors(arrays):
    """Floats as leaves; bfloat16's kind is V."""
    return [tg.tensor(a, requires_grad=True) if a.dtype.kind in "fV" else a for a in arrays]


def in_one(y):
    """The outputs of a function that has several, one after another."""
    return tg.concatenate([part.reshape(-1) for part in y]) if isinstance(y, tuple) else y


def value_and_gradients(f, arrays, options, cotangent):
    xs = tensors(arrays)
    y = in_one(f(*xs, **options))
    wanted = [x for x in xs if isinstance(x, tg.Tensor)]
    return [y, *tg.grad(y, wanted, cotangent(y))]


def ramp(y):
    """A cotangent that differs from entry to entry."""
    return np.linspace(-1, 1.5, y.size).reshape(y.shape).astype(y.dtype)


def assert_close(found, expected, dtype):
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        assert a.dtype == dtype
        scale = max(1.0, np.abs(b).max(initial=0)) * max(1, b.size) ** 0.5
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[str(dtype)] * scale)


@every_kernel
@given(data=st.data())
def test_value_and_gradient(case, data):
    arrays, options = data.draw(arguments(case))
    kernel, definition = pair(case.__name__)
    assert kernel.kernel.supports(np, *arrays, **options)
    found = value_and_gradients(kernel, arrays, options, ramp)
    expected = value_and_gradients(definition, arrays, options, ramp)
    assert_close(found, expected, arrays[0].dtype)


@every_kernel
@given(data=st.data())
def test_inputs_that_repeat_one_row_without_a_copy(case, data):
    arrays, options = data.draw(arguments(case, "float64"))
    kernel, definition = pair(case.__name__)

    def of_repeated(f):
        def repeated(x):
            wide = isinstance(x, tg.Tensor) and x.ndim > 1
            return tg.broadcast_to(x[:1], x.shape) if wide else x  # steps of 0

        return lambda *xs, **options: f(*map(repeated, xs), **options)

    found = value_and_gradients(of_repeated(kernel), arrays, options, ramp)
    expected = value_and_gradients(of_repeated(definition), arrays, options, ramp)
    assert_close(found, expected, np.dtype("float64"))


@every_kernel
@given(data=st.data())
def test_float32_against_float64(case, data):
    arrays, options = data.draw(arguments(case, "float32"))
    kernel, definition = pair(case.__name__)
    exact = [a.astype("float64") if a.dtype.kind == "f" else a for a in arrays]
    found = value_and_gradients(kernel, arrays, options, ramp)
    expected = value_and_gradients(definition, exact, options, ramp)
    assert_close(found, expected, np.dtype("float32"))


@every_kernel
@given(data=st.data())
def test_second_order_of_computed_inputs(case, data):
    arrays, options = data.draw(arguments(case, "float64"))

    def curvature(f):
        xs = tensors(arrays)
        y = in_one(f(*[x * 1.5 if isinstance(x, tg.Tensor) else x for x in xs], **options))
        wanted = [x for x in xs if isinstance(x, tg.Tensor)]
        slopes = tg.grad(y, wanted, ramp(y), create_graph=True)
        return tg.grad(sum((s * s).sum() for s in slopes), wanted)

    kernel, definition = pair(case.__name__)
    assert_close(curvature(kernel), curvature(definition), np.dtype("float64"))


@every_kernel
@given(data=st.data())
def test_each_gradient_alone(case, data):
    arrays, options = data.draw(arguments(case, "float64"))
    kernel, _ = pair(case.__name__)
    _, *together = value_and_gradients(kernel, arrays, options, ramp)
    for i, expected in enumerate(together):
        xs = [tg.tensor(a, requires_grad=i == k) if a.dtype.kind == "f" else a
              for k, a in enumerate(arrays)]  # fmt: skip
        y = in_one(kernel(*xs, **options))
        np.testing.assert_array_equal(tg.grad(y, xs[i], ramp(y)), expected)


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@every_kernel
@given(data=st.data())
def test_bfloat16_against_float64(case, data):
    """Within a rounding of the exact value: 2^-8 of the largest entry; 3 where gradients meet."""
    arrays, options = data.draw(arguments(case, "float32"))
    halves = [a.astype(BFLOAT16) if a.dtype.kind == "f" else a for a in arrays]
    kernel, definition = pair(case.__name__)
    exact = [a.astype("float64") if a.dtype == BFLOAT16 else a for a in halves]
    found = value_and_gradients(kernel, halves, options, bounded_ramp)
    expected = value_and_gradients(definition, exact, options, bounded_ramp)
    inside = of_slopes(exact, options) if case is linear_cross_entropy else [0.0] * len(found)
    for a, b, more in zip(found, expected, inside, strict=True):
        a, b = np.asarray(a).astype(float), np.asarray(b)
        bound = 3 * 2.0**-8 * max(1e-3, np.abs(b).max(initial=0)) + more
        assert ((np.abs(a - b) <= bound) | (np.isnan(a) & np.isnan(b))).all()


def of_slopes(arrays, options):
    """What each result is off by as the logits' slopes are halves: 2^-9 sum |slope| |factor|, which
    stays where the products with the other factor cancel.
    """
    x, weight, targets = arrays
    logits = tg.tensor(x @ weight.T, requires_grad=True)
    losses = tg.functional.cross_entropy(logits, targets, **options)
    slopes = 2.0**-9 * np.abs(tg.grad(losses, logits, bounded_ramp(losses)).numpy())
    return 0.0, slopes @ np.abs(weight), slopes.T @ np.abs(x)


def bounded_ramp(y):
    """A ramp that bfloat16 holds exactly."""
    return ramp(y).astype("float32").astype(BFLOAT16).astype(y.dtype)


BLOCKS = [(1, 1, 1), (9, 50, 3), (70, 900, 1100), (129, 97, 1025), (300, 1537, 33), (901, 50, 70)]


def laid_out(a, layout):
    """C or F: by rows or by columns. S: every second row and column of a larger array."""
    if layout != "S":
        return np.asarray(a, order=layout)
    larger = np.repeat(np.repeat(a, 2, axis=0), 2, axis=1)
    larger[1::2], larger[:, 1::2] = 99, 99
    return larger[::2, ::2]


@pytest.mark.skipif(kernels.level() == "base", reason="numpy's products are the faster ones there")
@pytest.mark.parametrize("layouts", ["CC", "CF", "FC", "FF", "SS"])
@pytest.mark.parametrize("dtype", ["float32", "float64", BFLOAT16], ids=str)
@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_products_larger_than_a_block(shape, dtype, layouts, monkeypatch):
    """k and n beyond the blocks of 512 and 768, rows that do not fill a tile, added in place."""
    monkeypatch.setattr(kernels.product, "fast", lambda a, b: True)
    (m, n, k), rng = shape, np.random.default_rng(0)
    a, b = (laid_out(rng.standard_normal(s).astype(dtype), layout)
            for s, layout in zip(((m, k), (k, n)), layouts, strict=True))  # fmt: skip
    exact, size = a.astype(float) @ b.astype(float), abs(a.astype(float)) @ abs(b.astype(float))
    room = np.full((m, n + 3), 2, "float64" if dtype == "float64" else "float32")
    bound = np.finfo(room.dtype).eps * (4 + k**0.5) * (size + 2)  # k roundings, as if at random
    for add in (True, False):
        found = kernels.product.product(a, b, room[:, :n], add=add)
        assert (abs(found - 2 * add - exact) <= bound).all()
        assert (room[:, n:] == 2).all()  # nothing is written beside it


@pytest.mark.parametrize("by", [0, 1, 2], ids=["plain", "avx512_bf16", "AMX"])
@given(st.lists(st.integers(1, 70), min_size=3, max_size=3), st.booleans(), st.booleans())
def test_products_of_bfloat16_are_added_up_in_float32(by, sizes, left, right):
    if by == 2 and not kernels.amx():
        pytest.skip("no AMX here; see test_amx.py")
    (m, n, k), rng = sizes, np.random.default_rng(0)
    a, b = (rng.standard_normal(s, np.float32).astype(BFLOAT16) for s in ((m, k), (k, n)))
    exact, size = a.astype(float) @ b.astype(float), abs(a.astype(float)) @ abs(b.astype(float))
    a, b = (np.asfortranarray(x) if other else x for x, other in ((a, left), (b, right)))
    found = kernels.product.half_product(a, b, np.ones((m, n), np.float32), True, by)
    assert (abs(found - 1 - exact) <= 1e-6 * size + 1e-6).all()  # 8 ulp of float32


@pytest.mark.skipif(kernels.level() == "base", reason="numpy's products are the faster ones there")
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@given(
    n=st.integers(1, 100),
    lead=st.sampled_from([(), (1,), (3,), (2, 1), (2, 4)]),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_a_few_rows_read_each_matrix_once(dtype, n, lead, sizes, seed):
    """A row has the same bits among others as alone."""
    rng, kind = np.random.default_rng(seed), np.dtype(getattr(ml_dtypes, dtype, dtype))
    x = rng.standard_normal((*lead, n)).astype(kind)
    weights = [rng.standard_normal((m, n)).astype(kind) for m in sizes]
    assert kernels.few_rows.supports(np, x, *weights)
    eps = float(ml_dtypes.finfo(kind).eps)
    for y, w in zip(kernels.few_rows.products(x, *weights), weights, strict=True):
        exact, terms = (
            x.astype(float) @ w.T.astype(float),
            abs(x.astype(float)) @ abs(w.T.astype(float)),
        )
        assert y.dtype == kind and y.shape == exact.shape
        error = abs(y.astype(float) - exact)
        assert (
            error <= eps * abs(exact) + (2 + n / 16) * 2.0 ** (-52 if kind == "f8" else -23) * terms
        ).all()
        bias = rng.standard_normal(len(w)).astype(kind)
        (more,) = kernels.few_rows.products(x, w, bias=bias)
        limit = 2 * eps * (abs(exact) + abs(bias.astype(float)))
        assert (abs(more.astype(float) - y.astype(float) - bias.astype(float)) <= limit).all()
        for place in np.ndindex(lead):
            alone = kernels.few_rows.products(x[place], w)[0]
            np.testing.assert_array_equal(y[place].view(np.uint8), alone.view(np.uint8))


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_products_and_maps_of_a_few_rows_have_their_gradients(rows):
    rng = np.random.default_rng(rows)
    arrays = [rng.standard_normal(s) for s in ((rows, 200), (300, 200), (250, 200), (300,))]
    F = tg.functional
    f = lambda x, v, w, b: (*tg.linear_maps(x, v, w), F.linear(x, v), F.linear(x, v, b))
    with tg.use_kernels(False):
        expected = value_and_gradients(f, arrays, {}, ramp)
    found = value_and_gradients(f, arrays, {}, ramp)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.sampled_from([1.0, 30.0, 1e3]))
def test_softmax_of_rows(dtype, shape, size):
    """Value and slope, in one piece and several, of rows that lie anyhow."""
    rng = np.random.default_rng(len(shape))
    x, g = (rng.standard_normal([*shape, 33]).swapaxes(0, -1) for _ in range(2))
    x, g = (size * x).astype(dtype), g.astype(dtype)
    assert kernels.softmax.supports(np, x) == (dtype == "float32")
    found = tg.ops.softmax(x)
    exact = np.exp(x.astype("f8") - x.max(-1, keepdims=True))
    exact /= exact.sum(-1, keepdims=True)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found, exact, rtol=max(size, 8) * 4 * eps, atol=1e-37)
    slope = kernels.softmax.slope.forward(np, g, found)
    wide = found.astype("f8")
    exact = wide * (g - (g * wide).sum(-1, keepdims=True))
    np.testing.assert_allclose(slope, exact, rtol=0, atol=16 * eps * np.abs(g).max())


def test_softmax_at_special_values():
    inf, nan = np.inf, np.nan
    rows = np.float32(
        [[0, -inf, 0, 0], [nan, 1, 2, 3], [-inf] * 4, [inf, 0, 0, 0], [0, -90, 0, -1e30]]
    )
    with np.errstate(invalid="ignore"):
        e = np.exp(rows - rows.max(-1, keepdims=True))
        wanted = e / e.sum(-1, keepdims=True)
    found = kernels.softmax.forward(np, rows)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-38)
    assert found[0, 1] == found[4, 1] == found[4, 3] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (90, 3, 2)])
def test_rows_of_a_table_are_taken_as_they_are(shape, dtype):
    table = np.random.default_rng(0).integers(0, 200, (len(shape) * 300, *shape[1:])).astype(dtype)
    for rows in (table, table[::2], table[5:-7]):
        for ids in (0, [len(rows) - 1], np.resize(np.arange(len(rows)), (41, 2)).astype("i4")):
            ids = np.asarray(ids)
            assert kernels.gather.supports(np, rows, ids)
            found = kernels.gather.forward(np, rows, ids)
            np.testing.assert_array_equal(found, rows[ids])
    for wrong in ([-1], [len(table)], [0.5]):
        assert not kernels.gather.supports(np, table, np.asarray(wrong))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("half", [1, 3, 8, 19])
def test_a_token_is_turned_and_put_into_a_cache(half, rows, dtype):
    """What rope and copies do, and nothing beside the place."""
    rng, d = np.random.default_rng(half), 2 * half
    shapes = [(2, 4, 1, d), (2, 2, 1, d), (2, 2, 1, d), *[(rows, 1, 1, half)] * 2]
    given = [rng.uniform(-1, 1, shape).astype(dtype) for shape in shapes]
    buffers = [rng.uniform(-1, 1, (2, 2, 9, d)).astype(dtype) for _ in range(2)]
    wide = np.float32 if dtype == "bfloat16" else dtype
    q, k, v, cos, sin, keys, values = (x.astype(wide) for x in (*given, *buffers))
    place = np.array([5])
    assert kernels.into_cache.supports(np, *given, *buffers, place)
    turned = kernels.into_cache.forward(np, *given, *buffers, place)
    rope = tg.functional.rope.definition
    keys[:, :, place], values[:, :, place] = rope(k, cos, sin), v
    for found, exact in zip([turned, *buffers], [rope(q, cos, sin), keys, values], strict=True):
        bound = {"float32": 2.4e-7, "float64": 4.5e-16, "bfloat16": 2**-8}[dtype]
        np.testing.assert_allclose(found.astype("f8"), exact, rtol=0, atol=bound)
        assert found.dtype == dtype


def test_calls_are_made_again_on_the_numbers_of_then():
    x, ids, calls = np.ones((3, 40), np.float32), np.array([2, 0]), kernels.Calls()
    with calls.noted():
        assert kernels.noting()
        y = kernels.swiglu.forward(np, kernels.gather.forward(np, x, ids), x[:2])[0]
        del ids
    assert not kernels.noting()
    before = y.copy()
    x *= 2
    np.testing.assert_array_equal(y, before)
    calls.again()
    np.testing.assert_array_equal(y, kernels.swiglu.forward(np, x[:2], x[:2])[0])


def test_a_row_that_does_not_exist_reads_as_nan_when_nobody_looks():
    table, ids, calls = np.ones((3, 5), np.float32), np.array([2, 0, 1]), kernels.Calls()
    with calls.noted():
        y = kernels.gather.forward(np, table, ids)
    ids[:] = [-1, 2, 3]
    calls.again()
    np.testing.assert_array_equal(np.isnan(y).all(axis=1), [True, False, True])
    np.testing.assert_array_equal(y[1], 1)


def test_bfloat16_casts_as_ml_dtypes_does():
    x = np.random.default_rng(0).standard_normal(40_000, np.float32)
    x[:5] = [np.inf, -np.inf, 1e-40, 3.4e38, -0.0]
    ends = x[100:400].view(np.uint32)  # ties, and what lies beside them
    ends[:] = (ends & 0xFFFF0000) + np.tile(np.array([0x7FFF, 0x8000, 0x8001], np.uint32), 100)
    halves = kernels.half.narrow(x)
    assert halves.tobytes() == x.astype(BFLOAT16).tobytes()
    assert kernels.half.widen(halves).tobytes() == halves.astype(np.float32).tobytes()
    assert np.isnan(kernels.half.narrow(np.float32([np.nan, -np.nan])).astype(float)).all()


@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 4)])
def test_bfloat16_casts_keep_the_order_in_memory(shape):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape).swapaxes(0, 1)
    y = kernels.half.narrow(x)
    assert [s // 2 for s in y.strides] == [s // 4 for s in x.strides]
    np.testing.assert_array_equal(kernels.half.widen(y), x)


LARGE = {
    "gelu": [(300, 97)],
    "affine": [(300, 97), (131, 97), (131,)],
    "embedding": [(60, 97)],
    "linear_cross_entropy": [(300, 97), (60, 97)],
    "add_rms_norm": [(300, 97), (300, 97), (97,)],
    "linear_maps": [(300, 97), (50, 97), (131, 97)],
    "rms_norm": [(300, 97), (97,)],
    "swiglu": [(300, 97), (300, 97)],
    "rope": [(2, 3, 65, 34), (65, 17), (65, 17)],
    "attention": [(2, 4, 70, 20), (2, 2, 75, 20), (2, 2, 75, 20)],
}


@pytest.mark.parametrize("name", LARGE)
def test_same_bits_with_any_number_of_threads(name):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32) for shape in LARGE[name]]
    if name in ("embedding", "linear_cross_entropy"):
        arrays.append(rng.integers(0, 60, 300))
    if name in ("linear_cross_entropy", "linear_maps", "affine") and kernels.level() == "base":
        pytest.skip("at the base level products are BLAS's, whose sums go by its threads")
    kernel, _ = pair(name)
    before = kernels.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3, 8):
            kernels.set_num_threads(n)
            results = value_and_gradients(kernel, arrays, {}, ramp)
            found.append([np.asarray(x).tobytes() for x in results])
    finally:
        kernels.set_num_threads(before)
    assert all(bits == found[0] for bits in found)


@pytest.mark.parametrize("x", [np.inf, np.nan, 100.0, -100.0, 0.0, -0.0, 1e-40])
def test_swiglu_at_special_values(x):
    kernel, definition = pair("swiglu")
    gate, up = np.full(20, x, np.float32), np.ones(20, np.float32)
    with np.errstate(all="ignore"):
        expected = definition(gate, up)
    np.testing.assert_allclose(kernel(gate, up), expected, atol=1e-30)


def test_cross_entropy_of_huge_logits_is_finite():
    kernel, _ = pair("linear_cross_entropy")
    x = tg.tensor(np.array([[1e4, -1e4]], np.float32), requires_grad=True)
    loss = kernel(x, tg.tensor(np.eye(2, dtype=np.float32)), np.array([1]))
    assert loss.item() == 2e4
    np.testing.assert_array_equal(tg.grad(loss, x), [[1, -1]])


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_chunks_of_logits_add_up(rows, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((rows, 6)), rng.standard_normal((11, 6)), np.arange(rows) % 11]
    kernel, definition = pair("linear_cross_entropy")
    monkeypatch.setattr(kernels.linear_cross_entropy, "CHUNK", 11 * 4)  # four rows at a time
    found = value_and_gradients(kernel, arrays, {}, ramp)
    assert_close(found, value_and_gradients(definition, arrays, {}, ramp), np.dtype("float64"))


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (40, 1001)])
def test_dropout_makes_the_very_mask_of_its_definition(shape, dtype, p):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    for key in (0, 1, 2**63 + 12345, 2**64 - 1):
        kernel = kernels.dropout.forward(np, np.asarray(x), p=p, key=key)
        with tg.use_kernels(False):
            definition = tg.functional.dropped(x, p=p, key=key)
        np.testing.assert_array_equal(kernel, definition)


# ------------------------------------------------------------------------------------- adamw


def plain_adamw(updates, *, betas, eps):
    b1, b2 = betas
    for u in updates:
        m, v = u.slots
        m[...] = b1 * m + (1 - b1) * u.g
        v[...] = b2 * v + (1 - b2) * u.g * u.g
        spread = np.sqrt(v / (1 - b2**u.steps)) + eps
        u.w[...] = u.w * (1 - u.lr * u.decay) - u.lr / (1 - b1**u.steps) * m / spread


SETTINGS = {"betas": (0.9, 0.99), "eps": 1e-8}


def update(w, g, m, v, steps=1, decay=0.1):
    return tg.optim.Update(w, g, [m, v], {}, 0.01, decay, steps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shapes", [[(1,)], [(3, 5), (9001,), (1,)], [(130, 257), (40_000,)]])
def test_adamw_over_all_parameters(shapes, dtype):
    rng = np.random.default_rng(0)

    def start():
        return [[rng.standard_normal(s).astype(dtype) for s in shapes] for _ in range(2)]

    (ws, gs), kernel = start(), accelerated(kernels.adamw)(plain_adamw)
    ours, theirs = ([[w.copy(), g, 0 * w, 0 * w] for w, g in zip(ws, gs, strict=True)]
                    for _ in range(2))  # fmt: skip
    for steps in range(1, 6):
        for states, step in ((ours, kernel), (theirs, plain_adamw)):
            updates = [update(*s, steps + i, 0.1 * i) for i, s in enumerate(states)]
            step(updates, **SETTINGS)
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=4 * TOLERANCE[dtype])


def test_adamw_yields_to_the_definition_on_views_and_read_only_arrays():
    w = np.ones((4, 4), np.float32)
    frozen = w.copy()
    frozen.flags.writeable = False
    supports = kernels.adamw.supports
    assert supports(np, [update(w, frozen, w, w)], **SETTINGS)
    assert not supports(np, [update(w.T[:2], w[:2], w[:2], w[:2])], **SETTINGS)
    assert not supports(np, [update(frozen, w, w, w)], **SETTINGS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squares_of_all_gradients(dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in [(1,), (7, 3), (40_001,)]]
    found = kernels.squares.forward(np, arrays, scale=1.0)
    expected = sum(float(x) ** 2 for a in arrays for x in a.ravel())
    np.testing.assert_allclose(sum(found), expected, rtol=1e-13)  # 40,000 terms in float64


MATCHING = pytest.mark.skipif(
    kernels.level() not in ("v3", "v4"), reason="without wide registers BLAS finds the units"
)


@MATCHING
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(st.integers(1, 75), st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_best_matching_units_are_the_nearest(dtype, n, k, d, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 2 * d)).astype(dtype)[:, ::2] + 3  # rows are not contiguous
    W = np.repeat(rng.standard_normal((k, d)).astype(dtype) + 3, 2, axis=0)  # each unit twice
    before = kernels.get_num_threads()
    found = []
    for threads in (1, 3):
        kernels.set_num_threads(threads)
        found.append(kernels.best_matching_units.forward(np, X, W))
    kernels.set_num_threads(before)
    (units, distances), (again, same) = found
    assert (units == again).all() and (distances == same).all()
    true = np.linalg.norm(X[:, None].astype("float64") - W, axis=2)
    # a score adds d + 1 products, each rounded, to |x - c|^2 + |w - c|^2 in all
    size = np.square(X - W.mean(axis=0)).sum(1).max() + np.square(W - W.mean(axis=0)).sum(1).max()
    bound = {"rtol": 0, "atol": (d + 4) * np.finfo(dtype).eps * size}
    least = true.min(axis=1) ** 2
    np.testing.assert_allclose(true[np.arange(n), units] ** 2, least, **bound)
    np.testing.assert_allclose(distances.astype("float64") ** 2, least, **bound)
    assert (units % 2 == 0).all()  # of two equal ones the first


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (70, 33), (50, 64)])
def test_unit_sums_are_exact(shape, dtype, weighted):
    """Whole numbers, which add up without rounding."""
    rng = np.random.default_rng(0)
    X = np.asfortranarray(rng.integers(-9, 9, shape).astype(dtype))
    weight = rng.integers(0, 4, len(X)).astype(dtype) if weighted else None
    units = rng.integers(0, 7, len(X))
    expected = np.zeros((8, shape[1]))
    np.add.at(expected, units, X if weight is None else X * weight[:, None])
    assert kernels.unit_sums.supports(np, X, weight, units, k=8)
    np.testing.assert_array_equal(kernels.unit_sums.forward(np, X, weight, units, k=8), expected)


# ------------------------------------------------------------------------- logistic regression


@st.composite
def rows_with_labels(draw, layouts):
    """X (n, d) float32 or float64, y, weight, theta and a direction (k, d or d + 1)."""
    n, d = draw(st.sampled_from([1, 7, 8, 65, 700])), draw(st.sampled_from([1, 2, 7, 8, 25]))
    k, intercept = draw(st.sampled_from([1, 3, 9])), draw(st.booleans())
    layout = draw(st.sampled_from(layouts))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    X = rng.standard_normal((n, 2 * d)).astype(draw(st.sampled_from(["float32", "float64"])))
    X = {"rows": X[:, :d].copy(), "apart": X[::-1, :d], "columns": np.asfortranarray(X[:, :d]),
         "spread": X[:, ::2]}[layout]  # fmt: skip
    y = rng.random(n) if k == 1 else rng.integers(k, size=n)
    return X, y, rng.integers(0, 3, n) * rng.random(n), *rng.normal(0, 5, (2, k, d + intercept))


BY_ROWS, ANY_LAYOUT = ["rows", "apart"], ["rows", "apart", "columns", "spread"]


@given(rows_with_labels(BY_ROWS), st.sampled_from([3, 1000]))
def test_one_pass_over_the_rows_equals_blocks_of_them(case, block_rows):
    *rows, v = case
    loss, g = kernels.logistic.gradient.forward(np, *rows, block_rows=block_rows)
    product = kernels.logistic.product.forward(np, *rows, v, block_rows=block_rows)
    with tg.use_kernels(False):
        expected, slope = summed_gradient(*rows, block_rows=block_rows)
        bent = summed_product(*rows, v, block_rows=block_rows)
    size = size_of(case)  # the sum of the terms' sizes, which is what rounding goes by
    np.testing.assert_allclose(loss, expected, rtol=1e-13, atol=1e-15 * size)
    np.testing.assert_allclose(g, slope, rtol=0, atol=1e-13 * size)
    np.testing.assert_allclose(product, bent, rtol=0, atol=1e-13 * size * np.abs(v).sum())


@given(rows_with_labels(ANY_LAYOUT), st.sampled_from([3, 1000]))
def test_the_hessian_in_one_pass_equals_that_in_blocks(case, block_rows):
    *rows, _ = case
    H = kernels.logistic.hessian.forward(np, *rows, block_rows=block_rows)
    with tg.use_kernels(False):
        expected = summed_hessian(*rows, block_rows=block_rows)
    np.testing.assert_allclose(H, expected, rtol=0, atol=1e-13 * size_of(case))
    np.testing.assert_array_equal(H, H.T)


def size_of(case):
    """The sum over the rows of w (1 + |x|^2) (1 + |z|), at least 1e-3."""
    X, _, weight, theta, _ = case
    squares = 1 + np.square(X.astype("float64")).sum(axis=1)
    return max(weight @ (squares * (1 + np.abs(theta).sum() * np.sqrt(squares))), 1e-3)


@pytest.mark.parametrize("z", [0.0, 1e-20, 36.0, 700.0, 709.0, 800.0, 1e5])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_logits_keep_the_digits_of_their_loss(z, sign):
    rows = np.array([[sign * z]]), np.array([0.0]), np.ones(1), np.ones((1, 1))
    loss, g = kernels.logistic.gradient.forward(np, *rows, block_rows=1)
    exact = np.logaddexp(0, sign * z)
    np.testing.assert_allclose(loss, exact, rtol=1e-15, atol=1e-300)  # e^-708, below as 0
    p = np.exp(min(sign * z, 0)) / (1 + np.exp(-z))
    np.testing.assert_allclose(g, [[p * sign * z]], rtol=1e-15, atol=1e-300)


@pytest.mark.parametrize("k", [1, 3])
def test_logistic_sums_are_the_same_bits_with_any_number_of_threads(k):
    rng = np.random.default_rng(0)
    X, weight, y = rng.standard_normal((30_000, 20)), rng.random(30_000), rng.random(30_000)
    y = y if k == 1 else (k * y).astype(int)
    theta, v = rng.standard_normal((2, k, 21))
    before, found = kernels.get_num_threads(), []
    for threads in (1, 2, 3, 8):
        kernels.set_num_threads(threads)
        _, g = kernels.logistic.gradient.forward(np, X, y, weight, theta, block_rows=1)
        product = kernels.logistic.product.forward(np, X, y, weight, theta, v, block_rows=1)
        H = kernels.logistic.hessian.forward(np, X, y, weight, theta, block_rows=1)
        found.append([a.tobytes() for a in (g, product, H)])
    kernels.set_num_threads(before)
    assert all(bits == found[0] for bits in found)


def test_rows_that_one_pass_cannot_read_go_in_blocks():
    X, y, weight, theta = np.ones((6, 2)), np.ones(6), np.ones(6), np.zeros((1, 3))
    supports = {f: f.kernel.supports for f in (summed_gradient, summed_hessian)}

    def known(f, X, y, theta=theta):
        return supports[f](np, X, y, weight, theta, block_rows=9)

    wide = kernels.level() in ("v3", "v4")  # with narrow registers numpy is the faster one
    assert known(summed_gradient, X, y) == known(summed_hessian, X, y) == wide
    assert not known(summed_gradient, np.asfortranarray(X), y)
    for other in (X.astype("float16"), X.astype(">f8"), X.astype(int), X[:0]):
        assert not known(summed_hessian, other, y)
    assert not known(summed_hessian, X, y.astype(int))
    for codes in ([0, 1, 2, 3, 0, 0], [0, -1, 0, 0, 0, 0]):  # three outputs
        assert not known(summed_hessian, X, np.array(codes), np.zeros((3, 3)))


def test_what_the_last_call_left_in_memory_does_not_matter():
    rows = np.ones((8, 3)), np.ones(8), np.ones(8), np.zeros((1, 4))
    kernels.logistic.gradient.forward(np, np.nan * rows[0], *rows[1:], block_rows=8)
    fewer = [a[:3] for a in rows[:3]]
    _, g = kernels.logistic.gradient.forward(np, *fewer, rows[3], block_rows=8)
    np.testing.assert_array_equal(g, [[-1.5] * 4])


# --------------------------------------------------------------------------- fast paths in a model


class Wrapped(tg.nn.Module):
    """Calls what it wraps: a stand-in for any adapter."""

    def __init__(self, inner):
        self.inner = inner

    def forward(self, *args, **options):
        return self.inner(*args, **options)


def small_model(dtype="float32"):
    from tinygrad_ml.llama import Llama, LlamaConfig

    sizes = {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
    rng = np.random.default_rng(0)
    return Llama(LlamaConfig(**sizes, hidden_dim=48), rng=rng, dtype=dtype)


def test_training_in_bfloat16_follows_float32():
    """Weights rounded to 8 bits: the loss stays within 1 % over 40 steps, float32 masters kept."""
    text = np.random.default_rng(1).integers(0, 50, (4, 33))
    losses = {}
    for dtype in ("float32", "bfloat16"):
        model = small_model(dtype)
        optimizer = tg.optim.AdamW(model.named_parameters(), lr=1e-3)
        losses[dtype] = []
        for _ in range(40):
            loss = model.loss(text[:, :-1], text[:, 1:])
            loss.backward()
            tg.optim.clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses[dtype].append(loss.item())
    assert losses["float32"][-1] < 0.7 * losses["float32"][0]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.01)


PARTS = """
    embedding norm head layers.0 layers.0.attention layers.0.attention_norm layers.0.feed_forward
    layers.0.feed_forward_norm layers.0.attention.wq layers.0.attention.wk layers.0.attention.wv
    layers.0.attention.wo layers.0.feed_forward.gate layers.0.feed_forward.up
    layers.0.feed_forward.down
"""


@pytest.mark.parametrize("part", [None, *PARTS.split()])
def test_wrapping_a_part_of_the_model_changes_nothing(part):
    model = small_model()
    tokens, targets = np.random.default_rng(1).integers(0, 50, (2, 3, 20))

    def loss_and_gradients():
        model.zero_grad()
        loss = model.loss(tokens, targets)
        loss.backward()
        return [loss.data, *(p.grad.data for p in model.parameters())]

    with tg.use_kernels(False):
        expected = loss_and_gradients()
    if part is not None:
        *path, name = part.split(".")
        owner = model
        for key in path:
            owner = owner[int(key)] if key.isdigit() else getattr(owner, key)
        if name.isdigit():
            owner[int(name)] = Wrapped(owner[int(name)])
        else:
            setattr(owner, name, Wrapped(getattr(owner, name)))
    for on in (True, False):
        with tg.use_kernels(on):
            assert_close(loss_and_gradients(), expected, np.dtype("float32"))


# ----------------------------------------------------------------------------- when it yields


def test_float16_and_mixed_types_run_by_definition():
    kernel, definition = pair("rms_norm")
    x, w = np.ones((2, 3)), np.ones(3)
    for a, b in [(x.astype("float16"), w.astype("float16")), (x.astype("float32"), w)]:
        assert not kernel.kernel.supports(np, a, b)
        np.testing.assert_array_equal(kernel(a, b), definition(a, b))


def test_empty_arrays_run_by_definition():
    kernel, _ = pair("rms_norm")
    assert kernel(np.ones((0, 3)), np.ones(3)).shape == (0, 3)


def test_wrong_shapes_get_the_definitions_error():
    with pytest.raises(ValueError, match="rms_norm: x is"):
        pair("rms_norm")[0](np.ones((2, 3)), np.ones(4))
    with pytest.raises(IndexError, match="targets: got 0 to 9"):
        pair("linear_cross_entropy")[0](np.ones((2, 3)), np.ones((4, 3)), np.array([0, 9]))


def test_attention_with_an_added_mask_runs_by_definition():
    kernel, definition = pair("attention")
    q, mask = np.random.default_rng(0).standard_normal((1, 2, 3, 4)), np.eye(3)
    np.testing.assert_array_equal(kernel(q, q, q, mask), definition(q, q, q, mask))


def test_kernels_can_be_turned_off():
    kernel, _ = pair("swiglu")
    calls = []
    quiet = fused(kernel.kernel)(lambda gate, up: calls.append("definition"))
    with tg.use_kernels(False):
        quiet(np.ones(3), np.ones(3))
    quiet(np.ones(3), np.ones(3))
    assert calls == ["definition"]


# ------------------------------------------------------------------------- levels and processes


FOLDER = Path(kernels.__file__).parent
LEVELS = [name for name in ("base", "v3", "v4")
          if name <= kernels.level() and list(FOLDER.glob(f"_cpu_{name}.*"))]  # fmt: skip


def python(code, **environment):
    """What a fresh interpreter prints; the package is found as it was found here."""
    path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    return done.stdout.strip() or done.stderr


NORM = """
import numpy as np
import tinygrad_ml as tg
from tinygrad_ml import kernels
x = np.arange(1.0, 11.0)
assert np.allclose(tg.rms_norm(x, np.ones(10)), x / np.sqrt(38.5 + 1e-6), rtol=1e-14)
print(kernels.level())
"""


def test_the_level_has_a_ceiling():
    assert python(NORM, TINYGRAD_ML_KERNELS="off") == "off"
    for ceiling in LEVELS:
        assert python(NORM, TINYGRAD_ML_KERNELS=ceiling) == ceiling
    assert "TINYGRAD_ML_KERNELS: got 'fast'" in python(NORM, TINYGRAD_ML_KERNELS="fast")


@pytest.mark.parametrize("name", LEVELS)
def test_levels_agree(name):
    code = """if True:
        import numpy as np
        import tinygrad_ml as tg
        from tinygrad_ml import kernels
        from tinygrad_ml.fused import fused
        f = fused(kernels.attention)(lambda q, k, v: None)
        q, k, v = np.random.default_rng(0).standard_normal((3, 2, 3, 37, 21))
        q, k, v = (tg.tensor(a, requires_grad=True) for a in (q, k, v))
        y = f(q, k, v)
        print(*[float((g * g).sum().item()) for g in [y, *tg.grad(y.sum(), [q, k, v])]])
    """
    _, definition = pair("attention")
    q = np.random.default_rng(0).standard_normal((3, 2, 3, 37, 21))
    found = value_and_gradients(definition, list(q), {}, lambda y: np.ones(y.shape))
    expected = [float((g * g).sum().item()) for g in found]
    printed = python(code, TINYGRAD_ML_KERNELS=name).split()
    np.testing.assert_allclose([float(x) for x in printed], expected, rtol=1e-10)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("name", LEVELS)
def test_levels_agree_on_the_logistic_sums(name, k):
    code = f"""if True:
        import numpy as np
        import tinygrad_ml as tg
        from tinygrad_ml import kernels
        from tinygrad_ml.estimators.likelihood import summed_gradient, summed_hessian
        rng = np.random.default_rng(0)
        X, weight, theta = rng.standard_normal((700, 21)), rng.random(700), rng.random(({k}, 22))
        y = rng.random(700) if {k} == 1 else rng.integers(0, {k}, 700)
        rows = X.astype("float32"), y, weight, theta
        loss, g = kernels.logistic.gradient.forward(np, *rows, block_rows=100)
        H = kernels.logistic.hessian.forward(np, *rows, block_rows=100)
        with tg.use_kernels(False):
            expected, slope = summed_gradient(*rows, block_rows=100)
            print(kernels.level(), abs(loss - expected) < 1e-10, abs(g - slope).max() < 1e-10,
                  abs(H - summed_hessian(*rows, block_rows=100)).max() < 1e-10)
    """
    assert python(code, TINYGRAD_ML_KERNELS=name) == f"{name} True True True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_the_same():
    kernel, _ = pair("swiglu")
    gate = np.random.default_rng(0).standard_normal(100_000)
    expected = kernel(gate, gate)  # the parent's threads are running now
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads is the point
        child = os.fork()
    if child == 0:
        kernels.set_num_threads(4)
        os._exit(0 if (kernel(gate, gate) == expected).all() else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_python_threads_may_call_at_once():
    from concurrent.futures import ThreadPoolExecutor

    kernel, _ = pair("rms_norm")
    x, w = np.random.default_rng(0).standard_normal((200, 301)), np.ones(301)
    expected = kernel(x, w)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: kernel(x, w), range(20)))
    assert all((y == expected).all() for y in results)


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_a_wrong_number_of_threads(n):
    with pytest.raises(ValueError, match="set_num_threads: got"):
        kernels.set_num_threads(n)
