"""Sums of a map's units:  sums[j] = sum of weight_i x_i over the rows i of unit j    x: (n, d)

In double, whatever the rows are. Bytes: x once, and 8 for each entry of the sums, which stay in
cache. Accuracy: that of float64. Each column is added up in the rows' order by one thread: the same
bits with any number of threads.
"""

import numpy as np

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
