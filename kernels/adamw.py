"""AdamW, in place:  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = keep w - rate m / spread

keep = 1 - lr decay,  rate = lr / (1 - b1^t),  spread = sqrt(v / (1 - b2^t)) + eps

All parameters in one call, since most of a model's are small. Bytes: reads w, g, m, v and writes
w, m, v once: 28 for each float32 parameter. Accuracy in float32: within 4 ulp of w, and of the
step. Entry by entry: the same bits with any number of threads.
"""

import ctypes

import numpy as np

from . import cuda
from .native import address, call, runs


class Parameter(ctypes.Structure):
    """As in adamw.c."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("w", "m", "v", "g")]
        + [(name, ctypes.c_int64) for name in ("n", "first")]
        + [(name, ctypes.c_double) for name in ("keep", "rate", "correction")]
    )


def supports(xp, updates, *, betas, eps):
    return runs(xp, *[a for u in updates for a in (u.w, u.g, *u.slots)]) and all(
        a.shape == u.w.shape and a.flags.c_contiguous and (a is u.g or a.flags.writeable)
        for u in updates
        for a in (u.w, u.g, *u.slots)
    )


def forward(xp, updates, *, betas, eps):
    b1, b2 = map(float, betas)
    parameters = (Parameter * len(updates))(*[row(u, b1, b2) for u in updates])
    numbers = (b1, 1 - b1, b2, 1 - b2, float(eps))
    call("adamw_step", updates[0].w.dtype, parameters, len(updates), *numbers)


def row(u, b1, b2):
    pointers = [address(a) for a in (u.w, *u.slots, u.g)]
    return Parameter(*pointers, u.w.size, 0, *u.factors(b1, b2))


# ------------------------------------------------------------------------------------ on CUDA


MOST = 45  # parameters in one launch, as in adamw.cu: a table of less than 4 KB
CHUNK = 4096  # entries of a block


def cuda_supports(xp, updates, *, betas, eps):
    """Gradients of the weights' dtype, or of halves that the weights are left in, too."""
    wide = [a for u in updates for a in (u.w, *u.slots)]
    gradients = [u.g for u in updates]
    narrow = [u.rounded for u in updates if u.rounded is not None]
    return (
        cuda.runs(xp, *wide, dtypes=("float32", "float64"))
        and (
            cuda.runs(xp, *wide, *gradients) or cuda.runs(xp, *gradients, *narrow, dtypes=cuda.HALF)
        )
        and (not narrow or gradients[0].dtype == narrow[0].dtype)
        and all(a.shape == u.w.shape for u in updates for a in (u.g, *u.slots))
        and all(a.flags.c_contiguous for a in (*wide, *narrow))
    )


def cuda_forward(xp, updates, *, betas, eps):
    b1, b2 = map(float, betas)
    for i in range(0, len(updates), MOST):
        some = [u._replace(g=cuda.contiguous(xp, u.g)[0]) for u in updates[i : i + MOST]]
        table, blocks = cuda_table(some, b1, b2)
        kinds = f"{cuda.type_of(some[0].w)},{cuda.type_of(some[0].g)}"
        cuda.launch(xp, "adamw", f"adamw_step<{kinds}>", blocks,
                    (table, cuda.i4(len(some)), np.float64(b1), np.float64(b2),
                     np.float64(eps)))  # fmt: skip


def cuda_table(updates, b1, b2):
    """The Table of adamw.cu, which cupy hands over by value, and the number of blocks."""
    table, first = np.zeros((), [("of", ROW, MOST)]), 0
    for i, u in enumerate(updates):
        arrays = (u.w, *u.slots, u.g, u.rounded)
        pointers = [0 if a is None else a.data.ptr for a in (*arrays, u.numbers)]
        table["of"][i] = (*pointers[:-1], u.w.size, first, *u.factors(b1, b2), pointers[-1])
        first += cuda.blocks(u.w.size, CHUNK)
    return table, first


ROW = np.dtype([(name, "u8") for name in ("w", "m", "v", "g", "rounded")]
               + [("n", "i8"), ("first", "i8")]
               + [(name, "f8") for name in ("keep", "rate", "correction")]
               + [("numbers", "u8")])  # fmt: skip
on_cuda = cuda.Twin(cuda_supports, cuda_forward)
