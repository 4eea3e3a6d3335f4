"""An affine map:  y = x W^T + b        x: (..., d)  W: (n, d)  b: (n,)

    dx = g W        dW = g^T x        db = sum of g over the rows

The rows of y begin as b, in cache, and the product is added to them: no pass over y is b's own.
Bytes beside the product's: none forward; backward g is read once more. Accuracy: as product.py.
"""

from . import few_rows, linear_maps
from .half import is_half, widen
from .linear_maps import rounded, rows
from .native import contiguous, runs
from .product import product


def supports(xp, x, weight, bias):
    known = runs(xp, x, bias) or (is_half(x) and is_half(bias))
    return known and bias.shape == weight.shape[:1] and linear_maps.supports(xp, x, weight)


def forward(xp, x, weight, bias):
    if few_rows.supports(xp, x, weight):
        return few_rows.products(x, weight, bias=bias)[0], None
    y = rounded(product(rows(x), weight.T, bias=contiguous(bias)[0]), x)
    return y.reshape(*x.shape[:-1], len(weight)), None


def backward(xp, needs, g, residuals, x, weight, bias):
    found = linear_maps.backward(xp, needs[:2], (g,), residuals, x, weight)
    return [*found, rounded(widen(rows(g)).sum(axis=0), x) if needs[2] else None]
