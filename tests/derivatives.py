"""Numerical derivatives with an error bar, and the check that test_gradients.py applies."""

from itertools import pairwise

import numpy as np

import tinygrad_ml as tg
from tinygrad_ml import arrays


def slope(phi):
    """(phi'(0), its bar) by four-point central differences D4(h) = (4 D(h/2) - D(h)) / 3.

    D4 errs by O(h^4), and by rounding / h. Of several h the one is taken at which D4 moves least
    to the next (Richardson 1911); how far it moves is the bar.
    """
    steps = [2.0**-k for k in range(4, 16)]
    central = [(phi(h) - phi(-h)) / (2 * h) for h in steps]
    four_point = [(4 * b - a) / 3 for a, b in pairwise(central)]
    moves = np.abs(np.diff(four_point))
    best = int(np.argmin(moves))
    return four_point[best + 1], 4 * moves[best] + 1e-10 * abs(phi(0.0))  # 1e-10: eps / h


def check(f, points, seed):
    """Assert that f's first and second derivatives at these float64 arrays are right.

    Along a random direction v: <u, f> with u random gives a function of one number t, whose slope
    is compared with the tape's; and so does <w, J^T u> with w random, for the second order.
    Besides: the plain and the recorded backward pass agree to the bit, memory layout does not
    matter, and inputs are left as they were.
    """
    rng = np.random.default_rng(seed)
    like = lambda arrays: [
        rng.uniform(0.5, 1, a.shape) * rng.choice([-1, 1], a.shape) for a in arrays
    ]
    kept = [p.copy() for p in points]
    directions, weights = like(points), like(points)
    cotangents = like([y.data for y in _outputs(f, points)])

    def scalar(xs):
        return sum((tg.sum(y * u) for y, u in zip(_outputs(f, xs), cotangents, strict=True)), 0.0)

    def moved(t):
        return [tg.tensor(p + t * v, requires_grad=True)
                for p, v in zip(points, directions, strict=True)]  # fmt: skip

    xs = moved(0.0)
    s = scalar(xs)
    if not isinstance(s, tg.Tensor) or not s.requires_grad or not s.size:
        raise AssertionError(f"{f} gave nothing that can be differentiated")
    plain, recorded = tg.grad(s, xs), tg.grad(s, xs, create_graph=True)
    for g, p in zip(plain, points, strict=True):
        assert g.shape == p.shape
        assert g.dtype == p.dtype
    with tg.use_kernels(False):  # a kernel rounds otherwise than its definition
        s0 = scalar(xs)
        for g, h in zip(tg.grad(s0, xs), tg.grad(s0, xs, create_graph=True), strict=True):
            np.testing.assert_array_equal(g.data, h.data)
    _agrees(lambda t: _dot([y.data for y in _outputs(f, moved(t))], cotangents),
            _dot([g.data for g in plain], directions))  # fmt: skip

    def pulled(t):
        at = moved(t)
        return _dot([g.data for g in tg.grad(scalar(at), at)], weights)

    along = sum((tg.sum(g * w) for g, w in zip(recorded, weights, strict=True)), 0.0)
    second = tg.grad(along, xs) if along.requires_grad else [np.zeros(p.shape) for p in points]
    _agrees(pulled, _dot([np.asarray(h) for h in second], directions))

    turned = [tg.borrow(_reversed_in_memory(p), requires_grad=True) for p in points]
    for g, h in zip(plain, tg.grad(scalar(turned), turned), strict=True):
        np.testing.assert_allclose(h.data, g.data, rtol=1e-11, atol=1e-12)  # sums in another order
    for p, k in zip(points, kept, strict=True):
        np.testing.assert_array_equal(p, k)


def _agrees(phi, found):
    expected, bar = slope(phi)
    assert abs(found - expected) <= bar + 1e-8 * abs(expected) + 1e-11, (
        f"the tape gives {found}, differences {expected} +- {bar}"
    )


def _outputs(f, xs):
    ys = f(*[x if isinstance(x, tg.Tensor) else tg.tensor(x) for x in xs])
    ys = ys if isinstance(ys, tuple | list) else (ys,)
    return [y for y in ys if isinstance(y, tg.Tensor) and y.dtype == "float64"]


def _dot(xs, ys):
    return float(sum(np.sum(x * y) for x, y in zip(xs, ys, strict=True)))


def _reversed_in_memory(a):
    """The same numbers, with negative strides on every axis."""
    flipped = a[(slice(None, None, -1),) * a.ndim].copy()
    return arrays.array_of(flipped)[(slice(None, None, -1),) * a.ndim] if a.ndim else a
