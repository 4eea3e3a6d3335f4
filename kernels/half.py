"""bfloat16 in the kernels: arrays become float32 before one and bfloat16 after it

A bfloat16 is the upper half of a float32, so widening is exact, and a result is rounded once, to
the nearest. `Widened(kernel)` is the kernel for arrays that are all bfloat16. Matrix products do
not need it: product.py reads bfloat16 and adds up in float32.

Bytes: 2 read and 4 written for each number on the way in, the reverse on the way out.
"""

import numpy as np

from .native import call, contiguous, library

try:
    from ml_dtypes import bfloat16
except ImportError:  # then there can be no such arrays
    BFLOAT16 = None
else:
    BFLOAT16 = np.dtype(bfloat16)


def is_half(a):
    return BFLOAT16 is not None and isinstance(a, np.ndarray) and a.dtype == BFLOAT16


def all_half(xp, *arrays):
    """Whether these are arrays of numpy, not empty, all bfloat16, and C is there to read them."""
    return xp is np and all(is_half(a) and a.size for a in arrays) and library() is not None


def widen(a):
    """bfloat16 as float32; anything else as it is."""
    return _cast("widen", a, np.dtype(np.float32)) if is_half(a) else a


def narrow(a):
    """float32 as bfloat16, to the nearest; anything else as it is."""
    known = isinstance(a, np.ndarray) and a.dtype == np.float32
    return _cast("narrow", a, BFLOAT16) if known else a


def _cast(name, a, dtype):
    """In the memory's order, so that heads which were split by a transpose stay as they lie."""
    if a.flags.c_contiguous:
        y = np.empty(a.shape, dtype)
        call(name, np.dtype(np.float32), a, y, a.size)
        return y
    order = sorted(range(a.ndim), key=lambda i: -a.strides[i])
    (x,) = contiguous(a.transpose(order))
    return _cast(name, x, dtype).transpose(sorted(range(a.ndim), key=order.__getitem__))


class Widened:
    """A kernel for bfloat16 by way of float32."""

    def __init__(self, kernel):
        self.kernel = kernel

    def supports(self, xp, *arrays, **options):
        floats = [
            a for a in arrays if getattr(a, "dtype", None) is not None and a.dtype.kind in "fV"
        ]
        if not floats or not all_half(xp, *floats):
            return False
        like = [_shape_of(a) if is_half(a) else a for a in arrays]
        return self.kernel.supports(xp, *like, **options)

    def forward(self, xp, *arrays, **options):
        y, residuals = self.kernel.forward(xp, *map(widen, arrays), **options)
        return tuple(map(narrow, y)) if isinstance(y, tuple) else narrow(y), residuals

    def backward(self, xp, needs, g, residuals, *arrays, **options):
        g = tuple(map(widen, g)) if isinstance(g, tuple) else widen(g)
        found = self.kernel.backward(xp, needs, g, residuals, *map(widen, arrays), **options)
        return [narrow(gx) for gx in found]


def _shape_of(a):
    """A float32 array of the same shape, without the memory."""
    return np.broadcast_to(np.zeros((), np.float32), a.shape)
