"""Queries turned, keys turned and values put into a cache, a token a row, in one go:

    q' = rope(q)        keys[:, :, place] = rope(k)        values[:, :, place] = v

q: (b, h, 1, d)  k, v: (b, g, 1, d)  cos, sin: (1, d/2) or (b, 1, 1, d/2)
keys, values: (b, g, s, d)

The place, (1,) int64, is read when the kernel runs, so a call that was recorded goes on from there.
Bytes: q, k and v read and written once, which is next to nothing: what is saved is three launches.
The bits are those of rope.py.
"""

import numpy as np

from . import cuda
from .half import all_half, is_half
from .native import SINGLE, call, contiguous, rows, runs, strides

SIZES = np.dtype([(name, "i4") for name in ("heads", "groups", "half", "batches", "rows")])


def supports(xp, q, k, v, cos, sin, keys, values, place):
    numbers = (q, k, v, cos, sin, keys, values)
    return (
        (runs(xp, *numbers) or all_half(xp, *numbers))
        and place.dtype == np.int64
        and q.shape[3] % 2 == 0
        and all(a.strides[-1] == a.itemsize for a in (keys, values))
        and all(a.shape[-1] == q.shape[3] // 2 for a in (cos, sin))
    )


def forward(xp, q, k, v, cos, sin, keys, values, place):
    (b, h, _, d), g = q.shape, k.shape[1]
    q, k, v, (cos, sin) = rows(q), rows(k), rows(v), contiguous(cos, sin)
    turned = np.empty((b, 1, h, d), q.dtype).swapaxes(1, 2)  # heads merge without a copy
    read = [x for a in (q, k, v) for x in (a, strides(a))]
    written = [x for a in (turned, keys, values) for x in (a, strides(a))]
    name, dtype = ("into_cache_of_halves", SINGLE) if is_half(q) else ("into_cache", q.dtype)
    call(name, dtype, *read, cos, sin, cos.size // cos.shape[-1], *written, place, b, h, g, d // 2)
    return turned


# ------------------------------------------------------------------------------------ on CUDA


def cuda_supports(xp, q, k, v, cos, sin, keys, values, place):
    numbers = (q, k, v, cos, sin, keys, values)
    return (
        cuda.runs(xp, *numbers)
        and place.dtype == np.int64
        and q.shape[3] % 2 == 0
        and all(a.strides[-1] == a.itemsize for a in numbers)
        and all(a.shape[-1] == q.shape[3] // 2 for a in (cos, sin))
    )


def cuda_forward(xp, q, k, v, cos, sin, keys, values, place):
    (b, h, _, d), groups = q.shape, k.shape[1]
    cos, sin = cuda.contiguous(xp, cos, sin)
    turned = cuda.heads(xp, q.shape, q.dtype)
    n = np.array((h, groups, d // 2, b, cos.size // cos.shape[-1]), SIZES)
    of_token, written = cuda.views(q, k, v), cuda.views(turned, keys, values)
    cuda.launch(xp, "into_cache", f"into_cache<{cuda.type_of(q)}>",
                cuda.blocks(b * (h + 2 * groups) * (d // 2)),
                (*of_token, cos, sin, *written, place.data, n))  # fmt: skip
    return turned


on_cuda = cuda.Twin(cuda_supports, cuda_forward)
