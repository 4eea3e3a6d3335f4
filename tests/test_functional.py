"""Compositions: values against numpy, first and second derivatives against central differences."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

import tinygrad_ml as tg
from tinygrad_ml import arrays, creation, ops
from tinygrad_ml import functional as F

seeds = st.integers(0, 2**32 - 1)
STEP = 1e-5  # central differences: error step^2 f''' / 6 + 1e-16 / step, both near 1e-10
CLOSE = {"rtol": 2e-6, "atol": 2e-7}  # that, through sums of a hundred terms with f''' near 100


def check(f, arrays, seed):
    """First and second directional derivatives of sum(c * f(*arrays)) against differences."""
    rng = np.random.default_rng(seed)
    vs = [rng.standard_normal(a.shape) for a in arrays]

    def numbers(*xs):
        y = f(*xs)
        return y if isinstance(y, tuple | list) else [y]

    cotangents = [rng.standard_normal(y.shape) for y in numbers(*map(tg.tensor, arrays))]

    def loss(*xs):
        terms = [tg.ops.sum(y * c) for y, c in zip(numbers(*xs), cotangents, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def slope(t):
        """The loss's gradient in the direction vs, at arrays + t vs, and the loss."""
        xs = [tg.tensor(a + t * v, requires_grad=True) for a, v in zip(arrays, vs, strict=True)]
        y = loss(*xs)
        gradients = tg.grad(y, xs, create_graph=True)
        inner = [tg.ops.sum(g * v) for g, v in zip(gradients, vs, strict=True)]
        total = inner[0]
        for term in inner[1:]:
            total = total + term
        curved = total.requires_grad
        second = tg.grad(total, xs) if curved else []
        second = sum(float((s.data * v).sum()) for s, v in zip(second, vs, strict=curved))
        return float(y.data), float(total.data), second

    (_, first, second), (y1, s1, _), (y0, s0, _) = slope(0), slope(STEP), slope(-STEP)
    scale = max(1, abs(first), abs(second))
    np.testing.assert_allclose(first, (y1 - y0) / (2 * STEP), rtol=2e-6, atol=2e-7 * scale)
    np.testing.assert_allclose(second, (s1 - s0) / (2 * STEP), rtol=2e-6, atol=2e-7 * scale)


def draw(seed, shapes, low=-2.0, high=2.0):
    """Well separated numbers (no ties within 2e-3), in a random order."""
    rng = np.random.default_rng(seed)
    out = []
    for shape in shapes:
        n = max(int(np.prod(shape)), 1)
        grid = (np.arange(n) + 0.5 + rng.uniform(-0.2, 0.2, n)) / n
        out.append((low + (high - low) * rng.permutation(grid)).reshape(shape))
    return out


T = np.array([[2, 0, -100], [3, 1, 3]])  # targets, one ignored
W = np.array([0.3, 1.0, 0.2, 2.0])
MASK = np.array([[True, True, False], [False, False, False], [True, False, True]])

# name: (ours, numpy's or None where torch is asked in tests/oracles, shapes of the arguments)
CASES = {
    "square": (F.square, np.square, [(2, 3)]),
    "reciprocal": (F.reciprocal, np.reciprocal, [(2, 3)], 0.5, 2),
    "deg2rad": (F.deg2rad, np.deg2rad, [(3,)]),
    "rad2deg": (F.rad2deg, np.rad2deg, [(3,)]),
    "positive": (F.positive, np.positive, [(3,)]),
    "logaddexp2": (F.logaddexp2, np.logaddexp2, [(3,), (2, 3)]),
    "sinc": (F.sinc, np.sinc, [(20,)]),
    "sinc at 0": (lambda x: F.sinc(x * 1e-9), lambda x: np.sinc(x * 1e-9), [(3,)]),
    "lerp": (F.lerp, lambda a, b, w: a + w * (b - a), [(3,), (2, 3), (2, 1)]),
    "logit": (F.logit, special.logit, [(2, 3)], 0.1, 0.9),
    "nan_to_num": (F.nan_to_num, np.nan_to_num, [(2, 3)]),
    "mean": (F.mean, np.mean, [(2, 3)]),
    "mean of axes": (
        lambda x: F.mean(x, (0, -1), True),
        lambda x: x.mean((0, -1), keepdims=True),
        [(2, 3, 2)],
    ),
    "var": (lambda x: F.var(x, 1, 1), lambda x: x.var(1, ddof=1), [(2, 4)]),
    "var of all": (F.var, np.var, [(2, 4)]),
    "std": (lambda x: F.std(x, 0, keepdims=True), lambda x: x.std(0, keepdims=True), [(4, 2)]),
    "average": (
        lambda x, w: F.average(x, 1, w),
        lambda x, w: np.average(x, 1, w),
        [(2, 3), (3,)],
        0.5,
        2,
    ),
    "prod": (F.prod, np.prod, [(5,)]),
    "prod of an axis": (
        lambda x: F.prod(x, 1, True),
        lambda x: x.prod(1, keepdims=True),
        [(2, 3, 2)],
    ),
    "prod with zeros": (
        lambda x: F.prod(x * np.array([1.0, 0, 0, 1])),
        lambda x: np.float64(0),
        [(4,)],
    ),
    "cumsum": (F.cumsum, np.cumsum, [(2, 3)]),
    "cumsum of an axis": (lambda x: F.cumsum(x, 0), lambda x: np.cumsum(x, 0), [(2, 3)]),
    "cumprod": (F.cumprod, np.cumprod, [(5,)]),
    "cumprod of an axis": (lambda x: F.cumprod(x, 1), lambda x: np.cumprod(x, 1), [(2, 3)]),
    "diff": (lambda x: F.diff(x, 2), lambda x: np.diff(x, 2), [(2, 5)]),
    "ptp": (lambda x: F.ptp(x, 0), lambda x: np.ptp(x, 0), [(3, 2)]),
    "sort": (lambda x: F.sort(x, 0), lambda x: np.sort(x, 0), [(4, 3)]),
    "sort flat": (lambda x: F.sort(x, None), lambda x: np.sort(x, None), [(2, 3)]),
    "topk": (lambda x: F.topk(x, 2)[0], lambda x: -np.sort(-x)[:, :2], [(2, 5)]),
    "median": (lambda x: F.median(x, 1), lambda x: np.median(x, 1), [(2, 4)]),
    "median of all": (F.median, np.median, [(5,)]),
    "quantile": (
        lambda x: F.quantile(x, 0.3, 0, True),
        lambda x: np.quantile(x, 0.3, 0, keepdims=True),
        [(4, 2)],
    ),
    "ravel": (F.ravel, np.ravel, [(2, 3)]),
    "reshape": (lambda x: F.reshape(x, (3, -1)), lambda x: np.reshape(x, (3, -1)), [(2, 3)]),
    "transpose": (lambda x: F.transpose(x, (1, 2, 0)), lambda x: x.transpose(1, 2, 0), [(2, 3, 2)]),
    "broadcast_to": (
        lambda x: F.broadcast_to(x, (2, 3)),
        lambda x: np.broadcast_to(x, (2, 3)),
        [(3,)],
    ),
    "swapaxes": (lambda x: F.swapaxes(x, 0, -1), lambda x: x.swapaxes(0, -1), [(2, 3, 4)]),
    "moveaxis": (
        lambda x: F.moveaxis(x, (0, 2), (-1, 0)),
        lambda x: np.moveaxis(x, (0, 2), (-1, 0)),
        [(2, 3, 4)],
    ),
    "expand_dims": (
        lambda x: F.expand_dims(x, (0, -1)),
        lambda x: np.expand_dims(x, (0, -1)),
        [(2, 3)],
    ),
    "squeeze": (F.squeeze, np.squeeze, [(1, 3, 1)]),
    "squeeze an axis": (lambda x: F.squeeze(x, -1), lambda x: np.squeeze(x, -1), [(1, 3, 1)]),
    "atleast_1d": (F.atleast_1d, np.atleast_1d, [()]),
    "atleast_2d": (F.atleast_2d, np.atleast_2d, [(3,)]),
    "flip": (F.flip, np.flip, [(2, 3)]),
    "flip an axis": (lambda x: F.flip(x, -1), lambda x: np.flip(x, -1), [(2, 3)]),
    **{
        f"rot90 {k}": (lambda x, k=k: F.rot90(x, k), lambda x, k=k: np.rot90(x, k), [(2, 3)])
        for k in range(-1, 4)
    },
    "roll": (lambda x: F.roll(x, 2), lambda x: np.roll(x, 2), [(2, 3)]),
    "roll axes": (
        lambda x: F.roll(x, (1, -1), (0, 1)),
        lambda x: np.roll(x, (1, -1), (0, 1)),
        [(2, 3)],
    ),
    "tile": (lambda x: F.tile(x, (2, 1, 3)), lambda x: np.tile(x, (2, 1, 3)), [(2, 3)]),
    "repeat": (lambda x: F.repeat(x, 2, 1), lambda x: np.repeat(x, 2, 1), [(2, 3)]),
    "repeat each": (
        lambda x: F.repeat(x, [2, 0, 1], 1),
        lambda x: np.repeat(x, [2, 0, 1], 1),
        [(2, 3)],
    ),
    "pad": (lambda x: F.pad(x, (1, 2)), lambda x: np.pad(x, (1, 2)), [(2, 3)]),
    "clip": (lambda x: F.clip(x, -1.003, 1.003), lambda x: np.clip(x, -1.003, 1.003), [(2, 3)]),
    "concatenate": (
        lambda a, b: F.concatenate([a, b], 1),
        lambda a, b: np.concatenate([a, b], 1),
        [(2, 3), (2, 1)],
    ),
    "concatenate flat": (
        lambda a, b: F.concatenate([a, b], None),
        lambda a, b: np.concatenate([a, b], None),
        [(2, 3), (2,)],
    ),
    "stack": (
        lambda a, b: F.stack([a, b], -1),
        lambda a, b: np.stack([a, b], -1),
        [(2, 3), (2, 3)],
    ),
    "vstack": (lambda a, b: F.vstack([a, b]), lambda a, b: np.vstack([a, b]), [(3,), (2, 3)]),
    "hstack": (lambda a, b: F.hstack([a, b]), lambda a, b: np.hstack([a, b]), [(3,), (2,)]),
    "hstack matrices": (
        lambda a, b: F.hstack([a, b]),
        lambda a, b: np.hstack([a, b]),
        [(2, 3), (2, 1)],
    ),
    "split": (lambda x: F.split(x, 2, 1), lambda x: np.split(x, 2, 1), [(2, 4)]),
    "split at": (lambda x: F.split(x, [1, 3], -1), lambda x: np.split(x, [1, 3], -1), [(2, 4)]),
    "array_split": (lambda x: F.array_split(x, 3), lambda x: np.array_split(x, 3), [(7,)]),
    "meshgrid": (F.meshgrid, np.meshgrid, [(2,), (3,), (2,)]),
    "meshgrid ij": (
        lambda a, b: F.meshgrid(a, b, indexing="ij"),
        lambda a, b: np.meshgrid(a, b, indexing="ij"),
        [(2,), (3,)],
    ),
    "take": (
        lambda x: F.take(x, [[0, 2], [2, 2]], 1),
        lambda x: np.take(x, [[0, 2], [2, 2]], 1),
        [(2, 3)],
    ),
    "take flat": (lambda x: F.take(x, [5, 0]), lambda x: np.take(x, [5, 0]), [(2, 3)]),
    "take_along_axis": (
        lambda x: F.take_along_axis(x, [[0, 0], [2, 1]], 1),
        lambda x: np.take_along_axis(x, np.array([[0, 0], [2, 1]]), 1),
        [(2, 3)],
    ),
    "tril": (lambda x: F.tril(x, -1), lambda x: np.tril(x, -1), [(2, 3, 3)]),
    "triu": (lambda x: F.triu(x, 1), lambda x: np.triu(x, 1), [(2, 3, 4)]),
    "diagonal": (lambda x: F.diagonal(x, 1, 0, 2), lambda x: np.diagonal(x, 1, 0, 2), [(3, 2, 3)]),
    "diagonal below": (lambda x: F.diagonal(x, -1), lambda x: np.diagonal(x, -1), [(3, 2)]),
    "diag of a matrix": (F.diag, np.diag, [(3, 4)]),
    "diag of a vector": (lambda x: F.diag(x, -2), lambda x: np.diag(x, -2), [(3,)]),
    "trace": (lambda x: F.trace(x, 1), lambda x: np.trace(x, 1), [(3, 4)]),
    "dot": (F.dot, np.dot, [(2, 3), (4, 3, 2)]),
    "dot of vectors": (F.dot, np.dot, [(3,), (3,)]),
    "dot with a vector": (F.dot, np.dot, [(2, 2, 3), (3,)]),
    "vdot": (F.vdot, np.vdot, [(2, 3), (3, 2)]),
    "inner": (F.inner, np.inner, [(2, 3), (4, 3)]),
    "outer": (F.outer, np.outer, [(2, 2), (3,)]),
    "tensordot": (
        lambda a, b: F.tensordot(a, b, ((0, 2), (2, 0))),
        lambda a, b: np.tensordot(a, b, ((0, 2), (2, 0))),
        [(2, 3, 4), (4, 3, 2)],
    ),
    "tensordot 0": (
        lambda a, b: F.tensordot(a, b, 0),
        lambda a, b: np.tensordot(a, b, 0),
        [(2,), (3,)],
    ),
    "kron": (F.kron, np.kron, [(2, 3), (3, 2)]),
    "kron of unequal ranks": (F.kron, np.kron, [(3,), (2, 2)]),
    "cross": (F.cross, np.cross, [(2, 3), (3,)]),
    "put_along_axis": (
        lambda x, v: F.put_along_axis(x, np.array([[1], [0]]), v, 1),
        None,
        [(2, 3), (2, 1)],
    ),
    "index_update": (lambda x, v: F.index_update(x, (slice(None), 1), v), None, [(2, 3), (2,)]),
    "index_add": (lambda x, v: F.index_add(x, [0, 0, 1], v), None, [(2, 3), (3, 3)]),
    "softplus": (F.softplus, lambda x: np.log1p(np.exp(x)), [(5,)]),
    "log_sigmoid": (F.log_sigmoid, special.log_expit, [(5,)]),
    "gelu": (F.gelu, lambda x: x * special.ndtr(x), [(5,)]),
    "gelu_tanh": (
        F.gelu_tanh,
        lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        [(5,)],
    ),
    "leaky_relu": (F.leaky_relu, lambda x: np.where(x > 0, x, 0.01 * x), [(6,)]),
    "elu": (lambda x: F.elu(x, 0.7), lambda x: np.where(x > 0, x, 0.7 * np.expm1(x)), [(6,)]),
    "selu": (
        F.selu,
        lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
        [(6,)],
    ),
    "mish": (F.mish, lambda x: x * np.tanh(np.log1p(np.exp(x))), [(5,)]),
    "hardtanh": (
        lambda x: F.hardtanh(x, -1.003, 1.003),
        lambda x: np.clip(x, -1.003, 1.003),
        [(6,)],
    ),
    "glu": (F.glu, lambda x: x[:, :2] * special.expit(x[:, 2:]), [(3, 4)]),
    "swiglu": (F.swiglu, lambda a, b: a * special.expit(a) * b, [(2, 3), (2, 3)]),
    "dropout": (lambda x: F.dropout(x, 0.4, np.random.default_rng(3)), None, [(4, 5)]),
    "add_rms_norm": (
        lambda x, r, w: F.concatenate(F.add_rms_norm(x, r, w)),
        lambda x, r, w: np.concatenate(
            [x + r, (x + r) / np.sqrt(((x + r) ** 2).mean(-1, keepdims=True) + 1e-6) * w]
        ),
        [(2, 4), (2, 4), (4,)],
    ),
    "linear_maps": (
        lambda x, a, b: F.concatenate(F.linear_maps(x, a, b), -1),
        lambda x, a, b: np.concatenate([x @ a.T, x @ b.T], -1),
        [(2, 3), (4, 3), (1, 3)],
    ),
    "rms_norm": (
        F.rms_norm,
        lambda x, w: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w,
        [(2, 2, 4), (4,)],
    ),
    "layer_norm": (
        F.layer_norm,
        lambda x, w, b: (
            (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b
        ),
        [(2, 2, 4), (4,), (4,)],
    ),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), None, [(2, 4, 3), (4,), (4,)]),
    "normalize": (F.normalize, lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True), [(2, 3)]),
    "cosine_similarity": (
        F.cosine_similarity,
        lambda a, b: (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1),
        [(2, 3), (2, 3)],
    ),
    "linear": (F.linear, lambda x, w, b: x @ w.T + b, [(2, 2, 3), (4, 3), (4,)]),
    "embedding": (lambda w: F.embedding(w, [[0, 2, 2]]), lambda w: w[[[0, 2, 2]]], [(3, 2)]),
    "rope": (
        F.rope,
        lambda x, c, s: np.concatenate(
            [x[..., :2] * c - x[..., 2:] * s, x[..., 2:] * c + x[..., :2] * s], -1
        ),
        [(2, 3, 4), (3, 2), (3, 2)],
    ),
    "attention": (
        lambda q, k, v: F.attention(q, k, v, causal=True),
        None,
        [(1, 4, 3, 2), (1, 2, 3, 2), (1, 2, 3, 3)],
    ),
    "attention masked": (
        lambda q, k, v: F.attention(q, k, v, MASK),
        None,
        [(2, 2, 3, 2), (2, 2, 3, 2), (2, 2, 3, 2)],
    ),
    "attention biased": (
        F.attention,
        None,
        [(1, 2, 3, 2), (1, 1, 4, 2), (1, 1, 4, 2), (1, 1, 3, 4)],
    ),
    "cross_entropy": (lambda x: F.cross_entropy(x, T), None, [(2, 3, 4)]),
    "cross_entropy smoothed": (
        lambda x: F.cross_entropy(x, T, label_smoothing=0.2, reduction="none"),
        None,
        [(2, 3, 4)],
    ),
    "linear_cross_entropy": (
        lambda x, w: F.linear_cross_entropy(x, w, T),
        None,
        [(2, 3, 2), (4, 2)],
    ),
    "nll_loss": (lambda x: F.nll_loss(x, T), None, [(2, 3, 4)]),
    "binary_cross_entropy_with_logits": (
        lambda x: F.binary_cross_entropy_with_logits(x, [0, 1, 0.3, 1], pos_weight=W),
        None,
        [(4,)],
    ),
    "mse_loss": (F.mse_loss, lambda a, b: ((a - b) ** 2).mean(), [(2, 3), (2, 3)]),
    "l1_loss": (F.l1_loss, lambda a, b: abs(a - b).mean(), [(2, 3), (2, 3)]),
    "huber_loss": (
        lambda a, b: F.huber_loss(a, b, delta=0.7, reduction="sum"),
        lambda a, b: special.huber(0.7, a - b).sum(),
        [(2, 3), (2, 3)],
    ),
    "kl_div": (
        lambda a, b: F.kl_div(a, b, reduction="sum"),
        lambda a, b: (np.exp(b) * (b - a)).sum(),
        [(2, 3), (2, 3)],
    ),
    "conv1d": (
        lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=1, dilation=2),
        None,
        [(2, 2, 7), (3, 2, 2), (3,)],
    ),
    "conv2d": (
        lambda x, w, b: F.conv2d(x, w, b, stride=(1, 2), padding=(0, 1), groups=2),
        None,
        [(2, 4, 4, 3), (2, 2, 2, 2), (2,)],
    ),
    "max_pool1d": (lambda x: F.max_pool1d(x, 3, 2, 1), None, [(1, 2, 6)]),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), None, [(1, 2, 4, 5)]),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3, 1, 1), None, [(1, 2, 6)]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, (2, 1)), None, [(1, 2, 4, 3)]),
    **{
        f"einsum {s}": (
            lambda *xs, s=s: F.einsum(s, *xs),
            lambda *xs, s=s: np.einsum(s, *xs),
            shapes,
        )
        for s, shapes in {
            "ij,jk": [(2, 3), (3, 4)],
            "ij,jk->ki": [(2, 3), (3, 4)],
            "ii": [(3, 3)],
            "ii->i": [(3, 3)],
            "iij,j->ij": [(2, 2, 3), (3,)],
            "...ij,...jk->...ik": [(2, 2, 3), (3, 2)],
            "i,j->ij": [(2,), (3,)],
            "b...,b...->...b": [(2, 1, 3), (2, 2, 1)],
            "abc->b": [(2, 3, 2)],
            "ij,ij->": [(2, 3), (2, 3)],
            "ba,cb": [(2, 3), (4, 2)],
            "i...->...": [(2, 3)],
            "ij,jk,kl->il": [(2, 3), (3, 2), (2, 3)],
            "bij,bjk,bk->bi": [(2, 2, 3), (2, 3, 2), (2, 2)],
            "i,i,i->i": [(3,), (3,), (3,)],
            "iiij->j": [(2, 2, 2, 3)],
            "...,...": [(), (2,)],
            "ij,kj->": [(2, 3), (1, 1)],
        }.items()
    },
}


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case[1]])
def test_value(name):
    f, reference, shapes, *domain = CASES[name]
    xs = draw(0, shapes, *domain)
    ours, theirs = f(*map(tg.tensor, xs)), reference(*xs)
    plain = f(*xs)  # arrays in, arrays out, of the same numbers
    if not isinstance(ours, list):
        ours, theirs, plain = [ours], [theirs], [plain]
    for y, want, array in zip(ours, theirs, plain, strict=True):
        assert isinstance(y, tg.Tensor)
        assert isinstance(array, np.ndarray | np.generic)
        assert y.shape == want.shape
        np.testing.assert_allclose(y.data, want, rtol=1e-12, atol=1e-14)  # sums of few float64
        np.testing.assert_array_equal(y.data, array)


@pytest.mark.parametrize("name", CASES)
@given(seed=st.one_of(st.just(0), seeds))
def test_derivatives(name, seed):
    f, _, shapes, *domain = CASES[name]
    check(f, draw(seed, shapes, *domain), seed)


def test_every_public_name_is_reachable_and_differentiable_ones_have_a_case():
    plain = {
        *[
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
        ],
        *[
            "greater_equal",
            "isclose",
            "isfinite",
            "isinf",
            "isnan",
            "less",
            "less_equal",
            "logical_and",
        ],
        *[
            "logical_not",
            "logical_or",
            "logical_xor",
            "nonzero",
            "not_equal",
            "searchsorted",
            "signbit",
        ],
    }
    aliases = {"gather", "scatter"}
    thin = {"astype", "floor_divide", "logsumexp", "max", "min", "round", "sum"}  # tested below
    tested = {name.partition(" ")[0] for name in CASES}
    assert {*arrays.__all__, *F.__all__} - plain - aliases - thin == tested
    assert all(hasattr(F, name) for name in (*arrays.__all__, *F.__all__))


# ------------------------------------------------------------------------------------- arrays


def test_thin_reductions_take_numpys_arguments():
    x = np.arange(6.0).reshape(2, 3)
    for f, g in ((F.sum, np.sum), (F.max, np.max), (F.min, np.min)):
        np.testing.assert_array_equal(f(tg.tensor(x), 1, True).data, g(x, 1, keepdims=True))
    np.testing.assert_allclose(F.logsumexp(tg.tensor(x), 0).data, special.logsumexp(x, 0))


def test_round_and_floor_divide_are_numpys_and_pass_no_gradient():
    a, b = np.array([1.0, -7.5, 2.55]), np.array([0.1, 2.0, 0.5])
    np.testing.assert_array_equal((tg.tensor(a) // tg.tensor(b)).data, a // b)
    np.testing.assert_array_equal(F.round(tg.tensor(a), 1).data, a.round(1))
    assert not F.floor_divide(tg.tensor(a, requires_grad=True), b).requires_grad


def test_astype_to_an_integer_leaves_the_tape():
    x = tg.tensor([1.5, -2.5], requires_grad=True)
    assert F.astype(x, "float64").requires_grad
    assert not F.astype(x, "int32").requires_grad
    assert F.astype(x, "int32").tolist() == [1, -2]


def test_std_of_equal_numbers_has_derivative_zero():
    x = tg.tensor([2.0, 2.0, 2.0], requires_grad=True)
    assert tg.grad(F.std(x), x).tolist() == [0, 0, 0]


@pytest.mark.parametrize("zeros", [[0], [1, 3]])
def test_product_with_zeros_has_exact_derivatives(zeros):
    data = np.array([2.0, 3, 5, 7])
    data[zeros] = 0
    want = [np.delete(data, i).prod() for i in range(4)]
    assert tg.jacobian(F.prod)(tg.tensor(data)).tolist() == want
    last = tg.jacobian(lambda x: F.cumprod(x)[-1])
    assert last(tg.tensor(data)).tolist() == want


def test_second_derivative_of_sinc_at_zero():
    got = tg.hessian(lambda x: F.sum(F.sinc(x)))(tg.tensor(np.zeros(1))).item()
    assert got == pytest.approx(-(np.pi**2) / 3, rel=1e-14)


def test_mean_of_a_half_type_does_not_overflow():
    x = tg.tensor(np.full(4096, 100.0), dtype="float16")
    assert F.mean(x).item() == 100
    assert F.mean(x).dtype == np.float16


def test_empty_reductions():
    x = tg.tensor(np.zeros((0, 3)))
    assert F.prod(x, 0).tolist() == [1, 1, 1]
    assert F.cumsum(x).shape == (0,)
    assert F.einsum("ij,kj->ik", x, x).shape == (0, 0)


def test_quantile_of_nan_is_nan():
    x = np.array([1.0, np.nan, 3.0])
    assert np.isnan(F.median(tg.tensor(x)).item())


def test_sorting_backwards_keeps_ties_in_order():
    x = tg.tensor([1.0, 3.0, 1.0, 3.0])
    assert F.argsort(x, descending=True).tolist() == [1, 3, 0, 2]
    assert F.sort(x, descending=True).tolist() == x.sort(descending=True).tolist() == [3, 3, 1, 1]


@pytest.mark.parametrize(
    "f, at, expected",
    [
        (F.gelu_tanh, 1e200, 1.0),
        (F.gelu_tanh, -1e200, 0.0),
        (tg.arccosh, 1e200, 1e-200),
        (tg.log10, 1e308, 1e-308 / np.log(10)),
        (lambda x: tg.arctan2(x, 1e-200), 1e-200, 5e199),
        (lambda x: tg.arctan2(x, 1e200), 1e200, 5e-201),
    ],
)
def test_derivatives_where_a_square_overflows_or_vanishes(f, at, expected):
    x = tg.tensor(np.array(at), requires_grad=True)
    np.testing.assert_allclose(tg.grad(f(x), x).item(), expected, rtol=1e-14)


def test_gradient_of_cross_entropy_in_any_layout():
    logits, targets = np.random.default_rng(0).normal(size=(2, 4, 3)), np.array([[2, 0, 1, 1]] * 2)
    found = []
    for x in (logits, np.asfortranarray(logits), logits.swapaxes(1, 2).copy().swapaxes(1, 2)):
        x = tg.borrow(x, requires_grad=True)
        found.append(tg.grad(F.cross_entropy(x, targets), x).numpy())
    np.testing.assert_allclose(found[0].sum(-1), 0, atol=1e-15)  # softmax less one-hot
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-14)


def test_bounds_of_clip_on_the_tape_have_gradients():
    x, low = (tg.tensor(v, requires_grad=True) for v in ([0.0, 2.0, 5.0], [1.0, 1.0, 1.0]))
    for y in (x.clip(low, 4), tg.clip(x, low, 4)):
        assert y.tolist() == [1, 2, 4]
        assert [g.tolist() for g in tg.grad(y.sum(), [x, low])] == [[0, 1, 0], [1, 0, 0]]
    y = tg.clip(x, 3.0, low)  # as numpy: max has the last word
    assert y.tolist() == np.clip(x.numpy(), 3.0, low.numpy()).tolist()


def test_a_learned_scale_of_attention_has_a_gradient():
    rng = np.random.default_rng(0)
    q, k, v = (tg.tensor(rng.normal(size=(1, 2, 3, 4)).astype("float32")) for _ in range(3))
    f = lambda scale: F.attention(q, k, v, scale=scale).sum()
    scale = tg.tensor(0.3, requires_grad=True)
    difference = (f(0.31).item() - f(0.29).item()) / 0.02
    assert abs(tg.grad(f(scale), scale).item() - difference) < 1e-3 * abs(difference)


@pytest.mark.parametrize(
    "f",
    [
        lambda x, s: F.pad(x, 1, value=s),
        lambda x, s: F.rms_norm(x, tg.ones((3,)), eps=s),
        lambda x, s: F.quantile(x, s),
        lambda x, s: tg.ops.clip(x, max=s),
    ],
)
def test_an_option_on_the_tape_is_refused_where_it_would_get_no_gradient(f):
    x, s = tg.tensor(np.ones((2, 3)), requires_grad=True), tg.tensor(0.5, requires_grad=True)
    with pytest.raises(TypeError):
        f(x, s)
    with tg.no_grad():
        f(x, 0.5)


def test_topk_of_unsigned_numbers():
    values, places = F.topk(np.array([0, 3, 1], np.uint8), 2)  # whose negatives are not in order
    assert (values.tolist(), places.tolist()) == ([3, 1], [1, 2])


def test_a_cosine_keeps_half_types():
    x = tg.tensor(np.ones((2, 3)), dtype="bfloat16")
    assert F.cosine_similarity(x, x).dtype == tg.bfloat16


def test_a_cosine_of_stretched_vectors_is_one_of_the_whole_vectors():
    a, b = tg.tensor([[2.0]]), tg.tensor([[1.0, 1.0]])  # (2, 2) and (1, 1) are parallel
    assert abs(F.cosine_similarity(a, b).item() - 1) < 1e-6


def test_nan_to_num_replaces_and_blocks_the_gradient():
    data = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    x = tg.tensor(data, requires_grad=True)
    np.testing.assert_array_equal(F.nan_to_num(x).data, np.nan_to_num(data))
    assert tg.grad(F.sum(F.nan_to_num(x, 0, 5, -5)), x).tolist() == [0, 0, 0, 1]


def test_placing_matches_numpy():
    x, v, i = np.zeros((2, 3)), np.array([[4.0], [5.0]]), np.array([[1], [0]])
    y = x.copy()
    np.put_along_axis(y, i, v, 1)
    np.testing.assert_array_equal(F.put_along_axis(tg.tensor(x), i, v, 1).data, y)
    np.testing.assert_array_equal(F.scatter(tg.tensor(x), i, v, 1).data, y)
    np.testing.assert_array_equal(F.gather(tg.tensor(y), i, 1).data, v)
    assert F.index_add(tg.tensor(np.zeros(3)), [0, 0, 2], 1.0).tolist() == [2, 0, 1]
    assert F.index_update(tg.tensor(np.zeros(3)), slice(1, None), 7).tolist() == [0, 7, 7]


def test_rows_that_are_named_many_times_are_added_in_their_order():
    rng = np.random.default_rng(0)
    index, x = rng.integers(-5, 5, (20, 30)), rng.standard_normal((20, 30, 4, 70))
    y = np.zeros((5, 4, 70))
    np.add.at(y, index, x)
    assert np.array_equal(ops.scatter_add(x, index=index, shape=y.shape), y)
    assert (F.index_add(np.zeros((1, 2)), np.zeros(64, int), 1.0) == 64).all()
    with pytest.raises(IndexError, match="rows -5 to 4 of an array of 4"):
        ops.scatter_add(x, index=index, shape=(4, 4, 70))


def test_topk_gives_the_places():
    values, places = F.topk(tg.tensor([[1.0, 9, 4], [8, 2, 8]]), 2)
    assert values.tolist() == [[9, 4], [8, 8]]
    assert places.tolist() == [[1, 2], [0, 2]]


@pytest.mark.parametrize("name", ["equal", "less_equal", "greater", "logical_and"])
def test_questions_of_two_are_plain_arrays(name):
    a, b = np.array([1.0, 2, 0]), np.array([1.0, 1, 5])
    got = getattr(F, name)(tg.tensor(a), b)
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, getattr(np, name)(a, b))


@pytest.mark.parametrize(
    "name", ["isnan", "isinf", "isfinite", "signbit", "argmax", "all", "any", "nonzero"]
)
def test_questions_of_one_are_plain_arrays(name):
    x = np.array([1.0, np.nan, -np.inf])
    np.testing.assert_array_equal(getattr(F, name)(tg.tensor(x)), getattr(np, name)(x))


@pytest.mark.parametrize("name", sorted(F.UFUNCS))
def test_numpys_universal_functions_take_tensors(name):
    ufunc = getattr(np, name)
    xs = [np.array([0.25, 0.5, 0.75]), np.array([0.5, 0.125, 2.0])][: ufunc.nin]
    if name == "arccosh":
        xs = [xs[0] + 1]
    if name == "matmul":
        xs = [np.eye(3), xs[1]]
    np.testing.assert_allclose(ufunc(*map(tg.tensor, xs)), ufunc(*xs), rtol=1e-14)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: F.swapaxes(x, 0, 5), IndexError, "axis2: got 5"),
        (lambda x: F.flip(x, 2), IndexError, "axis: got 2"),
        (lambda x: F.moveaxis(x, 0, 3), IndexError, "destination: got 3"),
        (lambda x: F.expand_dims(x, (0, 0)), ValueError, "twice"),
        (lambda x: F.squeeze(x, 1), ValueError, "length 3, expected 1"),
        (lambda x: F.split(x, 2, 1), ValueError, "array_split"),
        (lambda x: F.stack([x, x[0]]), ValueError, "one shape"),
        (lambda x: F.topk(x, 4), ValueError, "k: got 4"),
        (lambda x: F.quantile(x, 1.5), ValueError, "q: got 1.5"),
        (lambda x: F.take(x, [0.5]), TypeError, "expected integers"),
        (lambda x: F.take(x, [9], 1), IndexError, "getitem"),
        (lambda x: F.var(x, 0, 2), ValueError, "ddof: got 2"),
        (lambda x: F.diag(x[None]), ValueError, "a vector or a matrix"),
        (lambda x: F.cross(x, x, 0), ValueError, "expected length 3"),
        (lambda x: F.tensordot(x, x, 1), ValueError, "tensordot"),
        (lambda x: F.einsum("ij,jk", x), ValueError, "names 2 operands, got 1"),
        (lambda x: F.einsum("ijk", x), ValueError, "does not fit shape"),
        (lambda x: F.einsum("ij,ij->ik", x, x), ValueError, "invents a letter"),
        (lambda x: F.einsum("ij,jk", x, x), ValueError, "'j' is both 3 and 2"),
        (lambda x: F.einsum("i.j", x), ValueError, "is not letters"),
        (lambda x: F.meshgrid(x, indexing="no"), ValueError, "indexing: got 'no'"),
        (lambda x: F.average(x, 0, x[0]), ValueError, "weights"),
        (lambda x: F.dropout(x, 1.5, None), ValueError, "p: got 1.5"),
        (lambda x: F.rms_norm(x, x[0, :2]), ValueError, "rms_norm"),
        (lambda x: F.group_norm(x, 2), ValueError, "3 channels"),
        (lambda x: F.glu(x), ValueError, "even"),
        (lambda x: F.linear(x, x[:, :2]), ValueError, "linear"),
        (lambda x: F.embedding(x, [2]), IndexError, "0 to 1"),
        (lambda x: F.embedding(x, [-1]), IndexError, "got -1"),
        (lambda x: F.rope(x, x, x), ValueError, "half"),
        (lambda x: F.attention(x, x, x), ValueError, "attention"),
        (lambda x: F.cross_entropy(x, [0, 3]), IndexError, "expected 0 to 2"),
        (lambda x: F.cross_entropy(x, [0]), ValueError, "targets: got shape"),
        (lambda x: F.cross_entropy(x, [0.0, 1.0]), TypeError, "targets"),
        (lambda x: F.cross_entropy(x, [0, 1], reduction="max"), ValueError, "reduction"),
        (lambda x: F.mse_loss(x, x[0]), ValueError, "target: got shape"),
        (lambda x: F.huber_loss(x, x, delta=0), ValueError, "delta"),
        (lambda x: F.conv1d(x, x), ValueError, "expected 3 axes"),
        (lambda x: F.conv1d(x[None], x[None], groups=2), ValueError, "2 groups"),
        (lambda x: F.conv1d(x[None], x[None], stride=0), ValueError, "stride: got 0"),
        (lambda x: F.max_pool1d(x[None], 4), ValueError, "longer than"),
        (lambda x: F.max_pool1d(x[None], 2, padding=2), ValueError, "more than half"),
        (lambda x: F.conv1d(x[None], x[None], padding="full"), ValueError, "padding: got 'full'"),
        (lambda x: F.conv1d(x[None], x[None], padding="same", stride=2), ValueError, "stride 1"),
        (lambda x: F.cross_entropy(x, [0, 1], weight=x), ValueError, "weight: got shape"),
        (lambda x: F.pad(x, 1, mode="mirror"), ValueError, "mode: got 'mirror'"),
        (lambda x: F.quantile(x, 0.5, method="up"), ValueError, "method: got 'up'"),
    ],
)
def test_errors_name_the_argument(call, error, says):
    with pytest.raises(error, match=says):
        call(tg.tensor(np.arange(6.0).reshape(2, 3)))


# --------------------------------------------------------------------------------- randomness

PUBLISHED = [  # Random123's known answers for philox4x32-10: counter, key, words
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_philox_gives_the_published_words(counter, key, words):
    low, high = (int(k, 16) for k in key.split())
    counter = [np.array([int(c, 16)], "uint64") for c in counter.split()]
    got = F.philox(np, counter, low | high << 32)
    assert [int(w[0]) for w in got] == [int(w, 16) for w in words.split()]


def test_dropout_is_right_on_average_and_the_same_for_the_same_key():
    x = tg.tensor(np.ones(100_000))
    a, b = (F.dropout(x, 0.3, np.random.default_rng(7)).data for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert set(np.unique(a)) == {0.0, 1 / 0.7}
    assert abs(a.mean() - 1) < 5 * np.sqrt(0.3 / 0.7 / a.size)  # five standard deviations


def test_dropout_of_evaluation_and_of_everything():
    x = tg.tensor([1.0, 2.0])
    assert F.dropout(x, 0.5) is x
    assert F.dropout(x, 1.0, np.random.default_rng(0)).tolist() == [0, 0]


# -------------------------------------------------------------------------------------- layers


def test_gelu_keeps_its_digits_in_the_tail():
    x = np.array([-10.0, -20.0, -35.0])
    want = x * special.ndtr(x)
    np.testing.assert_allclose(F.gelu(tg.tensor(x)).data, want, rtol=1e-12)  # x^2 eps


def test_elu_has_slope_alpha_at_zero():
    x = tg.tensor([0.0], requires_grad=True)
    assert tg.grad(F.sum(F.elu(x, 0.5)), x).tolist() == [0.5]


def test_normalize_of_zero_is_zero_and_finite():
    x = tg.tensor(np.zeros((1, 3)), requires_grad=True)
    y = F.normalize(x)
    assert y.tolist() == [[0, 0, 0]]
    assert np.isfinite(tg.grad(F.sum(y), x).data).all()


@pytest.mark.parametrize("mask", [MASK, np.where(MASK, 0.0, -np.inf)])
def test_a_query_that_sees_nothing_gets_zeros(mask):
    q, k, v = (tg.tensor(a, requires_grad=True) for a in draw(1, [(1, 2, 3, 4)] * 3))
    y = F.attention(q, k, v, mask)
    assert (y.data[:, :, 1] == 0).all()
    for g in tg.grad(F.sum(y * y), [q, k, v]):
        assert np.isfinite(g.data).all()


def test_the_last_query_is_at_the_last_key():
    q, k, v = draw(2, [(1, 2, 5, 4)] * 3)
    whole = F.attention(q, k, v, causal=True)
    np.testing.assert_allclose(F.attention(q[:, :, 3:], k, v, causal=True), whole[:, :, 3:])
    np.testing.assert_allclose(F.attention(q[:, :, 4:], k, v, causal=True), whole[:, :, 4:])


@pytest.mark.parametrize("t", [F.STEP + 1, 2 * F.STEP, 2 * F.STEP + 5])
def test_a_long_causal_attention_is_that_of_a_mask(t):
    arrays = draw(4, [(1, 2, t, 3), (1, 2, t, 3), (1, 2, t, 4)])
    q, k, v = (tg.tensor(a, requires_grad=True) for a in arrays)
    of_mask = lambda q, k, v: F.attention(q, k, v, np.tri(t, dtype=bool))
    causal = lambda q, k, v: F.attention(q, k, v, causal=True)
    with tg.use_kernels(False):
        np.testing.assert_allclose(causal(q, k, v).data, of_mask(q, k, v).data, rtol=1e-13)
        for found, want in zip(
            *(slopes_of_slopes(f, q, k, v) for f in (causal, of_mask)), strict=True
        ):
            np.testing.assert_allclose(found.data, want.data, rtol=1e-10, atol=1e-12)


def slopes_of_slopes(f, *xs):
    """Gradients of f's squares, and those of the gradients' squares."""
    first = tg.grad((f(*xs) ** 2).sum(), xs, create_graph=True)
    return first + tg.grad(sum((g**2).sum() for g in first), xs)


def test_grouped_heads_equal_repeated_keys():
    q, k, v = draw(3, [(2, 6, 3, 4), (2, 2, 5, 4), (2, 2, 5, 4)])
    want = F.attention(q, np.repeat(k, 3, 1), np.repeat(v, 3, 1))
    np.testing.assert_allclose(F.attention(q, k, v), want, rtol=1e-13)


def test_losses_survive_extreme_logits():
    x = tg.tensor(np.array([1e4, -1e4]), requires_grad=True)
    y = F.binary_cross_entropy_with_logits(x, [1.0, 0.0])
    assert y.item() == 0
    assert tg.grad(y, x).tolist() == [0, 0]
    assert F.cross_entropy(tg.tensor([[1e4, -1e4]]), [1]).item() == 2e4


def test_cross_entropy_of_ignored_targets_alone_is_zero():
    x = tg.tensor(np.ones((2, 3)), requires_grad=True)
    y = F.cross_entropy(x, [-100, -100])
    assert y.item() == 0
    assert (tg.grad(y, x).data == 0).all()


def test_half_types_give_a_float32_loss_and_half_gradients():
    x = tg.tensor(np.ones((2, 3)), dtype="float16", requires_grad=True)
    y = F.cross_entropy(x, [0, 1])
    assert y.dtype == np.float32
    assert tg.grad(y, x).dtype == np.float16
    big = tg.tensor(np.full((1, 4), 3e4), dtype="float16")  # its square is beyond float16
    assert F.rms_norm(big, tg.tensor(np.ones(4), dtype="float16")).tolist() == [[1, 1, 1, 1]]
    assert F.layer_norm(big).tolist() == [[0, 0, 0, 0]]


# ------------------------------------------------------------------------------------ creation


def test_creation_takes_numpys_arguments():
    assert creation.zeros((2, 3)).dtype == np.float32
    assert creation.full(2, 7).dtype == np.int64
    assert creation.full(2, 7.5).dtype == np.float32
    assert creation.arange(3).tolist() == [0, 1, 2]
    assert creation.arange(1, 2, 0.5).tolist() == [1, 1.5]
    assert creation.linspace(0, 1, 5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert creation.eye(2, 3, 1).tolist() == [[0, 1, 0], [0, 0, 1]]
    assert creation.tri(2, dtype="bool").tolist() == [[True, False], [True, True]]
    assert creation.one_hot([1, 0], 2).tolist() == [[0, 1], [1, 0]]


def test_creation_like_another():
    x = tg.tensor(np.ones((2, 3)), dtype="float16")
    for y in (creation.zeros_like(x), creation.ones_like(x), creation.full_like(x, 2)):
        assert y.shape == (2, 3)
        assert y.dtype == np.float16
    assert creation.ones_like(x, dtype="float64", requires_grad=True).requires_grad


def test_random_numbers_come_from_the_generator():
    rng = np.random.default_rng(0)
    want = np.random.default_rng(0).standard_normal((2, 2), np.float32) * 2 + 1
    np.testing.assert_array_equal(creation.normal((2, 2), rng=rng, std=2, mean=1).data, want)
    y = creation.uniform(1000, rng=rng, low=-1, high=3, dtype="float64").data
    assert y.min() >= -1
    assert y.max() < 3
    assert abs(y.mean() - 1) < 5 * 4 / np.sqrt(12 * 1000)  # five standard deviations


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: creation.normal(2, rng=0), TypeError, "rng: got int"),
        (lambda: creation.normal(2, rng=np.random.default_rng(0), std=-1), ValueError, "std"),
        (
            lambda: creation.uniform(2, rng=np.random.default_rng(0), low=1, high=0),
            ValueError,
            "low",
        ),
        (
            lambda: creation.uniform(2, rng=np.random.default_rng(0), dtype="int32"),
            TypeError,
            "dtype",
        ),
        (lambda: creation.one_hot([3], 3), IndexError, "0 to 2"),
        (lambda: creation.one_hot([0.5], 3), TypeError, "integers"),
        (lambda: creation.arange(0, 5, 0), ValueError, "step"),
        (lambda: creation.zeros(2, "complex64"), TypeError, "dtype"),
        (lambda: creation.zeros(2, "int64", requires_grad=True), TypeError, "requires_grad"),
    ],
)
def test_creation_errors(call, error, says):
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize("large", [1e4, 1e8, 1e30])
def test_gradient_of_logsumexp_is_shared_by_equal_entries_however_large(large):
    x = tg.tensor(np.full((2, 4), large), requires_grad=True)
    np.testing.assert_array_equal(tg.grad(tg.logsumexp(x), x).numpy(), 1 / 8)
    np.testing.assert_array_equal(tg.grad(tg.logsumexp(x, 1).sum(), x).numpy(), 1 / 4)


def test_gradient_of_the_variance_of_close_numbers_keeps_its_digits():
    x = 1e6 + np.array([0.1, 0.3, 0.7])
    exact = [Fraction(v) for v in x.tolist()]
    expected = [float(2 * (v - sum(exact) / 3) / 3) for v in exact]
    x = tg.tensor(x, requires_grad=True)
    np.testing.assert_allclose(tg.grad(tg.var(x), x).numpy(), expected, rtol=1e-15)


@pytest.mark.parametrize("large", [1, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_variance_of_equal_numbers_is_zero(dtype, large):
    x = tg.tensor(np.full((5, 3), 1.744126 * large, dtype))  # whose mean is a rounding off
    assert (tg.var(x, 0).numpy() == 0).all() and tg.var(x).item() == tg.std(x).item() == 0


def test_an_average_by_tiny_weights_does_not_vanish():
    x, w = np.array([[1.0, 2], [3, 5]]) * 1e-30, np.array([1.0, 3]) * 1e-30
    leaves = [tg.tensor(a.astype("float32"), requires_grad=True) for a in (x, w)]
    y = F.average(leaves[0], 1, leaves[1])
    np.testing.assert_allclose(y.numpy(), [1.75e-30, 4.5e-30], rtol=1e-6)
    to_x, to_w = (slope.numpy() for slope in tg.grad(y.sum(), leaves))
    np.testing.assert_allclose(to_x, [[0.25, 0.75]] * 2, rtol=1e-6)
    np.testing.assert_allclose(to_w, [-0.5625, 0.1875], rtol=1e-5)


@pytest.mark.parametrize(
    "dtype, others", [("float32", [-20.0, -30.0]), ("float64", [-50.0, -70.0])]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_nearly_certain_class_keeps_the_digits_of_its_log_softmax(dtype, others, axis):
    z, rtol = np.array([[0.0, *others]], dtype), 8 * np.finfo(dtype).eps
    z = z.T if axis == 0 else z
    p = np.exp(np.array(others))
    left = p.sum() / (1 + p.sum())  # 1 - p of the first: beside 1 nothing
    p = [1 - left, *p / (1 + p.sum())]
    rows = np.eye(3) - p
    rows[0, 0] = left  # d y_i / d z_j
    x = tg.tensor(z, requires_grad=True)
    y = ops.log_softmax(x, axis=axis)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.numpy().ravel()[0], -np.log1p(np.exp(others).sum()), rtol=rtol)
    for i, unit in enumerate(np.eye(3, dtype=dtype)):
        unit = unit.reshape(z.shape)
        (back,) = tg.grad(y, [x], unit)
        _, ahead = tg.jvp(
            lambda v: ops.log_softmax(v, axis=axis), [tg.tensor(z)], [tg.tensor(unit)]
        )
        np.testing.assert_allclose(back.numpy().ravel(), rows[i], rtol=rtol)
        np.testing.assert_allclose(ahead.numpy().ravel(), rows[:, i], rtol=rtol)


def test_log_softmax_of_equal_classes_infinities_and_integers():
    x = np.array([[2.0, 2, 2], [-np.inf, 1, 1], [5, -np.inf, -np.inf], [1, np.nan, 0]], "float32")
    y = ops.log_softmax(tg.tensor(x)).numpy()
    half, third = np.log(0.5), np.log(1 / 3)
    expected = [[third] * 3, [-np.inf, half, half], [0, -np.inf, -np.inf], [np.nan] * 3]
    np.testing.assert_allclose(y, np.array(expected, "float32"), rtol=1e-6)
    np.testing.assert_allclose(ops.log_softmax(tg.tensor([3, 3])).numpy(), [half] * 2)


def test_a_nearly_certain_target_keeps_the_digits_of_its_loss_and_gradient():
    x, w = np.array([[1.0]]), np.array([[80.0], [10.0], [10.0]])
    logits = (x @ w.T)[0]  # e^-70 each way: beside 1 nothing
    for f in (F.linear_cross_entropy, F.linear_cross_entropy.definition):
        y = f(tg.tensor(x, requires_grad=True), tg.tensor(w), np.array([0]))
        np.testing.assert_allclose(y.item(), 2 * np.exp(-70), rtol=1e-14)
    z = tg.tensor(logits, requires_grad=True)
    slope = tg.grad(F.cross_entropy(z, np.array(0)), z).numpy()
    np.testing.assert_allclose(slope, np.exp(-70) * np.array([-2, 1, 1]), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradient_of_cross_entropy_adds_up_to_zero_beside_large_logits(dtype):
    x = tg.tensor(np.full((1, 2), 400, dtype), requires_grad=True)
    w = tg.tensor(np.full((5, 2), 400, dtype))  # five equal logits of 320,000
    slope = tg.grad(F.linear_cross_entropy(x, w, np.array([3])), x).numpy()
    np.testing.assert_allclose(slope, 0, atol=400 * 8 * np.finfo(dtype).eps)  # of 5 probabilities


def test_logits_may_be_integers():
    logits, targets = tg.tensor([[1, 2, 3], [0, 5, 1]]), np.array([2, 0])
    wanted = F.cross_entropy(logits.astype("float64"), targets)
    assert F.cross_entropy(logits, targets).item() == wanted.item()
