"""A few rows times matrices:  y_i = x W_i^T        x: (..., d)  W_i: (n_i, d), up to three

As when a text is written token by token: the W are read once, and there is nothing else to wait
for. A product packs what it multiplies, which here would take longer than multiplying; and by
cuBLAS each W would be a launch or two of its own, for tiles of 64 rows and more. W is of x's dtype;
of bfloat16 too, added up in float32.
Bytes: those of the W. Accuracy: some d / 32 additions in a row in float32, 32 beside each other.
The bits of a row do not depend on how many rows there are, nor on the number of threads.
linear_maps.py and product.py use it.
"""

import math

import numpy as np

from . import cuda
from .half import all_half, is_half, narrow, widen
from .native import call, contiguous, level, runs

MOST = 8  # rows; from more on a product pays
MATRICES = 3


def shaped(x, weights):
    """Whether these are a few rows and matrices that are read as they lie."""
    return (
        0 < len(weights) <= MATRICES
        and x.ndim > 0
        and math.prod(x.shape[:-1]) <= MOST
        and all(w.ndim == 2 and w.flags.c_contiguous and w.shape[1] == x.shape[-1] for w in weights)
    )


def supports(xp, x, *weights):
    """At the base level BLAS, which has wider registers, is faster."""
    known = runs(xp, x, *weights) or all_half(xp, x, *weights)
    return known and shaped(x, weights) and level() != "base"


def products(x, *weights, bias=None):
    """[x W^T for each W]; a bias is for a single W."""
    (rows,), n = contiguous(widen(x)), x.shape[-1]
    few, sizes = x.size // n, [len(w) for w in weights]
    y = np.empty(few * sum(sizes), rows.dtype)
    given = [part for w in weights for part in (w, len(w))] + [None, 0] * (MATRICES - len(weights))
    name = "few_rows_of_halves" if is_half(x) else "few_rows"
    bias = None if bias is None else contiguous(widen(bias))[0]
    call(name, rows.dtype, rows, y, few, n, bias, *given)
    return split(narrow(y) if is_half(x) else y, x, sizes)


def split(y, x, sizes):
    """The results of matrices with so many rows each, which lie one after another."""
    few, found, start = x.size // x.shape[-1], [], 0
    for m in sizes:
        found += [y[start : start + few * m].reshape(*x.shape[:-1], m)]
        start += few * m
    return found


# ------------------------------------------------------------------------------------ on CUDA


FEW = (1, 4, MOST)  # rows that there is a kernel for
THREADS = 128


def cuda_supports(xp, x, *weights):
    known = cuda.runs(xp, x, *weights, dtypes=("float32", "float16", "bfloat16"))
    return known and shaped(x, weights)


def cuda_products(xp, x, *weights):
    (x,), n = cuda.contiguous(xp, x), x.shape[-1]
    few, missing = x.size // n, MATRICES - len(weights)
    made = [xp.empty((*x.shape[:-1], len(w)), x.dtype) for w in weights]
    lengths = [*map(len, weights), *[0] * missing]
    arrays = [x, *weights, *[None] * missing, *made, *[None] * missing]
    v, most = cuda.width(n, x, *weights), next(f for f in FEW if few <= f)
    cuda.launch(xp, "few_rows", f"few_rows<{cuda.type_of(x)},{v},{most}>",
                cuda.blocks(sum(lengths), THREADS // 32),
                (*arrays, *map(cuda.i4, (few, n, *lengths))), threads=THREADS)  # fmt: skip
    return made
