"""Dropout:  y = x / (1 - p), or 0 where word i of a stream of random numbers is below 2^32 p

The words are those of Philox4x32-10, a function of key and place: the very bits of the definition,
in any order and on any thread, with nothing kept between forward and backward but the key.
Bytes: x is read and y written. Time: the ten rounds, 16 counters side by side.
"""

import numpy as np

from . import cuda
from .native import contiguous, run, runs


def supports(xp, x, *, p, key):
    return runs(xp, x)


def forward(xp, x, *, p, key):
    (x,) = contiguous(x)
    y = np.empty_like(x)
    signed = key - (1 << 64) if key >> 63 else key  # the same 64 bits
    run("dropout", x, y, x.size, int(p * 2**32), signed, float(1 / (1 - p) if p < 1 else 0.0))
    return y


# ------------------------------------------------------------------------------------ on CUDA


EACH = 8  # entries of a thread, as in dropout.cu


def cuda_supports(xp, x, *, p, key):
    return cuda.runs(xp, x)


def cuda_forward(xp, x, *, p, key):
    (x,) = cuda.contiguous(xp, x)
    y = xp.empty_like(x)
    v = cuda.width(x.size, x, y)
    threshold = np.uint32(min(int(p * 2**32), 2**32 - 1))  # the factor of p = 1 is 0 anyway
    factor = cuda.wide(x.dtype)(1 / (1 - p) if p < 1 else 0)
    grid = cuda.blocks(x.size, EACH * cuda.THREADS)
    cuda.launch(xp, "dropout", f"dropout<{cuda.type_of(x)},{v}>", grid,
                (x, y, cuda.i8(x.size), threshold, np.uint64(key), factor))  # fmt: skip
    return y


on_cuda = cuda.Twin(cuda_supports, cuda_forward)
