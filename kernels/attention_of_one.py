"""Attention of one query a head, on CUDA, as when a text is written token by token (attention.py).

The many keys are shared out over the GPU, where attention.cu has a block for each head. Only for
heads of 32, 64 and 128 numbers whose rows begin at 16 bytes, and masks that all heads share.
Bytes: k and v, once for every four heads that share them, and d + 2 numbers of 4 bytes for each
head and 64 keys. Accuracy: all in float32, rounded once.
"""

import numpy as np

from . import cuda

CHUNK, HEADS, THREADS, JOINED = 64, 4, 128, 256  # as in attention_of_one.cu
WIDTHS = (32, 64, 128)
SIZES = np.dtype([(name, "i4") for name in ("heads", "groups", "s", "chunks")])


def fits(q, k, v, mask):
    """Of arguments that attention's kernel takes."""
    even = all(n % 16 == 0 for a in (q, k, v) for n in (a.data.ptr, *a.strides[:3]))
    whole = all(a.strides[3] == a.itemsize for a in (q, k, v))
    shared = mask is None or mask.ndim < 3 or mask.shape[-3] == 1
    return q.shape[2] == 1 and q.shape[3] in WIDTHS and even and whole and shared


def forward(xp, q, k, v, mask, scale):
    """o (b, h, 1, d), log_sum (b, h, 1)"""
    (b, h, _, d), (groups, s) = q.shape, k.shape[1:3]
    chunks, quartets = cuda.blocks(s, CHUNK), cuda.blocks(h // groups, HEADS)
    n = np.array((h, groups, s, chunks), SIZES)
    tops, sums = (xp.empty((b, h, chunks), np.float32) for _ in range(2))
    parts = xp.empty((b, h, chunks, d), np.float32)
    cuda.launch(xp, "attention_of_one", f"attention_of_chunk<{cuda.type_of(q)},{d}>",
                (chunks, groups * quartets, b),
                (*cuda.views(q, k, v), *_mask(xp, mask, s), tops, sums, parts, n,
                 np.float32(scale)),
                threads=THREADS)  # fmt: skip
    o = cuda.heads(xp, q.shape, q.dtype)
    log_sum = xp.empty((b, h, 1), np.float32)
    cuda.launch(xp, "attention_of_one", f"attention_of_chunks<{cuda.type_of(q)},{d}>", (h, b),
                (tops, sums, parts, *cuda.views(o), log_sum, n),
                threads=JOINED, shared=4 * chunks)  # fmt: skip
    return o, log_sum


def _mask(xp, mask, s):
    """The address of the (b, s) bools and the step from one row to the next."""
    if mask is None:
        return [None, cuda.i8(0)]
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)[:, 0, 0]
    mask = xp.ascontiguousarray(xp.broadcast_to(mask, (len(mask), s)))
    return [mask.data, cuda.i8(s if len(mask) > 1 else 0)]
