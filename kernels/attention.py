"""Attention:  O = softmax(scale Q K^T where seen) V      q: (b, h, t, d)  k, v: (b, hk, s, d)

In strips of 32 queries, so that no (t, s) matrix is ever stored (Dao et al. 2022, for caches
instead of shared memory). Keys that no query of a strip may see (causally, or by a mask of bools:
padding, segments, a past) cost nothing. For each query row only the log of its sum is kept, from
which the backward pass makes the weights again: P = exp(scale Q K^T - log_sum).

Bytes: the strips stay in cache; q, k, v, o are read or written once forward, and with g, dq, dk,
dv once backward. Multiplications: 2 b h t s d forward and 5 backward, half of that if causal.
A head is computed by one thread, in one order: the same bits with any number of threads.
Accuracy in float32: as the definition's, the sums over d and s being in another order.
"""

import numpy as np

from .native import rows, run, runs, strides


def supports(xp, q, k, v, mask=None, *, causal=False, scale=None):
    shapes = q.ndim == 4 and k.shape == v.shape and k.ndim == 4 and q.shape[-1] == k.shape[-1]
    return (
        runs(xp, q, k, v)
        and shapes
        and q.shape[0] == k.shape[0]
        and q.shape[1] % k.shape[1] == 0
        and (not causal or k.shape[2] >= q.shape[2])
        and (mask is None or fits(mask, q, k))
    )


def fits(mask, q, k):
    """Bools that broadcast to (b, h, t, s); numbers that are added are left to the definition."""
    shape = (*q.shape[:3], k.shape[2])
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim > 4:
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
    q, k, v = rows(q), rows(k), rows(v)
    b, h, t, d = q.shape
    o = np.empty((b, t, h, d), q.dtype).swapaxes(1, 2)  # heads merge without a copy
    log_sum = np.empty((b, h, t), q.dtype)
    arrays = [x for a in (q, k, v, o) for x in (a, strides(a))]
    run("attention_forward", *arrays, *bytes_of(mask, q, k), log_sum, *sizes(q, k),
        int(causal and q.shape[2] > 1), scale_of(q, scale))  # fmt: skip
    return o, (o, log_sum)


def backward(xp, needs, g, residuals, q, k, v, mask=None, *, causal=False, scale=None):
    g, q, k, v = rows(g), rows(q), rows(k), rows(v)
    o, log_sum = residuals
    gradients = [np.empty_like(a) for a in (q, k, v)]
    read = [x for a in (g, q, k, v, o) for x in (a, strides(a))]
    written = [x for a in gradients for x in (a, strides(a))]
    run("attention_backward", *read, *bytes_of(mask, q, k), log_sum, *written, *sizes(q, k),
        int(causal and q.shape[2] > 1), scale_of(q, scale))  # fmt: skip
    return [*gradients, None][: len(needs)]  # a mask of None may have been handed in


def sizes(q, k):
    """b, h, hk, t, s, d"""
    return q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3]


def scale_of(q, scale):
    return float(q.shape[-1] ** -0.5 if scale is None else scale)
