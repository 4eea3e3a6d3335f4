"""numpy's array functions for Tensors, under numpy's names and signatures.

Compositions of the primitives in ops.py: the tape derives their gradients. They take plain
arrays as well, and then return plain arrays. What answers a question (isnan, argmax, equal, ...)
returns plain arrays always. A function stands here as an @op only where its own vjp is shorter
or cheaper than what the tape would derive.
"""

import builtins
import math
import operator
from itertools import pairwise

import numpy as np

from . import dtypes, ops
from .autograd import Value, op
from .backend import is_array, namespace, to_host
from .ops import axes_of, with_axes

# ----------------------------------------------------------------------- arrays and their axes


def array_of(x):
    """The array of a Tensor; anything else as it is."""
    return x.data if isinstance(x, Value) else x


def index_of(index):
    """An index with arrays in place of the Tensors and lists in it."""
    if isinstance(index, tuple):
        return tuple(map(index_of, index))
    if isinstance(index, list):
        return np.asarray([array_of(i) for i in index], dtype=None if index else int)
    return array_of(index)


def full_precision(x):
    """x, in float32 if it is of a half type: for the inside of a norm, a mean or a loss."""
    return ops.astype(x, dtype=dtypes.float32) if x.dtype in dtypes.HALF else x


def _xp(*xs):
    return namespace([array_of(x) for x in xs])


def _integers(indices, x, name="indices"):
    """The indices as an integer array beside x."""
    found = _xp(x).asarray(array_of(indices))
    if found.dtype not in dtypes.INTEGER:
        if found.size:
            raise TypeError(f"{name}: got dtype {found.dtype}, expected integers")
        found = found.astype("int64")
    return found


def _axis(axis, ndim, name="axis"):
    """The axis counted from 0; IndexError if there is no such axis."""
    found = operator.index(axis)
    if not -ndim <= found < ndim:
        raise IndexError(f"{name}: got {axis}, expected {-ndim} to {ndim - 1} ({ndim} axes)")
    return found % ndim


def _axes(axis, ndim, name="axis"):
    """Several axes counted from 0 (None: all of them); ValueError if one is named twice."""
    if axis is None:
        return tuple(range(ndim))
    several = axis if isinstance(axis, tuple | list) else (axis,)
    found = tuple(_axis(a, ndim, name) for a in several)
    if len(set(found)) != len(found):
        raise ValueError(f"{name}: got {axis}, which names one axis twice")
    return found


def _count(shape, axis):
    """How many entries a reduction over `axis` puts together."""
    return math.prod(shape[a] for a in axes_of(axis, len(shape)))


def _along(x, axis, which):
    """x[:, ..., which, ...] with `which` at the axis."""
    return x[(slice(None),) * _axis(axis, x.ndim) + (which,)]


# ------------------------------------------------- the primitives that numpy calls by position


def sum(x, axis=None, keepdims=False):
    """The sum over the axis, several axes, or everything (None)."""
    return ops.sum(x, axis=axis, keepdims=keepdims)


def max(x, axis=None, keepdims=False):
    """The greatest entry; equal ones share the gradient equally."""
    return ops.max(x, axis=axis, keepdims=keepdims)


def min(x, axis=None, keepdims=False):
    """The smallest entry; equal ones share the gradient equally."""
    return ops.min(x, axis=axis, keepdims=keepdims)


def logsumexp(x, axis=None, keepdims=False):
    """log(sum_j exp(x_j)) without overflow."""
    return ops.logsumexp(x, axis=axis, keepdims=keepdims)


def reshape(x, shape):
    """x in another shape of the same size; one length may be -1."""
    return ops.reshape(x, shape=shape)


def transpose(x, axes=None):
    """x with its axes in another order (None: reversed)."""
    return ops.transpose(x, axes=axes)


def broadcast_to(x, shape):
    """x repeated along new or length-1 axes to fill `shape`, without a copy."""
    return ops.broadcast_to(x, shape=shape)


def concatenate(xs, axis=0):
    """The arrays one after another along an axis they have (None: all flattened)."""
    if axis is None:
        return ops.concatenate(*map(ravel, xs), axis=0)
    return ops.concatenate(*xs, axis=axis)


def pad(x, widths, value=0, mode="constant"):
    """x with `value` around it; widths: one number, (before, after), or one pair for each axis.

    mode: "constant", or where the entries come from instead: "reflect", "symmetric", "edge", "wrap"
    """
    pairs = np.broadcast_to(np.asarray(widths, dtype=int), (x.ndim, 2)).tolist()
    if mode == "constant":
        return ops.pad(x, widths=tuple(map(tuple, pairs)), value=value)
    if mode not in ("reflect", "symmetric", "edge", "wrap"):
        raise ValueError(
            f"mode: got {mode!r}, expected 'constant', 'reflect', 'symmetric', 'edge' or 'wrap'"
        )
    for axis, pair in enumerate(pairs):
        if builtins.any(pair):
            x = take(x, np.pad(np.arange(x.shape[axis]), pair, mode), axis)
    return x


def clip(x, min=None, max=None):
    """x held between min and max; the gradient passes at both bounds.

    With a bound that is a Tensor it is minimum(maximum(x, min), max): bounds have gradients too.
    """
    if not isinstance(min, Value) and not isinstance(max, Value):
        return ops.clip(x, min=min, max=max)
    x = x if min is None else ops.maximum(x, min)
    return x if max is None else ops.minimum(x, max)


def round(x, decimals=0):
    """The nearest number with so many decimals, halves to even; its derivative is 0."""
    return ops.round(x, decimals=decimals)


def take_along_axis(x, indices, axis=-1):
    """y[..., i, ...] = x[..., indices[..., i, ...], ...] along the axis (None: x flattened)."""
    if axis is None:
        x, axis = ravel(x), 0
    return ops.take_along_axis(x, indices=_integers(indices, x), axis=_axis(axis, x.ndim))


gather = take_along_axis


def astype(x, dtype):
    """x in another dtype; as an integer or boolean it leaves the tape."""
    dtype = dtypes.as_dtype(dtype)
    y = ops.astype(x, dtype=dtype)
    return y if dtypes.is_float(dtype) or not isinstance(y, Value) else y.detach()


# ------------------------------------------------------------------------------------ elementwise


@op
def square(xp, x):
    """x^2"""
    return x * x


square.vjp(x=lambda g, x: g * (x + x))


@op
def floor_divide(xp, a, b):
    """The greatest integer at most a / b; a step function, so no gradient passes."""
    return xp.floor_divide(a, b)


def positive(x):
    """x itself."""
    return x


def reciprocal(x):
    """1 / x"""
    return ops.div(1, x)


def deg2rad(x):
    """Degrees to radians."""
    return x * (math.pi / 180)


def rad2deg(x):
    """Radians to degrees."""
    return x * (180 / math.pi)


def logaddexp2(a, b):
    """log2(2^a + 2^b) without overflow."""
    two = math.log(2)
    return ops.logaddexp(a * two, b * two) / two


def sinc(x):
    """sin(pi x) / (pi x), and 1 at 0: there by its Taylor series, so right to every order."""
    z = full_precision(x) * math.pi  # of a half type, pi x would not keep its phase
    near = ops.abs(z) < 0.5
    t = square(ops.where(near, z, 0))
    series = 1.0
    for n in range(9, 0, -1):  # t^9 / 19! is 3e-23 at the border
        series = 1 - t * series / (2 * n * (2 * n + 1))
    z = ops.where(near, 1, z)
    return astype(ops.where(near, series, ops.sin(z) / z), x.dtype)


def lerp(a, b, weight):
    """a + weight (b - a): a at weight 0, b at weight 1."""
    return a + weight * (b - a)


def logit(x):
    """log(x / (1 - x)), the inverse of the sigmoid."""
    return ops.log(x) - ops.log1p(-x)


def nan_to_num(x, nan=0.0, posinf=None, neginf=None):
    """x with NaN, inf and -inf replaced (the infinities by the dtype's extremes).

    No gradient passes where an entry was replaced.
    """
    if not dtypes.is_float(x.dtype):
        return x
    limit = float(dtypes.finfo(x.dtype).max)
    for unwanted, value in ((math.inf, posinf), (-math.inf, neginf)):
        x = ops.where(x == unwanted, math.copysign(limit, unwanted) if value is None else value, x)
    return ops.where(x != x, nan, x)


# ------------------------------------------------------------------------------------- reductions


def mean(x, axis=None, keepdims=False):
    """The arithmetic mean; of a half type it is accumulated in float32."""
    y = ops.sum(full_precision(x), axis=axis, keepdims=keepdims) / _count(x.shape, axis)
    return astype(y, x.dtype) if x.dtype in dtypes.HALF else y


@op
def variance(xp, x, *, axis=None, ddof=0, keepdims=False):
    """sum (x_i - mean x)^2 / (n - ddof)

    Twice centred, as below: the variance of equal numbers is 0, not the square of a rounding.
    """
    return (x - x.mean(axis=axis, keepdims=True)).var(axis=axis, ddof=ddof, keepdims=keepdims)


def _variance_vjp(g, x, axis, ddof, keepdims):
    """2 (x_i - mean x) / (n - ddof): the mean's own part sums to zero.

    What rounding left in x - mean x of the mean, which may be large, is taken off again.
    """
    scale = 2 / (_count(x.shape, axis) - ddof)
    centred = x - mean(x, axis, keepdims=True)
    centred = centred - mean(centred, axis, keepdims=True)
    return with_axes(g, x.shape, axis, keepdims) * (centred * scale)


variance.vjp(x=_variance_vjp)


def var(x, axis=None, ddof=0, keepdims=False):
    """The variance, sum (x_i - mean x)^2 / (n - ddof)."""
    count = _count(x.shape, axis)
    if count <= ddof:
        raise ValueError(f"ddof: got {ddof} for {count} entries, expected fewer than the entries")
    return variance(x, axis=axis, ddof=ddof, keepdims=keepdims)


def std(x, axis=None, ddof=0, keepdims=False):
    """The square root of the variance. Where the variance is 0 the derivative is taken as 0."""
    v = var(x, axis, ddof, keepdims)
    flat = v == 0
    return ops.where(flat, 0, ops.sqrt(ops.where(flat, 1, v)))


def average(x, axis=None, weights=None):
    """sum_i x_i (w_i / sum_j w_j)      weights: shape of x, or of its one axis

    A product w_i x_i would underflow where the average does not: of 1e-30 each, in float32.
    """
    if weights is None:
        return mean(x, axis)
    if weights.shape != x.shape:
        if axis is None or weights.shape != (x.shape[_axis(axis, x.ndim)],):
            raise ValueError(
                f"weights: got shape {weights.shape}, expected {x.shape} or the length of axis"
            )
        axis = _axis(axis, x.ndim) - x.ndim  # from the back: the weights' as well
        weights = ops.reshape(weights, shape=(*weights.shape, *(1,) * (-1 - axis)))
    shares = weights / ops.sum(weights, axis=axis, keepdims=True)
    return ops.sum(x * shares, axis=axis)


def prod(x, axis=None, keepdims=False):
    """The product, by a tree of halves: no division by x, so zeros are right to every order."""
    if not dtypes.is_float(x.dtype):
        x = astype(x, "int64")
    axes = _axes(axis, x.ndim)
    rest = tuple(a for a in range(x.ndim) if a not in axes)
    kept = tuple(x.shape[a] for a in rest)
    flat = ops.reshape(ops.transpose(x, axes=axes + rest), shape=(_count(x.shape, axes), *kept))
    while len(flat) > 1:
        half = len(flat) // 2
        pairs = flat[:half] * flat[half : 2 * half]
        flat = ops.concatenate(pairs, flat[2 * half :]) if len(flat) % 2 else pairs
    y = flat[0] if len(flat) else ops.sum(flat, axis=0) + 1
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape)) if keepdims else kept
    return ops.reshape(y, shape=shape)


def cumsum(x, axis=None):
    """y_i = x_0 + ... + x_i along the axis (None: x flattened)."""
    if axis is None:
        x, axis = ravel(x), 0
    return ops.cumsum(x, axis=_axis(axis, x.ndim))


def cumprod(x, axis=None):
    """y_i = x_0 ... x_i along the axis (None: x flattened), in log2(n) doubling steps.

    No division by x, so zeros are right to every order.      Hillis & Steele 1986
    """
    if axis is None:
        x, axis = ravel(x), 0
    axis, step = _axis(axis, x.ndim), 1
    while step < x.shape[axis]:  # now y_i is the product of x_(i - step + 1) ... x_i
        head = _along(x, axis, slice(step))
        tail = _along(x, axis, slice(step, None)) * _along(x, axis, slice(None, -step))
        x = ops.concatenate(head, tail, axis=axis)
        step *= 2
    return x


def diff(x, n=1, axis=-1, prepend=None, append=None):
    """y_i = x_(i+1) - x_i, n times over; numbers or arrays may be put before and after x first."""
    if n and not (prepend is None and append is None):
        parts = (_end(prepend, x, axis), x, _end(append, x, axis))
        x = concatenate([part for part in parts if part is not None], axis)
    for _ in range(n):
        x = _along(x, axis, slice(1, None)) - _along(x, axis, slice(None, -1))
    return x


def _end(value, x, axis):
    """What comes before or after x along the axis; a number is one more entry."""
    if value is None:
        return None
    value = _like(value, x)
    if value.ndim:
        return value
    axis = _axis(axis, x.ndim)
    return ops.broadcast_to(value, shape=(*x.shape[:axis], 1, *x.shape[axis + 1 :]))


def ptp(x, axis=None, keepdims=False):
    """Peak to peak: max x - min x."""
    return max(x, axis, keepdims) - min(x, axis, keepdims)


# ------------------------------------------------------------------------------- order statistics


def sort(x, axis=-1, descending=False):
    """x in ascending (or descending) order, stable, along the axis (None: x flattened)."""
    if axis is None:
        x, axis = ravel(x), 0
    order = argsort(x, axis, descending)
    return ops.take_along_axis(x, indices=order, axis=_axis(axis, x.ndim))


def topk(x, k, axis=-1, largest=True):
    """The k greatest entries in descending order, and their places as a plain integer array.

    largest=False: the smallest, in ascending order.
    """
    axis = _axis(axis, x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"k: got {k}, expected 0 to {x.shape[axis]}, the length of axis {axis}")
    places = _along(argsort(x, axis, descending=largest), axis, slice(k))
    return ops.take_along_axis(x, indices=places, axis=axis), places


def quantile(x, q, axis=None, keepdims=False, method="linear"):
    """The value below which the part q of the entries lies, in line between its two neighbours.

    q: numbers in [0, 1]; for an array of them the results lie along first axes of its shape
    method: "linear", or "lower", "higher", "nearest", "midpoint" of the neighbours
    As in numpy, a NaN among the entries makes the result NaN.
    """
    if getattr(q, "requires_grad", False):
        raise TypeError("q: a Tensor that requires a gradient, and a quantile's place gets none")
    q = array_of(q)
    parts = np.asarray(to_host(q) if is_array(q) else q, dtype=float)
    if not ((parts >= 0) & (parts <= 1)).all():
        raise ValueError(f"q: got {q}, expected numbers from 0 to 1")
    axes = _axes(axis, x.ndim)
    rest = tuple(a for a in range(x.ndim) if a not in axes)
    kept, n = tuple(x.shape[a] for a in rest), _count(x.shape, axes)
    if n == 0:
        raise ValueError(f"quantile of no entries: x has shape {x.shape}")
    ordered = sort(ops.reshape(ops.transpose(x, axes=rest + axes), shape=(*kept, n)))
    found = [_between(ordered, p * (n - 1), method) for p in parts.ravel().tolist()]
    last = ordered[..., -1]  # NaN is sorted to the end
    y = ops.where(last != last, last, stack(found) if parts.ndim else found[0])
    shape = tuple(1 if a in axes else m for a, m in enumerate(x.shape)) if keepdims else kept
    return ops.reshape(y, shape=(*parts.shape, *shape))


def _between(ordered, place, method):
    """The entry at a place (last axis) that may lie between two."""
    low, high = math.floor(place), math.ceil(place)
    single = {"lower": low, "higher": high, "nearest": builtins.round(place)}.get(method)
    if single is None and method not in ("linear", "midpoint"):
        raise ValueError(
            f"method: got {method!r}, expected 'linear', 'lower', 'higher', 'nearest', 'midpoint'"
        )
    if low == high or single is not None:
        return ordered[..., low if single is None else single]
    return lerp(ordered[..., low], ordered[..., high], 0.5 if method == "midpoint" else place - low)


def median(x, axis=None, keepdims=False):
    """The middle entry, or the mean of the two in the middle."""
    return quantile(x, 0.5, axis, keepdims)


# ------------------------------------------------------------------------------------------ shape


def ravel(x):
    """x as one axis."""
    return ops.reshape(x, shape=(x.size,))


def swapaxes(x, axis1, axis2):
    """x with two axes exchanged."""
    axes = list(range(x.ndim))
    first, second = _axis(axis1, x.ndim, "axis1"), _axis(axis2, x.ndim, "axis2")
    axes[first], axes[second] = second, first
    return ops.transpose(x, axes=tuple(axes))


def moveaxis(x, source, destination):
    """x with the source axes at the destinations, the others in their order."""
    source, destination = _axes(source, x.ndim, "source"), _axes(destination, x.ndim, "destination")
    if len(source) != len(destination):
        raise ValueError(f"moveaxis: {len(source)} source axes, {len(destination)} destinations")
    order = [a for a in range(x.ndim) if a not in source]
    for place, a in sorted(zip(destination, source, strict=True)):
        order.insert(place, a)
    return ops.transpose(x, axes=tuple(order))


def expand_dims(x, axis):
    """x with new axes of length 1, counted in the result."""
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    axes = _axes(axes, x.ndim + len(axes))
    lengths = iter(x.shape)
    shape = [1 if a in axes else next(lengths) for a in range(x.ndim + len(axes))]
    return ops.reshape(x, shape=tuple(shape))


def squeeze(x, axis=None):
    """x without its axes of length 1, or without those named; ValueError if one is longer."""
    if axis is None:
        axes = [a for a, n in enumerate(x.shape) if n == 1]
    else:
        axes = _axes(axis, x.ndim)
        for a in axes:
            if x.shape[a] != 1:
                raise ValueError(f"squeeze: axis {a} has length {x.shape[a]}, expected 1")
    shape = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    return ops.reshape(x, shape=shape)


def atleast_1d(x):
    """x, with one axis if it has none."""
    return ops.reshape(x, shape=(1,)) if x.ndim == 0 else x


def atleast_2d(x):
    """x, as a matrix of one row if it has fewer than two axes."""
    return ops.reshape(x, shape=(1, x.size)) if x.ndim < 2 else x


def flip(x, axis=None):
    """x in reverse order along the axis, several axes, or all (None)."""
    axes = _axes(axis, x.ndim)
    backwards = slice(None, None, -1)
    return x[tuple(backwards if a in axes else slice(None) for a in range(x.ndim))]


def rot90(x, k=1, axes=(0, 1)):
    """x turned k times by a quarter, from the first of the two axes towards the second."""
    first, second = _axes(tuple(axes), x.ndim, "axes")
    k %= 4
    if k == 2:
        return flip(x, (first, second))
    if k == 1:
        return swapaxes(flip(x, second), first, second)
    return flip(swapaxes(x, first, second), second) if k == 3 else x


@op
def rolled(xp, x, *, shift, axis=None):
    """y_i = x_(i - shift), around the end"""
    return xp.roll(x, shift, axis)


def _rolled_vjp(g, shift, axis):
    """The other way round."""
    back = tuple(-s for s in shift) if isinstance(shift, tuple) else -shift
    return rolled(g, shift=back, axis=axis)


rolled.vjp(x=_rolled_vjp)


def roll(x, shift, axis=None):
    """y_i = x_(i - shift): entries that leave at one end come in at the other."""
    shift = tuple(shift) if isinstance(shift, tuple | list) else operator.index(shift)
    return rolled(x, shift=shift, axis=None if axis is None else _axes(axis, x.ndim))


def tile(x, reps):
    """x laid side by side, reps times along each axis (as many as there are, from the last)."""
    reps = tuple(reps) if isinstance(reps, tuple | list) else (reps,)
    ndim = builtins.max(len(reps), x.ndim)
    reps = (1,) * (ndim - len(reps)) + reps
    shape = (1,) * (ndim - x.ndim) + tuple(x.shape)
    pairs = list(zip(reps, shape, strict=True))
    alone = ops.reshape(x, shape=tuple(n for m in shape for n in (1, m)))
    spread = ops.broadcast_to(alone, shape=tuple(n for pair in pairs for n in pair))
    return ops.reshape(spread, shape=tuple(r * n for r, n in pairs))


def repeat(x, repeats, axis=None):
    """Each entry so many times along the axis (None: x flattened).

    repeats: one number, or one for each entry along the axis
    """
    if axis is None:
        x, axis = ravel(x), 0
    axis = _axis(axis, x.ndim)
    counts = np.asarray(array_of(repeats))
    if counts.ndim:
        return take(x, np.repeat(np.arange(x.shape[axis]), counts), axis)
    before, n, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    alone = ops.reshape(x, shape=(*before, n, 1, *after))
    spread = ops.broadcast_to(alone, shape=(*before, n, int(counts), *after))
    return ops.reshape(spread, shape=(*before, n * int(counts), *after))


def meshgrid(*xs, indexing="xy"):
    """Coordinates of a grid, one array for each axis, from the coordinates along the axes."""
    if indexing not in ("xy", "ij"):
        raise ValueError(f"indexing: got {indexing!r}, expected 'xy' or 'ij'")
    n = len(xs)
    axes = [1, 0, *range(2, n)] if indexing == "xy" and n > 1 else list(range(n))
    shape = tuple(x.size for x in xs)
    shape = tuple(shape[axes.index(a)] for a in range(n))
    grids = []
    for x, axis in zip(xs, axes, strict=True):
        line = ops.reshape(x, shape=tuple(x.size if a == axis else 1 for a in range(n)))
        grids.append(ops.broadcast_to(line, shape=shape))
    return grids


# ------------------------------------------------------------------------------- joining, splitting


def stack(xs, axis=0):
    """Arrays of one shape side by side along a new axis."""
    xs = list(xs)
    shapes = {tuple(x.shape) for x in xs}
    if len(shapes) != 1:
        raise ValueError(f"stack: got shapes {sorted(shapes)}, expected one shape")
    return ops.concatenate(*[expand_dims(x, axis) for x in xs], axis=axis)


def vstack(xs):
    """The arrays one below another: along axis 0, vectors as rows."""
    return concatenate([atleast_2d(x) for x in xs], axis=0)


def hstack(xs):
    """The arrays beside one another: along axis 1, vectors along axis 0."""
    xs = [atleast_1d(x) for x in xs]
    return concatenate(xs, axis=0 if xs[0].ndim == 1 else 1)


def split(x, sections, axis=0):
    """x cut into so many equal parts, or at the indices given, as a list."""
    if not isinstance(sections, int) or x.shape[_axis(axis, x.ndim)] % sections == 0:
        return array_split(x, sections, axis)
    n = x.shape[_axis(axis, x.ndim)]
    raise ValueError(f"split: {n} entries do not make {sections} equal parts; see array_split")


def array_split(x, sections, axis=0):
    """x cut into so many parts, the first ones longer by one if they must be, or at the indices."""
    n = x.shape[_axis(axis, x.ndim)]
    if isinstance(sections, int):
        if sections < 1:
            raise ValueError(f"sections: got {sections}, expected at least 1")
        size, longer = divmod(n, sections)
        cuts = [i * size + builtins.min(i, longer) for i in range(sections + 1)]
    else:
        cuts = [0, *sections, n]
    return [_along(x, axis, slice(a, b)) for a, b in pairwise(cuts)]


# -------------------------------------------------------------------------------- picking, placing


def take(x, indices, axis=None):
    """The entries at `indices` along the axis (None: of x flattened)."""
    if axis is None:
        return ravel(x)[_integers(indices, x)]
    return _along(x, axis, _integers(indices, x))


def index_update(x, index, values):
    """A copy of x in which x[index] = values; of entries named twice, the last value stands."""
    return ops.index_update(x, _like(values, x), index=index_of(index))


def index_add(x, index, values):
    """A copy of x in which x[index] += values; an entry that is named twice gets both."""
    index = index_of(index)
    values = ops.broadcast_to(_like(values, x), shape=array_of(x)[index].shape)
    return x + ops.scatter_add(values, index=index, shape=x.shape)


def put_along_axis(x, indices, values, axis=-1):
    """A copy of x in which x[..., indices[..., i, ...], ...] = values[..., i, ...]."""
    indices, axis = _integers(indices, x), _axis(axis, x.ndim)
    if indices.ndim != x.ndim:
        raise ValueError(f"indices: got shape {indices.shape}, expected {x.ndim} axes, as x has")
    index = ops._places(_xp(x), indices.shape)
    index[axis] = indices
    return ops.index_update(x, _like(values, x), index=tuple(index))


def scatter(x, indices, values, axis=-1):
    """put_along_axis under the name that goes with `gather`."""
    return put_along_axis(x, indices, values, axis)


def _like(values, x):
    """Numbers as an array beside x; what is one already, as it is."""
    return values if hasattr(values, "dtype") else _xp(x).asarray(values, dtype=x.dtype)


def tril(x, k=0):
    """The lower triangle of the last two axes, zeros above the k-th diagonal."""
    return ops.where(_xp(x).tri(*x.shape[-2:], k, dtype=bool), x, 0)


def triu(x, k=0):
    """The upper triangle of the last two axes, zeros below the k-th diagonal."""
    return ops.where(_xp(x).tri(*x.shape[-2:], k - 1, dtype=bool), 0, x)


def diagonal(x, offset=0, axis1=0, axis2=1):
    """x[i, i + offset] of two axes, as a new last axis."""
    if x.ndim < 2:
        raise ValueError(f"diagonal: got shape {x.shape}, expected at least two axes")
    x = moveaxis(x, (axis1, axis2), (-2, -1))
    return x[(..., *_on_diagonal(x, offset, *x.shape[-2:]))]


def diag(x, k=0):
    """The k-th diagonal of a matrix, or the matrix that has the vector x there and zeros."""
    if x.ndim == 2:
        return diagonal(x, k)
    if x.ndim != 1:
        raise ValueError(f"diag: got shape {x.shape}, expected a vector or a matrix")
    n = x.size + builtins.abs(k)
    return ops.scatter_add(x, index=_on_diagonal(x, k, n, n), shape=(n, n))


def _on_diagonal(x, offset, rows, columns):
    """Row and column numbers of a diagonal, as arrays beside x."""
    first = builtins.max(-offset, 0)
    last = builtins.min(rows, columns - offset)
    i = _xp(x).arange(first, builtins.max(first, last))
    return i, i + offset


def trace(x, offset=0, axis1=0, axis2=1):
    """The sum of a diagonal."""
    return ops.sum(diagonal(x, offset, axis1, axis2), axis=-1)


# --------------------------------------------------------------------------------------- products


def dot(a, b):
    """numpy's dot: the last axis of a against the one before the last of b (or its only one)."""
    if a.ndim == 0 or b.ndim == 0:
        return a * b
    if a.ndim <= 2 and b.ndim <= 2:
        return ops.matmul(a, b)
    return tensordot(a, b, ((a.ndim - 1,), (builtins.max(b.ndim - 2, 0),)))


def vdot(a, b):
    """sum_i a_i b_i over all entries."""
    return ops.matmul(ravel(a), ravel(b))


def inner(a, b):
    """The last axis of a against the last axis of b."""
    if a.ndim == 0 or b.ndim == 0:
        return a * b
    return tensordot(a, b, ((a.ndim - 1,), (b.ndim - 1,)))


def outer(a, b):
    """y_ij = a_i b_j of the flattened arrays."""
    return ops.reshape(a, shape=(a.size, 1)) * ravel(b)


def tensordot(a, b, axes=2):
    """The sum over pairs of axes: the last n of a with the first n of b, or those named."""
    if isinstance(axes, int):
        axes = tuple(range(a.ndim - axes, a.ndim)), tuple(range(axes))
    of_a, of_b = _axes(axes[0], a.ndim, "axes[0]"), _axes(axes[1], b.ndim, "axes[1]")
    summed = [a.shape[i] for i in of_a]
    if summed != [b.shape[i] for i in of_b]:
        raise ValueError(f"tensordot: a {a.shape} and b {b.shape} differ along axes {axes}")
    free_a = tuple(i for i in range(a.ndim) if i not in of_a)
    free_b = tuple(i for i in range(b.ndim) if i not in of_b)
    rows, columns = [a.shape[i] for i in free_a], [b.shape[i] for i in free_b]
    k = math.prod(summed)
    left = ops.reshape(ops.transpose(a, axes=free_a + of_a), shape=(math.prod(rows), k))
    right = ops.reshape(ops.transpose(b, axes=of_b + free_b), shape=(k, math.prod(columns)))
    return ops.reshape(ops.matmul(left, right), shape=(*rows, *columns))


def kron(a, b):
    """The Kronecker product: blocks a_ij B."""
    ndim = builtins.max(a.ndim, b.ndim)
    left = (1,) * (ndim - a.ndim) + tuple(a.shape)
    right = (1,) * (ndim - b.ndim) + tuple(b.shape)
    blocks = ops.reshape(a, shape=tuple(m for n in left for m in (n, 1))) * ops.reshape(
        b, shape=tuple(m for n in right for m in (1, n))
    )
    return ops.reshape(blocks, shape=tuple(n * m for n, m in zip(left, right, strict=True)))


def cross(a, b, axis=-1):
    """The vector product in three dimensions, (a_1 b_2 - a_2 b_1, ...)."""
    for name, x in (("a", a), ("b", b)):
        if x.shape[_axis(axis, x.ndim)] != 3:
            raise ValueError(f"cross: {name} has shape {x.shape}, expected length 3 along {axis}")
    return roll(a, -1, axis) * roll(b, -2, axis) - roll(a, -2, axis) * roll(b, -1, axis)


# ----------------------------------------------------------------------------------------- einsum


def einsum(subscripts, *operands):
    """Einstein's summation convention, as numpy's: einsum("bij,bjk->bik", a, b).

    Repeated letters in one operand take its diagonal, "..." stands for any further axes, which
    broadcast, and without "->" the letters that occur once make the output, in their order.
    Operands are contracted from left to right, each pair as one batched matrix product.
    """
    terms, output = _parse(subscripts, operands)
    lengths = _lengths(subscripts, terms, operands)
    singles = [_once(*pair, lengths) for pair in zip(operands, terms, strict=True)]
    prepared = []
    for k, (x, labels) in enumerate(singles):
        others = singles[:k] + singles[k + 1 :]
        elsewhere = {*output, *(a for _, other in others for a in other)}
        prepared.append(_summed(x, labels, elsewhere))
    x, labels = prepared[0]
    for k, (y, others) in enumerate(prepared[1:], 2):
        later = {*output, *(a for _, rest in prepared[k:] for a in rest)}
        x, labels = _contracted(x, labels, y, others, later)
    return _ordered(x, labels, output)


def _parse(subscripts, operands):
    """The labels of each operand's axes, and those of the output."""
    given, arrow, wanted = subscripts.replace(" ", "").partition("->")
    terms = given.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"einsum {subscripts!r}: names {len(terms)} operands, got {len(operands)}")
    for term in (*terms, wanted):
        letters = term.replace("...", "", 1)
        if letters and not (letters.isascii() and letters.isalpha()):
            raise ValueError(f"einsum {subscripts!r}: {term!r} is not letters and one '...'")
    expanded, dots = [], []
    for term, x in zip(terms, operands, strict=True):
        head, ellipsis, tail = term.partition("...")
        further = x.ndim - len(head) - len(tail)
        if further < 0 or (further and not ellipsis):
            raise ValueError(f"einsum {subscripts!r}: {term!r} does not fit shape {x.shape}")
        names = [f".{i}" for i in range(further, 0, -1)]  # counted from the last, as broadcasting
        dots = names if further > len(dots) else dots
        expanded.append([*head, *names, *tail])
    if arrow:
        head, ellipsis, tail = wanted.partition("...")
        output = [*head, *(dots if ellipsis else ()), *tail]
        if dots and not ellipsis:
            raise ValueError(f"einsum {subscripts!r}: the output lacks the '...' of the operands")
    else:
        every = given.replace(",", "").replace(".", "")
        output = [*dots, *sorted(a for a in set(every) if every.count(a) == 1)]
    unknown = set(output) - {a for labels in expanded for a in labels}
    if unknown or len(set(output)) != len(output):
        raise ValueError(f"einsum {subscripts!r}: the output repeats or invents a letter")
    return expanded, output


def _lengths(subscripts, terms, operands):
    """The length of each label; axes of length 1 broadcast."""
    lengths = {}
    for labels, x in zip(terms, operands, strict=True):
        for label, n in zip(labels, x.shape, strict=True):
            known = lengths.get(label, 1)
            if n != known and 1 not in (n, known):
                raise ValueError(f"einsum {subscripts!r}: {label!r} is both {known} and {n} long")
            lengths[label] = known if n == 1 else n
    return lengths


def _once(x, labels, lengths):
    """One operand with each of its labels once, and without the axes that are stretched."""
    labels = list(labels)
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            i = labels.index(label)
            j = labels.index(label, i + 1)
            x = diagonal(x, 0, i, j)
            labels = labels[:i] + labels[i + 1 : j] + labels[j + 1 :] + [label]
    stretched = tuple(i for i, a in enumerate(labels) if x.shape[i] == 1 != lengths[a])
    if stretched:
        x = squeeze(x, stretched)
        labels = [a for i, a in enumerate(labels) if i not in stretched]
    return x, labels


def _summed(x, labels, elsewhere):
    """One operand summed over the labels that nobody else has."""
    alone = tuple(i for i, a in enumerate(labels) if a not in elsewhere)
    if not alone:
        return x, labels
    return ops.sum(x, axis=alone), [a for a in labels if a in elsewhere]


def _contracted(x, labels, y, others, later):
    """The product of two operands, summed over the labels that nobody needs later."""
    shared = [a for a in labels if a in others]
    batch = [a for a in shared if a in later]
    summed = [a for a in shared if a not in later]
    rows = [a for a in labels if a not in shared]
    columns = [a for a in others if a not in shared]
    x, y = _ordered(x, labels, batch + rows + summed), _ordered(y, others, batch + summed + columns)
    n, r, s = len(batch), len(rows), len(summed)
    shape = (*x.shape[: n + r], *y.shape[n + s :])
    k = math.prod(y.shape[n : n + s])
    together = x.shape[:n]
    x = ops.reshape(x, shape=(*together, math.prod(x.shape[n : n + r]), k))
    y = ops.reshape(y, shape=(*together, k, math.prod(y.shape[n + s :])))
    product = ops.matmul(x, y) if summed else x * y
    return ops.reshape(product, shape=shape), batch + rows + columns


def _ordered(x, labels, wanted):
    """x with its axes in the order of the wanted labels."""
    axes = tuple(labels.index(a) for a in wanted)
    return x if axes == tuple(range(len(axes))) else ops.transpose(x, axes=axes)


# ------------------------------------------------------------ questions: plain arrays, off the tape


def _question(name):
    """numpy's function of that name, on the arrays of Tensors."""

    def ask(*xs, **options):
        arrays = [array_of(x) for x in xs]
        return getattr(namespace(arrays), name)(*arrays, **options)

    ask.__name__ = ask.__qualname__ = name
    ask.__doc__ = f"numpy.{name} of the numbers, as a plain array off the tape."
    return ask


equal, not_equal = _question("equal"), _question("not_equal")
less, less_equal = _question("less"), _question("less_equal")
greater, greater_equal = _question("greater"), _question("greater_equal")
logical_and, logical_or = _question("logical_and"), _question("logical_or")
logical_xor, logical_not = _question("logical_xor"), _question("logical_not")
isnan, isinf, isfinite = _question("isnan"), _question("isinf"), _question("isfinite")
signbit = _question("signbit")
all, any = _question("all"), _question("any")
argmax, argmin = _question("argmax"), _question("argmin")
count_nonzero, nonzero = _question("count_nonzero"), _question("nonzero")
searchsorted = _question("searchsorted")
isclose, allclose = _question("isclose"), _question("allclose")
array_equal = _question("array_equal")


def argsort(x, axis=-1, descending=False):
    """The order that sorts x along the axis (stable), as a plain integer array."""
    array, xp = array_of(x), _xp(x)
    if not descending:
        return xp.argsort(array, axis=axis, kind="stable")
    if axis is None:
        array, axis = array.ravel(), 0
    backwards = xp.argsort(xp.flip(array, axis), axis=axis, kind="stable")  # keeps ties in order
    return xp.flip(array.shape[axis] - 1 - backwards, axis)


# What numpy's universal functions do to Tensors; those missing here refuse.
UFUNCS = {
    **{name: getattr(ops, name) for name in (
        "add", "maximum", "minimum", "sqrt", "cbrt", "arctan2", "hypot", "sign", "floor", "ceil",
        "trunc", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logaddexp", "sin",
        "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "arcsinh", "arccosh",
        "arctanh", "matmul")},
    "subtract": ops.sub, "multiply": ops.mul, "divide": ops.div, "true_divide": ops.div,
    "negative": ops.neg, "power": ops.pow, "float_power": ops.pow, "remainder": ops.mod,
    "absolute": ops.abs, "fabs": ops.abs, "rint": ops.round, "positive": positive,
    "square": square, "reciprocal": reciprocal, "floor_divide": floor_divide,
    "logaddexp2": logaddexp2, "vecdot": lambda a, b: ops.sum(a * b, axis=-1),
    "deg2rad": deg2rad, "radians": deg2rad, "rad2deg": rad2deg, "degrees": rad2deg,
    **{ask.__name__: ask for ask in (
        equal, not_equal, less, less_equal, greater, greater_equal, logical_and, logical_or,
        logical_xor, logical_not, isnan, isinf, isfinite, signbit)},
}  # fmt: skip

__all__ = [
    "all", "allclose", "any", "argmax", "argmin", "argsort", "array_equal", "array_split",
    "astype", "atleast_1d", "atleast_2d", "average", "broadcast_to", "clip", "concatenate",
    "count_nonzero", "cross", "cumprod", "cumsum", "deg2rad", "diag", "diagonal", "diff", "dot",
    "einsum", "equal", "expand_dims", "flip", "floor_divide", "gather", "greater",
    "greater_equal", "hstack", "index_add", "index_update", "inner", "isclose", "isfinite", "isinf",
    "isnan", "kron", "lerp", "less", "less_equal", "logaddexp2", "logical_and", "logical_not",
    "logical_or", "logical_xor", "logit", "logsumexp", "max", "mean", "median", "meshgrid",
    "min", "moveaxis", "nan_to_num", "nonzero", "not_equal", "outer", "pad", "positive", "prod",
    "ptp", "put_along_axis", "quantile", "rad2deg", "ravel", "reciprocal", "repeat", "reshape",
    "roll", "rot90", "round", "scatter", "searchsorted", "signbit", "sinc", "sort", "split",
    "square", "squeeze", "stack", "std", "sum", "swapaxes", "take", "take_along_axis",
    "tensordot", "tile", "topk", "trace", "transpose", "tril", "triu", "var", "vdot",
    "vstack",
]  # fmt: skip
