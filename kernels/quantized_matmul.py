"""y = x W^T with W in quantised blocks        x: (..., n)  W: (m, n) in blocks -> (..., m)

For a few rows of x, as when a text is written token by token: each block of W is read once and
decoded on the spot, so the bytes moved are those of the blocks (0.56 a weight in Q4_0). x stays
in float32: no error but rounding's is added. Many rows are a product like any other, with W
decoded once. Accuracy in float32: n / 16 additions in a row, 16 beside each other.
"""

import math

import numpy as np

from . import dequantize
from .native import call, contiguous, runs, runs_bytes

FEW = 8  # rows; from more on decoding all of W pays


def supports(xp, x, blocks, *, format):
    return (
        x.ndim > 0
        and runs(xp, x)
        and runs_bytes(xp, blocks)
        and blocks.ndim == 2
        and format in dequantize.ORDER
        and math.prod(x.shape[:-1]) <= FEW
    )


def forward(xp, x, blocks, *, format):
    x, n, m = *contiguous(x), x.shape[-1], len(blocks)
    few = x.size // n
    y = np.empty((*x.shape[:-1], m), x.dtype)
    call("quantized_matmul", x.dtype, x, blocks, y, few, m, n, dequantize.ORDER.index(format))
    return y
