"""Sums of a map's units:  sums[j] = sum of weight_i x_i over the rows i of unit j    x: (n, d)

In double, whatever the rows are. Bytes: x once, and 8 for each entry of the sums, which stay in
cache. Accuracy: that of float64. Each column is added up in the rows' order by one thread: the same
bits with any number of threads.
"""

import numpy as np

from . import cuda
from .native import contiguous, rows, run, runs


def supports(xp, values, weight, units, *, k):
    known = (values,) if weight is None else (values, weight)
    return values.ndim == 2 and runs(xp, *known) and units.dtype == np.int64


def forward(xp, values, weight, units, *, k):
    values, (units,) = rows(values), contiguous(units)
    weight = None if weight is None else contiguous(weight)[0]
    sums = np.empty((k, values.shape[1]))
    run("unit_sums", values, values.strides[0] // values.itemsize, weight, units, sums,
        len(values), *sums.shape)  # fmt: skip
    return sums


# ------------------------------------------------------------------------------------ on CUDA


def cuda_supports(xp, values, weight, units, *, k):
    known = (values,) if weight is None else (values, weight)
    return values.ndim == 2 and cuda.runs(xp, *known, dtypes=("float32", "float64"))


def cuda_forward(xp, values, weight, units, *, k):
    (values,) = cuda.contiguous(xp, values)
    d, order = values.shape[1], xp.argsort(units, kind="stable")
    starts = xp.searchsorted(units[order], xp.arange(k + 1))
    sums = xp.empty((k, d))
    threads = min(256, 32 * cuda.blocks(d, 32))
    cuda.launch(xp, "unit_sums", f"unit_sums<{cuda.type_of(values)}>", k,
                (values, weight, order, starts, sums, cuda.i4(d)), threads=threads)  # fmt: skip
    return sums


on_cuda = cuda.Twin(cuda_supports, cuda_forward)
