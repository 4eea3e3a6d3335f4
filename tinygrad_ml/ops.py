"""The primitives: each a function of arrays, and one line for each partial derivative.

How to read a rule: in `mul.vjp(a=lambda g, b: g * b)` the keyword is the argument differentiated,
g is the cotangent of the output, and what follows g is what is kept until the backward pass.
Broadcasting is undone and the dtype restored by the engine, so the vjp of `add` is g.
Everything that the tape can derive well from these stands in functional.py.
"""

# The rules are aligned by hand, as the tables that they are.
# fmt: off
import math

from . import kernels
from .autograd import Op, Value, op, widen
from .backend import assign as _assign
from .backend import errstate, is_host, namespace
from .backend import last_writes as _last_writes
from .backend import matmul as _matmul_on_gpu
from .backend import row_max as _row_max
from .backend import row_sums as _row_sums
from .backend import scatter_add as _scatter_add
from .backend import to_device as _to_device
from .dtypes import HALF, promote
from .fused import accelerated

# --- arithmetic


@op(half="forward")
def add(xp, a, b):
    return a + b
add.vjp(a=lambda g: g,
        b=lambda g: g)


@accelerated(kernels.add)
def _add_halves(a, b):
    return None
add.halves = _add_halves


@op
def sub(xp, a, b):
    return a - b
sub.vjp(a=lambda g: g,
        b=lambda g: -g)


@op
def mul(xp, a, b):
    return a * b
mul.vjp(a=lambda g, b: g * b,
        b=lambda g, a: g * a)


@op
def div(xp, a, b):
    return a / b
div.vjp(a=lambda g, b: g / b,
        b=lambda g, y, b: -g * y / b)


@op
def neg(xp, x):
    return -x
neg.vjp(x=lambda g: -g)


@op
def pow(xp, a, b):
    """a^b; the derivative to a is 0 where b = 0, and to b is 0 where a = 0 <= b."""
    return a ** b  # as vjps of arrays write it: xp.power rounds otherwise in numpy 2.0
pow.vjp(a=lambda g, a, b: g * (b * pow(a, b - _lowers(a, b))),
        b=lambda g, y, a, b: g * y * log(where((a == 0) & (b >= 0), 1, a)))


def _lowers(a, b):
    """1 where the exponent is lowered; not at 0^0, where b a^(b-1) would be 0 * inf."""
    return (a != 0) | (b != 0) if hasattr(b, "shape") else b != 0


@op
def mod(xp, a, b):
    """a - b floor(a / b)"""
    return xp.mod(a, b)
mod.vjp(a=lambda g: g,
        b=lambda g, y, a, b: -g * round((a - y) / b))  # floor(a / b) is off by one at multiples


@op
def maximum(xp, a, b):
    """The greater of a and b; at a tie each gets half of the gradient."""
    return xp.maximum(a, b)
maximum.vjp(a=lambda g, a, b: where(a == b, g / 2, where(a > b, g, 0)),
            b=lambda g, a, b: where(a == b, g / 2, where(b > a, g, 0)))


@op
def minimum(xp, a, b):
    """The smaller of a and b; at a tie each gets half of the gradient."""
    return xp.minimum(a, b)
minimum.vjp(a=lambda g, a, b: where(a == b, g / 2, where(a < b, g, 0)),
            b=lambda g, a, b: where(a == b, g / 2, where(b < a, g, 0)))


@op
def abs(xp, x):
    """|x|, with abs'(0) = 0"""
    return xp.abs(x)
abs.vjp(x=lambda g, x: g * sign(x))


@op
def sqrt(xp, x):
    """x^(1/2); the derivative at 0 is its limit, inf"""
    return xp.sqrt(x)
sqrt.vjp(x=lambda g, y: g / (2 * y))


@op
def rsqrt(xp, x):
    """x^(-1/2)"""
    return 1 / xp.sqrt(x)
rsqrt.vjp(x=lambda g, x, y: g * (-0.5 * y / x))


@op
def cbrt(xp, x):
    """x^(1/3)"""
    return xp.cbrt(x)
cbrt.vjp(x=lambda g, y: g / (3 * y * y))


@op
def arctan2(xp, a, b):
    """The angle of the point (b, a), in (-pi, pi]"""
    return xp.arctan2(a, b)
arctan2.vjp(a=lambda g, a, b: g * _over_square(b, a, b),
            b=lambda g, a, b: g * -_over_square(a, a, b))


def _over_square(z, a, b):
    """z / (a^2 + b^2), where a square could overflow or vanish"""
    y = hypot(a, b)
    return z / y / y


@op
def hypot(xp, a, b):
    """sqrt(a^2 + b^2) without overflow; the derivative at (0, 0) is 0"""
    return xp.hypot(a, b)
hypot.vjp(a=lambda g, y, a: g * (a / where(y == 0, 1, y)),
          b=lambda g, y, b: g * (b / where(y == 0, 1, y)))


# --- steps: constant between their jumps, so nothing of them is recorded and no gradient passes


@op
def sign(xp, x):
    return xp.sign(x)


@op
def floor(xp, x):
    return xp.floor(x)


@op
def ceil(xp, x):
    return xp.ceil(x)


@op
def round(xp, x, *, decimals=0):
    return xp.round(x, decimals)


@op
def trunc(xp, x):
    return xp.trunc(x)


# --- exponentials and logarithms


@op
def exp(xp, x):
    return xp.exp(x)
exp.vjp(x=lambda g, y: g * y)


@op
def exp2(xp, x):
    return xp.exp2(x)
exp2.vjp(x=lambda g, y: g * y * math.log(2))


@op
def expm1(xp, x):
    """e^x - 1, exact near 0"""
    return xp.expm1(x)
expm1.vjp(x=lambda g, x: g * exp(x))


@op
def log(xp, x):
    return xp.log(x)
log.vjp(x=lambda g, x: g / x)


@op
def log2(xp, x):
    return xp.log2(x)
log2.vjp(x=lambda g, x: g / math.log(2) / x)  # x log 2 would overflow, or lose digits


@op
def log10(xp, x):
    return xp.log10(x)
log10.vjp(x=lambda g, x: g / math.log(10) / x)


@op
def log1p(xp, x):
    """log(1 + x), exact near 0"""
    return xp.log1p(x)
log1p.vjp(x=lambda g, x: g / (1 + x))


@op
def logaddexp(xp, a, b):
    """log(e^a + e^b) without overflow"""
    return xp.logaddexp(a, b)
logaddexp.vjp(a=lambda g, a, b: g * sigmoid(a - b),
              b=lambda g, a, b: g * sigmoid(b - a))


# --- trigonometry


@op
def sin(xp, x):
    return xp.sin(x)
sin.vjp(x=lambda g, x: g * cos(x))


@op
def cos(xp, x):
    return xp.cos(x)
cos.vjp(x=lambda g, x: -g * sin(x))


@op
def tan(xp, x):
    return xp.tan(x)
tan.vjp(x=lambda g, y: g * (1 + y * y))


@op
def arcsin(xp, x):
    return xp.arcsin(x)
arcsin.vjp(x=lambda g, x: g * rsqrt((1 - x) * (1 + x)))


@op
def arccos(xp, x):
    return xp.arccos(x)
arccos.vjp(x=lambda g, x: -g * rsqrt((1 - x) * (1 + x)))


@op
def arctan(xp, x):
    return xp.arctan(x)
arctan.vjp(x=lambda g, x: g / (1 + x * x))


@op
def sinh(xp, x):
    return xp.sinh(x)
sinh.vjp(x=lambda g, x: g * cosh(x))


@op
def cosh(xp, x):
    return xp.cosh(x)
cosh.vjp(x=lambda g, x: g * sinh(x))


@op
def tanh(xp, x):
    return xp.tanh(x)
tanh.vjp(x=lambda g, y: g * (1 - y * y))


@op
def arcsinh(xp, x):
    return xp.arcsinh(x)
arcsinh.vjp(x=lambda g, x: g / hypot(x, 1))


@op
def arccosh(xp, x):
    return xp.arccosh(x)
arccosh.vjp(x=lambda g, x: g * (rsqrt(x - 1) * rsqrt(x + 1)))  # x^2 would overflow


@op
def arctanh(xp, x):
    return xp.arctanh(x)
arctanh.vjp(x=lambda g, x: g / ((1 - x) * (1 + x)))


# --- activations


@op
def relu(xp, x):
    """max(x, 0), with relu'(0) = 0"""
    return xp.maximum(x, 0)
relu.vjp(x=lambda g, y: where(y > 0, g, 0))


@op
def sigmoid(xp, x):
    """1 / (1 + e^-x), which is 0 where e^-x overflows"""
    with errstate(over="ignore"):
        e = xp.exp(-x)
    e += 1
    return 1 / e
sigmoid.vjp(x=lambda g, y: g * y * (1 - y))


@op
def silu(xp, x):
    """x sigmoid(x)      Elfwing et al. 2018, eq. 7 (swish: Ramachandran et al. 2017)"""
    return x * sigmoid.forward(xp, x)


def _silu_vjp(g, x):
    """silu'(x) = s (1 + x (1 - s)),  s = sigmoid(x)"""
    s = sigmoid(x)
    return g * (s * (1 + x * (1 - s)))
silu.vjp(x=_silu_vjp)


@op
def erf(xp, x):
    """(2 / sqrt(pi)) * integral of e^(-t^2) from 0 to x"""
    large = xp.sign(x) * (1 - _erfc_large(xp, xp.abs(x)))
    return xp.where(xp.abs(x) < 0.5, _erf_small(xp, x), large)
erf.vjp(x=lambda g, x: g * (2 / math.sqrt(math.pi) * exp(-x * x)))


@op
def erfc(xp, x):
    """1 - erf(x), exact in its tail"""
    tail = _erfc_large(xp, xp.abs(x))
    return xp.where(xp.abs(x) < 0.5, 1 - _erf_small(xp, x), xp.where(x < 0, 2 - tail, tail))
erfc.vjp(x=lambda g, x: g * (-2 / math.sqrt(math.pi) * exp(-x * x)))


# Coefficients of W. J. Cody, "Rational Chebyshev approximations for the error function", 1969.
_CODY = {
    "small": ((1.85777706184603153e-1, 3.16112374387056560e00, 1.13864154151050156e02,
               3.77485237685302021e02, 3.20937758913846947e03),
              (1.0, 2.36012909523441209e01, 2.44024637934444173e02, 1.28261652607737228e03,
               2.84423683343917062e03)),
    "middle": ((2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e00,
                6.61191906371416295e01, 2.98635138197400131e02, 8.81952221241769090e02,
                1.71204761263407058e03, 2.05107837782607147e03, 1.23033935479799725e03),
               (1.0, 1.57449261107098347e01, 1.17693950891312499e02, 5.37181101862009858e02,
                1.62138957456669019e03, 3.29079923573345963e03, 4.36261909014324716e03,
                3.43936767414372164e03, 1.23033935480374942e03)),
    "large": ((1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1,
               1.25781726111229246e-1, 1.60837851487422766e-2, 6.58749161529837803e-4),
              (1.0, 2.56852019228982242e00, 1.87295284992346047e00, 5.27905102951428412e-1,
               6.05183413124413191e-2, 2.33520497626869185e-3)),
}


def _rational(piece, x):
    """A quotient of two polynomials in x, by Horner's rule."""
    top, bottom = (_horner(c, x) for c in _CODY[piece])
    return top / bottom


def _horner(coefficients, x):
    value = coefficients[0]
    for c in coefficients[1:]:
        value = value * x + c
    return value


def _erf_small(xp, x):
    x = xp.clip(x, -0.5, 0.5)
    return x * _rational("small", x * x)


def _erfc_large(xp, x):
    """erfc(x) for x >= 0.46875: e^(-x^2) times a rational function on each side of 4."""
    x = xp.clip(x, 0.46875, 28)  # erfc(28) is below the smallest double
    inverse = 1 / (x * x)
    far = (1 / math.sqrt(math.pi) - inverse * _rational("large", inverse)) / x
    near = _rational("middle", xp.minimum(x, 4))
    head = xp.trunc(x * 16) / 16  # x^2 = head^2 + rest, so that e^(-x^2) keeps its last digits
    rest = (x - head) * (x + head)
    return xp.exp(-head * head) * xp.exp(-rest) * xp.where(x <= 4, near, far)


# --- choice


@op
def where(xp, condition, a, b):
    """a where the condition holds, b elsewhere; the other one's gradient is exactly 0 there"""
    return xp.where(condition, a, b)
where.vjp(a=lambda g, condition: where(condition, g, 0),
          b=lambda g, condition: where(condition, 0, g))


@op
def clip(xp, x, *, min=None, max=None):
    """x held between min and max; the gradient passes at both bounds"""
    return xp.clip(x, min, max)
clip.vjp(x=lambda g, x, min, max: where(_within(x, min, max), g, 0))


def _within(x, low, high):
    inside = x == x  # not NaN
    if low is not None:
        inside = inside & (x >= low)
    if high is not None:
        inside = inside & (x <= high)
    return inside


# --- reductions


@op
def sum(xp, x, *, axis=None, keepdims=False):
    return xp.add.reduce(x, axis, None, None, keepdims)  # x.sum, less one call in Python
sum.vjp(x=lambda g, x_shape, axis, keepdims: broadcast_to(
    with_axes(g, x_shape, axis, keepdims), shape=x_shape))


@op
def max(xp, x, *, axis=None, keepdims=False):
    """The greatest entry; equal ones share the gradient equally"""
    return x.max(axis=axis, keepdims=keepdims)
max.vjp(x=lambda g, y, x, axis, keepdims: _share(g, y, x, axis, keepdims))


@op
def min(xp, x, *, axis=None, keepdims=False):
    """The smallest entry; equal ones share the gradient equally"""
    return x.min(axis=axis, keepdims=keepdims)
min.vjp(x=lambda g, y, x, axis, keepdims: _share(g, y, x, axis, keepdims))


def _share(g, y, x, axis, keepdims):
    """g, divided equally among the entries of x that equal the extreme y."""
    hit = x == with_axes(y, x.shape, axis, keepdims)
    share = g / hit.sum(axis=axis, keepdims=keepdims).astype(g.dtype)
    return where(hit, with_axes(share, x.shape, axis, keepdims), 0)


def with_axes(y, shape, axis, keepdims):
    """A reduction's result with the reduced axes of `shape` put back, as length 1.

    A number needs none to be spread over it.
    """
    if keepdims or axis is None:
        return y
    return y.reshape(tuple(1 if i in axes_of(axis, len(shape)) else n for i, n in enumerate(shape)))


def axes_of(axis, ndim):
    """The axes that `axis` (None for all, a number, or several) means, counted from 0."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % ndim for a in (axis if isinstance(axis, tuple | list) else (axis,)))


@op
def cumsum(xp, x, *, axis=-1):
    """y_i = x_0 + ... + x_i"""
    return xp.cumsum(x, axis=axis)
cumsum.vjp(x=lambda g, axis: flip(cumsum(flip(g, axis), axis=axis), axis))


def flip(x, axis):
    """x in reverse order along one axis."""
    index = [slice(None)] * len(x.shape)
    index[axis] = slice(None, None, -1)
    return x[tuple(index)]


@op
def logsumexp(xp, x, *, axis=None, keepdims=False):
    """log(sum_j exp(x_j)) = m + log(sum_j exp(x_j - m)),  m = max x, so that exp never overflows"""
    m = _finite(xp, x.max(axis=axis, keepdims=True))
    y = m + xp.log(xp.exp(x - m).sum(axis=axis, keepdims=True))
    return y if keepdims else y.squeeze(axes_of(axis, x.ndim))


def _logsumexp_vjp(g, x, axis, keepdims):
    """g e_i / sum_j e_j,  e = exp(x - max x): y, in which max x and the logarithm are rounded into
    one, would not do for exp(x - y) where x is large.
    """
    a = x.data if isinstance(x, Value) else x
    e = exp(x - _finite(namespace([a]), a.max(axis=axis, keepdims=True)))
    total = sum(e, axis=axis, keepdims=True)
    total = where(total == 0, 1, total)  # of -inf alone
    return with_axes(g, x.shape, axis, keepdims) * (e / total)
logsumexp.vjp(x=_logsumexp_vjp)


def _finite(xp, m):
    """0 in place of a maximum of -inf or inf: inf - inf is NaN."""
    return xp.where(xp.isfinite(m), m, 0)


@op
def softmax(xp, x, *, axis=-1):
    """y_i = exp(x_i - m) / sum_j exp(x_j - m),  m = max x, so that exp never overflows"""
    return _softmax(x, axis=axis)
softmax.vjp(x=lambda g, y, axis: softmax_slope(g, y, axis=axis))


@accelerated(kernels.softmax)
def _softmax(x, *, axis):
    e = namespace([x]).exp(x - x.max(axis=axis, keepdims=True))
    e /= e.sum(axis=axis, keepdims=True)
    return e


@op
def softmax_slope(xp, g, y, *, axis=-1):
    """y_i (g_i - sum_j g_j y_j), of g through softmax, whose result is y"""
    return _softmax_slope(g, y, axis=axis)
softmax_slope.vjp(g=lambda u, y, axis: softmax_slope(u, y, axis=axis),
                  y=lambda u, g, y, axis: u * (g - (g * y).sum(axis=axis, keepdims=True))
                  - g * (u * y).sum(axis=axis, keepdims=True))  # fmt: skip


@accelerated(kernels.softmax.slope)
def _softmax_slope(g, y, *, axis):
    return y * (g - (g * y).sum(axis=axis, keepdims=True))


@op
def log_softmax(xp, x, *, axis=-1):
    """y_i = x_i - m - log(1 + sum_(j != k) exp(x_j - m)),  m = x_k = max x

    The 1 stands apart: in the sum it would swallow the others where k is nearly certain.
    """
    shifted = x - x.max(axis=axis, keepdims=True)
    e = xp.exp(shifted)
    others = _sum_less_one(xp, e, axis)
    return xp.subtract(shifted, xp.log1p(others, out=others), out=e)
log_softmax.vjp(x=lambda g, y, axis: log_softmax_residual(g, y, axis=axis))


def _sum_less_one(xp, e, axis):
    """sum_j e_j - 1, one of the greatest, which are 1, being left out      overwrites e"""
    if axis in (-1, e.ndim - 1):
        xp.put_along_axis(e, e.argmax(axis=-1, keepdims=True), 0, -1)
        return e.sum(axis=-1, keepdims=True)
    ones = e == 1  # along other axes numpy's argmax costs more than all the rest
    e -= ones
    count = ones.sum(axis=axis, dtype=e.dtype, keepdims=True)
    return e.sum(axis=axis, keepdims=True) + (count - 1)


@op
def log_softmax_residual(xp, u, log_p, *, axis=-1):
    """u - p sum_j u_j,  p = exp(log_p), of sum 1: cotangents u through log_softmax

    The result adds up to 0. What it adds up to instead is rounding, and where p_k is nearly 1 it is
    that of entry k, a difference of equal numbers: the same step once more takes it off.
    """
    p = xp.exp(log_p)
    y = p * u.sum(axis=axis, keepdims=True)
    y = xp.subtract(u, y, out=y)
    p *= y.sum(axis=axis, keepdims=True)
    y -= p
    return y
log_softmax_residual.vjp(
    u=lambda g, log_p, axis: _less_mean(_less_mean(g, log_p, axis), log_p, axis),
    log_p=lambda g, u, log_p, axis: -g * exp(log_p) * u.sum(axis=axis, keepdims=True))


def _less_mean(g, log_p, axis):
    """g_i - sum_j p_j g_j, which is done twice for the same reason"""
    return g - (exp(log_p) * g).sum(axis=axis, keepdims=True)


@op
def nll(xp, logits, *, targets):
    """-log softmax(logits)[target], one number a row      logits: (..., v)  targets: (...) ints

    The negative log-likelihood. Its sum of exponentials is 1 + what log1p is given, which the 1
    would swallow where the target is nearly certain.
    """
    _, of_target, others, _ = _exponentials(xp, logits, targets)
    return (xp.log1p(others + xp.expm1(of_target)) - of_target).reshape(targets.shape)
nll.vjp(logits=lambda g, logits, targets: softmax_residual(logits, g, targets=targets))


@op
def softmax_residual(xp, logits, u, *, targets):
    """u (softmax(logits) - onehot(targets)), the derivative of nll      u: (...)  others as there

    At the target p - 1 is minus the sum of the others, of which no digit is lost.
    """
    rows, of_target, others, places = _exponentials(xp, logits, targets)
    share = u.reshape(-1) / (others + xp.exp(of_target))
    rows *= share[:, None]
    rows[places] = -others * share
    return rows.reshape(logits.shape)
softmax_residual.vjp(
    logits=lambda g, logits, u: _softmax_residual_vjp(g * u[..., None], softmax(logits)),
    u=lambda g, logits, u_shape, targets: (
        g * softmax_residual(logits, namespace([targets]).ones(u_shape, logits.dtype),
                             targets=targets)).sum(axis=-1))


def _softmax_residual_vjp(g, y):
    """softmax's y (h - sum_j h_j y_j) with h = g - g_k, k where y is greatest

    h = g gives the same number, but where y_k is nearly 1 as a difference of equal ones.
    """
    k = y.argmax(axis=-1, keepdims=True)
    return softmax.vjps["x"][0](g - take_along_axis(g, indices=k, axis=-1), y, -1)


def _exponentials(xp, logits, targets):
    """exp(logits - max) in rows, 0 at the target; its exponent; the sums of rows; its places"""
    if logits.dtype.kind in "iub":
        logits = logits.astype("float64")  # as exp itself makes of integers
    rows = (logits - _row_max(logits)).reshape((-1, logits.shape[-1]))
    places = xp.arange(len(rows)), targets.reshape(-1)
    of_target = rows[places]
    rows = xp.exp(rows, out=rows)
    rows[places] = 0
    return rows, of_target, _row_sums(rows)[:, 0], places


# --- shape


@op(view=True, half="native")
def reshape(xp, x, *, shape):
    return x.reshape(shape)
reshape.vjp(x=lambda g, x_shape: g.reshape(x_shape))


@op(view=True, half="native")
def transpose(xp, x, *, axes=None):
    """x with its axes in another order (None: reversed)"""
    return x.transpose(axes)
transpose.vjp(x=lambda g, axes: g.transpose(axes and _inverse(axes)))


def _inverse(permutation):
    n = len(permutation)
    return tuple(sorted(range(n), key=lambda i: permutation[i] % n))


@op(view=True, half="native")
def broadcast_to(xp, x, *, shape):
    return xp.broadcast_to(x, shape)
broadcast_to.vjp(x=lambda g: g)  # the engine sums g over the stretched axes


@op(view=True, half="native")
def astype(xp, x, *, dtype):
    return x.astype(dtype, copy=False)
astype.vjp(x=lambda g: g)  # the engine casts g back


@op(half="native")
def concatenate(xp, *xs, axis=0):
    return xp.concatenate(xs, axis=axis)
concatenate.vjp(xs=lambda g, i, xs_shape, axis: g[_ith_part(i, xs_shape, axis)])


def _ith_part(i, shapes, axis):
    """The index of the i-th array in the concatenation of arrays of these shapes."""
    ends = [0]
    for shape in shapes[: i + 1]:
        ends.append(ends[-1] + shape[axis])
    index = [slice(None)] * len(shapes[0])
    index[axis] = slice(ends[-2], ends[-1])
    return tuple(index)


@op(half="native")
def pad(xp, x, *, widths, value=0):
    """x with widths[i] = (before, after) entries of `value` added along axis i"""
    return xp.pad(x, widths, constant_values=value)
pad.vjp(x=lambda g, x_shape, widths: g[tuple(
    slice(before, before + n) for (before, _), n in zip(widths, x_shape, strict=True))])


@op(view=True, half="native")
def windows(xp, x, *, size, stride=1, axis=-1):
    """All windows of `size` entries along an axis, `stride` apart, as a new last axis (no copy)"""
    slid = xp.lib.stride_tricks.sliding_window_view(x, size, axis=axis)
    index = [slice(None)] * slid.ndim
    index[axis % x.ndim] = slice(None, None, stride)
    return slid[tuple(index)]
windows.vjp(x=lambda g, x_shape, size, stride, axis: overlap_add(
    g, length=x_shape[axis], stride=stride, axis=axis % len(x_shape)))


@op
def overlap_add(xp, x, *, length, stride=1, axis=-1):
    """The adjoint of `windows`: windows (the last axis) laid back and added, in `length` entries"""
    x = xp.moveaxis(x, axis if axis >= 0 else axis - 1, -2)  # (..., count, size)
    y = xp.zeros((*x.shape[:-2], length), x.dtype)
    count, size = x.shape[-2:]
    for k in range(size):
        y[..., k : k + (count - 1) * stride + 1 : stride] += x[..., k]
    return xp.moveaxis(y, -1, axis)
overlap_add.vjp(x=lambda g, x_shape, stride, axis: windows(
    _covered(g, x_shape, stride, axis), size=x_shape[-1], stride=stride, axis=axis))


def _covered(g, shape, stride, axis):
    """The part of g on which windows lie; entries beyond the last one got nothing."""
    count, size = shape[axis if axis >= 0 else axis - 1], shape[-1]
    index = [slice(None)] * len(g.shape)
    index[axis] = slice((count - 1) * stride + size)
    return g[tuple(index)]


# --- picking and placing


@op(view=True, half="native")
def getitem(xp, x, *, index):
    """x[index]: numbers, slices, None, ..., integer arrays, boolean masks"""
    return x[index]
getitem.vjp(x=lambda g, x_shape, index: scatter_add(g, index=index, shape=x_shape))


@op
def scatter_add(xp, x, *, index, shape):
    """Zeros of `shape` with x added at [index]; an entry that is named twice gets both"""
    y = xp.zeros(shape, x.dtype)
    _scatter_add(y, index, x)
    return y
scatter_add.vjp(x=lambda g, index: g[index])


@op(half="native")
def index_update(xp, x, values, *, index):
    """A copy of x with x[index] = values; of entries named twice, the last value stands"""
    y = xp.array(x)
    _assign(y, index, values)
    return y
index_update.vjp(x=lambda g, index: index_update(g, 0, index=index),
                 values=lambda g, x_shape, index: where(
                     last_writes(g, index=index, shape=x_shape), g[index], 0))


@op
def last_writes(xp, values, *, index, shape):
    """Which of the values written to [index] of an array of `shape` are still there at the end"""
    last = _last_writes(xp, shape, index)
    return last == xp.arange(last.size, dtype=last.dtype).reshape(last.shape)


@op(half="native")
def take_along_axis(xp, x, *, indices, axis=-1):
    """y[..., i, ...] = x[..., indices[..., i, ...], ...] along the axis"""
    return xp.take_along_axis(x, indices, axis)
take_along_axis.vjp(x=lambda g, x_shape, indices, axis: scatter_along(
    g, indices=indices, axis=axis, length=x_shape[axis]))


def _places(xp, shape):
    """For each axis its numbers 0, 1, ..., to be broadcast (cupy's indices are not sparse)."""
    return [xp.arange(n).reshape([-1 if i == axis else 1 for i in range(len(shape))])
            for axis, n in enumerate(shape)]


@op
def scatter_along(xp, x, *, indices, axis=-1, length):
    """The adjoint of take_along_axis: x added at `indices`, in `length` entries along the axis"""
    shape = list(xp.broadcast_shapes(x.shape, indices.shape))
    x, indices = xp.broadcast_to(x, shape), xp.broadcast_to(indices, shape)
    where_ = _places(xp, shape)
    where_[axis] = indices
    shape[axis] = length
    y = xp.zeros(shape, x.dtype)
    _scatter_add(y, tuple(where_), x)
    return y
scatter_along.vjp(x=lambda g, indices, axis: take_along_axis(g, indices=indices, axis=axis))


# --- products


@op(half="native")
def matmul(xp, a, b):
    """(..., n, k) @ (..., k, m) -> (..., n, m); a one-axis argument loses its axis again

    Of half types it is added up in float32 and rounded once.
    """
    if a.itemsize == 2 or b.itemsize == 2:
        return _half_matmul(xp, a, b)
    if b.ndim == 2 and a.ndim > 1:
        if a.size * b.shape[1] >= _LARGE or kernels.noting():
            return _of_rows(a, b)
        if is_host(xp):  # the same product, and half of what a call of matmul costs
            y = a.dot(b) if a.ndim == 2 else _rows(a).dot(b)  # one product instead of many
            return y if a.ndim == 2 else y.reshape(*a.shape[:-1], b.shape[-1])
    return xp.matmul(a, b) if is_host(xp) else _matmul_on_gpu(a, b)


@accelerated(kernels.product)
def _product(a, b):
    return (widen(a) @ widen(b)).astype(a.dtype, copy=False)


def _of_rows(a, b):
    if a.ndim == 2:  # a weight's gradient, say, which would be copied if it were a view
        return _product(a, b)
    return _product(_rows(a), b).reshape(*a.shape[:-1], b.shape[-1])


_LARGE = kernels.product.WORTH  # below it the look for a kernel would cost more than it saves


def _half_matmul(xp, a, b):
    if a.dtype not in HALF and b.dtype not in HALF:  # 16-bit integers
        return xp.matmul(a, b)
    of_rows = a.dtype == b.dtype and b.ndim == 2 and a.ndim > 1
    if of_rows and (a.size * b.shape[1] >= _LARGE or kernels.noting()):
        return _of_rows(a, b)
    return _half_product(a, b)


@accelerated(kernels.half_product)
def _half_product(a, b):
    y = matmul.forward(namespace([a, b]), widen(a), widen(b))
    return y.astype(promote(a.dtype, b.dtype))


def _rows(x):
    """All its rows in one matrix      (..., n) -> (rows, n)"""
    return x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))


def _matmul_vjp_a(g, a_shape, b):
    if len(b.shape) == 1:
        return g[..., None] * b
    if len(a_shape) == 1:
        return matmul(b, g[..., None])[..., 0]  # (..., k); the engine sums the batch
    return matmul(g, b.swapaxes(-1, -2))


def _matmul_vjp_b(g, a, b_shape):
    if len(b_shape) == 1:
        return g[..., None] * a if len(a.shape) == 1 else matmul(
            a.swapaxes(-1, -2), g[..., None])[..., 0]
    if len(a.shape) == 1:
        return a[:, None] * g[..., None, :]
    if len(b_shape) == 2 and len(a.shape) > 2:
        a, g = _rows(a), _rows(g)
    return matmul(a.swapaxes(-1, -2), g)
matmul.vjp(a=_matmul_vjp_a,
           b=_matmul_vjp_b)


# --- devices


@op(view=True, half="native")
def to_device(xp, x, *, device, source=None):
    """The same bits on another device; the gradient travels back"""
    return _to_device(x, device)
to_device.vjp(x=lambda g, source: to_device(g, device=source))

__all__ = sorted(name for name, value in globals().items() if isinstance(value, Op))
