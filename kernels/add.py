"""Sums of half types:  y = a + b, made in float32 and rounded once      a, b, y: of one shape

Residuals, and cotangents of what is used more than once. Bytes: 2 read for each of two numbers and
2 written, where copies in float32 move 26. The bits are those of the definition.
"""

from . import cuda


def supports(xp, a, b):
    """No C here."""
    return False


# ------------------------------------------------------------------------------------ on CUDA


def cuda_supports(xp, a, b):
    return cuda.runs(xp, a, b, dtypes=cuda.HALF) and a.shape == b.shape


def cuda_forward(xp, a, b):
    a, b = cuda.contiguous(xp, a, b)
    y = xp.empty_like(a)
    v = cuda.width(a.size, a, b, y)
    cuda.launch(xp, "add", f"add<{cuda.type_of(a)},{v}>", cuda.blocks(a.size // v),
                (a, b, y, cuda.i8(a.size)))  # fmt: skip
    return y


on_cuda = cuda.Twin(cuda_supports, cuda_forward)
