"""The best-matching unit:  unit = argmin_j |x - w_j|,  distance = |x - w_unit|

x: (n, d)  w: (k, d)

By the greatest score (x - c).(w - c) - |w - c|^2 / 2, c the units' mean: a matrix product whose
(n, k) entries are never written, since each tile of scores leaves only the best of each row. Of
units equally near the first is taken. Bytes: x once, w once for 32 rows, 16 for each row out.
Accuracy: the scores' as of any product, d ulp of |x - c| |w - c| at worst; |x|^2 and |w|^2 are
added up in double. Row by row: the same bits with any number of threads.

On CUDA the squares of the differences are added up themselves, in x's dtype: nothing
cancels. 3 n k d operations, of which the bytes are few.
"""

import numpy as np

from . import cuda
from .native import contiguous, level, rows, run, runs


def supports(xp, X, codebook, *, block_size=None):
    fits = X.ndim == codebook.ndim == 2 and X.shape[1] == codebook.shape[1]
    return fits and block_size is None and runs(xp, X, codebook) and level() in ("v3", "v4")


def forward(xp, X, codebook, *, block_size=None):
    X, (codebook, center) = rows(X), contiguous(codebook, codebook.mean(axis=0))
    units, distances = np.empty(len(X), np.int64), np.empty(len(X), X.dtype)
    run("best_matching_units", X, X.strides[0] // X.itemsize, codebook, center, units, distances,
        len(X), *codebook.shape)  # fmt: skip
    return units, distances


# ------------------------------------------------------------------------------------ on CUDA


TILE = 128  # rows of a block, as in best_matching_units.cu


def cuda_supports(xp, X, codebook, *, block_size=None):
    fits = X.ndim == codebook.ndim == 2 and X.shape[1] == codebook.shape[1]
    return fits and cuda.runs(xp, X, codebook, dtypes=("float32", "float64"))


def cuda_forward(xp, X, codebook, *, block_size=None):
    X, codebook = cuda.contiguous(xp, X, codebook)
    (n, d), k = X.shape, len(codebook)
    units, squares = xp.empty(n, np.int64), xp.empty(n, X.dtype)
    name = f"best_matching_units<{cuda.type_of(X)},{cuda.width(d, X, codebook)}>"
    cuda.launch(xp, "best_matching_units", name, cuda.blocks(n, TILE),
                (X, codebook, units, squares, *map(cuda.i4, (n, k, d))))  # fmt: skip
    return units, xp.sqrt(squares)


on_cuda = cuda.Twin(cuda_supports, cuda_forward)
