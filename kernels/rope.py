"""RoPE:  (a, b) -> (a cos - b sin, b cos + a sin)        x: (b, h, t, k)  cos, sin: (t, k/2)

a and b are the halves of a row. The gradient of x is g turned back. A gradient of the tables,
which no model asks for, is summed in numpy.

Bytes: x is read and y written once, whatever x's strides (heads are split without a copy).
Accuracy in float32: within 2 ulp of the greater of |a| and |b|.
"""

import math

from . import cuda
from .native import contiguous, empty_rows, rows, run, runs, strides


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
        gradients[1:] = of_tables(g, x, cos.shape[-1])
    return gradients


def of_tables(g, x, half):
    """[dcos, dsin]"""
    ga, gb, a, b = g[..., :half], g[..., half:], x[..., :half], x[..., half:]
    return [(ga * a + gb * b).sum((0, 1)), (gb * a - ga * b).sum((0, 1))]


def turned(x, cos, sin, sign):
    (x, (cos, sin)), (b, h, t, k) = (rows(x), contiguous(cos, sin)), x.shape
    y = empty_rows(x)
    run("rope_turn", x, strides(x), cos, sin, y, strides(y), b, h, t, k // 2, sign)
    return y


# ------------------------------------------------------------------------------------ on CUDA


def cuda_supports(xp, x, cos, sin):
    table = x.ndim == 4 and cos.shape == sin.shape == (x.shape[2], x.shape[3] // 2)
    return table and x.shape[3] % 2 == 0 and cuda.runs(xp, x, cos, sin)


def cuda_forward(xp, x, cos, sin):
    return cuda_turned(xp, x, cos, sin, 1), None


def cuda_backward(xp, needs, g, residuals, x, cos, sin):
    gradients = [cuda_turned(xp, g, cos, sin, -1) if needs[0] else None, None, None]
    if needs[1] or needs[2]:
        gradients[1:] = of_tables(*(cuda_wide(a) for a in (g, x)), cos.shape[-1])
    return gradients


def cuda_wide(a):
    return a.astype(cuda.wide(a.dtype), copy=False)


def cuda_turned(xp, x, cos, sin, sign):
    (x, (cos, sin)), (b, h, t, k) = (cuda.rows(xp, x), cuda.contiguous(xp, cos, sin)), x.shape
    y = xp.empty((b, t, h, k), x.dtype).swapaxes(1, 2)  # heads merge without a copy
    half, steps = k // 2, cuda.steps(x)
    v = cuda.width(math.gcd(half, *steps), x, cos, sin, y)
    threads = min(cuda.THREADS, 32 * cuda.blocks(h * half // v, 32))
    cuda.launch(xp, "rope", f"rope_turn<{cuda.type_of(x)},{v}>", b * t,
                (x.data, cos, sin, y.data, *map(cuda.i4, (h, t, half)), *steps, *cuda.steps(y),
                 cuda.wide(x.dtype)(sign)), threads=threads)  # fmt: skip
    return y


on_cuda = cuda.Twin(cuda_supports, cuda_forward, cuda_backward)
