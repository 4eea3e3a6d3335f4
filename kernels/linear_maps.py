"""Several linear maps of one x:  y_i = x W_i^T        x: (..., d)  W_i: (n_i, d)

    dx = sum over i of g_i W_i        dW_i = g_i^T x

As one function, so that dx is made in one array by products that add to it. Bytes beside those of
the products: none; one map after another would read and write dx twice more for each.
Accuracy and bits: as product.py.
"""

import math

from ..backend import float32_products, gemm
from . import cuda, few_rows
from .half import all_half, is_half, narrow
from .native import SINGLE, contiguous, runs
from .product import product


def supports(xp, x, *weights):
    """A few rows are few_rows.py's: there a product is not worth its packing."""
    if few_rows.supports(xp, x, *weights):
        return True
    if x.ndim < 2 or x.size < 8 * x.shape[-1] or any(w.ndim != 2 for w in weights):
        return False
    known = runs(xp, x, *weights) or all_half(xp, x, *weights)
    return known and all(w.shape[1] == x.shape[-1] for w in weights)


def forward(xp, x, *weights):
    if few_rows.supports(xp, x, *weights):
        return tuple(few_rows.products(x, *weights)), None
    flat = rows(x)
    made = (rounded(product(flat, w.T), x) for w in weights)
    return tuple(y.reshape(*x.shape[:-1], y.shape[1]) for y in made), None


def backward(xp, needs, g, residuals, x, *weights):
    flat, slopes = rows(x), [rows(part) for part in g]
    dx = None
    if needs[0]:
        for part, w in zip(slopes, weights, strict=True):
            dx = product(part, w, dx, add=dx is not None)
        dx = rounded(dx, x).reshape(x.shape)
    found = [rounded(product(part.T, flat), x) if needed else None
             for part, needed in zip(slopes, needs[1:], strict=True)]  # fmt: skip
    return [dx, *found]


def rounded(y, like):
    """y in the dtype of `like`: a bfloat16's products come in float32."""
    return narrow(y) if is_half(like) else y


def rows(x):
    """(..., d) as a matrix, contiguous."""
    return contiguous(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))[0]


# ------------------------------------------------------------------------------------ on CUDA
#
# A few rows in one launch (see few_rows.py); more by cuBLAS.


def cuda_supports(xp, x, *weights):
    in_parts = x.dtype == SINGLE and float32_products() == "high"  # as product.py does
    return (
        cuda.runs(xp, x, *weights)
        and x.ndim > 1
        and not in_parts
        and all(w.ndim == 2 and w.shape[1] == x.shape[-1] for w in weights)
    )


def cuda_forward(xp, x, *weights):
    if few_rows.cuda_supports(xp, x, *weights):
        return tuple(few_rows.cuda_products(xp, x, *weights)), None
    flat = cuda_rows(x)
    made = (gemm(flat, w.T, x.dtype) for w in weights)
    return tuple(y.reshape(*x.shape[:-1], y.shape[1]) for y in made), None


def cuda_backward(xp, needs, g, residuals, x, *weights):
    flat, slopes = cuda_rows(x), [cuda_rows(part) for part in g]
    dx = None
    if needs[0]:
        for part, w in zip(slopes, weights, strict=True):
            dx = gemm(part, w, cuda.wide(x.dtype), out=dx)  # rounded once
        dx = dx.astype(x.dtype, copy=False).reshape(x.shape)
    found = [gemm(part.T, flat, x.dtype) if needed else None
             for part, needed in zip(slopes, needs[1:], strict=True)]  # fmt: skip
    return [dx, *found]


def cuda_rows(x):
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


on_cuda = cuda.Twin(cuda_supports, cuda_forward, cuda_backward)
