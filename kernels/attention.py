"""Attention:  O = softmax(scale Q K^T where seen) V      q: (b, h, t, d)  k, v: (b, hk, s, d)

In strips of 32 queries, so that no (t, s) matrix is ever stored (Dao et al. 2022, for caches
instead of shared memory). Keys that no query of a strip may see (causally, or by a mask of bools:
padding, segments, a past) cost nothing. For each query row only the log of its sum is kept, from
which the backward pass makes the weights again: P = exp(scale Q K^T - log_sum).

Where there is one query a head, as when a text is written, keys and values are read as they lie,
bfloat16 too; elsewhere keys are transposed once for all queries.

Bytes: the strips stay in cache; q, k, v, o are read or written once forward, and with g, dq, dk,
dv once backward. Multiplications: 2 b h t s d forward and 5 backward, half of that if causal.
A head is computed by one thread, in one order: the same bits with any number of threads.
Accuracy in float32: as the definition's, the sums over d and s being in another order.
"""

import numpy as np

from . import attention_of_one, cuda
from .half import all_half, is_half, narrow, widen
from .native import empty_rows, rows, run, runs, strides


def supports(xp, q, k, v, mask=None, *, causal=False, scale=None):
    shapes = q.ndim == 4 and k.shape == v.shape and k.ndim == 4 and q.shape[-1] == k.shape[-1]
    return (
        (runs(xp, q, k, v) or (shapes and q.shape[2] == 1 and all_half(xp, q, k, v)))
        and shapes
        and q.shape[0] == k.shape[0]
        and q.shape[1] % k.shape[1] == 0
        and (not causal or k.shape[2] >= q.shape[2])
        and (mask is None or fits(mask, q, k))
    )


def fits(mask, q, k, xp=np):
    """Bools that broadcast to (b, h, t, s); numbers that are added are left to the definition."""
    shape = (*q.shape[:3], k.shape[2])
    if not isinstance(mask, xp.ndarray) or mask.dtype != bool or mask.ndim > 4:
        return False
    return all(n in (1, m) for n, m in zip(mask.shape[::-1], shape[::-1], strict=False))


def bytes_of(mask, q, k):
    """The mask as (b, h, t, s) bytes, whose rows are contiguous, and its strides."""
    if mask is None:
        return [None, None]
    mask = np.broadcast_to(mask, (*mask.shape[:-1], k.shape[2]))  # the others need no copies
    mask = np.broadcast_to(np.ascontiguousarray(mask), (*q.shape[:3], k.shape[2]))
    return [mask, strides(mask)]


def forward(xp, q, k, v, mask=None, *, causal=False, scale=None):
    """One query a head reads a cache of bfloat16 as it is; else that is Widened's to do."""
    halves = is_half(q)
    q, k, v = rows(widen(q)), rows(k), rows(v)
    b, h, t, d = q.shape
    o = np.empty((b, t, h, d), q.dtype).swapaxes(1, 2)  # heads merge without a copy
    log_sum = np.empty((b, h, t), q.dtype)
    arrays = [x for a in (q, k, v, o) for x in (a, strides(a))]
    run("attention_forward", *arrays, *bytes_of(mask, q, k), log_sum, *sizes(q, k),
        int(causal and t > 1), scale_of(q, scale), int(halves))  # fmt: skip
    return narrow(o) if halves else o, (o, log_sum)


def backward(xp, needs, g, residuals, q, k, v, mask=None, *, causal=False, scale=None):
    halves = is_half(q)
    g, q, k, v = (rows(widen(a)) for a in (g, q, k, v))
    o, log_sum = residuals
    gradients = [empty_rows(a) for a in (q, k, v)]
    read = [x for a in (g, q, k, v, o) for x in (a, strides(a))]
    written = [x for a in gradients for x in (a, strides(a))]
    run("attention_backward", *read, *bytes_of(mask, q, k), log_sum, *written, *sizes(q, k),
        int(causal and q.shape[2] > 1), scale_of(q, scale))  # fmt: skip
    gradients = map(narrow, gradients) if halves else gradients
    return [*gradients, None][: len(needs)]  # a mask of None may have been handed in


def sizes(q, k):
    """b, h, hk, t, s, d"""
    return q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3]


def scale_of(q, scale):
    return float(q.shape[-1] ** -0.5 if scale is None else scale)


# ------------------------------------------------------------------------------------ on CUDA

THREADS = 128  # as in attention.cu
WIDTHS = (32, 64, 128)  # of a head; one in between is filled up with zeros
HALVES = {  # rows and columns of a tile, by width: as many rows as the sums leave registers for
    "forward": {32: (128, 64), 64: (64, 64), 128: (128, 32)},
    "dq": {32: (128, 64), 64: (128, 64), 128: (128, 32)},
    "dkv": {32: (128, 32), 64: (64, 64), 128: (64, 64)},
}
FLOATS = (32, 32)  # four lanes a row
SIZES = np.dtype([(name, "i4") for name in ("heads", "groups", "t", "s", "d", "causal", "vectors")])


def cuda_supports(xp, q, k, v, mask=None, *, causal=False, scale=None):
    return (
        cuda.runs(xp, q, k, v, dtypes=("float32", "float16", "bfloat16"))
        and q.ndim == k.ndim == 4
        and k.shape == v.shape
        and (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3])
        and q.shape[1] % k.shape[1] == 0
        and q.shape[3] <= WIDTHS[-1]
        and (not causal or k.shape[2] >= q.shape[2])
        and (scale is None or scale > 0)  # the greatest product is then the greatest score
        and (mask is None or fits(mask, q, k, xp))
    )


def cuda_forward(xp, q, k, v, mask=None, *, causal=False, scale=None):
    q, k, v = (cuda.rows(xp, a) for a in (q, k, v))
    if attention_of_one.fits(q, k, v, mask):
        o, log_sum = attention_of_one.forward(xp, q, k, v, mask, scale_of(q, scale))
        return o, (o, log_sum)
    o = cuda.heads(xp, q.shape, q.dtype)
    log_sum = xp.empty(q.shape[:3], np.float32)
    cuda_launch("forward", xp, q, [*cuda.views(q, k, v, o), *cuda_mask(xp, mask, q, k), log_sum],
                cuda_sizes(q, k, causal, (q, k, v)), scale)  # fmt: skip
    return o, (o, log_sum)


def cuda_backward(xp, needs, g, residuals, q, k, v, mask=None, *, causal=False, scale=None):
    g, q, k, v = (cuda.rows(xp, a) for a in (g, q, k, v))
    o, log_sum = residuals
    delta = xp.empty(log_sum.shape, np.float32)
    n = cuda_sizes(q, k, causal, (g, q, k, v))
    cuda.launch(xp, "attention", f"attention_delta<{cuda.type_of(q)}>", cuda.blocks(delta.size, 4),
                (*cuda.views(g, o), delta, n, cuda.i4(delta.size)), threads=THREADS)  # fmt: skip
    read = [*cuda.views(g, q, k, v), *cuda_mask(xp, mask, q, k), log_sum, delta]
    dq, dk, dv = (cuda.heads(xp, a.shape, a.dtype) for a in (q, k, v))
    if needs[0]:
        cuda_launch("dq", xp, q, [*read, *cuda.views(dq)], n, scale)
    if needs[1] or needs[2]:
        cuda_launch("dkv", xp, k, [*read, *cuda.views(dk, dv)], n, scale)
    return [dq, dk, dv, None][: len(needs)]  # a mask of None may have been handed in


def cuda_launch(name, xp, of, arguments, n, scale):
    """One of the three kernels; a block for each tile of rows `of` a head."""
    b, heads, length, d = of.shape
    width = width_of(d)
    rows, columns = tile(name, of.dtype.name, width)
    shared = ((1 if name == "forward" else 2) * rows + 4 * columns) * width * of.itemsize
    shared += 4 * columns * 4 if name == "dkv" else 0  # log_sum and delta
    grid = (heads, cuda.blocks(length, rows), b)
    cuda.launch(xp, "attention", spelled(name, of.dtype.name, width), grid,
                (*arguments, n, np.float32(scale_of(of, scale))),
                threads=THREADS, shared=shared)  # fmt: skip


def tile(name, dtype, width):
    return FLOATS if dtype == "float32" else HALVES[name][width]


def spelled(name, dtype, width):
    rows, columns = tile(name, dtype, width)
    return f"attention_{name}<{cuda.TYPES[dtype]},{width},{rows},{columns}>"


def width_of(d):
    return next(w for w in WIDTHS if d <= w)


def cuda_sizes(q, k, causal, known):
    """Sizes; `vectors`: whether every row begins at 16 bytes and is made of whole ones."""
    _, h, hk, t, s, d = sizes(q, k)
    even = all(n % 16 == 0 for a in known for n in (d * a.itemsize, a.data.ptr, *a.strides[:3]))
    return np.array((h, hk, t, s, d, causal and t > 1, even), SIZES)


def cuda_mask(xp, mask, q, k):
    """The mask as (b, h, t, s), whose rows are contiguous, and its Steps."""
    if mask is None:
        return [None, np.zeros((), cuda.STEPS)]
    mask = xp.broadcast_to(mask, (*mask.shape[:-1], k.shape[2]))  # the others need no copies
    mask = xp.broadcast_to(xp.ascontiguousarray(mask), (*q.shape[:3], k.shape[2]))
    return cuda.views(mask)


on_cuda = cuda.Twin(cuda_supports, cuda_forward, cuda_backward)
