"""A few rows times matrices, on CUDA:  y_i = x W_i^T        x: (..., d)  W_i: (n_i, d), up to three

As when a text is written token by token: the W are read once, and there is nothing else to wait
for. By cuBLAS each W would be a launch or two of its own, for tiles of 64 rows and more.
Bytes: those of the W. Accuracy: some d / 32 additions in a row in float32, 32 beside each other.
The bits of a row do not depend on how many rows there are. linear_maps.py and product.py use it.
"""

import math

from . import cuda

FEW = (1, 4, 8)  # rows; from more on tensor cores pay
MATRICES = 3
THREADS = 128


def fits(xp, x, *weights):
    return (
        len(weights) <= MATRICES
        and x.ndim > 0
        and cuda.runs(xp, x, *weights, dtypes=("float32", "float16", "bfloat16"))
        and math.prod(x.shape[:-1]) <= FEW[-1]
        and all(w.ndim == 2 and w.flags.c_contiguous and w.shape[1] == x.shape[-1] for w in weights)
    )


def products(xp, x, *weights):
    """[x W^T for each W]"""
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
