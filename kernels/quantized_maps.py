"""Several products with blocks:  y_i = x W_i^T        x: (..., n)  W_i: (m_i, n) in blocks

As quantized_matmul.py, for up to three weights in one call: for one token a map of queries, keys or
values takes no longer than calling it.
"""

from . import quantized_matmul


def supports(xp, x, several, *, format):
    known = quantized_matmul.supports
    return 0 < len(several) <= 3 and all(known(xp, x, blocks, format=format) for blocks in several)


def forward(xp, x, several, *, format):
    return quantized_matmul.products(x, several, format)
