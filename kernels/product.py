"""Matrix products:  C = A B, or C += A B        A: (m, k)  B: (k, n)  C: (m, n)

Operands may be transposed or sliced: they are packed as they lie, in the pass that any product
makes to bring them into cache. So x W^T, g W and g^T x need no copies, and a gradient that is a sum
of products (of q, k and v to the same x) is added up in place. B is packed in blocks of 256 by 768
numbers, in the second-level cache; a tile of 8 by 48 sums stays in registers (AVX-512, float32).

Why not numpy's BLAS: two pools of threads on the same cores wait for one another. One step of a
small LLaMA took 60 ms on an idle machine and 1.4 s on a busy one. Alone, on one core, either
reaches the same 90 to 100 % of the peak of its multiplications.

Matrices of bfloat16 are multiplied exactly and added up in float32: by AMX 8,192 multiplications
an instruction; by avx512_bf16 two a lane, which doubles float32's rate; elsewhere by widening in
registers. AMX and avx512_bf16 take subnormals for zeros.

Float32 within `with tg.matmul_precision("high"):` is split into two bfloat16's, a = a1 + a2, and
a1 b1 + a1 b2 + a2 b1 is one product of them, three times as deep:  [a2 a1 a1] [b1; b2; b1].

Each entry is summed over k in one order: the same bits with any number of threads. (At the base
level products are BLAS's, which promises nothing of the kind.)
Accuracy: as any product's, k ulp of |A| |B| at worst, sqrt(k) usually.
"""

import functools
import warnings

import numpy as np

from ..backend import float32_products, gemm
from . import cuda, few_rows, half, native
from .half import all_half
from .native import SINGLE, call, level, run, runs

WORTH = 1 << 17  # multiplications; numpy's call costs less below


def supports(xp, a, b):
    fits = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]
    if not fits or few_rows.supports(xp, a, b.T):
        return fits
    return all_half(xp, a, b) or (runs(xp, a, b) and fast(a, b))


def forward(xp, a, b):
    if few_rows.supports(xp, a, b.T):
        return few_rows.products(a, b.T)[0]
    y = product(a, b)
    return half.narrow(y) if half.is_half(a) else y


def fast(a, b):
    """Whether the C beats BLAS here: wide registers, and more than a few rows."""
    return level() in ("v3", "v4") and len(a) >= 8 and a.size * b.shape[1] >= WORTH


def product(a, b, out=None, add=False, bias=None):
    """a b, new or written to the matrix `out`, whose rows are contiguous, or added to it.

    bias: a contiguous row, added to each, where nothing else is. Of two bfloat16 matrices it is
    float32.
    """
    halves = half.is_half(a)
    if out is None:
        out = np.empty((a.shape[0], b.shape[1]), np.float32 if halves else a.dtype)
    in_parts = not halves and a.dtype == SINGLE and float32_products() == "high"
    in_c = not halves and not in_parts and fast(a, b)
    if bias is not None and not in_c:
        out[...], add = bias, True
    if halves:
        return half_product(a, b, out, add, TILES if amx() else LANES)
    if in_c:
        run("product", a, *steps(a), b, *steps(b), out, out.strides[0] // out.itemsize,
            *out.shape, a.shape[1], int(add), bias)  # fmt: skip
    elif in_parts and fast(a, b):
        product(parts(a, 1, 0), parts(b, 0, 1), out, add)
    elif add:
        out += a @ b
    else:
        np.matmul(a, b, out=out)
    return out


PLAIN, LANES, TILES = range(3)  # C alone, avx512_bf16 where it is there, AMX


def half_product(a, b, out, add, by):
    """Two matrices of bfloat16, into or added to the float32 matrix `out`."""
    call("half_product", out.dtype, a, *steps(a), b, *steps(b), out,
         out.strides[0] // out.itemsize, *out.shape, a.shape[1], int(add), by)  # fmt: skip
    return out


@functools.cache
def amx():
    """Whether AMX multiplies bfloat16 matrices here: it is allowed, and right in a small trial.

    A trial, for this was written without a CPU that has AMX.
    """
    if not native.tiles_allowed():
        return False
    rng = np.random.default_rng(0)
    a, b = (half.narrow(rng.standard_normal(shape, np.float32)) for shape in ((45, 77), (77, 51)))
    plain, found = (half_product(a, b, np.ones((45, 51), np.float32), True, by)
                    for by in (PLAIN, TILES))  # fmt: skip
    right = bool((abs(found - plain) <= 1e-4).all())  # sums of 77 products of some 1: 8 ulp of 100
    if not right:
        warnings.warn(
            "AMX multiplies bfloat16 matrices wrongly here; avx512_bf16 runs instead", stacklevel=2
        )
    return right


def parts(x, axis, low):
    """[x1 x1 x2] along the axis, x2 at place `low`: the nearest bfloat16 to x, and to x - x1."""
    high = half.narrow(x)
    rest = half.narrow(x - half.widen(high))
    return np.concatenate([rest if i == low else high for i in range(3)], axis=axis)


def steps(a):
    """Entries from one row and one column to the next."""
    return a.strides[0] // a.itemsize, a.strides[1] // a.itemsize


# ------------------------------------------------------------------------------------ on CUDA
#
# By cuBLAS, halves by tensor cores (see half_product.py), float32 too where it may be TF32 or in
# parts; a few rows by few_rows.py.


def cuda_supports(xp, a, b):
    fits = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]
    return fits and cuda.runs(xp, a, b)


def cuda_forward(xp, a, b):
    if few_rows.cuda_supports(xp, a, b.T):
        return few_rows.cuda_products(xp, a, b.T)[0]
    if a.dtype == SINGLE and float32_products() == "high":
        return gemm(cuda_parts(xp, a, 1, 0), cuda_parts(xp, b, 0, 1), a.dtype)
    return gemm(a, b, a.dtype)


def cuda_parts(xp, x, axis, low):
    """As `parts`, in x's own order in memory."""
    if x.flags.f_contiguous and not x.flags.c_contiguous:
        return cuda_parts(xp, x.T, 1 - axis, low).T
    (x,) = cuda.contiguous(xp, x)
    y = xp.empty([3 * n if i == axis else n for i, n in enumerate(x.shape)], half.BFLOAT16)
    run = x[0].size if axis else x.size  # numbers that lie together in each part
    v = cuda.width(run, x)
    cuda.launch(xp, "product", f"split<{v}>", cuda.blocks(x.size // v),
                (x, y, cuda.i8(x.size), cuda.i8(run), cuda.i4(low)))  # fmt: skip
    return y


on_cuda = cuda.Twin(cuda_supports, cuda_forward)
