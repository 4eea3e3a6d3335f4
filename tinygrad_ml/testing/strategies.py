"""Inputs that find mistakes: shapes, values and memory layouts.

Every input is made from a `Draw`, which answers two questions: "which of these?" (pick) and
"which numbers?" (rng). A Draw made from a seed answers by itself, so a seed names a case on every
machine; a Draw made from Hypothesis asks Hypothesis, so that a failure is shrunk. Choices are
written simplest first, because shrinking goes towards the first.
"""

from typing import NamedTuple

import numpy as np


class Domain(NamedTuple):
    """Where a function is defined and what is worth trying there.

    low, high  the ordinary range
    special    single values: kinks, zeros, saturation
    scales     factors by which a whole array is multiplied
    """

    low: float
    high: float
    special: tuple = ()
    scales: tuple = ()


ZEROS = (0.0, -0.0, 5e-324, 1e-310)  # both zeros, and two subnormals
REAL = Domain(
    -3, 3, (*ZEROS, 1.0, 40.0, -40.0, 100.0, -100.0, 800.0, -800.0), (1e-30, 1e-8, 1e8, 1e30)
)
MILD = Domain(-3, 3, (0.0, -0.0, 1.0, -1.0), (1e-8, 1e3))
POSITIVE = Domain(0.1, 5, (1.0, 1e-30, 1e30), (1e-30, 1e-8, 1e8, 1e30))
FLAVOURS = ("plain", "plain", "ties", "special", "special", "scaled")


class Draw:
    """Choices and numbers from a seed."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.layouts, self.notes = set(), []

    def pick(self, choices):
        """One of the choices."""
        return choices[self.rng.integers(len(choices))]

    def shape(self, least=0, most=3, zero=True):
        """A shape of so many axes; now and then with an axis of length 1 or 0."""
        ndim = self.pick(range(least, most + 1))
        lengths = [2, 3, 1, 4] * 3 + ([0] if zero else [])
        return tuple(self.pick(lengths) for _ in range(ndim))

    def broadcastable(self, shape):
        """A shape that broadcasts with `shape`: axes left out in front, or of length 1."""
        shape = shape[self.pick([0, 0, 0, 1, 2]) :]
        return tuple(self.pick([n, n, 1]) for n in shape)

    def array(self, shape, domain=REAL, layout=None, flavours=FLAVOURS):
        """An array of float64 with values from the domain, laid out in one way or another."""
        flavour = self.pick(flavours)
        values = self.rng.uniform(domain.low, domain.high, shape)
        if flavour == "ties":
            values = np.round(values * 2) / 2
            values = np.clip(values, np.ceil(2 * domain.low) / 2, np.floor(2 * domain.high) / 2)
            if domain.low > 0:
                values = np.maximum(values, 0.5)
        if flavour == "special" and domain.special:
            few = self.rng.choice(domain.special, 3)  # lest one that overflows be in every array
            chosen = self.rng.choice(few, shape)
            values = np.where(self.rng.random(shape) < 0.6, chosen, values)
        if flavour == "scaled" and domain.scales:
            values = values * self.pick(domain.scales)
        others = LAYOUTS if "ties" in flavours else KEEPING  # a repeated row is a tie
        layout = layout or self.pick(["contiguous", "contiguous", *others])
        self.layouts.add(layout)
        array = laid_out(np.asarray(values, dtype=np.float64), layout)
        self.notes.append(f"{array.shape} {flavour} {layout}")
        return array

    def axis(self, ndim):
        """One axis, counted from the front or the back."""
        return self.pick(range(-ndim, ndim))

    def axes(self, ndim):
        """None, one axis or several: what a reduction takes."""
        if ndim == 0:
            return None
        several = tuple(sorted({self.axis(ndim) % ndim, self.axis(ndim) % ndim}))
        return self.pick([None, self.axis(ndim), several])


class HypothesisDraw(Draw):
    """Choices by Hypothesis, numbers from a seed that it chooses."""

    def __init__(self, draw):
        from hypothesis import strategies as st

        super().__init__(draw(st.integers(0, 2**16)))
        self.sampled, self.draw = st.sampled_from, draw

    def pick(self, choices):
        return self.draw(self.sampled(list(choices)))


KEEPING = ("fortran", "transposed", "reversed", "strided", "read-only")  # these keep the values
LAYOUTS = (*KEEPING, "repeated")


def laid_out(a, layout):
    """The same values (except "repeated") in another memory layout."""
    if layout == "fortran":
        return np.asfortranarray(a) if a.ndim else a
    if layout == "transposed":
        return np.ascontiguousarray(a.T).T if a.ndim else a
    if layout == "reversed":
        index = (slice(None, None, -1),) * a.ndim
        return np.ascontiguousarray(a[index])[index] if a.ndim else a
    if layout == "strided":
        wide = np.zeros(tuple(2 * n for n in a.shape), a.dtype)
        index = (slice(None, None, 2),) * a.ndim
        wide[index] = a
        return wide[index] if a.ndim else wide
    if layout == "repeated" and a.ndim and a.shape[0]:
        return np.broadcast_to(a[:1], a.shape)  # stride 0: one row seen many times
    if layout == "read-only":
        a = a.copy()
        a.flags.writeable = False
    return a
