"""Cross-entropy behind a last linear layer:  L = -log softmax(x W^T)[target]

x: (..., d)  W: (v, d)  targets: (...)      dlogits = g (softmax(x W^T) - onehot(target))

Up to CHUNK logits are kept for the backward pass. More are never there at once: they are made in
chunks of rows, a second time in the backward pass, which costs 4 products instead of 3. Of each
row its greatest logit and the sum of exponentials relative to it are kept, apart: their logarithms'
sum, beside logits of 1e5, would know the probabilities to 11 digits only.

Bytes beside the products: the logits, written and read once forward, read and written backward.
Rows are summed in order, the products are those of product.py: the same bits with any number of
threads.
"""

import numpy as np

from ..backend import gemm
from . import cuda
from .half import all_half, is_half
from .linear_maps import rounded
from .native import contiguous, run, runs
from .product import product

CHUNK = 1 << 23  # logits: 32 MB in float32; smaller products would be slower


def supports(xp, x, weight, targets, *, ignore_index=-100, reduction="mean"):
    """No to whatever the definition has an error for."""
    return (
        (runs(xp, x, weight) or all_half(xp, x, weight))
        and weight.ndim == 2
        and x.shape[-1:] == weight.shape[1:]
        and isinstance(targets, np.ndarray)
        and targets.dtype.kind in "iu"
        and targets.shape == x.shape[:-1]
        and reduction in ("mean", "sum", "none")
        and ((targets == ignore_index) | ((targets >= 0) & (targets < len(weight)))).all()
    )


def forward(xp, x, weight, targets, *, ignore_index=-100, reduction="mean"):
    (rows, weight), targets = flat(x, weight), signed(targets, ignore_index)
    dtype = np.float32 if is_half(x) else x.dtype  # a loss of half types is float32
    losses, top, beyond = np.empty((3, len(rows)), dtype)
    parts, kept = chunks(len(rows), len(weight)), None
    for part in parts:
        logits = product(rows[part], weight.T)
        run("cross_entropy_forward", logits, targets[part], losses[part], top[part], beyond[part],
            *logits.shape)  # fmt: skip
        kept = logits if len(parts) == 1 else None
    if reduction == "none":
        return losses.reshape(x.shape[:-1]), (top, beyond, kept)
    total = losses.sum() / (counted(targets) if reduction == "mean" else 1)
    return np.asarray(total, dtype), (top, beyond, kept)


def backward(xp, needs, g, residuals, x, weight, targets, *, ignore_index=-100, reduction="mean"):
    (rows, weight), targets = flat(x, weight), signed(targets, ignore_index)
    top, beyond, kept = residuals
    if reduction == "mean":
        g = g / counted(targets)
    dtype = top.dtype
    (slopes,) = contiguous(np.broadcast_to(np.asarray(g, dtype), x.shape[:-1]).reshape(-1))
    dx = np.empty(rows.shape, dtype) if needs[0] else None
    dw = np.empty(weight.shape, dtype) if needs[1] else None
    for part in chunks(len(rows), len(weight)):
        logits = product(rows[part], weight.T) if kept is None else kept
        slope = logits if kept is None else np.empty_like(kept)  # a second backward may come
        run("cross_entropy_backward", logits, targets[part], top[part], beyond[part], slopes[part],
            slope, *logits.shape)  # fmt: skip
        slope = rounded(slope, x)
        if needs[0]:
            product(slope, weight, dx[part])
        if needs[1]:
            product(slope.T, rows[part], dw, add=part.start > 0)
    dx = None if dx is None else rounded(dx, x).reshape(x.shape)
    return [dx, None if dw is None else rounded(dw, x), None]


def flat(x, weight):
    return contiguous(x.reshape(-1, x.shape[-1]), weight)


def signed(targets, ignore_index, xp=np):
    """Targets as a row of int64, -1 for the ignored."""
    return xp.where(targets == ignore_index, -1, targets).astype(np.int64).reshape(-1)


def counted(targets):
    """How many targets there are to average over; 1 for none, whose sum is 0."""
    return int((targets >= 0).sum()) or 1


def chunks(rows, v, most=None):
    size = max(1, (most or CHUNK) // v)
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]


# ------------------------------------------------------------------------------------ on CUDA


CUDA_CHUNK = 1 << 29  # logits: 2 GB in float32


def cuda_supports(xp, x, weight, targets, *, ignore_index=-100, reduction="mean"):
    """The definition looks at the targets, which waits for the device; a kernel does not."""
    return (
        cuda.runs(xp, x, weight)
        and weight.ndim == 2
        and x.shape[-1:] == weight.shape[1:]
        and isinstance(targets, xp.ndarray)
        and targets.dtype.kind in "iu"
        and targets.shape == x.shape[:-1]
        and reduction in ("mean", "sum", "none")
    )


def cuda_forward(xp, x, weight, targets, *, ignore_index=-100, reduction="mean"):
    (rows, weight), targets = cuda_flat(xp, x, weight), signed(targets, ignore_index, xp)
    wide, v = cuda.wide(x.dtype), len(weight)
    losses, top, beyond = (xp.empty(len(rows), wide) for _ in range(3))
    parts, kept = chunks(len(rows), v, CUDA_CHUNK), None
    for part in parts:
        logits = gemm(rows[part], weight.T, wide)
        name = f"cross_entropy_forward<{cuda.type_of(logits)},{cuda.width(v, logits)}>"
        cuda.launch(xp, "linear_cross_entropy", name,
                    len(logits), (logits, targets[part], losses[part], top[part], beyond[part],
                                  cuda.i4(v)))  # fmt: skip
        kept = logits if len(parts) == 1 else None
    if reduction == "none":
        return losses.reshape(x.shape[:-1]), (top, beyond, kept)
    total = losses.sum()
    total = total / cuda_counted(xp, targets) if reduction == "mean" else total
    return total, (top, beyond, kept)


def cuda_backward(xp, needs, g, residuals, x, weight, targets, *, ignore_index=-100,
                  reduction="mean"):  # fmt: skip
    (rows, weight), targets = cuda_flat(xp, x, weight), signed(targets, ignore_index, xp)
    top, beyond, kept = residuals
    g = g / cuda_counted(xp, targets) if reduction == "mean" else g
    slopes = xp.broadcast_to(g.astype(top.dtype), x.shape[:-1]).reshape(-1)
    (slopes,) = cuda.contiguous(xp, slopes)
    dx, dw, v = xp.empty(rows.shape, x.dtype) if needs[0] else None, None, len(weight)
    wide = top.dtype
    parts = chunks(len(rows), v, CUDA_CHUNK)
    for part in parts:
        logits = gemm(rows[part], weight.T, wide) if kept is None else kept
        reused = kept is None and logits.dtype == x.dtype  # else a second backward may come
        slope = logits if reused else xp.empty(logits.shape, x.dtype)
        name = f"{cuda.type_of(logits)},{cuda.type_of(x)},{cuda.width(v, logits)}"
        cuda.launch(xp, "linear_cross_entropy", f"cross_entropy_backward<{name}>", len(logits),
                    (logits, targets[part], top[part], beyond[part], slopes[part], slope,
                     cuda.i4(v)))  # fmt: skip
        if needs[0]:
            dx[part] = gemm(slope, weight, x.dtype)
        if needs[1]:  # parts are added up before they are rounded
            dw = gemm(slope.T, rows[part], x.dtype if len(parts) == 1 else wide, out=dw)
    dx = None if dx is None else dx.reshape(x.shape)
    return [dx, None if dw is None else dw.astype(x.dtype, copy=False), None]


def cuda_flat(xp, x, weight):
    return cuda.contiguous(xp, x.reshape(-1, x.shape[-1]), weight)


def cuda_counted(xp, targets):
    """counted, without waiting for it."""
    return xp.maximum((targets >= 0).sum(), 1)


on_cuda = cuda.Twin(cuda_supports, cuda_forward, cuda_backward)
