"""Embedding:  y = W[i]      dW[r] = sum of g over the places where i = r      W: (v, d)  i: (...)

Forward is gather.py's. Backward adds row after row, each thread in columns of its own: without
sorting, without atomics, and in the order of the tokens: the same bits with any number of threads.
Bytes: g is read once and dW written once, and the rows that are named are read and written again.
Accuracy: that of adding up one after another.
"""

import numpy as np

from . import cuda, gather
from .half import all_half, is_half, narrow, widen
from .native import contiguous, run, runs


def supports(xp, weight, indices):
    """Of bfloat16 too: rows are taken as they are."""
    known = runs(xp, weight) or all_half(xp, weight)
    return known and weight.ndim == 2 and gather.supports(xp, weight, indices)


def forward(xp, weight, indices):
    return gather.forward(xp, weight, indices), None


def backward(xp, needs, g, residuals, weight, indices):
    g, indices = contiguous(widen(g), indices.astype(np.int64, copy=False))
    dw = np.empty(weight.shape, g.dtype)
    run("embedding_backward", g, indices, dw, indices.size, *weight.shape)
    return [narrow(dw) if is_half(weight) else dw, None]


# ------------------------------------------------------------------------------------ on CUDA


SPAN = 32  # sorted places that a block adds up at most, as in embedding.cu


def cuda_supports(xp, weight, indices):
    """The definition looks at the indices, which waits for the device; a kernel does not."""
    return (
        weight.ndim == 2
        and cuda.runs(xp, weight)
        and isinstance(indices, xp.ndarray)
        and indices.dtype.kind in "iu"
        and indices.size > 0
    )


def cuda_forward(xp, weight, indices):
    """As with cupy's take, an index beyond the table counts from its other end."""
    d, rows = weight.shape[1], indices.astype(np.int64, copy=False)
    (weight, rows), y = cuda.contiguous(xp, weight, rows), xp.empty((*rows.shape, d), weight.dtype)
    v = cuda.width(d, weight, y)
    cuda.launch(xp, "embedding", f"embedding_forward<{cuda.type_of(y)},{v}>", rows.size,
                (weight, rows, y, cuda.i8(len(weight)), cuda.i4(d)),
                threads=threads(d, v))  # fmt: skip
    return y, None


def threads(d, v):
    """As many as a row has pieces of v numbers, in whole warps."""
    return min(cuda.THREADS, 32 * cuda.blocks(d, 32 * v))


def cuda_backward(xp, needs, g, residuals, weight, indices):
    d = weight.shape[1]
    places = indices.reshape(-1).astype(np.int64) % len(weight)
    keys = places.astype(np.min_scalar_type(len(weight) - 1))  # fewer bytes to sort by
    order = xp.argsort(keys)  # cupy's is stable
    (g,), rows, dw = cuda.contiguous(xp, g), places[order], xp.zeros(weight.shape, weight.dtype)
    spans, sizes = cuda.blocks(places.size, SPAN), (cuda.i4(places.size), cuda.i4(d))
    pieces = xp.empty((spans, 2, d), cuda.wide(g.dtype))
    kind, v = cuda.type_of(g), cuda.width(d, g, dw)
    cuda.launch(xp, "embedding", f"embedding_pieces<{kind},{v}>", places.size,
                (g, order, rows, dw, pieces, *sizes), threads=threads(d, v))  # fmt: skip
    if spans > 1:
        cuda.launch(xp, "embedding", f"embedding_runs<{kind}>", spans - 1,
                    (rows, pieces, dw, *sizes))  # fmt: skip
    return [dw, None]


on_cuda = cuda.Twin(cuda_supports, cuda_forward, cuda_backward)
