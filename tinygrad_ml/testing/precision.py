"""Low precision against the truth: float32, float16 and bfloat16 beside a float64 run.

The truth is the same function in float64 at the very numbers that the low precision holds. How
far may the result be from it? A stable algorithm returns the exact result for inputs that are off
by a few roundings, so the error of output i is at most

    c eps (|y_i| + sum_j |d y_i / d x_j| |x_j|),    c = ULPS times the length of the op's sums,

and the derivatives, in float64, say what the sum is.      Higham 2002, sections 1.5 and 3.1
The gradient J^T u is held by the same bound, as a function of x, with two more terms. It is itself
a sum, sum_i J_ij u_i: |J|^T |u|. And it is made from numbers as large as the outputs that were
rounded, as 1 - y^2 is for tanh, or y (g - sum g y) for softmax, and may be far smaller than these.
What rounding leaves of y is a function as well, of size eps |y|; if it varies as x does, its
slope is eps |y| / |x|: |u| . |y| / max |x|, with the maximum over the array. Where rows of
small numbers stand beside large ones, as in a batch that is normalised, their slopes are steeper:
for y_i the maximum is over those entries that it depends on, if that allows more. This holds
up to the steepest slope in the array, or else anything would pass for the gradient of exp at 0.
Half types are computed in float32 and rounded once for each op: c eps is float32's within an op,
and the half type's for each result.
"""

import numpy as np

from .. import dtypes
from ..autograd import Op
from ..tensor import Tensor
from ..transforms import jacobian
from .gradcheck import ROUNDINGS, Flat, GradientError, _is_float, _vector

LOW = ("float32", "float16", "bfloat16")
ULPS = 4  # of each term in a sum: of the term, its product, its addition, and what it is made from
COMPOSED = 16  # half roundings of a composition, one for each op in it


def check_precision(spec, case, dtype, seed=0):
    """Value and gradient of one case in a low precision; GradientError if one is off the bound.

    Returns the worst error over its bound, or None for a case that the dtype cannot hold.
    """
    low = dtypes.as_dtype(dtype)
    f = lambda *args: spec.function(*args, **case.options)
    with np.errstate(all="ignore"):
        rounded = {id(a): _rounded(a, low) for a in case.args if _is_float(a)}
        if any(a is None for a in rounded.values()) or not rounded:
            return None
        exact = Flat(f, [rounded.get(id(a), a) for a in case.args])
        if not exact.x.size or exact.x.size > 64:
            return None
        u = np.random.default_rng(seed).choice([-1.0, 0.5, 2.0], _vector(exact.value(exact.x)).size)
        worst = 0.0
        slopes, y = _slopes(exact), np.abs(exact.value(exact.x))
        of_sums = np.abs(slopes).T @ np.abs(u) + _of_outputs(exact, np.abs(slopes), y, np.abs(u))
        for what, function, got, more in (
            ("the value", exact, _vector(_run(exact, low)), 0.0),
            (
                "the gradient",
                Flat(exact.pullback(u), exact.variables),
                _pulled(exact, low, u),
                of_sums,
            ),
        ):
            error, bound = _error(spec, what, function, got, low, more)
            if error is None:
                continue
            if not (error <= bound).all():
                i = int(np.argmax(np.where(error <= bound, 0, error / bound)))
                raise GradientError(
                    f"{spec.name} in {low}: {what}, number {i}: got {got[i]:.9g}, the truth is "
                    f"{function.value(function.x)[i]:.9g} ± {bound[i]:.2g}\n"
                    f"  case         {case.notes} {case.options}\n  seed         {seed}"
                )
            worst = max(worst, float(np.max(error / bound, initial=0)))
    return worst


def _rounded(a, low):
    """The numbers of `a` that the dtype holds, in float64; None if it cannot hold some of them."""
    b = a.astype(low).astype(np.float64)
    largest, smallest = float(dtypes.finfo(low).max), float(dtypes.finfo(low).tiny)
    size = np.abs(a[a != 0])
    fits = np.isfinite(b).all() and (size > smallest * 1e3).all() and (size < largest**0.5).all()
    return b if fits else None


def _run(flat, low):
    return flat.call(flat.f, [Tensor.wrap(a.astype(low)) for a in flat.variables])


def _pulled(flat, low, u):
    leaves = [Tensor.leaf(a.astype(low), requires_grad=True) for a in flat.variables]
    y = flat.call(flat.f, leaves)
    if not y.requires_grad:
        return np.zeros(flat.x.size)
    y.backward(u.reshape(y.shape).astype(y.dtype))
    none = lambda x: np.zeros(x.shape)
    return _vector([x.grad.data if x.grad is not None else none(x) for x in leaves])


def _slopes(flat):
    """J as a matrix      (outputs, inputs)"""
    found = jacobian(lambda *v: flat.call(flat.f, v))(*map(Tensor.wrap, flat.variables))
    found = found if isinstance(found, tuple | list) else [found]
    return np.concatenate([
        s.data.reshape(s.data.size // x.size, x.size)
        for s, x in zip(found, flat.variables, strict=True) if x.size
    ], axis=1)  # fmt: skip


def _of_outputs(flat, slopes, y, u):
    """What rounding numbers of the outputs' size leaves in J^T u      slopes |J|, |y| and |u|

    |u| . |y| / max |x|, or if it is more, for the x_j that y_i depends on, sum_i |u_i| times the
    lesser of |y_i| / max |x| over these and of the steepest slope.
    """
    found = []
    ends = np.cumsum([x.size for x in flat.variables])[:-1]
    for x, part in zip(flat.variables, np.split(slopes, ends, axis=1), strict=True):
        x, depends = np.abs(x.ravel()), part != 0
        of_all = u @ y / max(x.max(initial=0), 1e-30)
        own = np.maximum((depends * x).max(axis=1, initial=0), 1e-30)
        of_own = u * np.minimum(y / own, part.max(initial=0)) @ depends
        found.append(np.maximum(of_all, of_own))
    return np.concatenate(found)


def _error(spec, what, flat, got, low, more):
    """|got - truth| and its bound, entry by entry; None where the truth leaves the dtype's range."""
    truth, x = flat.value(flat.x), np.abs(flat.x)
    size = np.abs(truth) + np.where(x == 0, 0, np.abs(_slopes(flat)) * x).sum(axis=1) + more
    form = dtypes.finfo(low)
    if not np.isfinite(size).all() or (size > float(form.max) / 1e3).any():
        return None, None
    length = max(1, flat.x.size // max(truth.size, 1)) * spec.rounding / ROUNDINGS
    bound = ULPS * length * float(np.finfo(np.float32).eps) * (size + 1e-3 * size.max(initial=0))
    if low.itemsize == 2:
        once = isinstance(spec.function, Op) and what == "the value"  # rounded to nearest, once
        bound = bound + float(form.eps) * (0.5 * np.abs(truth) if once else COMPOSED * size)
    return np.abs(got - truth), bound + length * float(form.tiny) * (1 + x.max(initial=0)) ** 2
