"""Several products with blocks:  y_i = x W_i^T        x: (..., n)  W_i: (m_i, n) in blocks

As quantized_matmul.py, for up to three weights in one call: for one token, to multiply by those of
queries, keys and values takes no longer than the calls. Bytes and accuracy: as there.
"""

from . import quantized_matmul
from .few_rows import MATRICES


def supports(xp, x, several, *, format):
    known = (quantized_matmul.supports(xp, x, blocks, format=format) for blocks in several)
    return 0 < len(several) <= MATRICES and all(known)


def forward(xp, x, several, *, format):
    return quantized_matmul.products(x, several, format)
