"""SwiGLU:  y = gate s up,  s = 1 / (1 + exp(-gate))        gate, up: (...)

    dgate = g up s (1 + gate (1 - s))        dup = g gate s

Bytes: forward reads two arrays and writes one, backward reads three and writes two; nothing is
kept but the arguments. Accuracy in float32: within 4 ulp, except that s is held to at least
1e-38, where the definition goes on into subnormal numbers and 0.
"""

import numpy as np

from . import cuda
from .native import contiguous, run, runs


def supports(xp, gate, up):
    return runs(xp, gate, up) and gate.shape == up.shape


def forward(xp, gate, up):
    gate, up = contiguous(gate, up)
    y = np.empty_like(gate)
    run("swiglu_forward", gate, up, y, y.size)
    return y, None


def backward(xp, needs, g, residuals, gate, up):
    g, gate, up = contiguous(g, gate, up)
    dgate, dup = np.empty_like(gate), np.empty_like(up)
    run("swiglu_backward", g, gate, up, dgate, dup, g.size)
    return [dgate, dup]


# ------------------------------------------------------------------------------------ on CUDA


def cuda_supports(xp, gate, up):
    return gate.shape == up.shape and cuda.runs(xp, gate, up)


def cuda_forward(xp, gate, up):
    gate, up = cuda.contiguous(xp, gate, up)
    y = xp.empty_like(gate)
    v = cuda.width(y.size, gate, up, y)
    cuda.launch(xp, "swiglu", f"swiglu_forward<{cuda.type_of(y)},{v}>", cuda.blocks(y.size // v),
                (gate, up, y, cuda.i8(y.size)))  # fmt: skip
    return y, None


def cuda_backward(xp, needs, g, residuals, gate, up):
    g, gate, up = cuda.contiguous(xp, g, gate, up)
    dgate, dup = xp.empty_like(gate), xp.empty_like(up)
    v = cuda.width(g.size, g, gate, up, dgate, dup)
    cuda.launch(xp, "swiglu", f"swiglu_backward<{cuda.type_of(g)},{v}>", cuda.blocks(g.size // v),
                (g, gate, up, dgate, dup, cuda.i8(g.size)))  # fmt: skip
    return [dgate, dup]


on_cuda = cuda.Twin(cuda_supports, cuda_forward, cuda_backward)
