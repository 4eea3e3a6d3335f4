"""RoPE:  (a, b) -> (a cos - b sin, b cos + a sin)        x: (b, h, t, k)  cos, sin: (t, k/2)

a and b are the halves of a row. The gradient of x is g turned back. A gradient of the tables,
which no model asks for, is summed in numpy.

Bytes: x is read and y written once, whatever x's strides (heads are split without a copy).
Accuracy in float32: within 2 ulp of the greater of |a| and |b|.
"""

import numpy as np

from .native import contiguous, rows, run, runs, strides


def supports(xp, x, cos, sin):
    return (
        runs(xp, x, cos, sin)
        and x.ndim == 4
        and cos.shape == sin.shape == (x.shape[2], x.shape[3] // 2)
        and x.shape[3] % 2 == 0
    )


def forward(xp, x, cos, sin):
    return turned(x, cos, sin, 1.0), None


def backward(xp, needs, g, residuals, x, cos, sin):
    gradients = [turned(g, cos, sin, -1.0) if needs[0] else None, None, None]
    if needs[1] or needs[2]:
        half = cos.shape[-1]
        ga, gb, a, b = g[..., :half], g[..., half:], x[..., :half], x[..., half:]
        gradients[1] = (ga * a + gb * b).sum((0, 1))
        gradients[2] = (gb * a - ga * b).sum((0, 1))
    return gradients


def turned(x, cos, sin, sign):
    (x, (cos, sin)), (b, h, t, k) = (rows(x), contiguous(cos, sin)), x.shape
    y = np.empty_like(x)  # as x lies: heads that were split without a copy merge without one
    y = y if y.strides[-1] == y.itemsize else np.empty(x.shape, x.dtype)
    run("rope_turn", x, strides(x), cos, sin, y, strides(y), b, h, t, k // 2, sign)
    return y
