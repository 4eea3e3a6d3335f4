"""check_grads: is this derivative right?

    check_grads(lambda x: (x * x).sum(), [np.ones(3)])

takes any function of Tensors and compares the tape's derivatives, first and second, by pulling
back and by pushing forward, with derivatives got by other means (oracles.py). Two ideas:

  - A tolerance is an error bar. Every oracle says how far it may be off; a difference beyond that
    is an error however small it looks, and one within it is none however large.
  - All comparisons have one form. U are cotangents (rows), V are tangents (columns): the tape
    gives (U J) V, row by row, or U (J V) in forward mode; an oracle gives J V. With few numbers
    U and V are the unit vectors, so whole Jacobians are compared; with many they are random
    directions, on all entries and on blocks, and some unit vectors.

A second derivative is the first derivative of the function x -> J(x)^T u: the same code again.
"""

import argparse
from dataclasses import dataclass, field

import numpy as np

from .. import dtypes, ops
from ..autograd import Value, grad
from ..tensor import Tensor
from ..transforms import jvp, vjp
from .oracles import EPS, STEPS, Slope, complex_step, difference, jitter, one_sided
from .strategies import KEEPING, laid_out

FULL = 64  # up to so many inputs the whole Jacobian is compared
ROUNDINGS = 64  # so many roundings in a row, all of one sign, are taken for correct arithmetic
UNDERFLOW = 1e-295  # beside the smallest doubles nothing is relative
VAGUE = 1e-3  # a bar beyond this part of the function's own size says nothing


class GradientError(AssertionError):
    """A derivative, or what a derivative must respect, is wrong. The message says all there is."""


@dataclass
class Result:
    """What was compared: entries, how close the worst came to its bar (1 is the limit)."""

    name: str = ""
    cases: int = 0
    compared: int = 0
    unknown: int = 0
    worst: float = 0.0
    orders: set = field(default_factory=set)
    dtypes: set = field(default_factory=set)
    layouts: set = field(default_factory=set)

    def add(self, other):
        """Take in the counts of another result."""
        self.cases += other.cases
        self.compared += other.compared
        self.unknown += other.unknown
        self.worst = max(self.worst, other.worst)
        for kind in ("orders", "dtypes", "layouts"):
            getattr(self, kind).update(getattr(other, kind))
        return self

    def as_dict(self):
        """The fields as numbers, strings and lists, for JSON."""
        sets = {k: sorted(getattr(self, k)) for k in ("orders", "dtypes", "layouts")}
        return {"name": self.name, "cases": self.cases, "compared": int(self.compared),
                "unknown": int(self.unknown), "worst": float(self.worst), **sets}  # fmt: skip


def check_grads(f, args, order=2, modes=("rev", "fwd"), *, reference=None, analytic=False,
                kinks=None, dtype="float64", probe=True, seed=0, rounding=ROUNDINGS, exact=True,
                name=None, repro=None):  # fmt: skip
    """Check the derivatives of f at args; GradientError if one is wrong, else a Result.

    f          a function of Tensors that returns a Tensor or a tuple of them
    args       arrays or Tensors; floating ones are differentiated, all else is passed through
    order      up to which derivative
    modes      "rev" pulls cotangents back, "fwd" pushes tangents forward
    reference  the same function of numpy arrays, written independently; it is then differentiated
               in place of f, and f's value is compared with it
    analytic   reference takes complex numbers, and is differentiable as a complex function
    kinks      where f has no derivative: numbers (of any entry), or a function of the args whose
               results change sign there. Derivatives there are held to the one-sided ones
    dtype      what floating args are cast to first; None leaves them as they are
    probe      look at points nearby too: zeros, large values, other memory layouts
    rounding   how many roundings the rules may commit (more for an ill-conditioned f)
    exact      recorded and plain backward give the same bits (False: the same numbers)
    """
    args = [_prepared(a, dtype) for a in args]
    name = name or getattr(f, "__name__", type(f).__name__)
    check = Check(f, args, modes, reference, analytic, kinks, seed, rounding, name, repro)
    with np.errstate(all="ignore"):
        check.derivatives(order)
        check.contracts(exact)
        if probe:
            check.layouts()
            for others in _probes(args, check.rng):
                near = Check(f, others, modes, reference, analytic, kinks, seed, rounding, name,
                             repro, strict=False)  # fmt: skip
                near.scale = check.scale
                near.derivatives(order if all(a.any() for a in others if _is_float(a)) else 1)
                check.result.add(near.result)
    return check.result


def _prepared(a, dtype):
    a = a.data if isinstance(a, Value) else a
    if not _is_float(a):
        return a
    return a.astype(dtypes.as_dtype(dtype), copy=False) if dtype else a


def _is_float(a):
    return isinstance(a, np.ndarray) and dtypes.is_float(a.dtype)


def _probes(args, rng):
    """The same arguments with a zero in each array, all zero, and saturated on either side."""
    signs = [rng.choice([-1, 1], np.shape(a)) if _is_float(a) else None for a in args]
    for change in (
        lambda a, s: _with_a_zero(a, rng),
        lambda a, s: np.zeros_like(a),
        lambda a, s: 1000 * s * (1 + np.abs(a)),
        lambda a, s: -1000 * s * (1 + np.abs(a)),
    ):
        changed = {id(a): change(a, s) for a, s in zip(args, signs, strict=True)
                   if _is_float(a) and a.size}  # fmt: skip
        if changed:  # an array that is passed twice stays one
            yield [changed.get(id(a), a) for a in args]


def _with_a_zero(a, rng):
    a = np.array(a)
    a.flat[rng.integers(a.size)] = 0
    return a


class Flat:
    """f as a function from one vector to another: its float arguments end to end, its outputs too.

    An array that is passed twice is one variable.
    """

    def __init__(self, f, args, reference=None):
        self.f, self.args, self.reference = _joined(f), args, reference
        self.variables = list({id(a): a for a in args if _is_float(a)}.values())
        self.x = self.flatten(self.variables)

    def flatten(self, arrays):
        parts = [np.asarray(a, dtype=np.float64).ravel() for a in arrays]
        return np.concatenate(parts) if parts else np.zeros(0)

    def split(self, x):
        """A vector as arrays of the shapes (and, if it is real, dtypes) of the variables."""
        ends = np.cumsum([a.size for a in self.variables])
        parts = np.split(x, ends[:-1]) if len(ends) else []
        for part, a in zip(parts, self.variables, strict=True):
            part = part.reshape(a.shape)
            yield part if np.iscomplexobj(x) else part.astype(a.dtype)

    def call(self, f, variables):
        """f with other variables in place of the float arguments."""
        place = {id(a): v for a, v in zip(self.variables, variables, strict=True)}
        return f(*[place.get(id(a), a) for a in self.args])

    def __call__(self, x):
        """The forward that is differentiated numerically: the reference, or else f off the tape."""
        if self.reference is not None:
            return _vector(self.call(self.reference, self.split(x)))
        return self.value(x)

    def value(self, x):
        """f itself, off the tape."""
        return _vector(self.call(self.f, map(Tensor.wrap, self.split(x))))

    def record(self, variables=None):
        """Leaves on the very memory of the variables, and f of them."""
        leaves = [Tensor.leaf(a, requires_grad=True) for a in variables or self.variables]
        return leaves, self.call(self.f, leaves)

    def pullback(self, u):
        """x -> J(x)^T u as a function of the variables, to be differentiated in its turn."""
        shape = self.call(self.f, map(Tensor.wrap, self.variables)).shape

        def pulled(*variables):
            _, pull = vjp(lambda *v: self.call(self.f, v), *variables)
            return pull(u.reshape(shape))

        return pulled

    def where(self, j):
        """The j-th number of the vector, as (number of the variable, index in it)."""
        for k, a in enumerate(self.variables):
            if j < a.size:
                return k, tuple(map(int, np.unravel_index(j, a.shape)))
            j -= a.size
        raise IndexError(j)


def _joined(f):
    """f with its tensors, if it returns several, joined end to end; others are dropped."""

    def joined(*args):
        y = f(*args)
        if not isinstance(y, tuple | list):
            return y
        parts = [p for p in y if isinstance(p, Value) and dtypes.is_float(p.dtype)]
        return ops.concatenate(*[ops.reshape(p, shape=-1) for p in parts])

    return joined


def _vector(y):
    """A function's result as one vector (of doubles, or complex)."""
    if isinstance(y, tuple | list):
        parts = [np.asarray(p.data if isinstance(p, Value) else p) for p in y]
        parts = [p for p in parts if p.dtype.kind in "fc" or dtypes.is_float(p.dtype)]
        return np.concatenate([_vector(p) for p in parts])
    y = np.asarray(y.data if isinstance(y, Value) else y)
    return y.ravel() if np.iscomplexobj(y) else y.astype(np.float64).ravel()


class Check:
    """One function at one point. `strict`: a point at which no oracle has an answer is an error."""

    def __init__(self, f, args, modes, reference, analytic, kinks, seed, rounding, name, repro,
                 strict=True):  # fmt: skip
        self.f, self.args, self.modes, self.reference = f, args, modes, reference
        self.analytic, self.kinks, self.strict = analytic, kinks, strict
        self.seed, self.rng = seed, np.random.default_rng(seed)
        self.rounding, self.name, self.repro = rounding * EPS, name, repro
        self.scale = self._scale(Flat(f, args))
        self.ordinary = {}  # of each variable, a gradient of ordinary size: what is much smaller
        # is rounding itself
        used = {str(a.dtype) for a in args if _is_float(a)}
        self.result = Result(name, cases=1, dtypes=used)

    # --- derivatives against oracles

    def derivatives(self, order):
        """Compare the value with the reference, then each derivative up to `order`."""
        flat = Flat(self.f, self.args, self.reference)
        try:
            y = flat(flat.x)
        except (ArithmeticError, ValueError, np.linalg.LinAlgError):
            if self.strict:
                raise
            return  # a probe outside the domain
        if not y.size or not flat.x.size:
            return
        noise, rough, self.first = np.abs(y), np.zeros(flat.x.size, bool), flat
        self.on_kink = self._on_kink(flat)
        for k in range(1, order + 1):
            self.result.orders.add(k)
            size, rough = self._compare(flat, k, noise, rough)
            u = self.rng.uniform(0.5, 2, y.size) * self.rng.choice([-1, 1], y.size)
            u[~np.isfinite(y)] = 0
            size[~np.isfinite(size)] = 0
            flat = Flat(flat.pullback(u), flat.variables)
            noise = np.abs(u) @ size / self._reach(flat)
            if k == 1:
                parts = enumerate(flat.split(noise))
                self.ordinary = {i: min(p[np.isfinite(p)], default=0.0) for i, p in parts}
            y = flat(flat.x)

    def _compare(self, flat, k, noise, rough):
        """(U J) V of the tape with U (J V) of an oracle. Returns f's size and its kinks."""
        leaves, y = flat.record()
        value = _vector(y)
        U = self._cotangents(value.size)
        rows = np.array([flat.flatten(self._pulled(y, leaves, u)) for u in U])
        units, scale = self._unit_tangents(flat.x, k, rows), self.scale
        wide = self._wide_tangents(flat.x.size, k, rows)
        self.jitter = jitter(flat, flat.x, wide[-1] * scale)
        slopes = [self._slope(flat, k, v, noise) for v in units * scale]
        size = self._size(flat, value, slopes, noise)
        for v, slope in zip(units, slopes, strict=True):
            if _kinked(slope, size) or self._beside_kink(flat, v * scale):
                rough = rough | (v != 0)
        wide = wide * ~rough
        V = [*(units * scale), *(wide * scale)]
        slopes += [self._slope(flat, k, v, noise) for v in wide * scale]
        if k == 1:  # of many inputs only the wide tangents move all that an output adds up
            self._value_agrees(flat, value, self._size(flat, value, slopes, noise))
        for v, slope in zip(V, slopes, strict=True):
            if "rev" in self.modes:
                self._judge(flat, k, "rev", U, _dot(rows, v), rows, v, slope, size, rough)
        if "fwd" in self.modes:
            for v, slope in list(zip(V, slopes, strict=True))[-3:]:
                _, jv = jvp(lambda *xs: flat.call(flat.f, xs), flat.variables, flat.split(v))
                self._judge(flat, k, "fwd", None, _vector(jv), None, v, slope, size, rough)
        return size, rough

    def _pulled(self, y, leaves, u):
        """J^T u for one cotangent, which is laid out in memory in one way or another."""
        u = laid_out(u.reshape(y.shape).astype(y.dtype), self.rng.choice(KEEPING[:-1]))
        return [g.data for g in grad(y, leaves, u)]

    def _cotangents(self, m):
        """Unit vectors for a few outputs; random ones, and some unit vectors, for many."""
        if m <= 12:
            return np.eye(m)
        random = self.rng.uniform(0.5, 2, (3, m)) * self.rng.choice([-1, 1], (3, m))
        return np.concatenate([random, np.eye(m)[self.rng.choice(m, 3, replace=False)]])

    def _unit_tangents(self, x, k, rows):
        """All unit vectors for a few inputs, else some; those whose gradient is not finite too."""
        n = x.size
        if n <= FULL and k == 1:
            return np.eye(n)
        picked = self.rng.choice(n, min(n, 8 if k == 1 else 2), replace=False)
        odd = np.flatnonzero(~np.isfinite(rows).all(axis=0))[:4]
        chosen = np.unique(np.concatenate([picked, odd, np.flatnonzero(self.on_kink)[:4]]))
        units = np.zeros((chosen.size, n))
        units[np.arange(chosen.size), chosen] = 1
        return units

    def _wide_tangents(self, n, k, rows):
        """Random signs on all inputs, and, where there are many, on blocks of them."""
        v = self.rng.uniform(0.5, 1, (2, n)) * self.rng.choice([-1, 1], (2, n))
        if n > FULL:
            edges = np.linspace(0, n, 9).astype(int)
            blocks = [v[0] * ((np.arange(n) >= a) & (np.arange(n) < b))
                      for a, b in zip(edges[:-1], edges[1:], strict=True)]  # fmt: skip
            v = np.concatenate([blocks, v])
        return v * (np.isfinite(rows).all(axis=0) & ~self.on_kink)

    def _scale(self, flat):
        """How far each entry moves: by its own size, or where it is 0, by that of its array."""
        scale = np.abs(flat.x)
        start = 0
        for a in flat.variables:
            part = scale[start : start + a.size]
            largest = min(part.max(initial=0), 1) or 1
            part[part < 1e-290] = largest if largest > 1e-290 else 1
            start += a.size
        scale[~np.isfinite(scale)] = 1
        return scale

    def _reach(self, flat):
        """The change of each entry that counts as a whole: its size, or its array's up to 1."""
        reach = np.abs(flat.x)
        largest = [min(np.abs(a).max(initial=0), 1) for a in flat.variables]
        reach = np.maximum(reach, np.repeat(largest, [a.size for a in flat.variables]))
        return np.where(reach > 0, reach, 1)

    def _slope(self, flat, k, v, noise):
        """What the oracles say of J v; the strongest that applies."""
        kinked = bool((self.on_kink & (v != 0)).any())
        if k == 1 and self.analytic and self.reference is not None and not kinked:
            slope = complex_step(flat, flat.x, v)
            if np.isfinite(slope.bar).all():
                return slope
        smooth = self._smooth(flat) if self.kinks is not None else None
        slope = difference(flat, flat.x, v, noise, smooth, self.jitter)
        vague = ~(slope.bar <= VAGUE * np.maximum(np.abs(slope.low), noise))
        if vague.any():
            sides = one_sided(flat, flat.x, v, self.jitter, smooth, kinked)
            vague &= sides.bar < slope.bar
            slope = Slope(*(np.where(vague, a, b) for a, b in zip(sides, slope, strict=True)))
        return slope

    def _size(self, flat, y, slopes, noise):
        """The size of what f adds up: its value, and what a relative change of an input changes."""
        known = [
            np.where(np.isfinite(s.bar), np.maximum(abs(s.low), abs(s.high)), 0) for s in slopes
        ]
        size = np.maximum.reduce([np.abs(y), noise, *known])
        size = np.where(np.isfinite(size), size, 0)
        reach = np.abs(flat.x[np.isfinite(flat.x)]).max(initial=0)
        # 0, or the square of a rounding (of a constant's variance), may be all that rounding left
        return np.where(size <= 4 * (EPS * reach) ** 2, max(size.max(), reach), size)

    def _switches(self, flat, x):
        if callable(self.kinks):
            found = self.first.call(self.kinks, flat.split(x))
            found = found if isinstance(found, tuple | list) else [found]
            return np.concatenate([np.sign(np.asarray(s, float)).ravel() for s in found])
        return np.concatenate([np.sign(x - at) for at in np.atleast_1d(self.kinks)])

    def _smooth(self, flat):
        here = self._switches(flat, flat.x)
        return lambda z: np.array_equal(self._switches(flat, z), here)

    def _beside_kink(self, flat, v):
        """Whether a kink is so close along v that no central difference keeps clear of it."""
        if self.kinks is None:
            return False
        smooth, step = self._smooth(flat), STEPS[-4] * v  # four steps make a D4 and its bar
        return not (smooth(flat.x + step) and smooth(flat.x - step))

    def _on_kink(self, flat):
        """The inputs whose least move changes a switch that is at 0."""
        if self.kinks is None:
            return np.zeros(flat.x.size, bool)
        here, found = self._switches(flat, flat.x), np.zeros(flat.x.size, bool)
        if (here == 0).any():
            step = self.scale * 1e-7
            for j in range(flat.x.size):
                moved = flat.x.copy()
                moved[j] += step[j]
                found[j] = (self._switches(flat, moved) != here)[here == 0].any()
        return found

    def _value_agrees(self, flat, y, size):
        expected = flat(flat.x)
        finite = np.isfinite(expected)
        wrong = finite & ~(np.abs(y - expected) <= self.rounding * size + UNDERFLOW)
        wrong |= ~finite & ~((y == expected) | (np.isnan(y) & np.isnan(expected)))
        if wrong.any():
            i = int(np.argmax(wrong))
            self._fail(
                f"the value, output {i}: got {float(y[i])!r}, the reference gives {float(expected[i])!r}"
            )

    def _judge(self, flat, k, mode, U, got, rows, v, slope, size, rough):
        """Raise unless each number got lies within the oracle's interval, give or take the bar."""
        reach = np.max(np.abs(v) / self._reach(flat))
        low, high, signed = slope.low, slope.high, U
        if U is not None:
            up, down = np.maximum(U, 0), np.minimum(U, 0)
            low, high = (_weighted(up, low) + _weighted(down, high),
                         _weighted(up, high) + _weighted(down, low))  # fmt: skip
            U = np.abs(U)
        terms = _weighted(U, size) * reach + np.maximum(np.abs(low), np.abs(high))
        if rows is not None:
            terms = terms + _dot(np.abs(rows), np.abs(v))
        vague = ~(slope.bar <= VAGUE * np.maximum(size, np.abs(slope.low)))
        bar = _weighted(U, np.where(vague, np.inf, slope.bar))
        tolerance = bar + self.rounding * np.where(np.isfinite(terms), terms, 0) + UNDERFLOW
        known = np.isfinite(bar)
        largest = max(np.max(size, initial=0), np.nanmax(np.abs(slope.low), initial=0))
        useless = np.isfinite(slope.bar) & (slope.bar > VAGUE * largest)
        if useless.any() and self.strict and self.kinks is None and not rough.any():
            self._fail(self._inconclusive(flat, k, v, slope, useless))
        error = np.maximum(np.maximum(low - got, got - high), 0)
        wrong = known & ~(error <= tolerance)
        if vague.any():  # 0 times an infinite derivative
            wrong &= np.isfinite(got)
        self.result.compared += int(known.sum())
        self.result.unknown += int((~known).sum())
        if wrong.any():
            worst = int(
                np.argmax(np.where(wrong, np.nan_to_num(error / tolerance, nan=np.inf), -1))
            )
            u = np.eye(1, got.size, worst)[0] if signed is None else signed[worst]
            self._fail(self._explain(flat, k, mode, u, got[worst], low[worst], high[worst],
                                     tolerance[worst], v))  # fmt: skip
        ratio = error[known] / np.maximum(tolerance[known], 5e-324)
        self.result.worst = max(self.result.worst, np.nanmax(ratio, initial=0))

    # --- contracts beyond the numbers

    def contracts(self, exact=True):
        """What holds of every derivative: it changes nothing, owns its memory, is linear in u."""
        flat = Flat(self.f, self.args)
        before = [a.tobytes() for a in flat.variables]
        leaves, y = flat.record()
        if not isinstance(y, Value):
            self._fail(f"the function returned {type(y).__name__}, expected a Tensor")
        u = self._random(y)
        kept = u.copy()
        first = [g.data for g in grad(y, leaves, u)]
        for a, g, k in zip(flat.variables, first, range(len(first)), strict=True):
            if g.shape != a.shape or g.dtype != a.dtype:
                self._fail(f"the gradient of variable {k} is {g.shape} {g.dtype}, "
                           f"of a variable that is {a.shape} {a.dtype}")  # fmt: skip
        if u.tobytes() != kept.tobytes():
            self._fail("the backward pass changed its cotangent")
        if [a.tobytes() for a in flat.variables] != before:
            self._fail("an input was changed")
        for k, g in enumerate(first):
            if any(np.shares_memory(g, other) for other in (u, *flat.variables, *first[:k])):
                self._fail(f"the gradient of variable {k} shares memory with another array")
        self._repeats(flat, y, leaves, u, first, exact)
        self._is_linear(flat, y, leaves, u, first)
        self._reaches_what_is_behind(flat, y, u, first)

    def _random(self, y):
        u = self.rng.uniform(0.5, 2, y.shape) * self.rng.choice([-1, 1], y.shape)
        return np.asarray(u, dtype=np.float64).astype(y.dtype)

    def _repeats(self, flat, y, leaves, u, first, exact):
        """The same bits from a second run, and from the backward pass that is itself recorded."""
        again, z = flat.record()
        for what, found in (
            ("a second run", grad(z, again, u)),
            ("create_graph=True", grad(y, leaves, u, create_graph=True)),
        ):
            for k, (g, h) in enumerate(zip(first, found, strict=True)):
                same = np.array_equal(g, h.data, equal_nan=True)
                if not same and (exact or not self._close(k, g, h.data)):
                    self._fail(f"{what} gives another gradient of variable {k}: "
                               f"{_difference(g, h.data)}")  # fmt: skip

    def _is_linear(self, flat, y, leaves, u, first):
        """pull(0) = 0, pull(c u) = c pull(u), pull(u + 2 w) = pull(u) + 2 pull(w)."""
        w = self._random(y)
        tiny = 2.0**-60 if y.dtype == np.float64 else 0.125
        other = [g.data for g in grad(y, leaves, w)]
        for text, cotangent, expected in (
            ("0", 0 * u, [0 * g for g in first]),
            ("c u", tiny * u, [tiny * g for g in first]),
            ("u + 2 w", u + 2 * w, [g + 2 * h for g, h in zip(first, other, strict=True)]),
        ):
            found = [g.data for g in grad(y, leaves, cotangent.astype(y.dtype))]
            size = [np.abs(g) + np.abs(h) for g, h in zip(first, other, strict=True)]
            if text == "c u":
                size = [tiny * s for s in size]
            for k, (g, h, s) in enumerate(zip(found, expected, size, strict=True)):
                if not self._close(k, g, h, s):
                    self._fail(f"not linear in the cotangent: pull({text}) of variable {k}: "
                               f"{_difference(g, h)}")  # fmt: skip

    def _reaches_what_is_behind(self, flat, y, u, first):
        """The same gradient where the inputs are computed and the output has another user."""
        leaves = [Tensor.leaf(a, requires_grad=True) for a in flat.variables]
        inner = flat.call(flat.f, [ops.neg(ops.neg(x)) for x in leaves])
        beside = Tensor.leaf(np.zeros(y.shape, y.dtype), requires_grad=True)
        *found, direct = grad(inner + beside, [*leaves, beside], u)
        for k, (g, h) in enumerate(zip(first, found, strict=True)):
            if not self._close(k, g, h.data):
                self._fail(f"another gradient of variable {k} when it is a computed value: "
                           f"{_difference(g, h.data)}")  # fmt: skip
        if not np.array_equal(direct.data, u):
            self._fail("the backward pass changed its cotangent, which another operation got too")

    def layouts(self):
        """The same gradient whatever the layout of the inputs and the cotangent in memory."""
        flat = Flat(self.f, self.args)
        leaves, y = flat.record()
        u = self._random(y)
        first = [g.data for g in grad(y, leaves, u)]
        for layout in ("fortran", "reversed", "strided", "read-only"):
            self.result.layouts.add(layout)
            others = [laid_out(a, layout) for a in flat.variables]
            leaves, z = flat.record(others)
            found = grad(z, leaves, laid_out(u, layout) if layout != "read-only" else u)
            for k, (g, h) in enumerate(zip(first, found, strict=True)):
                if not self._close(k, g, h.data):
                    self._fail(f"another gradient of variable {k} in the layout {layout}: "
                               f"{_difference(g, h.data)}")  # fmt: skip

    def _close(self, k, g, h, size=None):
        """Whether two gradients of variable k are equal to rounding; NaN and inf in one place."""
        finite = np.isfinite(g) & np.isfinite(h)
        eps = dtypes.finfo(g.dtype).eps / EPS if g.size else 1
        size = np.maximum(np.abs(g), np.abs(h)) if size is None else size
        largest = np.max(np.where(np.isfinite(size), size, 0), initial=self.ordinary.get(k, 0.0))
        # a rounding among subnormals errs by up to half the least of them      Higham 2002, eq. 2.8
        least = 0.5 * self.rounding / EPS * float(dtypes.finfo(g.dtype).smallest_subnormal)
        near = np.abs(g - h) <= self.rounding * float(eps) * largest + least
        if np.isnan(g).any() or np.isnan(h).any() or not finite.all():
            return bool(np.all(near | ~finite))
        return bool(near.all())

    # --- what is said when something is wrong

    def _explain(self, flat, k, mode, u, got, low, high, tolerance, v):
        """Which number is wrong, what each oracle says of it, and where."""
        moved = np.flatnonzero(v)
        scale = v[moved[0]] if moved.size == 1 else 1.0
        at = np.flatnonzero(u)
        y = "y" if at.size != 1 else f"y[{at[0]}]"
        if moved.size == 1:
            k_variable, index = flat.where(moved[0])
            x = float(flat.x[moved[0]])
            where = f"d {y} / d x{k_variable}{list(index) or ''} at {x!r}"
        else:
            where = f"the derivative of {y} in a random direction over {moved.size} inputs"
        expected = (
            f"{float(low / scale)!r}"
            if low == high
            else f"[{low / scale:.12g}, {high / scale:.12g}]"
        )
        says = [f"  {name:<13}{value}" for name, value in self._oracles(flat, k, u, v, scale)]
        return "\n".join([
            f"{where}, order {k}, mode {mode}",
            f"  {'got':<13}{float(got / scale)!r}",
            f"  {'expected':<13}{expected} ± {abs(tolerance / scale):.2g}",
            *says,
        ])  # fmt: skip

    def _oracles(self, flat, k, u, v, scale):
        """Every oracle's value of u . J v, for the report."""
        if self.analytic and self.reference is not None and k == 1:
            yield (
                "complex step",
                f"{_weighted(u[None], complex_step(flat, flat.x, v).low)[0] / scale:.17g}",
            )
        s = difference(flat, flat.x, v)
        bar = _weighted(np.abs(u)[None], s.bar)[0] / abs(scale)
        yield "difference", f"{_weighted(u[None], s.low)[0] / scale:.17g} ± {bar:.2g}"
        try:
            _, jv = jvp(lambda *xs: flat.call(flat.f, xs), flat.variables, flat.split(v))
            yield "tape's jvp", f"{_weighted(u[None], _vector(jv))[0] / scale:.17g}"
        except Exception as error:  # the report of one error must not end in another
            yield "tape's jvp", repr(error)

    def _inconclusive(self, flat, k, v, slope, vague):
        i = int(np.argmax(vague & np.isfinite(slope.bar)))
        where = [flat.where(j) for j in np.flatnonzero(v)[:3]]
        return (
            f"no numerical derivative of output {i} at order {k} along {where}: "
            f"{slope.low[i]:.6g} ± {slope.bar[i]:.2g}. Is a kink or a jump close by (declare it: "
            "kinks=...), or does the function lose all its digits here?"
        )

    def _fail(self, text):
        shown = ", ".join(
            f"{a.shape} {a.dtype}" if isinstance(a, np.ndarray) else repr(a)[:40] for a in self.args
        )
        message = f"{self.name}: {text}\n  {'args':<13}{shown}\n  {'seed':<13}{self.seed}"
        raise GradientError(f"{message}\n{self.repro or self._repro()}")

    def _repro(self):
        small = sum(a.size for a in self.args if isinstance(a, np.ndarray)) <= 32
        args = ", ".join(_as_code(a) if small else "..." for a in self.args)
        return f"  {'repro':<13}check_grads({self.name}, [{args}], seed={self.seed})"


def table(rows):
    """Results (as dicts) as lines of text: function, cases, comparisons, worst error over bar."""
    lines = [f"{'function':<42}{'cases':>6}{'compared':>10}{'unknown':>9}{'error/bar':>11}  orders  "
             "dtypes   layouts"]  # fmt: skip
    for r in sorted(rows, key=lambda r: r["name"]):
        orders = ",".join(map(str, r["orders"]))
        lines.append(f"{r['name']:<42}{r['cases']:>6}{r['compared']:>10}{r['unknown']:>9}"
                     f"{r['worst']:>11.2g}  {orders:<8}{','.join(r['dtypes']):<9}"
                     f"{','.join(r['layouts'])}")  # fmt: skip
    return "\n".join(lines)


def main(argv=None):
    """`tinygrad-ml gradcheck [OP ...]`: check registered functions, print a table; 0: all pass."""
    from . import registry

    parser = argparse.ArgumentParser("tinygrad-ml gradcheck", description=main.__doc__)
    parser.add_argument("op", nargs="*", help="names, as in 'softmax' or 'linalg.det'; all if none")
    parser.add_argument("--profile", choices=list(registry.PROFILES), default="ci")
    parser.add_argument("--seed", type=int, help="one case only, as a report names it")
    asked = parser.parse_args(argv)
    try:
        specs = [registry.find(name) for name in asked.op or sorted(registry.registry())]
    except KeyError as error:
        parser.error(error.args[0])
    rows, wrong = [], 0
    for spec in specs:
        try:
            rows.append(registry.check_op(spec, seed=asked.seed, profile=asked.profile).as_dict())
        except GradientError as error:
            wrong += 1
            print(f"{error}\n")
    print(table(rows))
    print(f"{len(rows)} right, {wrong} wrong")
    return 1 if wrong else 0


def _weighted(U, a):
    """U a, where 0 times infinity is 0. None is the unit matrix."""
    if U is None:
        return a
    with np.errstate(all="ignore"):
        return np.where(U == 0, 0, U * a).sum(axis=-1)


def _dot(rows, v):
    """rows v, where what v leaves out does not count."""
    return np.where(v == 0, 0, rows * v).sum(axis=-1)


def _kinked(slope, size):
    """Whether left and right differ, or nothing is known."""
    bar = slope.bar + 1e-6 * size
    return bool(np.any(slope.high - slope.low > bar) or np.any(~(slope.bar <= VAGUE * size)))


def _difference(g, h):
    """The first entry in which two arrays differ, in words."""
    differ = ~((g == h) | ((g != g) & (h != h)))
    i = tuple(map(int, np.argwhere(differ)[0])) if differ.any() else ()
    return f"{g[i].item()!r} and {h[i].item()!r} at {list(i)}"


def _as_code(a):
    if not isinstance(a, np.ndarray):
        return repr(a)
    return f"np.array({np.array2string(a, separator=', ', floatmode='unique')}, dtype='{a.dtype}')"
