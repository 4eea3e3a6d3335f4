"""The best-matching unit:  unit = argmin_j |x - w_j|,  distance = |x - w_unit|

x: (n, d)  w: (k, d)

By the greatest score (x - c).(w - c) - |w - c|^2 / 2, c the units' mean: a matrix product whose
(n, k) entries are never written, since each tile of scores leaves only the best of each row. Of
units equally near the first is taken. Bytes: x once, w once for 32 rows, 16 for each row out.
Accuracy: the scores' as of any product, d ulp of |x - c| |w - c| at worst; |x|^2 and |w|^2 are
added up in double. Row by row: the same bits with any number of threads.
"""

import numpy as np

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
