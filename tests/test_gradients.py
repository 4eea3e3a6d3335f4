"""Every exported function that can be differentiated is, to the second order, by Hypothesis.

A case is a function and, for each argument, a shape in letters and an interval for its numbers.
The letters' sizes and the numbers are drawn. A function without a case fails the last tests.
"""

from pathlib import Path

import numpy as np
import pytest
from derivatives import check
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes

import tinygrad_ml as tg
from tinygrad_ml import arrays, functional, linalg, ops

seeds = st.integers(0, 2**32 - 1)


def numbers(seed, shapes, *intervals):
    rng = np.random.default_rng(seed)
    return [rng.uniform(low, high, s) for s, (low, high) in zip(shapes, intervals, strict=True)]


def beside(x, *kinks):
    """x moved away from where there is no derivative, by more than a step of the differences."""
    for kink in kinks:
        x = x + np.where(x < kink, -0.1, 0.1)
    return np.asarray(x)


# --- one argument, entry by entry: the interval keeps clear of poles

ELEMENTWISE = {
    "abs": (-2, 2), "arccos": (-0.8, 0.8), "arccosh": (1.3, 3), "arcsin": (-0.8, 0.8),
    "arcsinh": (-3, 3), "arctan": (-3, 3), "arctanh": (-0.8, 0.8), "cbrt": (0.3, 3),
    "cos": (-3, 3), "cosh": (-2, 2), "erf": (-3, 3), "erfc": (-3, 3), "exp": (-2, 2),
    "exp2": (-2, 2), "expm1": (-1, 1), "log": (0.3, 3), "log10": (0.3, 3), "log1p": (-0.6, 2),
    "log2": (0.3, 3), "neg": (-2, 2), "relu": (-2, 2), "rsqrt": (0.3, 3), "sigmoid": (-5, 5),
    "silu": (-5, 5), "sin": (-3, 3), "sinh": (-2, 2), "sqrt": (0.3, 3), "tan": (-1, 1),
    "tanh": (-2, 2), "deg2rad": (-90, 90), "rad2deg": (-1, 1), "logit": (0.2, 0.8),
    "nan_to_num": (-2, 2), "positive": (-2, 2), "ravel": (-2, 2), "reciprocal": (0.3, 2),
    "sinc": (-2, 2), "square": (-2, 2), "atleast_1d": (-2, 2), "atleast_2d": (-2, 2),
    "elu": (-2, 2), "gelu": (-4, 4), "gelu_tanh": (-4, 4), "hardtanh": (-2, 2),
    "leaky_relu": (-2, 2), "log_sigmoid": (-5, 5), "mish": (-3, 3), "selu": (-2, 2),
    "softplus": (-5, 5),
}  # fmt: skip
KINKS = dict.fromkeys(("abs", "relu", "elu", "leaky_relu", "selu"), (0,))
KINKS["hardtanh"] = (-1, 1)


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(shape=array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3), seed=seeds)
def test_elementwise(name, shape, seed):
    (x,) = numbers(seed, [shape], ELEMENTWISE[name])
    check(getattr(tg, name), [beside(x, *KINKS.get(name, ()))], seed)


# --- two arguments that broadcast

BROADCAST = {
    "add": ((-2, 2), (-2, 2)), "sub": ((-2, 2), (-2, 2)), "mul": ((-2, 2), (-2, 2)),
    "div": ((-2, 2), (0.3, 2)), "pow": ((0.3, 2), (-2, 2)), "mod": ((1.2, 1.3), (0.8, 0.9)),
    "maximum": ((-2, 2), (-2, 2)), "minimum": ((-2, 2), (-2, 2)), "arctan2": ((0.2, 2), (-2, 2)),
    "hypot": ((0.2, 2), (0.2, 2)), "logaddexp": ((-3, 3), (-3, 3)),
    "logaddexp2": ((-3, 3), (-3, 3)), "swiglu": ((-2, 2), (-2, 2)),
    "kl_div": ((-3, -1), (-3, -1)), "mse_loss": ((-2, 2), (-2, 2)), "l1_loss": ((-2, 2), (-2, 2)),
    "huber_loss": ((-2, 2), (-2, 2)),
}  # fmt: skip
# mod's numbers lie between two of its jumps
KINKED = {"maximum", "minimum", "l1_loss", "huber_loss"}  # where a = b, or a = b +- 1
SAME_SHAPE = {"swiglu", "kl_div", "mse_loss", "l1_loss", "huber_loss"}


@pytest.mark.parametrize("name", BROADCAST)
@given(data=st.data(), seed=seeds)
def test_broadcast(name, data, seed):
    shapes = data.draw(
        mutually_broadcastable_shapes(num_shapes=2, min_side=1, max_side=3, max_dims=3)
    )
    shapes = [shapes.result_shape] * 2 if name in SAME_SHAPE else shapes.input_shapes
    points = numbers(seed, shapes, *BROADCAST[name])
    if name in KINKED:  # in halves and in halves and a quarter, so that differences are neither
        moved = (np.round(2 * x) / 2 + x / 40 + i / 4 for i, x in enumerate(points))
        points = [np.asarray(x) for x in moved]
    check(getattr(tg, name), points, seed)


@given(shape=array_shapes(min_dims=0, max_dims=3, max_side=3), seed=seeds)
def test_one_tensor_passed_twice(shape, seed):
    for name in ("mul", "div", "pow", "hypot", "logaddexp"):
        f = getattr(tg, name)
        check(lambda x, f=f: f(x, x), numbers(seed, [shape], (0.5, 2)), seed)


# --- the rest: (function, shapes in letters[, intervals])

EVEN = [[1, 0], [0, 2]]  # indices into axes of at least 3
MASK = np.array([True, False, True])
WIDE = (-2, 2)

SHAPED = {
    # ops
    "astype": (lambda x: tg.astype(tg.astype(x, "float64") * x, "float64"), "nm"),
    "broadcast_to": (lambda x: tg.broadcast_to(x, (4, *x.shape)), "nm"),
    "clip": (lambda x: tg.clip(x, -0.7, 0.9), "nm"),
    "concatenate": (lambda a, b: tg.concatenate([a, b, a], axis=1), "nm", "nk"),
    "cumsum": (lambda x: tg.cumsum(x, 0) * tg.cumsum(x, -1), "nm"),
    "getitem": (lambda x: x[1:, EVEN] * x[1:, None, MASK, :1], "3331"),
    "index_update": (lambda x, v: tg.index_update(x, [0, 2, 0], v), "3m", "3m"),
    "log_softmax": (lambda x: ops.log_softmax(x, axis=0), "nm"),
    "log_softmax_residual": (
        lambda u, x: ops.log_softmax_residual(u, ops.log_softmax(x)), "nm", "nm"),
    "logsumexp": (lambda x: tg.logsumexp(x, axis=(0, -1), keepdims=True), "nmk"),
    "matmul": (lambda a, b: a @ b, "bnk", "km"),
    "max": (lambda x: tg.max(x, axis=-1) * tg.max(x), "nm"),
    "min": (lambda x: tg.min(x, axis=0, keepdims=True) * x, "nm"),
    "nll": (lambda x: ops.nll(x, targets=np.arange(x.shape[0]) % x.shape[1]), "nm"),
    "softmax_residual": (
        lambda x, u: ops.softmax_residual(x, u, targets=np.arange(x.shape[0]) % x.shape[1]),
        "nm", "n",
    ),
    "overlap_add": (lambda x: ops.overlap_add(x, length=7, stride=2, axis=0), "3n3"),
    "pad": (lambda x: tg.pad(x, ((1, 2), (0, 1)), 3.0), "nm"),
    "reshape": (lambda x: tg.reshape(x, (-1,)) * 2, "nmk"),
    "scatter_add": (lambda x: ops.scatter_add(x, index=np.array([1, 1, 0]), shape=(4, 2)), "32"),
    "scatter_along": (lambda x: ops.scatter_along(
        x, indices=np.array([[0, 0, 3]]), axis=1, length=4), "n3"),
    "softmax": (lambda x: ops.softmax(x, axis=0), "nm"),
    "softmax_slope": (lambda u, x: ops.softmax_slope(u, ops.softmax(x)), "nm", "nm"),
    "sum": (lambda x: tg.sum(x, axis=(0, 2)) * tg.sum(x), "nmk"),
    "take_along_axis": (lambda x: tg.take_along_axis(x, np.array([[0, 2, 2]]), 1), "n3"),
    "to_device": (lambda x: ops.to_device(x, device="cpu", source="cpu") * x, "n"),
    "transpose": (lambda x: tg.transpose(x, (2, 0, 1)), "nmk"),
    "where": (lambda a, b: tg.where(np.arange(a.shape[-1]) % 2 == 0, a, b), "nm", "nm"),
    "windows": (lambda x: ops.windows(x, size=3, stride=2, axis=0), "7n"),
    # arrays
    "array_split": (lambda x: [p * p for p in tg.array_split(x, 2, axis=1)], "n5"),
    "average": (lambda x, w: tg.average(x, axis=1, weights=w), "nm", "m", WIDE, (0.5, 2)),
    "cross": (tg.cross, "n3", "n3"),
    "cumprod": (lambda x: tg.cumprod(x, 1), "nm"),
    "diag": (lambda x: tg.diag(x, 1), "33"),
    "diagonal": (lambda x: tg.diagonal(x, 1, 2, 0), "nm3"),
    "diff": (lambda x: tg.diff(x, 2), "n5"),
    "dot": (tg.dot, "nk", "bkm"),
    "einsum": (lambda a, b: tg.einsum("...ii,ij->...j", a, b), "b33", "3m"),
    "expand_dims": (lambda x: tg.expand_dims(x, (0, -1)), "nm"),
    "flip": (lambda x: tg.flip(x, (0, 1)), "nm"),
    "gather": (lambda x: tg.gather(x, np.array([[1, 0, 1]])), "n3"),
    "hstack": (lambda a, b: tg.hstack([a, b]), "nm", "nk"),
    "index_add": (lambda x, v: tg.index_add(x, np.array([1, 1]), v), "3m", "2m"),
    "inner": (tg.inner, "nk", "mk"),
    "kron": (tg.kron, "nm", "kb"),
    "lerp": (tg.lerp, "nm", "nm", "nm"),
    "mean": (lambda x: tg.mean(x, (0, 1), keepdims=True) * x, "nmk"),
    "median": (lambda x: tg.median(x, 1), "n4"),
    "meshgrid": (lambda a, b: tg.meshgrid(a, b), "n", "m"),
    "moveaxis": (lambda x: tg.moveaxis(x, 0, -1), "nmk"),
    "outer": (tg.outer, "n", "m"),
    "prod": (lambda x: tg.prod(x, 1), "nm"),
    "ptp": (lambda x: tg.ptp(x, 1), "nm"),
    "put_along_axis": (lambda x, v: tg.put_along_axis(x, np.array([[2], [0]]), v, 1), "23", "21"),
    "quantile": (lambda x: tg.quantile(x, 0.3, 0), "5m"),
    "repeat": (lambda x: tg.repeat(x, 3, 1), "nm"),
    "roll": (lambda x: tg.roll(x, (1, -2), (0, 1)), "nm"),
    "rot90": (lambda x: tg.rot90(x, 3), "nm"),
    "scatter": (lambda x, v: tg.scatter(x, np.array([[2], [0]]), v, 1), "23", "21"),
    "sort": (lambda x: tg.sort(x, 0), "nm"),
    "split": (lambda x: [p * p for p in tg.split(x, [1, 3], axis=1)], "n4"),
    "squeeze": (lambda x: tg.squeeze(x, 1), "n1m"),
    "stack": (lambda a, b: tg.stack([a, b, a], axis=1), "nm", "nm"),
    "std": (lambda x: tg.std(x, 1, ddof=1), "n4"),
    "swapaxes": (lambda x: tg.swapaxes(x, 0, 2), "nmk"),
    "take": (lambda x: tg.take(x, [2, 0, 2], 0), "3m"),
    "tensordot": (lambda a, b: tg.tensordot(a, b, ([1, 2], [1, 0])), "nkm", "mkb"),
    "tile": (lambda x: tg.tile(x, (2, 1, 3)), "nm"),
    "topk": (lambda x: tg.topk(x, 2)[0], "n4"),
    "trace": (lambda x: tg.trace(x, 1), "33m"),
    "tril": (lambda x: tg.tril(x, -1), "b33"),
    "triu": (lambda x: tg.triu(x, 1), "b33"),
    "var": (lambda x: tg.var(x, (0, 1), ddof=1, keepdims=True), "n4m"),
    "vdot": (tg.vdot, "nm", "nm"),
    "vstack": (lambda a, b: tg.vstack([a, b]), "nm", "km"),
    # functional
    "add_rms_norm": (lambda x, h, w: list(tg.add_rms_norm(x, h, w)), "bn4", "bn4", "4"),
    "attention": (lambda q, k, v: tg.attention(q, k, v, causal=True), "b4n2", "b2n2", "b2n2"),
    "avg_pool1d": (lambda x: tg.avg_pool1d(x, 2, padding=1), "bn4"),
    "avg_pool2d": (lambda x: tg.avg_pool2d(x, 2, 1), "bn34"),
    "binary_cross_entropy_with_logits": (lambda x: tg.binary_cross_entropy_with_logits(
        x, np.tile([0.0, 1.0, 1.0], (x.shape[0], 1)), pos_weight=2.0), "n3"),
    "conv1d": (lambda x, w, c: tg.conv1d(x, w, c, stride=2, padding=1), "bn5", "mn3", "m"),
    "conv2d": (lambda x, w: tg.conv2d(x, w, padding=1, dilation=2, groups=2), "b246", "4133"),
    "cosine_similarity": (tg.cosine_similarity, "n3", "n3", (0.3, 2), WIDE),
    "cross_entropy": (lambda x: tg.cross_entropy(
        x, np.array([1, -100, 0]), label_smoothing=0.1), "34"),
    "dropout": (lambda x: tg.dropout(x, 0.4, np.random.default_rng(1)) * x, "nm"),
    "embedding": (lambda w: tg.embedding(w, np.array([[0, 2], [2, 2]])) ** 2, "3m"),
    "glu": (lambda x: tg.glu(x), "n4"),
    "group_norm": (lambda x, w, c: tg.group_norm(x, 2, w, c), "b43", "4", "4"),
    "layer_norm": (tg.layer_norm, "n4", "4", "4"),
    "linear": (tg.linear, "bnk", "mk", "m"),
    "linear_cross_entropy": (lambda x, w: tg.linear_cross_entropy(
        x, w, np.array([1, 0, -100])), "3k", "4k"),
    "linear_maps": (lambda x, v, w: list(tg.linear_maps(x, v, w)), "nk", "mk", "3k"),
    "max_pool1d": (lambda x: tg.max_pool1d(x, 2), "bn4"),
    "max_pool2d": (lambda x: tg.max_pool2d(x, 2, 1, padding=1), "bn33"),
    "nll_loss": (lambda x: tg.nll_loss(x, np.array([1, 0, -100]), reduction="sum"), "34"),
    "normalize": (tg.normalize, "n3", (0.3, 2)),
    "rms_norm": (tg.rms_norm, "bn4", "4"),
    "rope": (lambda x, c, s: tg.rope(x, c, s), "bn4", "n2", "n2"),
}  # fmt: skip


ORDERED = {"max", "min", "max_pool1d", "max_pool2d", "ptp", "quantile", "sort", "topk"}


def apart(x):
    """Numbers in the same order, in equal steps from -2 to 2: no step of a difference swaps two."""
    ranks = x.ravel().argsort().argsort().reshape(x.shape)
    return 4 * (ranks + 0.5) / max(x.size, 1) - 2


@pytest.mark.parametrize("name", SHAPED)
@given(data=st.data(), seed=seeds)
def test_shaped(name, data, seed):
    f, *rest = SHAPED[name]
    letters = [r for r in rest if isinstance(r, str)]
    intervals = [r for r in rest if isinstance(r, tuple)] or [WIDE] * len(letters)
    sizes = {letter: data.draw(st.integers(1, 3), label=letter) for letter in "bnmk"}
    shapes = [tuple(sizes[c] if c in sizes else int(c) for c in word) for word in letters]
    arrays = numbers(seed, shapes, *intervals)
    check(f, [apart(x) for x in arrays] if name in ORDERED else arrays, seed)


@given(seed=seeds)
def test_matmul_in_all_its_ranks(seed):
    for a, b in [("3", "3"), ("3", "32"), ("23", "3"), ("23", "32"), ("3", "432"), ("423", "3"),
                 ("423", "32"), ("23", "432"), ("423", "432"), ("5123", "432")]:  # fmt: skip
        shapes = [tuple(map(int, a)), tuple(map(int, b))]
        check(tg.ops.matmul, numbers(seed, shapes, WIDE, WIDE), seed)


# --- nothing that is exported goes untested

STEPS = {"ceil", "floor", "round", "sign", "trunc", "floor_divide"}  # constant between their jumps
ANSWERS = {
    "all",
    "allclose",
    "any",
    "argmax",
    "argmin",
    "argsort",
    "array_equal",
    "count_nonzero",
    "equal",
    "greater",
    "greater_equal",
    "isclose",
    "isfinite",
    "isinf",
    "isnan",
    "less",
    "less_equal",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "nonzero",
    "not_equal",
    "searchsorted",
    "signbit",
    "last_writes",
}  # fmt: skip  (plain arrays, off the tape)


@pytest.mark.parametrize("module", [ops, arrays, functional], ids=lambda m: m.__name__)
def test_everything_exported_has_a_case(module):
    tested = {*ELEMENTWISE, *BROADCAST, *SHAPED, *STEPS, *ANSWERS}
    assert set(module.__all__) - tested == set()


@pytest.mark.parametrize("name", sorted(STEPS))
def test_steps_have_zero_gradients(name):
    x = tg.tensor([-1.3, 0.4, 2.6], dtype="float64", requires_grad=True)
    y = tg.floor_divide(x, 0.7) if name == "floor_divide" else getattr(tg, name)(x)
    assert tg.grad(tg.sum(y), x).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", sorted(ANSWERS - {"last_writes"}))
def test_answers_are_plain_arrays(name):
    x = tg.tensor([1.0, 2.0])
    f = getattr(tg, name)
    two = {
        "allclose",
        "array_equal",
        "equal",
        "greater",
        "greater_equal",
        "isclose",
        "less",
        "less_equal",
        "logical_and",
        "logical_or",
        "logical_xor",
        "not_equal",
        "searchsorted",
    }
    answer = f(x, x) if name in two else f(x)
    assert not isinstance(answer, tg.Tensor)
    expected = getattr(np, name)(*([x.numpy()] * (1 + (name in two))))
    np.testing.assert_array_equal(answer, expected)


def test_every_linalg_function_is_named_in_its_tests():
    text = Path(__file__).with_name("test_linalg.py").read_text()
    derived = {"vector_norm", "matrix_norm"}  # what `norm` calls for its two kinds
    assert [n for n in linalg.__all__ if n not in text and n not in derived] == []
