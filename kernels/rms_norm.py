"""RMSNorm:  y = x / sqrt(mean(x^2) + eps) * w        x: (..., d)  w: (d,)

With k = (mean(x^2) + eps)^(-1/2), kept for each row:

    dx = k (g w - x k^2 mean(g w x))        dw = sum over rows of g x k

Bytes: forward reads x and writes y (a row is in cache for its second pass), backward reads g and
x and writes dx: 5 times the size of x in all, where the definition moves some 25.
dw is summed in blocks of rows whose number depends on the shape alone: the same bits with any
number of threads. Accuracy in float32: within 4 ulp of the row's largest entry for d <= 4096.
"""

import numpy as np

from . import cuda
from .native import contiguous, run, runs

BLOCKS = 32  # of rows; each has a partial sum of dw


def supports(xp, x, weight, *, eps=1e-6):
    return x.ndim > 0 and weight.shape == x.shape[-1:] and runs(xp, x, weight)


def forward(xp, x, weight, *, eps=1e-6):
    x, weight = contiguous(x, weight)
    y, scale = np.empty_like(x), np.empty(x.size // x.shape[-1], x.dtype)
    run("rms_norm_forward", x, None, weight, None, y, scale, scale.size, x.shape[-1], float(eps))
    return y, scale


def backward(xp, needs, g, scale, x, weight, *, eps=1e-6):
    return slopes(needs, g, None, scale, x, weight)


def slopes(needs, g, gh, scale, x, weight):
    """[dx, dw], of which those that are needed; gh (or None) is added to dx."""
    g, x, weight = contiguous(g, x, weight)
    dx = np.empty_like(x) if needs[0] else None
    dw = np.empty_like(weight) if needs[1] else None
    rows, d = scale.size, x.shape[-1]
    block = -(-rows // BLOCKS)
    partial = np.empty((-(-rows // block), d), x.dtype) if needs[1] else None
    run("rms_norm_backward", g, gh, x, weight, scale, dx, dw, partial, rows, d, block)
    return [dx, dw]


# ------------------------------------------------------------------------------------ on CUDA


CUDA_BLOCKS = 512  # of at least four rows; each has a partial sum of dw


def cuda_supports(xp, x, weight, *, eps=1e-6):
    return x.ndim > 0 and weight.shape == x.shape[-1:] and cuda.runs(xp, x, weight)


def cuda_forward(xp, x, weight, *, eps=1e-6):
    x, weight = cuda.contiguous(xp, x, weight)
    return cuda_normed(xp, x, None, weight, None, eps)


def cuda_normed(xp, x, residual, weight, h, eps):
    """(y, scale); h = x + residual is written if there is a residual."""
    d, wide = x.shape[-1], cuda.wide(x.dtype)
    y, scale = xp.empty_like(x), xp.empty(x.size // d, wide)
    v = cuda.width(d, x, residual, weight, h, y)
    cuda.launch(xp, "rms_norm", f"rms_norm_forward<{cuda.type_of(x)},{v}>", scale.size,
                (x, residual, weight, h, y, scale, cuda.i4(d), wide(eps)))  # fmt: skip
    return y, scale


def cuda_backward(xp, needs, g, scale, x, weight, *, eps=1e-6):
    return cuda_slopes(xp, needs, g, None, scale, x, weight)


def cuda_slopes(xp, needs, g, gh, scale, x, weight):
    """[dx, dw], of which those that are needed; gh (or None) is added to dx."""
    g, x, weight = cuda.contiguous(xp, g, x, weight)
    d, wide, kind = x.shape[-1], cuda.wide(x.dtype), cuda.type_of(x)
    blocks = min(cuda.blocks(scale.size, 4), CUDA_BLOCKS)
    dx = xp.empty_like(x) if needs[0] else None
    partial = xp.empty((blocks, d), wide) if needs[1] else None
    v = cuda.width(d, x, g, gh, weight, dx)
    cuda.launch(xp, "rms_norm", f"rms_norm_backward<{kind},{v}>", blocks,
                (g, gh, x, weight, scale, dx, partial, cuda.i4(scale.size), cuda.i4(d)),
                shared=d * scale.itemsize)  # fmt: skip
    if not needs[1]:
        return [dx, None]
    dw = xp.empty_like(weight)
    cuda.launch(xp, "rms_norm", f"sum_rows<{kind}>", cuda.blocks(d, 32),
                (partial, dw, cuda.i4(blocks), cuda.i4(d)), threads=1024)  # fmt: skip
    return [dx, dw]


on_cuda = cuda.Twin(cuda_supports, cuda_forward, cuda_backward)
