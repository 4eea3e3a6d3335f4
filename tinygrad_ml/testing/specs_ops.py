"""What is known of each primitive in ops.py."""

# fmt: off  (tables, aligned by hand)
import numpy as np
import scipy.special

from .. import ops
from .registry import Subgradient, declare
from .strategies import MILD, POSITIVE, REAL, Domain

NORMAL = REAL._replace(special=tuple(x for x in REAL.special if x == 0 or abs(x) > 1e-300))
UNIT = Domain(-0.95, 0.95, (0.0, -0.0, 5e-324), (1e-30, 1e-8))
ANGLES = Domain(-1.4, 1.4, (0.0, -0.0, 5e-324, 1.5698), (1e-30, 1e-8))  # tan 1.5698 is 1003
TO_OVERFLOW = Domain(-3, 3, (0.0, -0.0, 1.0, 705.0, -705.0), (1e-8,))  # beyond 710 sinh overflows
ABOVE_ONE = Domain(1.1, 5, (1e8,), (1e8,))
ABOVE_MINUS_ONE = Domain(-0.9, 5, (0.0, -0.0, 1e-20, 1e30), (1e-30, 1e-8))
STEEP = ("plain", "plain", "scaled")


def unary(domain=REAL, **array):
    """One array of any shape."""
    return lambda draw: (draw.array(draw.shape(), domain, **array),)


def binary(a=REAL, b=None, **array):
    """Two arrays that broadcast with each other; now and then the same one twice."""

    def inputs(draw):
        shape = draw.shape()
        first = draw.array(shape, a, **array)
        if b is None and draw.pick([False, False, False, True]):
            return first, first
        second = draw.array(draw.broadcastable(shape), b or a, **array)
        return (first, second) if b is not None or draw.pick([True, False]) else (second, first)

    return inputs


def reduction(domain=REAL, **array):
    """An array, one or several axes of it or None, and keepdims. No axis has length 0."""

    def inputs(draw):
        x = draw.array(draw.shape(zero=False), domain, **array)
        return (x,), {"axis": draw.axes(x.ndim), "keepdims": draw.pick([False, True])}

    return inputs


def along(domain=REAL, **array):
    """An array and one axis."""

    def inputs(draw):
        x = draw.array(draw.shape(1, zero=False), domain, **array)
        return (x,), {"axis": draw.axis(x.ndim)}

    return inputs


# --- arithmetic

declare(ops.add, binary(), np.add, analytic=True)
declare(ops.sub, binary(), np.subtract, analytic=True)
declare(ops.mul, binary(), np.multiply, analytic=True)
declare(ops.div, binary(REAL, POSITIVE), np.divide, analytic=True,
        torch="div", jax="divide", subgradients=(
    Subgradient("1 / 0", ([1.0], [0.0]), ([np.inf], [-np.inf]), says="the limits from above"),
    Subgradient("0 / 0", ([0.0], [0.0]), ([np.inf], [np.nan]), says="inf to a, NaN to b"),))
declare(ops.neg, unary(), np.negative, analytic=True)


def _powers(draw):
    shape = draw.shape()
    if draw.pick([True, False]):
        base = draw.array(shape, Domain(0.3, 3, (1.0,), (100.0,)), flavours=("plain", "special", "scaled"))
        return base, draw.array(draw.broadcastable(shape), MILD, flavours=("plain", "ties"))
    return draw.array(shape, MILD), draw.pick([2, 3, 1, 0, -1, 4.0, 2.0])


declare(ops.pow, _powers, np.power, subgradients=(
    Subgradient("0^0 to a", ([0.0], [0.0]), ([0.0], [0.0]), says="0 to the base, 0 to the exponent"),
    Subgradient("0^b, b > 1", ([0.0], [2.0]), ([0.0], [0.0]), says="0 to the exponent"),
    Subgradient("0^1", ([0.0], [1.0]), ([1.0], [0.0]), says="1 to the base"),
))
declare(ops.mod, binary(MILD, Domain(0.7, 2), flavours=("plain", "scaled")), np.mod,
        kinks=lambda a, b: np.sin(np.pi * (a / b)))
declare(ops.maximum, binary(), np.maximum, kinks=np.subtract, subgradients=(
    Subgradient("max(a, b) at a = b", ([1.0], [1.0]), ([0.5], [0.5]), says="half each"),))
declare(ops.minimum, binary(), np.minimum, kinks=np.subtract, subgradients=(
    Subgradient("min(a, b) at a = b", ([1.0], [1.0]), ([0.5], [0.5]), says="half each"),))
declare(ops.abs, unary(), np.abs, kinks=0, subgradients=(
    Subgradient("|x| at 0", ([0.0, -0.0],), ([0.0, 0.0],), says="0"),))
declare(ops.sqrt, unary(POSITIVE), np.sqrt, analytic=True, subgradients=(
    Subgradient("sqrt at 0", ([0.0],), ([np.inf],), says="inf, the limit"),))
declare(ops.rsqrt, unary(POSITIVE), lambda x: 1 / np.sqrt(x), analytic=True)
declare(ops.cbrt, unary(Domain(0.2, 3, (1e30, 1e-30, -1.0, -8.0), (1e-8, 1e8))), np.cbrt,
        kinks=0, torch=None)
declare(ops.arctan2, binary(Domain(0.1, 3, (1.0,), (1e3,)), Domain(-3, 3, (0.0, -0.0), (1e3,))),
        np.arctan2, torch="atan2")
# of two subnormals hypot is rounded by up to 30 %, and the rule divides by what it gave
declare(ops.hypot, binary(NORMAL), np.hypot, kinks=np.hypot, subgradients=(
    Subgradient("hypot at (0, 0)", ([0.0], [0.0]), ([0.0], [0.0]), says="0"),))

# --- steps: the gradient is 0 everywhere

for step in ("sign", "floor", "ceil", "trunc", "round"):
    declare(getattr(ops, step), unary(MILD, flavours=("plain",)), getattr(np, step))

# --- exponentials, logarithms, trigonometry

for name, domain in {
    "exp": REAL, "expm1": REAL, "log": POSITIVE, "log2": POSITIVE, "log10": POSITIVE,
    "log1p": ABOVE_MINUS_ONE, "sin": MILD, "cos": MILD, "tan": ANGLES, "arcsin": UNIT,
    "arccos": UNIT, "arctan": MILD, "sinh": TO_OVERFLOW, "cosh": TO_OVERFLOW, "tanh": REAL,
    "arcsinh": MILD, "arccosh": ABOVE_ONE, "arctanh": UNIT,
}.items():
    declare(getattr(ops, name), unary(domain), getattr(np, name), analytic=True)
declare(ops.exp2, unary(), np.exp2)
declare(ops.logaddexp, binary(), np.logaddexp)

# --- activations

declare(ops.relu, unary(), lambda x: np.maximum(x, 0), kinks=0, subgradients=(
    Subgradient("relu at 0", ([0.0, -0.0],), ([0.0, 0.0],), says="0"),))
declare(ops.sigmoid, unary(), scipy.special.expit)
declare(ops.silu, unary(), lambda x: x * scipy.special.expit(x))
declare(ops.erf, unary(), scipy.special.erf)
declare(ops.erfc, unary(), scipy.special.erfc)

# --- choice


def _choice(draw):
    shape = draw.shape()
    condition = draw.rng.random(draw.broadcastable(shape)) < 0.5
    return condition, draw.array(shape), draw.array(draw.broadcastable(shape))


declare(ops.where, _choice, np.where, analytic=True, subgradients=(
    Subgradient("where(c, a, b): the branch not taken", ([1.0, 0.0], [2.0, 2.0], [3.0, 3.0]),
                ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]), says="exactly 0"),))


def _clip_kinks(x, *, min=None, max=None):
    return [x - bound for bound in (min, max) if bound is not None] or [np.ones(1)]


declare(
    ops.clip,
    lambda draw: (
        (draw.array(draw.shape(), REAL),),
        draw.pick([{"min": -1.0, "max": 1.0}, {"min": 0.0}, {"max": 0.5}, {"min": 0, "max": 1}]),
    ),
    lambda x, *, min=None, max=None: np.clip(x, min, max),
    kinks=_clip_kinks,
    subgradients=(
        Subgradient("clip at its bounds", ([-1.0, 1.0],), ([1.0, 1.0],), {"min": -1.0, "max": 1.0},
                    "the gradient passes"),
    ),
)

# --- reductions


def _gaps_to(extreme):
    def kinks(x, *, axis=None, keepdims=False):
        """Between each pair of entries on the reduced axes, that of the extreme and the runner-up."""
        return _runner_up(x, axis, extreme)

    return kinks


def _runner_up(x, axis, extreme):
    """Each entry's distance from the extreme of the others: it changes sign when they swap."""
    axes = tuple(range(x.ndim)) if axis is None else tuple(np.atleast_1d(axis) % max(x.ndim, 1))
    if not axes:
        return np.ones(1)
    kept = [i for i in range(x.ndim) if i not in axes]
    rows = x.transpose(*kept, *axes).reshape(*[x.shape[i] for i in kept], -1)
    others = np.repeat(rows[..., None, :], rows.shape[-1], axis=-2)
    i = np.arange(rows.shape[-1])
    others[..., i, i] = -np.inf if extreme is np.max else np.inf
    return rows - extreme(others, axis=-1)


declare(ops.sum, reduction(), np.sum, analytic=True)
declare(ops.max, reduction(), np.max, kinks=_gaps_to(np.max), torch="amax", subgradients=(
    Subgradient("max of equal entries", ([1.0, 2.0, 2.0],), ([0.0, 0.5, 0.5],),
                says="shared equally"),))
declare(ops.min, reduction(), np.min, kinks=_gaps_to(np.min), torch="amin", subgradients=(
    Subgradient("min of equal entries", ([1.0, 1.0, 2.0],), ([0.5, 0.5, 0.0],),
                says="shared equally"),))
declare(ops.cumsum, along(), np.cumsum, analytic=True)


def _set_apart(x):
    """Logits with no ties beyond 100. Softmax changes over 1, and what is measured is its change over
    the logits' own size: nothing is seen of a tie at 1e30; and at one at 800, where the second
    derivative is a difference of equal terms y y' g v, v = 800, not how large these terms are.
    """
    large = np.abs(x) > 100
    return np.where(large, x * (1 + np.arange(x.size).reshape(x.shape)), x) if large.any() else x


def logits(inputs):
    """The same inputs, the first of them set apart."""

    def made(draw):
        (x, *others), options = inputs(draw)
        return (_set_apart(x), *others), options

    return made


declare(ops.logsumexp, logits(reduction()), scipy.special.logsumexp)
declare(ops.softmax, logits(along()), scipy.special.softmax)


def log_softmax(z, *, axis):
    """Of each class by nll: scipy's loses the digits of one that is nearly certain."""
    z = np.moveaxis(z, axis, -1)
    rows = [nll(z, np.full(z.shape[:-1], i)) for i in range(z.shape[-1])]
    return -np.moveaxis(np.stack(rows, -1), -1, axis)


declare(ops.log_softmax, logits(along()), log_softmax)


def _pulled(draw):
    (z, *_), options = logits(along())(draw)
    return (draw.array(z.shape, REAL), z), options


def _cotangents(draw):
    """And results, which for the formula need not add up to 1."""
    (y,), options = along(MILD)(draw)
    return (draw.array(y.shape, MILD), y), options


declare(ops.softmax_slope, _cotangents, analytic=True, reference=lambda g, y, *, axis: (
    y * (g - (g * y).sum(axis, keepdims=True))))
declare(lambda u, z, *, axis: ops.log_softmax_residual(u, ops.log_softmax(z, axis=axis), axis=axis),
        _pulled, lambda u, z, *, axis: u - scipy.special.softmax(z, axis) * u.sum(axis, keepdims=True),
        name="ops.log_softmax_residual")


def _logits(draw):
    logits = draw.array(draw.shape(1, zero=False), REAL)
    targets = draw.rng.integers(0, logits.shape[-1], logits.shape[:-1])
    return (logits,), {"targets": targets}


def _weighted_logits(draw):
    (logits,), options = _logits(draw)
    return (logits, draw.array(logits.shape[:-1], REAL)), options


def _softmax_residual(logits, u, *, targets):
    at = np.eye(logits.shape[-1], dtype=bool)[targets]
    p = scipy.special.softmax(logits, -1)
    p = np.where(at, -np.where(at, 0, p).sum(-1, keepdims=True), p)  # p - 1 loses digits
    return u[..., None] * p


def nll(z, targets):
    """log(1 + sum of exp(x_j - x_target) over the others): no difference of large numbers."""
    beyond = z - np.take_along_axis(z, targets[..., None], -1)
    others = np.where(np.arange(z.shape[-1]) == targets[..., None], -np.inf, beyond)
    return np.logaddexp(0, scipy.special.logsumexp(others, axis=-1))


declare(ops.nll, logits(_logits), lambda z, *, targets: nll(z, targets), torch="cross_entropy")
declare(ops.softmax_residual, logits(_weighted_logits), _softmax_residual)

# --- shape


def _permuted(draw):
    x = draw.array(draw.shape(), MILD)
    axes = tuple(int(i) for i in draw.rng.permutation(x.ndim))
    return (x,), {"axes": draw.pick([None, axes, tuple(a - x.ndim for a in axes)])}


def _stretched(draw):
    shape = draw.shape()
    x = draw.array(draw.broadcastable(shape), MILD)
    return (x,), {"shape": shape}


def _joined(draw):
    shape = list(draw.shape(1))
    axis = draw.axis(len(shape))
    parts = []
    for _ in range(draw.pick([2, 1, 3])):
        shape[axis] = draw.pick([1, 2, 0, 3])
        parts.append(draw.array(tuple(shape), MILD))
    if draw.pick([False, True]):
        parts.append(parts[0])  # the same array twice
    return tuple(parts), {"axis": axis}


def _padded(draw):
    x = draw.array(draw.shape(1), MILD)
    widths = tuple((draw.pick([1, 0, 2]), draw.pick([0, 1, 2])) for _ in x.shape)
    return (x,), {"widths": widths, "value": draw.pick([0, 1.5])}


def _slid(draw):
    shape = [draw.pick([1, 2]) for _ in range(draw.pick([1, 2, 3]))]
    axis = draw.axis(len(shape))
    shape[axis] = draw.pick([4, 5, 7])
    options = {"size": draw.pick([2, 1, 3]), "stride": draw.pick([1, 2, 3]), "axis": axis}
    return (draw.array(tuple(shape), MILD),), options


def _laid(draw):
    size, stride, count = draw.pick([2, 1, 3]), draw.pick([1, 2, 3]), draw.pick([2, 1, 3])
    shape = [draw.pick([1, 2]) for _ in range(draw.pick([0, 1, 2]))]
    axis = draw.pick(range(len(shape) + 1))
    shape.insert(axis, count)
    length = (count - 1) * stride + size + draw.pick([0, 1])
    x = draw.array((*shape, size), MILD)
    return (x,), {"length": length, "stride": stride, "axis": axis}


def _windows(x, *, size, stride, axis):
    slid = np.lib.stride_tricks.sliding_window_view(x, size, axis=axis)
    return np.take(slid, range(0, slid.shape[axis % x.ndim], stride), axis=axis % x.ndim)


def _overlap_add(x, *, length, stride, axis):
    x = np.moveaxis(x, axis, 0)
    y = np.zeros((length, *x.shape[1:-1]), x.dtype)
    for i, window in enumerate(x):
        for k in range(x.shape[-1]):
            y[i * stride + k] += window[..., k]
    return np.moveaxis(y, 0, axis)


declare(ops.reshape, lambda draw: ((draw.array((2, 3, 4)[: draw.pick([2, 1, 3])], MILD),),
                                   {"shape": -1}), lambda x, shape: x.reshape(shape), analytic=True)
declare(ops.transpose, _permuted, np.transpose, analytic=True, torch="permute")
declare(ops.broadcast_to, _stretched, np.broadcast_to, analytic=True)
declare(ops.astype, lambda draw: ((draw.array(draw.shape(), MILD),), {"dtype": np.dtype("float64")}),
        lambda x, *, dtype: x * 1, analytic=True)
declare(ops.concatenate, _joined, lambda *xs, axis: np.concatenate(xs, axis), analytic=True)
declare(ops.pad, _padded, lambda x, *, widths, value: np.pad(x, widths, constant_values=value),
        analytic=True)
declare(ops.windows, _slid, _windows, analytic=True, torch="unfold")
declare(ops.overlap_add, _laid, _overlap_add, analytic=True)
declare(ops.to_device, lambda draw: ((draw.array(draw.shape(), MILD),),
        {"device": "cpu", "source": "cpu"}), lambda x, *, device, source: x * 1, analytic=True)

# --- picking and placing

INDICES = (
    0, slice(1, 3), (slice(None), -1), (..., 2), None, (slice(None, None, -1), slice(0, 4, 2)),
    np.array([0, 2, 0]), (np.array([[0, 1], [1, 1]]), slice(None)), (np.array([0, 0]), np.array([1, 1])),
    np.array([True, False, True]), (slice(None), np.array([3, 3, -1])), (1, 2), np.array([], int),
)


def _picked(draw):
    return (draw.array((3, 4), MILD),), {"index": draw.pick(INDICES)}


def _placed(draw):
    index = draw.pick(INDICES)
    shape = np.zeros((3, 4))[index].shape
    return (draw.array(shape, MILD),), {"index": index, "shape": (3, 4)}


def _scatter_add(x, *, index, shape):
    y = np.zeros(shape, np.result_type(x))
    np.add.at(y, index, x)
    return y


def _updated(draw):
    index = draw.pick(INDICES)
    shape = np.zeros((3, 4))[index].shape
    values = draw.array(draw.pick([shape, shape, ()]), MILD)
    return (draw.array((3, 4), MILD), values), {"index": index}


def _index_update(x, values, *, index):
    y = np.array(x, dtype=np.result_type(x, values))
    y[index] = values
    return y


def _taken(draw):
    x = draw.array(draw.shape(1, zero=False), MILD)
    axis = draw.axis(x.ndim)
    shape = list(x.shape)
    shape[axis] = draw.pick([2, 1, 5])
    return (x,), {"indices": draw.rng.integers(0, x.shape[axis], shape), "axis": axis}


def _scattered(draw):
    x = draw.array(draw.shape(1, zero=False), MILD)
    axis, length = draw.axis(x.ndim), draw.pick([3, 1, 5])
    indices = draw.rng.integers(0, length, x.shape)
    return (x,), {"indices": indices, "axis": axis, "length": length}


def _scatter_along(x, *, indices, axis, length):
    shape = list(x.shape)
    shape[axis] = length
    y = np.zeros(shape, x.dtype)
    for i in np.ndindex(x.shape):
        to = list(i)
        to[axis] = indices[i]
        y[tuple(to)] += x[i]
    return y


declare(ops.getitem, _picked, lambda x, *, index: x[index], analytic=True)
declare(ops.scatter_add, _placed, _scatter_add, analytic=True)
declare(ops.index_update, _updated, _index_update, analytic=True)
declare(ops.take_along_axis, _taken, np.take_along_axis, analytic=True)
declare(ops.scatter_along, _scattered, _scatter_along, analytic=True)

# --- products


def _factors(draw):
    n, k, m = draw.pick([2, 3, 1]), draw.pick([3, 2, 1, 0]), draw.pick([2, 1, 4])
    batch = draw.shape(0, 2, zero=False)
    a = draw.pick([(n, k), (k,), (*batch, n, k), (*draw.broadcastable(batch), n, k)])
    b = draw.pick([(k, m), (k,), (*batch, k, m), (*draw.broadcastable(batch), k, m)])
    return draw.array(a, MILD), draw.array(b, MILD)


declare(ops.matmul, _factors, np.matmul, analytic=True)
