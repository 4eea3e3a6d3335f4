"""y = x W^T with W in quantised blocks        x: (..., n)  W: (m, n) in blocks -> (..., m)

For a few rows of x, as when a text is written token by token: each block of W is read once and
decoded on the spot, so the bytes moved are those of the blocks (0.56 a weight in Q4_0). x stays
in float32: no error but rounding's is added. Many rows are a product like any other, with W
decoded once. Accuracy in float32: n / 16 additions in a row, 16 beside each other.
"""

import math

import numpy as np

from . import cuda, dequantize
from .few_rows import MATRICES, MOST, split
from .native import call, contiguous, runs, runs_bytes


def supports(xp, x, blocks, *, format):
    return (
        x.ndim > 0
        and runs(xp, x)
        and runs_bytes(xp, blocks)
        and blocks.ndim == 2
        and format in dequantize.ORDER
        and math.prod(x.shape[:-1]) <= MOST
    )


def forward(xp, x, blocks, *, format):
    return products(x, [blocks], format)[0]


def products(x, several, format):
    """[x W^T for each W], up to MATRICES of them"""
    (x,) = contiguous(x)
    n, sizes = x.shape[-1], [len(blocks) for blocks in several]
    few = x.size // n
    y = np.empty(few * sum(sizes), x.dtype)
    weights = [part for blocks in several for part in (blocks, len(blocks))]
    weights += [None, 0] * (MATRICES - len(several))
    call("quantized_matmul", x.dtype, x, y, few, n, dequantize.ORDER.index(format), *weights)
    return split(y, x, sizes)


# ------------------------------------------------------------------------------------ on CUDA


CUDA_FORMATS = ("Q4_0", "Q4_1", "Q8_0")
CUDA_ROWS = 2  # of W for a warp, as in quantized_matmul.cu
CUDA_THREADS = 128


def cuda_supports(xp, x, blocks, *, format):
    return (
        x.ndim > 0
        and cuda.runs(xp, x, dtypes=("float32",))
        and cuda.runs(xp, blocks, dtypes=("uint8",))
        and blocks.ndim == 2
        and format in CUDA_FORMATS
        and blocks.shape[1] // dequantize.SIZES[format] * 32 == x.shape[-1]
        and math.prod(x.shape[:-1]) <= MOST
    )


def cuda_forward(xp, x, blocks, *, format):
    x, blocks = cuda_aligned(xp, x, 16), cuda_aligned(xp, blocks, 2)
    few, m, n = math.prod(x.shape[:-1]), len(blocks), x.shape[-1]
    y = xp.empty((*x.shape[:-1], m), x.dtype)
    cuda.launch(xp, "quantized_matmul", f"quantized_matmul<{format},{few}>",
                cuda.blocks(m, CUDA_THREADS // 32 * CUDA_ROWS),
                (x, blocks, y, cuda.i4(m), cuda.i4(n)), threads=CUDA_THREADS)  # fmt: skip
    return y


def cuda_aligned(xp, a, size):
    """a, contiguous, from an address that is a multiple of size on."""
    (a,) = cuda.contiguous(xp, a)
    return a.copy() if a.data.ptr % size else a


on_cuda = cuda.Twin(cuda_supports, cuda_forward)
