"""Sums of squares:  sum x^2 over all arrays, in float64, for the norm of all gradients

Bytes: each array is read once. One sum comes back for each BLOCK of entries, made in an order that
depends on the length alone: the same bits with any number of threads. Accuracy: that of float64.
"""

import ctypes

import numpy as np

from . import cuda
from .half import all_half, widen
from .native import address, call, runs

BLOCK = 16384  # as in squares.c


def supports(xp, arrays, *, scale):
    known = scale == 1.0 and len(arrays) > 0 and (runs(xp, *arrays) or all_half(xp, *arrays))
    return known and all(a.flags.c_contiguous for a in arrays)


def forward(xp, arrays, *, scale):
    arrays = [widen(a) for a in arrays]
    lengths = [a.size for a in arrays]
    found = np.empty(sum(-(-n // BLOCK) for n in lengths))
    pointers = (ctypes.c_void_p * len(arrays))(*map(address, arrays))
    counts = (ctypes.c_int64 * len(arrays))(*lengths)
    call("squares", arrays[0].dtype, pointers, counts, len(arrays), found)
    return found


# ------------------------------------------------------------------------------------ on CUDA


def cuda_supports(xp, arrays, *, scale):
    return scale == 1.0 and cuda.runs(xp, *arrays)


def cuda_forward(xp, arrays, *, scale):
    arrays = cuda.contiguous(xp, *arrays)
    found, done = xp.empty(sum(cuda.blocks(a.size, cuda.CHUNK) for a in arrays)), 0
    for table, count, n in cuda.tables(arrays):
        cuda.launch(xp, "squares", f"squares<{cuda.type_of(arrays[0])}>", n,
                    (table, count, found[done:]))  # fmt: skip
        done += n
    return found


on_cuda = cuda.Twin(cuda_supports, cuda_forward)
