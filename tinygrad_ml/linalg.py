"""Linear algebra under numpy.linalg's names, differentiable to any order.

Letters: A is (..., n, n) or (..., m, n), k = min(m, n), g the cotangent of an output. Leading axes
are a batch. A vjp is written with operations that are themselves differentiable, so every order
follows from the lines below. Formulas: Giles 2008, "Collected matrix derivative results for
forward and reverse mode algorithmic differentiation", where no other source is named.

Symmetric input (cholesky, eigh, eigvalsh): one triangle is read, as numpy does. The gradient is
symmetric, the entry of each pair (i, j), (j, i) shared equally between the two: it is the gradient
of the function of (A + A^T) / 2.

Equal eigenvalues or singular values (eigh, svd): their vectors are not functions of A. While no
cotangent reaches any vector the gradient is finite; else it is NaN, never a plausible number.
"""

import math
from itertools import pairwise
from operator import index as integer

from numpy.linalg import LinAlgError  # noqa: F401  offered as linalg.LinAlgError

from . import dtypes, ops
from .autograd import Value, op
from .backend import namespace

__all__ = [
    *("cholesky", "cond", "cross", "det", "eigh", "eigvalsh", "expm", "inv", "lstsq"),
    *("matrix_norm", "matrix_power", "matrix_rank", "multi_dot", "norm", "pinv", "qr", "slogdet"),
    *("solve", "svd", "svdvals", "vector_norm", "LinAlgError"),
]


def transposed(x):
    """Each matrix of a stack, transposed      (..., m, n) -> (..., n, m)"""
    return x.swapaxes(-1, -2)


def symmetrised(x):
    """(X + X^T) / 2"""
    return (x + transposed(x)) / 2


def _array(x):
    return x.data if isinstance(x, Value) else x


def _eye(x):
    """Where the diagonal of the matrices of x is      bool (m, n)"""
    return namespace([_array(x)]).eye(*x.shape[-2:], dtype=bool)


def _lower(x):
    """Where the lower triangle of the matrices of x is, diagonal included      bool (m, n)"""
    return namespace([_array(x)]).tri(*x.shape[-2:], dtype=bool)


def _identity(x):
    """The unit matrix in x's dtype, for square matrices x      array (n, n)"""
    return _eye(x).astype(x.dtype)


def _check_square(name, a):
    if len(a.shape) < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(
            f"{name}: got shape {tuple(a.shape)}, expected square matrices (..., n, n)"
        )


# ------------------------------------------------------------- inverses and systems of equations


@op
def inv(xp, a):
    """A^-1      dY = -Y dA Y,  so  gA = -Y^T g Y^T

    LinAlgError if a matrix is singular (cupy does not look, and returns inf or NaN).
    """
    return xp.linalg.inv(a)


inv.vjp(a=lambda g, y: -(transposed(y) @ g @ transposed(y)))


@op
def solve(xp, a, b):
    """X with A X = B      a: (..., n, n)  b: (n,) or (..., n, r)

    gB = A^-T g,  gA = -gB X^T. LinAlgError as for inv.
    """
    if b.ndim == 1:
        return solve.forward(xp, a, b[:, None])[..., 0]
    batch = xp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return xp.linalg.solve(
        xp.broadcast_to(a, (*batch, *a.shape[-2:])), xp.broadcast_to(b, (*batch, *b.shape[-2:]))
    )


def _solve_vjp_b(g, a, b_shape):
    if len(b_shape) == 1:
        return solve(transposed(a), g[..., None])[..., 0]
    return solve(transposed(a), g)


def _solve_vjp_a(g, y, a, b_shape):
    gb = _solve_vjp_b(g, a, b_shape)
    if len(b_shape) == 1:
        return -gb[..., :, None] * y[..., None, :]
    return -(gb @ transposed(y))


solve.vjp(a=_solve_vjp_a, b=_solve_vjp_b)


@op
def pinv(xp, a, *, rtol=None):
    """The Moore-Penrose inverse      a: (..., m, n) -> (..., n, m)

    Singular values up to `rtol` (None: max(m, n) eps) times the greatest count as 0. With P = A^+
        gA = -P^T g P^T + (I - A P) g^T P P^T + P^T P g^T (I - P A)
    while the rank stays the same      Golub & Pereyra 1973, eq. 4.12
    """
    u, s, vh = xp.linalg.svd(a, full_matrices=False)
    kept = _nonzero(s, a.shape, rtol)
    inverse = xp.where(kept, 1 / xp.where(kept, s, 1), 0)
    return transposed(vh) @ (inverse[..., None] * transposed(u))


def _nonzero(s, shape, rtol):
    """Which singular values (the greatest first) of a matrix of this shape count."""
    if rtol is None:
        rtol = max(shape[-2:]) * float(dtypes.finfo(s.dtype).eps)
    return s > rtol * s[..., :1]


def _pinv_vjp(g, y, a):
    p, pt, gt = y, transposed(y), transposed(g)
    left = gt @ p @ pt  # (m, n)
    right = pt @ p @ gt
    return -(pt @ g @ pt) + (left - a @ (p @ left)) + (right - (right @ p) @ a)


pinv.vjp(a=_pinv_vjp)


def lstsq(a, b, rcond=None):
    """(x, residuals, rank, s): x = A^+ b has the least |A x - b|, and of those the least |x|

    a: (..., m, n)  b: (m,) or (..., m, r). residuals is the sum of squares of each column of
    A x - b, and empty unless m > n and A has full rank; rank is a plain integer array;
    s the singular values. Differentiable while the rank stays the same.
    """
    x = pinv(a, rtol=rcond) @ b
    s = svdvals(a)
    rank = _nonzero(_array(s), a.shape, rcond).sum(axis=-1)
    m, n = a.shape[-2:]
    off = a @ x - b
    residuals = (off * off).sum(axis=-1 if len(b.shape) == 1 else -2)
    if m <= n or (rank < n).any():
        residuals = residuals[..., :0] if len(residuals.shape) else residuals[None][:0]
    return x, residuals, rank, s


# --------------------------------------------------------------------------------- determinants


@op
def det(xp, a):
    """The determinant      a: (..., n, n) -> (...)

    gA = g C, C the matrix of cofactors (Jacobi's formula): right for singular matrices as well.
    So is the second derivative; from the third on, matrices of n > 2 have to be invertible.
    """
    return xp.linalg.det(a)


det.vjp(a=lambda g, a: g[..., None, None] * cofactors(a))


@op
def cofactors(xp, a):
    """C_ij = (-1)^(i+j) det(A without row i and column j)      a: (..., n, n) -> (..., n, n)

    C = det(A) A^-T if A is invertible, and for every A, from its singular values,
        C = det(U V^T) U diag(p) V^T,  p_i = prod_{l != i} s_l      Stewart 1998, "On the adjugate"
    """
    u, s, vh = xp.linalg.svd(a)
    p, _ = _products_without(xp, s)
    return _orientation(xp, u, vh) * ((u * p[..., None, :]) @ vh)


cofactors.vjp(a=lambda g, a: cofactors_jvp(a, g))


@op
def cofactors_jvp(xp, a, h):
    """The derivative of the cofactors in the direction H; self-adjoint, as a second derivative is

    With K = U^T H V and p_ij = prod_{l != i,j} s_l it is det(U V^T) U M V^T, where
        M_ii = sum_{j != i} p_ij K_jj,   M_ij = -p_ij K_ji
    which follows from d(det(A) A^-T) in the basis of the singular vectors, by continuity for all A.
    """
    u, s, vh = xp.linalg.svd(a)
    _, p = _products_without(xp, s)
    k = transposed(u) @ h @ transposed(vh)
    diagonal = p @ xp.diagonal(k, axis1=-2, axis2=-1)[..., None]  # (..., n, 1); p_ii is 0
    inner = xp.where(_eye(p), diagonal, -p * transposed(k))
    return _orientation(xp, u, vh) * (u @ inner @ vh)


def _orientation(xp, u, vh):
    """det(U V^T), which is 1 or -1      (..., 1, 1)"""
    return xp.sign(xp.linalg.det(u) * xp.linalg.det(vh))[..., None, None]


def _products_without(xp, s):
    """p_i = prod_{l != i} s_l, and p_ij = prod_{l != i,j} s_l (0 for i = j), without dividing."""
    before = _products_before(xp, s)
    after = xp.flip(_products_before(xp, xp.flip(s, -1)), -1)
    n = s.shape[-1]
    upper = ~xp.tri(n, dtype=bool)  # i < j
    between = _products_before(xp, xp.where(upper, s[..., None, :], 1))  # over l, i < l < j
    pairs = xp.where(upper, before[..., :, None] * between * after[..., None, :], 0)
    return before * after, pairs + transposed(pairs)


def _products_before(xp, x):
    """y_i = x_0 ... x_(i-1)"""
    return xp.concatenate([xp.ones_like(x[..., :1]), xp.cumprod(x, axis=-1)[..., :-1]], axis=-1)


def _cofactors_jvp_vjp_a(g, a, h):
    """The third derivative of det, a symmetric form in H, G and E. With X, Y = A^-1 H, A^-1 G:

    det(A) A^-T ((tr X tr Y - tr XY) I - X tr Y - Y tr X + X Y + Y X)^T
    """
    if a.shape[-1] < 3:
        return h * 0  # det is a polynomial of degree n in A
    inverse = inv(a)
    x, y = inverse @ h, inverse @ g
    tx, ty, txy = _trace(x), _trace(y), _trace(x @ y)
    inner = (tx * ty - txy) * _identity(a) - x * ty - y * tx + x @ y + y @ x
    return det(a)[..., None, None] * transposed(inner @ inverse)


def _trace(x):
    """(..., n, n) -> (..., 1, 1)"""
    return ops.where(_eye(x), x, 0).sum(axis=(-2, -1), keepdims=True)


cofactors_jvp.vjp(a=_cofactors_jvp_vjp_a, h=lambda g, a: cofactors_jvp(a, g))


@op
def slogdet(xp, a):
    """(sign, logabsdet): det(A) = sign exp(logabsdet)      a: (..., n, n) -> (...), (...)

    gA = g A^-T of logabsdet, and none of sign. A singular matrix has value (0, -inf) and
    no gradient: LinAlgError.
    """
    return xp.linalg.slogdet(a)


slogdet.vjp(a=lambda g, a: g[1][..., None, None] * transposed(inv(a)))


# ------------------------------------------------------------------------------- factorisations


@op
def cholesky(xp, a, *, upper=False):
    """L lower triangular with A = L L^T, read from A's lower triangle; `upper` for U, A = U^T U,
    read from the upper one. LinAlgError if A is not positive definite.

    gA = sym(L^-T Phi(L^T g) L^-1), Phi(X) the lower triangle of X with half of its diagonal
    Murray 2016, "Differentiation of the Cholesky decomposition"
    """
    return transposed(xp.linalg.cholesky(transposed(a))) if upper else xp.linalg.cholesky(a)


def _cholesky_vjp(g, y, upper):
    low, g = (transposed(y), transposed(g)) if upper else (y, g)
    inner = transposed(low) @ g
    phi = ops.where(_eye(inner), inner / 2, ops.where(_lower(inner), inner, 0))
    half_way = solve(transposed(low), phi)  # L^-T Phi
    return symmetrised(transposed(solve(transposed(low), transposed(half_way))))


cholesky.vjp(a=_cholesky_vjp)


@op
def eigh(xp, a, *, UPLO="L"):
    """(w, V): A = V diag(w) V^T for symmetric A, w ascending      (..., n), (..., n, n)

    gA = sym(V (diag(gw) + F * (V^T gV)) V^T),  F_ij = 1 / (w_j - w_i)
    Of A the triangle `UPLO` is read. Equal eigenvalues: see the head of this file.
    """
    return xp.linalg.eigh(a, UPLO=UPLO)


def _eigh_vjp(g, y):
    (gw, gv), (w, v) = g, y
    gaps = w[..., None, :] - w[..., :, None]
    turned = (transposed(v) @ gv) / _apart(gaps, gv.any(axis=(-2, -1), keepdims=True))
    inner = ops.where(_eye(turned), gw[..., None, :], turned)
    return symmetrised(v @ inner @ transposed(v))


def _apart(gaps, vectors_matter):
    """gaps to divide by: 1 on the diagonal; a 0 elsewhere is NaN, or inf if no vector matters."""
    gaps = ops.where(_eye(gaps), 1, gaps)
    gaps = ops.where((gaps == 0) & vectors_matter, math.nan, gaps)
    return ops.where(gaps == 0, math.inf, gaps)


eigh.vjp(a=_eigh_vjp)


@op
def eigvalsh(xp, a, *, UPLO="L"):
    """The eigenvalues of a symmetric matrix, ascending      (..., n, n) -> (..., n)

    gA = V diag(g) V^T, finite for equal eigenvalues too (there one of several subgradients).
    The second derivative is NaN where eigenvalues are equal.
    """
    return xp.linalg.eigvalsh(a, UPLO=UPLO)


def _eigvalsh_vjp(g, a, UPLO):
    _, v = eigh(a, UPLO=UPLO)
    return (v * g[..., None, :]) @ transposed(v)


eigvalsh.vjp(a=_eigvalsh_vjp)


def svd(a, full_matrices=False, compute_uv=True):
    """(U, s, V^T): A = U diag(s) V^T, s descending      (..., m, k), (..., k), (..., k, n)

    Unlike numpy's, the vectors beyond the first k are left out unless asked for, and then they
    have to be none: no derivative of theirs exists. compute_uv=False gives s alone.
    """
    if not compute_uv:
        return svdvals(a)
    if full_matrices and a.shape[-1] != a.shape[-2]:
        raise ValueError(
            f"svd: full_matrices=True of shape {tuple(a.shape)}: the vectors that complete a "
            "basis are not differentiable; use full_matrices=False"
        )
    return thin_svd(a)


@op
def thin_svd(xp, a):
    """The singular value decomposition      (..., m, n) -> (..., m, k), (..., k), (..., k, n)

    gA = U (diag(gs) + F * (X S + S Y)) V^T + (I - U U^T) gU S^-1 V^T + U S^-1 gV^T (I - V V^T)
    X = U^T gU - gU^T U,  Y = V^T gV - gV^T V,  F_ij = 1 / (s_j^2 - s_i^2)
    Townsend 2016, "Differentiating the singular value decomposition". Equal singular values, and
    one of 0 if m != n: see the head of this file.
    """
    return xp.linalg.svd(a, full_matrices=False)


def _thin_svd_vjp(g, y):
    (gu, gs, gvh), (u, s, vh) = g, y
    vectors_matter = gu.any(axis=(-2, -1)) | gvh.any(axis=(-2, -1))  # (...)
    utgu, vtgv = transposed(u) @ gu, vh @ transposed(gvh)  # (..., k, k)
    rows, columns = s[..., :, None], s[..., None, :]
    gaps = (columns - rows) * (columns + rows)
    turned = (utgu - transposed(utgu)) * columns + rows * (vtgv - transposed(vtgv))
    turned = turned / _apart(gaps, vectors_matter[..., None, None])
    ga = u @ ops.where(_eye(turned), gs[..., None, :], turned) @ vh
    m, n, k = u.shape[-2], vh.shape[-1], s.shape[-1]
    s = ops.where((s == 0) & vectors_matter[..., None], math.nan, s)
    s = ops.where(s == 0, math.inf, s)
    if m > k:
        ga = ga + ((gu - u @ utgu) / s[..., None, :]) @ vh
    if n > k:
        ga = ga + u @ ((gvh - transposed(vtgv) @ vh) / s[..., :, None])
    return ga


thin_svd.vjp(a=_thin_svd_vjp)


@op
def svdvals(xp, a):
    """The singular values, descending      (..., m, n) -> (..., k)

    gA = U diag(g) V^T, finite for equal ones too; 0 for a singular value of 0, as for |x| at 0.
    The second derivative is NaN where two are equal, or one is 0 and m != n.
    """
    return xp.linalg.svd(a, compute_uv=False)


def _svdvals_vjp(g, y, a):
    u, _, vh = thin_svd(a)
    return (u * ops.where(y > 0, g, 0)[..., None, :]) @ vh


svdvals.vjp(a=_svdvals_vjp)


def qr(a, mode="reduced"):
    """(Q, R): A = Q R, the columns of Q orthonormal, R upper triangular or trapezoidal

    a: (..., m, n) -> (..., m, k), (..., k, n). mode="r" gives R alone. Differentiable where the
    first k columns of A are independent.
    """
    if mode not in ("reduced", "r"):
        raise ValueError(f"qr: mode: got {mode!r}, expected 'reduced' or 'r'")
    if len(a.shape) < 2:
        raise ValueError(f"qr: got shape {tuple(a.shape)}, expected matrices (..., m, n)")
    m, n = a.shape[-2:]
    if m >= n:
        q, r = thin_qr(a)
    else:  # the first m columns determine Q, and the rest of R is what Q makes of the others
        q, r = thin_qr(a[..., :m])
        r = ops.concatenate(r, transposed(q) @ a[..., m:], axis=-1)
    return r if mode == "r" else (q, r)


@op
def thin_qr(xp, a):
    """Q R = A for m >= n      (..., m, n) -> (..., m, n), (..., n, n)

    gA = (gQ + Q sym(M)) R^-T,  M = R gR^T - gQ^T Q,  sym mirrors the lower triangle
    Seeger et al. 2017, "Auto-differentiating linear algebra" (there for A = L Q)
    """
    return xp.linalg.qr(a)


def _thin_qr_vjp(g, y):
    (gq, gr), (q, r) = g, y
    m = r @ transposed(gr) - transposed(gq) @ q
    mirrored = ops.where(_lower(m), m, transposed(m))
    return transposed(solve(r, transposed(gq + q @ mirrored)))


thin_qr.vjp(a=_thin_qr_vjp)


# ---------------------------------------------------------------------------------------- norms


@op
def euclidean_norm(xp, x, *, axis=None, keepdims=False):
    """sqrt(sum x^2), divided by max |x| inside, so that no square overflows or vanishes

    gx = g x / y, and 0 where y = 0
    """
    m = _scale(xp, xp.abs(x), axis, "max")
    return _rescaled(xp.sqrt(((x / m) ** 2).sum(axis=axis, keepdims=True)), m, axis, keepdims)


def _scale(xp, size, axis, extreme):
    """The greatest or smallest |x|, or 1 where that is of no use (0, inf, nothing there)."""
    if size.size == 0:
        return 1
    m = getattr(size, extreme)(axis=axis, keepdims=True)
    return xp.where((m > 0) & xp.isfinite(m), m, 1)


def _rescaled(y, m, axis, keepdims):
    y = y * m
    return y if keepdims else y.squeeze(ops.axes_of(axis, y.ndim))


def _euclidean_vjp(g, y, x, axis, keepdims):
    g, y = (ops.with_axes(z, x.shape, axis, keepdims) for z in (g, y))
    return g * ops.where(y == 0, 0, x / ops.where(y == 0, 1, y))


euclidean_norm.vjp(x=_euclidean_vjp)


@op
def p_norm(xp, x, *, p, axis=None, keepdims=False):
    """(sum |x|^p)^(1/p) for any p but 0, scaled as euclidean_norm is

    gx = g sign(x) (|x| / y)^(p-1), and 0 at an x of 0 whatever p
    """
    size = xp.abs(x)
    m = _scale(xp, size, axis, "max" if p > 0 else "min")
    total = ((size / m) ** p).sum(axis=axis, keepdims=True)
    return _rescaled(total ** (1 / p), m, axis, keepdims)


def _p_norm_vjp(g, y, x, p, axis, keepdims):
    g, y = (ops.with_axes(z, x.shape, axis, keepdims) for z in (g, y))
    zero = (x == 0) | (y == 0)
    ratio = ops.where(zero, 1, ops.abs(x)) / ops.where(zero, 1, y)
    return g * ops.where(zero, 0, ops.sign(x) * ratio ** (p - 1))


p_norm.vjp(x=_p_norm_vjp)


def norm(x, ord=None, axis=None, keepdims=False):
    """The norm of vectors along one axis, or of matrices along two, as numpy.linalg.norm

    axis=None is all of x: as one vector if ord is None, else by whether x has one axis or two.
    The gradient at 0 is 0; entries, rows or singular values that tie share it equally.
    """
    shape = x.shape
    if axis is None:
        if ord is None:
            return euclidean_norm(x, keepdims=keepdims)
        if len(shape) not in (1, 2):
            raise ValueError(f"norm: ord={ord!r} of shape {tuple(shape)} needs an axis (or two)")
        axis = tuple(range(len(shape)))
    axes = tuple(axis) if isinstance(axis, tuple | list) else (integer(axis),)
    bad = [a for a in axes if not -len(shape) <= a < len(shape)]
    if bad or len({a % len(shape) for a in axes}) != len(axes) or len(axes) not in (1, 2):
        raise ValueError(f"norm: axis: got {axis}, expected one or two axes of {tuple(shape)}")
    if len(axes) == 1:
        return vector_norm(x, axis=axes[0], keepdims=keepdims, ord=2 if ord is None else ord)
    axes = tuple(a % len(shape) for a in axes)
    if ord is None or ord == "fro":
        return euclidean_norm(x, axis=axes, keepdims=keepdims)
    others = [a for a in range(len(shape)) if a not in axes]
    y = matrix_norm(ops.transpose(x, axes=(*others, *axes)), ord=ord)
    return ops.with_axes(y, shape, axes, False) if keepdims else y


def vector_norm(x, *, axis=None, keepdims=False, ord=2):
    """(sum |x|^ord)^(1/ord) over an axis, several, or all; inf max, -inf min, 0 how many not 0"""
    if isinstance(ord, str) or ord is None:
        raise ValueError(f"norm: ord: got {ord!r} for vectors, expected a number, inf or -inf")
    if ord == math.inf:
        return ops.max(ops.abs(x), axis=axis, keepdims=keepdims)
    if ord == -math.inf:
        return ops.min(ops.abs(x), axis=axis, keepdims=keepdims)
    if ord == 0:
        return ops.sum(ops.abs(ops.sign(x)), axis=axis, keepdims=keepdims)
    if ord == 1:
        return ops.sum(ops.abs(x), axis=axis, keepdims=keepdims)
    if ord == 2:
        return euclidean_norm(x, axis=axis, keepdims=keepdims)
    return p_norm(x, p=float(ord), axis=axis, keepdims=keepdims)


def matrix_norm(x, *, keepdims=False, ord="fro"):
    """The norm of each matrix      (..., m, n) -> (...)

    'fro' sqrt(sum x^2), 'nuc' sum s, 2 max s, -2 min s (s the singular values),
    1 and -1 the greatest and smallest sum |column|, inf and -inf those of the rows
    """
    if ord == "fro":
        y = euclidean_norm(x, axis=(-2, -1))
    elif ord == "nuc":
        y = svdvals(x).sum(axis=-1)
    elif ord in (2, -2):
        y = _extreme(svdvals(x), ord)
    elif ord in (1, -1):
        y = _extreme(ops.abs(x).sum(axis=-2), ord)
    elif ord in (math.inf, -math.inf):
        y = _extreme(ops.abs(x).sum(axis=-1), ord)
    else:
        raise ValueError(f"norm: ord: got {ord!r} for matrices, expected 'fro', 'nuc', 1, 2 or inf")
    return y[..., None, None] if keepdims else y


def _extreme(x, ord):
    return ops.max(x, axis=-1) if ord > 0 else ops.min(x, axis=-1)


def cond(x, p=None):
    """|A| |A^-1|, in the norm p (None is 2: the ratio of the extreme singular values)"""
    if 0 in x.shape[-2:]:
        raise ValueError(f"cond: got shape {tuple(x.shape)}, expected matrices that are not empty")
    if p in (None, 2, -2):
        s = svdvals(x)
        return s[..., -1] / s[..., 0] if p == -2 else s[..., 0] / s[..., -1]
    _check_square("cond", x)
    return norm(x, p, axis=(-2, -1)) * norm(inv(x), p, axis=(-2, -1))


def matrix_rank(a, tol=None, *, rtol=None):
    """How many singular values exceed tol, or rtol times the greatest; a plain integer array"""
    a = _array(a)
    if a.ndim < 2:
        return (a != 0).any().astype(int)
    s = svdvals(a)
    return (_nonzero(s, a.shape, rtol) if tol is None else s > tol).sum(axis=-1)


# ------------------------------------------------------------------------------------- products


def matrix_power(a, n):
    """A A ... A, n factors, by repeated squaring; a negative n inverts, and n = 0 gives I"""
    _check_square("matrix_power", a)
    n = integer(n)
    if n == 0:
        nowhere = _eye(a) & False
        return ops.where(nowhere, a, _identity(a))  # its gradient is exactly 0
    if n < 0:
        a, n = inv(a), -n
    result = None
    while n:
        if n % 2:
            result = a if result is None else result @ a
        n //= 2
        if n:
            a = a @ a
    return result


def multi_dot(arrays):
    """The product of two or more matrices, in the order that costs the fewest multiplications

    The first and the last may be vectors. Dynamic programming: Cormen et al. 2009, sec. 15.2
    """
    arrays = list(arrays)
    shapes = [tuple(x.shape) for x in arrays]
    if len(arrays) < 2:
        raise ValueError(f"multi_dot: got {len(arrays)} arrays, expected two or more")
    row, column = len(shapes[0]) == 1, len(shapes[-1]) == 1
    if row:
        arrays[0] = arrays[0][None, :]
    if column:
        arrays[-1] = arrays[-1][:, None]
    sizes = [tuple(x.shape) for x in arrays]
    fit = all(len(s) == 2 for s in sizes)
    if not fit or any(a[1] != b[0] for a, b in pairwise(sizes)):
        raise ValueError(f"multi_dot: shapes {shapes} do not make a chain of matrices")
    y = _chain(arrays, [s[0] for s in sizes] + [sizes[-1][1]])
    if row and column:
        return y[0, 0]
    return y[0] if row else y[:, 0] if column else y


def _chain(arrays, sizes):
    """The product of arrays, the i-th of them sizes[i] by sizes[i + 1]"""
    n = len(arrays)
    # best[i, j]: (cost, where to split) of the product of the i-th to the j-th
    best = {(i, i): (0, i) for i in range(n)}
    for length in range(1, n):
        for i in range(n - length):
            j = i + length
            best[i, j] = min(
                (best[i, k][0] + best[k + 1, j][0] + sizes[i] * sizes[k + 1] * sizes[j + 1], k)
                for k in range(i, j)
            )

    def product(i, j):
        k = best[i, j][1]
        return arrays[i] if i == j else product(i, k) @ product(k + 1, j)

    return product(0, n - 1)


def cross(x1, x2, axis=-1):
    """The cross product of 3-vectors along an axis      y_0 = a_1 b_2 - a_2 b_1, and cyclic"""
    for x in (x1, x2):
        if x.shape[axis] != 3:
            raise ValueError(f"cross: got shape {tuple(x.shape)}, expected 3 along axis {axis}")
    first = _cycled(x1, axis, 1) * _cycled(x2, axis, 2)
    return first - _cycled(x1, axis, 2) * _cycled(x2, axis, 1)


def _cycled(x, axis, by):
    """x_(i + by) in place i, cyclically, along an axis"""
    head, tail = ([slice(None)] * len(x.shape) for _ in range(2))
    head[axis], tail[axis] = slice(by, None), slice(by)
    return ops.concatenate(x[tuple(head)], x[tuple(tail)], axis=axis)


# Numerator of the [13/13] Pade approximant of e^x, lowest power first: Higham 2005.
_PADE = (
    *(64764752532480000, 32382376266240000, 7771770303897600, 1187353796428800, 129060195264000),
    *(10559470521600, 670442572800, 33522128640, 1323241920, 40840800, 960960, 16380, 182, 1),
)
_PADE_REACH = 5.371920351148152  # the 1-norm up to which it is exact to double precision


def expm(a):
    """e^A = (e^(A / 2^s))^(2^s), by a Pade approximant      a: (..., n, n)

    Higham 2005, "The scaling and squaring method for the matrix exponential revisited"
    """
    _check_square("expm", a)
    if a.dtype in dtypes.HALF:
        return ops.astype(expm(ops.astype(a, dtype=dtypes.float32)), dtype=a.dtype)
    array = _array(a)
    size = float(abs(array).sum(axis=-2).max()) if array.size else 0.0
    squarings = max(0, math.ceil(math.log2(size / _PADE_REACH))) if 0 < size < math.inf else 0
    x = a / 2.0**squarings
    eye, b = _identity(x), [float(c) for c in _PADE]
    x2 = x @ x
    x4 = x2 @ x2
    x6 = x4 @ x2
    odd = x6 @ (x6 * b[13] + x4 * b[11] + x2 * b[9]) + x6 * b[7] + x4 * b[5] + x2 * b[3]
    odd = x @ (odd + b[1] * eye)
    even = x6 @ (x6 * b[12] + x4 * b[10] + x2 * b[8]) + x6 * b[6] + x4 * b[4] + x2 * b[2]
    even = even + b[0] * eye
    y = solve(even - odd, even + odd)
    for _ in range(squarings):
        y = y @ y
    return y
