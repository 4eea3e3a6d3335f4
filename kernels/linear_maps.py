"""Several linear maps of one x:  y_i = x W_i^T        x: (..., d)  W_i: (n_i, d)

    dx = sum over i of g_i W_i        dW_i = g_i^T x

As one function, so that dx is made in one array by products that add to it. Bytes beside those of
the products: none; one map after another would read and write dx twice more for each.
Accuracy and bits: as product.py.
"""

import math

import numpy as np

from .native import contiguous, runs
from .product import product


def supports(xp, x, *weights):
    """Not for a few rows (one token after another): there a product is not worth its packing."""
    return (
        x.ndim > 1
        and x.size >= 8 * x.shape[-1]
        and runs(xp, x, *weights)
        and all(w.ndim == 2 and w.shape[1] == x.shape[-1] for w in weights)
    )


def forward(xp, x, *weights):
    flat = rows(x)
    return tuple(product(flat, w.T).reshape(*x.shape[:-1], len(w)) for w in weights), None


def backward(xp, needs, g, residuals, x, *weights):
    flat, slopes = rows(x), [rows(part) for part in g]
    dx = np.empty(flat.shape, x.dtype) if needs[0] else None
    if needs[0]:
        for i, (part, w) in enumerate(zip(slopes, weights, strict=True)):
            product(part, w, dx, add=i > 0)
    found = [product(part.T, flat) if needed else None
             for part, needed in zip(slopes, needs[1:], strict=True)]  # fmt: skip
    return [None if dx is None else dx.reshape(x.shape), *found]


def rows(x):
    """(..., d) as a matrix, contiguous."""
    return contiguous(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))[0]
