"""Products of half types:  Y = A B, rounded once        A: (..., n, k)  B: (..., k, m)

Added up in float32. On CUDA by cuBLAS and tensor cores, in all ranks, transposed operands as they
lie; on the CPU product.py does what is worth it, and the definition, by way of float32, the rest.
Bytes: A and B read, Y written, where widening would move each three times more.
Accuracy: 1 rounding of Y, and k ulp of float32 of |A| |B| at worst.
"""

from ..backend import gemm
from . import cuda


def supports(xp, a, b):
    """No C here."""
    return False


# ------------------------------------------------------------------------------------ on CUDA


def cuda_supports(xp, a, b):
    fits = min(a.ndim, b.ndim) > 0 and a.shape[-1] == b.shape[max(b.ndim - 2, 0)]
    return fits and cuda.runs(xp, a, b, dtypes=("float16", "bfloat16"))


def cuda_forward(xp, a, b):
    return gemm(a, b, a.dtype)


on_cuda = cuda.Twin(cuda_supports, cuda_forward)
