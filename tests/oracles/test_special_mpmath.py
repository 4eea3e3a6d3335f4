"""Functions of one or two numbers, and their derivatives, against mpmath to 60 digits.

Everywhere that floats reach: 1e±300, subnormals, saturation, the ends of a domain. Errors are
counted in ulps: eps times the size of the result, or of what is subtracted to make it. A result
may also be off by the smallest normal number, for below it digits are lost; and where the truth
lies beyond the greatest number, inf is expected. So is a derivative where the value itself lies
there: rules such as exp2's, y log 2, are made from y, as in other libraries.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml import functional as F

mp = pytest.importorskip("mpmath")

INF = np.inf


class Truth(NamedTuple):
    """What a function and its derivative are, and how far off ours may be.

    ulps        of the value and of the derivative, numbers or functions of x
    size, dsize  what these are ulps of, where it is not the result itself
    """

    ours: object
    value: object
    derivative: object
    low: float = -INF
    high: float = INF
    ulps: tuple = (3, 4)
    size: object = abs
    dsize: object = abs


def logistic(x):
    return 1 / (1 + mp.exp(-x))


def softplus(x):
    return max(x, 0) + mp.log1p(mp.exp(-abs(x)))


def density(x):
    return mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi)


def erfc(x):
    return mp.erfc(x) if abs(x) < 100 else mp.mpf(0 if x > 0 else 2)  # erfc(100) is 1e-4346


def Phi(x):
    return erfc(-x / mp.sqrt(2)) / 2


def slope_of_inner(x):
    """u and du/dx of gelu_tanh, with u = 2 sqrt(2 / pi) (x + 0.044715 x^3)"""
    c, k = 2 * mp.sqrt(2 / mp.pi), mp.mpf("0.044715")
    return c * (x + k * x**3), c * (1 + 3 * k * x * x)


def gelu_tanh_derivative(x):
    u, du = slope_of_inner(x)
    return logistic(u) + x * logistic(u) * logistic(-u) * du


def gelu_tanh_terms(x):
    """As the derivative, with 1 - s taken from a rounded s"""
    u, du = slope_of_inner(x)
    return logistic(u) * (1 + (abs(x) * du if abs(x) < 40 else 0))


def mish_terms(x):
    t = mp.tanh(softplus(x))
    return t * (1 + abs(x) if abs(x) < 800 else 1)


def mish_derivative(x):
    t = mp.tanh(softplus(x))
    return t + x * (1 - t * t) * logistic(x)


def one(x):
    return mp.mpf(1)


def squares(x):
    """e^(-x^2) of a rounded x^2 is off by x^2 roundings (beyond 40 it is 0)."""
    return 5 + 2 * min(abs(float(x)), 40) ** 2


def lower_tail(x):
    """The same, where e^(-x^2) is not beside something greater."""
    return squares(x) if x < 0 else 5


# Out where tanh and the sigmoid are flat, their derivatives come from a rounded y: 1 - y^2 and
# y (1 - y) are right to an ulp of 1, as in other libraries, and not to one of their own.
ONE = {
    "exp": Truth(tg.exp, mp.exp, mp.exp),
    "exp2": Truth(tg.exp2, lambda x: mp.mpf(2) ** x, lambda x: mp.log(2) * mp.mpf(2) ** x),
    "expm1": Truth(tg.expm1, mp.expm1, mp.exp),
    "log": Truth(tg.log, mp.log, lambda x: 1 / x, 0),
    "log2": Truth(tg.log2, lambda x: mp.log(x, 2), lambda x: 1 / (x * mp.log(2)), 0),
    "log10": Truth(tg.log10, mp.log10, lambda x: 1 / (x * mp.log(10)), 0),
    "log1p": Truth(tg.log1p, mp.log1p, lambda x: 1 / (1 + x), -1),
    "sqrt": Truth(tg.sqrt, mp.sqrt, lambda x: 1 / (2 * mp.sqrt(x)), 0),
    "rsqrt": Truth(tg.rsqrt, lambda x: 1 / mp.sqrt(x), lambda x: -1 / (2 * x * mp.sqrt(x)), 0),
    "cbrt": Truth(tg.cbrt, lambda x: mp.sign(x) * mp.cbrt(abs(x)),
                  lambda x: 1 / (3 * mp.cbrt(abs(x)) ** 2), ulps=(3, 6)),
    "sin": Truth(tg.sin, mp.sin, mp.cos),
    "cos": Truth(tg.cos, mp.cos, lambda x: -mp.sin(x)),
    "tan": Truth(tg.tan, mp.tan, lambda x: 1 + mp.tan(x) ** 2, ulps=(4, 8)),
    "sinh": Truth(tg.sinh, mp.sinh, mp.cosh),
    "cosh": Truth(tg.cosh, mp.cosh, mp.sinh),
    "tanh": Truth(tg.tanh, mp.tanh, lambda x: 1 / mp.cosh(x) ** 2, dsize=one),
    "arcsin": Truth(tg.arcsin, mp.asin, lambda x: 1 / mp.sqrt((1 - x) * (1 + x)), -1, 1),
    "arccos": Truth(tg.arccos, mp.acos, lambda x: -1 / mp.sqrt((1 - x) * (1 + x)), -1, 1),
    "arctan": Truth(tg.arctan, mp.atan, lambda x: 1 / (1 + x * x)),
    "arcsinh": Truth(tg.arcsinh, mp.asinh, lambda x: 1 / mp.sqrt(1 + x * x)),
    "arccosh": Truth(tg.arccosh, mp.acosh, lambda x: 1 / mp.sqrt((x - 1) * (x + 1)), 1),
    "arctanh": Truth(tg.arctanh, mp.atanh, lambda x: 1 / ((1 - x) * (1 + x)), -1, 1),
    "erf": Truth(tg.erf, mp.erf, lambda x: 2 / mp.sqrt(mp.pi) * mp.exp(-x * x),
                 ulps=(4, squares)),
    "erfc": Truth(tg.erfc, erfc, lambda x: -2 / mp.sqrt(mp.pi) * mp.exp(-x * x),
                  ulps=(6, squares)),
    "sigmoid": Truth(tg.sigmoid, logistic, lambda x: logistic(x) * logistic(-x), dsize=one),
    "log_sigmoid": Truth(F.log_sigmoid, lambda x: -softplus(-x), lambda x: logistic(-x)),
    "softplus": Truth(F.softplus, softplus, logistic),
    "silu": Truth(tg.silu, lambda x: x * logistic(x),
                  lambda x: logistic(x) * (1 + x * logistic(-x)), ulps=(4, 6),
                  dsize=lambda x: logistic(x) * (1 + abs(x))),
    "gelu": Truth(F.gelu, lambda x: x * Phi(x), lambda x: Phi(x) + x * density(x),
                  ulps=(lower_tail, lower_tail), dsize=lambda x: Phi(x) + abs(x) * density(x)),
    "gelu_tanh": Truth(F.gelu_tanh, lambda x: x * logistic(slope_of_inner(x)[0]),
                       gelu_tanh_derivative, ulps=(lower_tail, lower_tail), dsize=gelu_tanh_terms),
    "mish": Truth(F.mish, lambda x: x * mp.tanh(softplus(x)), mish_derivative, ulps=(4, 8),
                  dsize=mish_terms),
    "elu": Truth(F.elu, lambda x: x if x > 0 else mp.expm1(x),
                 lambda x: mp.mpf(1) if x > 0 else mp.exp(x)),
    "logit": Truth(F.logit, lambda x: mp.log(x / (1 - x)), lambda x: 1 / (x * (1 - x)), 0, 1,
                   size=lambda x: abs(mp.log(x)) + abs(mp.log1p(-x))),
    "sinc": Truth(F.sinc, lambda x: mp.sinc(mp.pi * x),
                  lambda x: (mp.cos(mp.pi * x) - mp.sinc(mp.pi * x)) / x if x else mp.mpf(0),
                  -2, 2, ulps=(4, 16), size=one, dsize=one),
}  # fmt: skip


# ----------------------------------------------------------------------------- where to look


def numbers(dtype, low=-INF, high=INF):
    """Floats of all sizes, and those close to 0, to 1 and to where things saturate."""
    bits = np.finfo(dtype).bits
    anywhere = st.floats(width=bits, allow_nan=False, allow_infinity=False)
    steps = np.finfo(dtype).nmant + 1
    beside = st.builds(lambda s, k, t: s * (1 + t * 2.0**-k), st.sampled_from([1, -1]),
                       st.integers(1, steps), st.sampled_from([1, -1]))  # fmt: skip
    ordinary = st.floats(-50, 50).map(lambda x: float(dtype(x)))
    scaled = st.builds(lambda m, e: m * 2.0**e, st.floats(1, 2).map(lambda m: float(dtype(m))),
                       st.integers(-20, 10))  # fmt: skip
    both = st.builds(lambda s, x: s * x, st.sampled_from([1, -1]), scaled)

    def folded(x):
        """x, -x, 1/x or -1/x: whichever lies within the domain, or nothing."""
        with np.errstate(all="ignore"):
            found = [y for z in (dtype(x), 1 / dtype(x)) for y in (z, -z) if low < y < high]
        return found[0] if found else None

    return st.one_of(ordinary, both, beside, anywhere).map(folded).filter(lambda x: x is not None)


DTYPES = [np.float64, np.float32]


def close(got, true, ulps, size, dtype):
    """Whether a float is the truth, to so many ulps of the size."""
    limits = np.finfo(dtype)
    greatest, least = mp.mpf(float(limits.max)), mp.mpf(float(limits.tiny))
    allowed = ulps * float(limits.eps) * size + least
    if abs(true) + allowed > greatest and abs(got) >= limits.max:
        return np.sign(got) == mp.sign(true)
    return bool(np.isfinite(got)) and abs(mp.mpf(float(got)) - true) <= allowed


def exact(f, *xs):
    """f to 60 digits; inf where it divides by 0."""
    try:
        return f(*xs)
    except ZeroDivisionError:
        return mp.inf


TALLY = Counter()


@pytest.fixture(autouse=True)
def report(record_property):
    """How many numbers a test compared, for the summary."""
    TALLY.clear()
    yield
    record_property("oracle", ["mpmath", dict(TALLY)])


def assert_close(what, got, true, ulps, size, dtype, *at):
    TALLY["compared"] += 1
    assert close(got, true, ulps, size, dtype), (
        f"{what} at {', '.join(repr(float(x)) for x in at)}: got {float(got)!r}, expected "
        f"{mp.nstr(true, 20)}, off by more than {ulps:.3g} ulps"
    )


def bound(ulps, x):
    return ulps(x) if callable(ulps) else ulps


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ONE)
def test_function_of_one_number(name, dtype):
    truth = ONE[name]

    @given(st.lists(numbers(dtype, truth.low, truth.high), min_size=1, max_size=30))
    def check(points):
        x = tg.tensor(np.array(points, dtype), requires_grad=True)
        y = truth.ours(x)
        g = tg.grad(tg.sum(y), x)
        with mp.workdps(60):
            for point, value, slope in zip(points, y.data, g.data, strict=True):
                z = mp.mpf(float(point))
                for what, got, f, ulps, size in (
                    (name, value, truth.value, truth.ulps[0], truth.size),
                    (f"d {name}", slope, truth.derivative, truth.ulps[1], truth.dsize),
                ):
                    true = exact(f, z)
                    if np.isinf(value) and np.isinf(got) and f is truth.derivative:
                        true *= mp.inf
                    of = abs(true) if size is abs else max(abs(true), size(z))
                    assert_close(what, got, true, bound(ulps, point), of, dtype, point)

    check()


# ------------------------------------------------------------------- functions of several numbers


def hypot(a, b):
    return mp.sqrt(a * a + b * b)


def logaddexp(a, b):
    return max(a, b) + mp.log1p(mp.exp(-abs(a - b)))


TWO = {  # ours, value, derivatives, and what their ulps are of
    "logaddexp": (tg.logaddexp, logaddexp,
                  (lambda a, b: logistic(a - b), lambda a, b: logistic(b - a)),
                  lambda a, b: max(abs(a), abs(b)),
                  lambda a, b: mp.exp(-abs(a - b)) * (1 + abs(a - b))),
    "hypot": (tg.hypot, hypot, (lambda a, b: a / hypot(a, b), lambda a, b: b / hypot(a, b)),
              None, None),
    "arctan2": (tg.arctan2, lambda a, b: mp.atan2(a, b),
                (lambda a, b: b / (a * a + b * b), lambda a, b: -a / (a * a + b * b)),
                None, None),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TWO)
def test_function_of_two_numbers(name, dtype):
    ours, value, derivatives, size, dsize = TWO[name]
    least = np.finfo(dtype).tiny  # the hypotenuse of two subnormals has no digits
    unsigned_zero = numbers(dtype).map(lambda x: x + 0)  # mpmath has no -0, where arctan2 is -pi
    pairs = st.tuples(unsigned_zero, unsigned_zero).filter(lambda p: max(map(abs, p)) >= least)

    @given(st.lists(pairs, min_size=1, max_size=20))
    def check(points):
        xs = [tg.tensor(np.array(column, dtype), requires_grad=True)
              for column in zip(*points, strict=True)]  # fmt: skip
        y = ours(*xs)
        gradients = tg.grad(tg.sum(y), xs)
        with mp.workdps(60):
            for k, point in enumerate(points):
                z = [mp.mpf(float(x)) for x in point]
                for got, f, scale in zip((y, *gradients), (value, *derivatives),
                                         (size, dsize, dsize), strict=True):  # fmt: skip
                    true = exact(f, *z)
                    of = max(abs(true), scale(*z)) if scale else abs(true)
                    assert_close(name, got.data[k], true, 5, of, dtype, *point)

    check()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", DTYPES)
def test_logsumexp_and_softmax(dtype):
    @given(st.lists(numbers(dtype), min_size=1, max_size=8))
    def check(row):
        x = tg.tensor(np.array(row, dtype), requires_grad=True)
        y = tg.logsumexp(x)
        g, p, log_p = tg.grad(y, x), tg.softmax(x), tg.log_softmax(x)
        with mp.workdps(60):
            z = [mp.mpf(float(v)) for v in row]
            top = max(z)
            total = mp.log(sum(mp.exp(v - top) for v in z))
            assert_close("logsumexp", y.data, top + total, 8, abs(top) + total + 1, dtype, *row)
            for k, v in enumerate(z):
                below, share = v - top - total, mp.exp(v - top - total)
                off = 8 + 2 * float(top - v)  # the exponent is a rounded difference ...
                assert_close("softmax", p.data[k], share, off, share, dtype, *row)
                off += 2 * float(abs(top))  # ... and here from y, rounded beside the maximum
                assert_close("d logsumexp", g.data[k], share, off, share, dtype, *row)
                assert_close("log_softmax", log_p.data[k], below, 8, 1 - below, dtype, *row)

    check()
