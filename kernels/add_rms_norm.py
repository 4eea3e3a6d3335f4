"""Residual and RMSNorm:  h = x + r,  y = h / sqrt(mean(h^2) + eps) * w     x, r: (..., d)  w: (d,)

Both h and y come out. x and r have the same gradient: that of h as rms_norm.py has it, and what h
itself was sent is added in the same pass. Bytes: forward reads x and r and writes h and y,
backward reads g, gh and h and writes dx: 8 times the size of x; one after the other it would be 11.
Accuracy and bits: as rms_norm.py, whose C this is.
"""

import numpy as np

from . import cuda, rms_norm
from .native import contiguous, run, runs


def supports(xp, x, residual, weight, *, eps=1e-6):
    return (
        x.shape == residual.shape
        and runs(xp, residual)
        and (rms_norm.supports(xp, x, weight, eps=eps) and residual.dtype == x.dtype)
    )


def forward(xp, x, residual, weight, *, eps=1e-6):
    x, residual, weight = contiguous(x, residual, weight)
    h, y, scale = np.empty_like(x), np.empty_like(x), np.empty(x.size // x.shape[-1], x.dtype)
    run("rms_norm_forward", x, residual, weight, h, y, scale, scale.size, x.shape[-1], float(eps))
    return (h, y), (h, scale)


def backward(xp, needs, g, residuals, x, residual, weight, *, eps=1e-6):
    (gh, gy), (h, scale) = g, residuals
    (gh,) = contiguous(gh)
    dx, dw = rms_norm.slopes([needs[0] or needs[1], needs[2]], gy, gh, scale, h, weight)
    return [dx, dx, dw]


# ------------------------------------------------------------------------------------ on CUDA


def cuda_supports(xp, x, residual, weight, *, eps=1e-6):
    same = x.shape == residual.shape and cuda.runs(xp, x, residual, weight)
    return same and rms_norm.cuda_supports(xp, x, weight, eps=eps)


def cuda_forward(xp, x, residual, weight, *, eps=1e-6):
    x, residual, weight = cuda.contiguous(xp, x, residual, weight)
    h = xp.empty_like(x)
    y, scale = rms_norm.cuda_normed(xp, x, residual, weight, h, eps)
    return (h, y), (h, scale)


def cuda_backward(xp, needs, g, residuals, x, residual, weight, *, eps=1e-6):
    (gh, gy), (h, scale) = g, residuals
    (gh,) = cuda.contiguous(xp, gh)
    wanted = [needs[0] or needs[1], needs[2]]
    dx, dw = rms_norm.cuda_slopes(xp, wanted, gy, gh, scale, h, weight)
    return [dx, dx, dw]


on_cuda = cuda.Twin(cuda_supports, cuda_forward, cuda_backward)
