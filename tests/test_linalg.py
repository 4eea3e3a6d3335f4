"""tg.linalg against numpy, scipy, identities, and numerical derivatives to second order."""

import math

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml import linalg

RTOL = 1e-11  # 4 by 4 float64 of condition below 4: a few hundred roundings at most


# --- matrices with singular values between 1 and 3, no two closer than 0.3


def general(rng, m, n, batch=()):
    u, _, vt = np.linalg.svd(rng.normal(size=(*batch, m, n)), full_matrices=False)
    k = min(m, n)
    s = 1 + 0.5 * np.arange(k) + rng.uniform(0, 0.2, k)
    return u * s @ vt


def symmetric(rng, n, batch=()):
    q, _ = np.linalg.qr(rng.normal(size=(*batch, n, n)))
    w = 1 + 0.5 * np.arange(n) + rng.uniform(0, 0.2, n)
    return both_triangles(q * w @ q.swapaxes(-1, -2))


def both_triangles(x):
    return (x + x.swapaxes(-1, -2)) / 2


def square(rng, batch):
    n = int(rng.integers(1, 5))
    return (general(rng, n, n, batch),)


def two_squares(rng, batch):
    return general(rng, 4, 4, batch), general(rng, 4, 4, batch)


def tall(rng, batch):
    return (general(rng, 5, 3, batch),)


def wide(rng, batch):
    return (general(rng, 2, 4, batch),)


def definite(rng, batch):
    return (symmetric(rng, int(rng.integers(1, 5)), batch),)


def singular(rng, batch):
    """Rank n - 1, n - 2 or 0: no inverse, and yet a determinant with a derivative."""
    rank = int(rng.integers(0, 4))
    x = general(rng, 4, 4, batch)
    return (x[..., :rank] @ general(rng, 4, 4, batch)[..., :rank, :],)


def system(rng, batch):
    return general(rng, 3, 3, batch), rng.normal(size=(*batch, 3, 2))


def system_of_vector(rng, batch):
    return general(rng, 3, 3, batch), rng.normal(size=3)


def one_matrix_many_sides(rng, batch):
    return general(rng, 3, 3), rng.normal(size=(*batch, 3, 2))


def overdetermined(rng, batch):
    return general(rng, 4, 2, batch), rng.normal(size=(*batch, 4, 2))


def points(rng, batch):
    """Entries away from 0 and no two of equal size, since |x| and max have kinks there."""
    size = math.prod(batch) * 12
    x = (0.5 + rng.permutation(size) / size) * rng.choice([-1, 1], size)
    return (x.reshape(*batch, 4, 3),)


def uneven(rng, batch):
    """Sums of |x| along rows and columns that differ by a tenth or more."""
    rows, columns = 1 + 0.3 * rng.permutation(4), 1 + 0.3 * rng.permutation(3)
    x = np.outer(rows, columns) * rng.uniform(0.99, 1.01, (*batch, 4, 3))
    return (x * rng.choice([-1, 1], x.shape),)


def off_kinks(rng, batch):
    """Square matrices: entries away from 0 and one column with the largest sum, in the inverse too.

    The numerical step moves an entry by 0.002 at most, and of the inverse, as no singular value is
    below 1, by hardly more.
    """
    while True:
        (x,) = square(rng, batch)
        both = np.abs(np.stack([x, np.linalg.inv(x)]))
        *_, second, largest = np.sort([0 * both[..., 0, 0], *np.moveaxis(both.sum(-2), -1, 0)], 0)
        if both.min() > 0.01 and (largest - second).min() > 0.01:
            return (x,)


def two_vectors(rng, batch):
    return rng.normal(size=(*batch, 3)), rng.normal(size=(*batch, 3))


def chain(rng, batch):
    return rng.normal(size=(2, 4)), rng.normal(size=(4, 3)), rng.normal(size=3)


NORMS = {f"norm {p}": p for p in (None, 0, 1, 2, 3, 1.5, 0.5, -1, -2, np.inf, -np.inf)}
MATRIX_NORMS = {f"matrix norm {p}": p for p in ("fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf)}

# name: (ours, the reference in numpy or scipy, inputs)
CASES = {
    "inv": (linalg.inv, np.linalg.inv, square),
    "solve": (linalg.solve, np.linalg.solve, system),
    "solve for a vector": (linalg.solve, np.linalg.solve, system_of_vector),
    "solve, batch of b": (linalg.solve, np.linalg.solve, one_matrix_many_sides),
    "det": (linalg.det, np.linalg.det, square),
    "det of a singular": (linalg.det, np.linalg.det, singular),
    "slogdet": (linalg.slogdet, np.linalg.slogdet, square),
    "eigvalsh": (linalg.eigvalsh, np.linalg.eigvalsh, definite),
    "svdvals": (linalg.svdvals, np.linalg.svdvals, tall),
    "pinv, tall": (linalg.pinv, np.linalg.pinv, tall),
    "pinv, wide": (linalg.pinv, np.linalg.pinv, wide),
    "matrix_power 5": (lambda a: linalg.matrix_power(a, 5), lambda a: a @ a @ a @ a @ a, square),
    "matrix_power -2": (
        lambda a: linalg.matrix_power(a, -2),
        lambda a: np.linalg.matrix_power(a, -2),
        square,
    ),
    "matrix_power 0": (
        lambda a: linalg.matrix_power(a, 0),
        lambda a: np.linalg.matrix_power(a, 0),
        square,
    ),
    "cond": (linalg.cond, np.linalg.cond, tall),
    "cond -2": (lambda a: linalg.cond(a, -2), lambda a: np.linalg.cond(a, -2), tall),
    "cond 1": (lambda a: linalg.cond(a, 1), lambda a: np.linalg.cond(a, 1), off_kinks),
    "multi_dot": (
        lambda *xs: linalg.multi_dot(xs),
        lambda *xs: np.linalg.multi_dot(xs),
        chain,
    ),
    "cross": (linalg.cross, np.linalg.cross, two_vectors),
    "expm": (linalg.expm, scipy.linalg.expm, square),
    "expm, squared": (lambda a: linalg.expm(a * 4), lambda a: scipy.linalg.expm(a * 4), square),
    **{
        name: (
            lambda x, p=p: linalg.norm(x, p, axis=-2),
            lambda x, p=p: np.linalg.norm(x, p, axis=-2),
            points,
        )
        for name, p in NORMS.items()
    },
    **{
        name: (
            lambda x, p=p: linalg.norm(x, p, axis=(-1, -2), keepdims=True),
            lambda x, p=p: np.linalg.norm(x, p, axis=(-1, -2), keepdims=True),
            uneven if p in (1, -1, np.inf, -np.inf) else tall,
        )
        for name, p in MATRIX_NORMS.items()
    },
}


# The columns of U and V, of Q and R^T, are unique up to sign, and LAPACK's choice of sign jumps.
# Products of two columns have none, and all else about the factors follows from them.


def columns_times(x, y):
    """x_ik y_jk      (..., m, k), (..., n, k) -> (..., m, n, k)"""
    return x[..., :, None, :] * y[..., None, :, :]


def signless_svd(a):
    u, s, vt = linalg.svd(a)
    return columns_times(u, u), s, columns_times(u, vt.swapaxes(-1, -2))


def signless_eigh(a, UPLO="L"):
    w, v = linalg.eigh(a, UPLO=UPLO)
    return w, columns_times(v, v)


def signless_qr(a):
    q, r = linalg.qr(a)
    return columns_times(q, q), columns_times(q, r.swapaxes(-1, -2))


FACTORS = {
    "cholesky": (linalg.cholesky, definite),
    "cholesky, upper": (lambda a: linalg.cholesky(a, upper=True), definite),
    "eigh": (signless_eigh, definite),
    "eigh, upper": (lambda a: signless_eigh(a, UPLO="U"), definite),
    "svd, tall": (signless_svd, tall),
    "svd, wide": (signless_svd, wide),
    "svd, square": (signless_svd, square),
    "qr, tall": (signless_qr, tall),
    "qr, wide": (signless_qr, wide),
    "qr, square": (signless_qr, square),
    "lstsq": (lambda a, b: linalg.lstsq(a, b)[:2], overdetermined),
    "cofactors": (linalg.cofactors, square),
    "cofactors_jvp": (linalg.cofactors_jvp, two_squares),
}
DERIVATIVES = {name: (f, inputs) for name, (f, _, inputs) in CASES.items()} | FACTORS
SYMMETRIC = definite
batches = st.sampled_from([(), (2,), (2, 1)])
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", CASES)
@given(seed=seeds, batch=batches)
def test_value_is_that_of_the_reference(name, seed, batch):
    ours, reference, inputs = CASES[name]
    xs = inputs(np.random.default_rng(seed), batch)
    found, expected = as_tuple(ours(*map(tg.tensor, xs))), as_tuple(reference(*xs))
    plain = as_tuple(ours(*xs))  # called with arrays, arrays come back
    for y, z, p in zip(found, expected, plain, strict=True):
        scale = np.abs(z).max(initial=1)
        np.testing.assert_allclose(y.numpy(), z, rtol=RTOL, atol=RTOL * scale)
        assert y.dtype == np.float64
        assert not isinstance(p, tg.Tensor)
        assert np.array_equal(p, y.numpy())


# --- derivatives


def as_tuple(y):
    return tuple(y) if isinstance(y, tuple) else (y,)


def mixed(f):
    """f as a scalar function that depends on every output, to the second power"""

    def scalar(*xs):
        total = tg.tensor(np.float64(0))
        for y in as_tuple(f(*xs)):
            weights = np.random.default_rng(y.size).normal(size=(2, *y.shape))
            total = total + (y * weights[0]).sum() + (y * y * weights[1]).sum()
        return total

    return scalar


def slopes(f, xs, directions, order):
    """f and its derivatives along a direction at xs, from the tape"""
    xs = [tg.tensor(x, requires_grad=True) for x in xs]
    y = f(*xs)
    found = [y.item()]
    for _ in range(order):
        gradients = tg.grad(y, xs, create_graph=True)
        y = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        found.append(y.item())
    return np.array(found)


def numerical_slopes(f, xs, directions, order, h=1e-3):
    """The derivatives of slopes of one order less: four-point central difference, error O(h^4)"""

    def at_step(k):
        moved = [x + k * h * d for x, d in zip(xs, directions, strict=True)]
        return slopes(f, moved, directions, order)

    at = {k: at_step(k) for k in (-2, -1, 1, 2)}
    return (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h)


def assert_derivatives(f, xs, directions, order=2):
    expected = numerical_slopes(f, xs, directions, order - 1)
    found = slopes(f, xs, directions, order)
    scale = np.abs(np.concatenate([found, expected])).max() + 1
    # h^4 = 1e-12 times a fifth derivative, which grows as 5! over the distance of a pole, about 1/2
    np.testing.assert_allclose(found[1:], expected, rtol=1e-6, atol=1e-7 * scale)


def unit_directions(rng, xs, inputs):
    directions = [rng.normal(size=x.shape) for x in xs]
    if inputs is SYMMETRIC:
        directions = [both_triangles(d) for d in directions]
    length = math.sqrt(sum((d * d).sum() for d in directions))
    return [d / length for d in directions]


@pytest.mark.parametrize("name", DERIVATIVES)
@given(seed=seeds, batch=batches)
def test_first_and_second_derivative(name, seed, batch):
    f, inputs = DERIVATIVES[name]
    rng = np.random.default_rng(seed)
    xs = inputs(rng, batch)
    assert_derivatives(mixed(f), xs, unit_directions(rng, xs, inputs))


@pytest.mark.parametrize("name", DERIVATIVES)
def test_plain_and_recorded_backward_agree_and_keep_shape_and_dtype(name):
    f, inputs = DERIVATIVES[name]
    for dtype in ("float32", "float64"):
        xs = inputs(np.random.default_rng(0), (2,))
        xs = [tg.tensor(x.astype(dtype), requires_grad=True) for x in xs]
        y = mixed(lambda *xs: tuple(z.astype("float64") for z in as_tuple(f(*xs))))(*xs)
        plain, recorded = tg.grad(y, xs), tg.grad(y, xs, create_graph=True)
        for x, g, r in zip(xs, plain, recorded, strict=True):
            assert g.shape == x.shape
            assert g.dtype == r.dtype == x.dtype
            assert np.array_equal(g.numpy(), r.numpy())


@pytest.mark.parametrize("f", [linalg.det, linalg.inv, linalg.slogdet, linalg.expm])
def test_third_derivative(f):
    rng = np.random.default_rng(5)
    xs = (general(rng, 4, 4),)
    assert_derivatives(mixed(f), xs, unit_directions(rng, xs, None), order=3)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_det_of_a_zero_matrix_has_its_polynomials_derivatives(n):
    zero = tg.tensor(np.zeros((n, n)), requires_grad=True)
    (g,) = tg.grad(linalg.det(zero), [zero], create_graph=True)
    assert np.array_equal(g.numpy(), np.ones((1, 1)) if n == 1 else np.zeros((n, n)))
    second = tg.grad((g * np.eye(n)).sum(), zero).numpy()
    assert np.array_equal(np.abs(second), np.eye(2) if n == 2 else np.zeros((n, n)))


# --- identities


@given(seed=seeds, batch=batches)
def test_factors_multiply_back(seed, batch):
    rng = np.random.default_rng(seed)
    for (a,) in (tall(rng, batch), wide(rng, batch), square(rng, batch)):
        u, s, vt = linalg.svd(tg.tensor(a))
        q, r = linalg.qr(tg.tensor(a))
        np.testing.assert_allclose(((u * s[..., None, :]) @ vt).numpy(), a, atol=1e-13)
        np.testing.assert_allclose((q @ r).numpy(), a, atol=1e-13)
        np.testing.assert_allclose((q.mT @ q).numpy() + 0 * a[..., :1, :1], unit(q), atol=1e-13)
        assert np.array_equal(np.triu(r.numpy()), r.numpy())
        assert np.array_equal(linalg.qr(a, mode="r"), r.numpy())
        assert np.array_equal(np.sign(r.numpy()), np.sign(np.linalg.qr(a).R))  # numpy's signs
        assert np.allclose(linalg.svd(a, compute_uv=False), s.numpy())
    (a,) = definite(rng, batch)
    w, v = linalg.eigh(tg.tensor(a))
    low, up = linalg.cholesky(a), linalg.cholesky(a, upper=True)
    np.testing.assert_allclose(((v * w[..., None, :]) @ v.mT).numpy(), a, atol=1e-13)
    np.testing.assert_allclose(low @ low.swapaxes(-1, -2), a, atol=1e-13)
    np.testing.assert_allclose(up, low.swapaxes(-1, -2), atol=1e-13)


def unit(q):
    return np.broadcast_to(np.eye(q.shape[-1]), (*q.shape[:-2], q.shape[-1], q.shape[-1]))


@given(seed=seeds)
def test_lstsq_is_numpys_and_takes_batches(seed):
    rng = np.random.default_rng(seed)
    a, b = general(rng, 5, 3, (2,)), rng.normal(size=(2, 5, 2))
    stacked = linalg.lstsq(a, b)
    for i in range(2):
        for found, batch, expected in zip(
            linalg.lstsq(a[i], b[i]), stacked, np.linalg.lstsq(a[i], b[i]), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-9)
            np.testing.assert_allclose(batch[i], expected, rtol=1e-9)
    for matrix in (a[0].T, a[0][:, [0, 0, 1]]):  # no residuals: wide, and not of full rank
        x, residuals, rank, _ = linalg.lstsq(matrix, b[0, : matrix.shape[0], 0])
        expected = np.linalg.lstsq(matrix, b[0, : matrix.shape[0], 0])
        np.testing.assert_allclose(x, expected[0], rtol=1e-9, atol=1e-12)
        assert residuals.shape == expected[1].shape == (0,)
        assert rank == expected[2]


def test_cofactors_are_signed_minors():
    a = general(np.random.default_rng(0), 4, 4)

    def signed_minor(i, j):
        return (-1) ** (i + j) * np.linalg.det(np.delete(np.delete(a, i, 0), j, 1))

    expected = [[signed_minor(i, j) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(linalg.cofactors(a), expected, atol=1e-12)


@given(seed=seeds)
def test_matrix_rank_counts(seed):
    rng = np.random.default_rng(seed)
    (a,) = singular(rng, (3,))
    assert np.array_equal(linalg.matrix_rank(tg.tensor(a)), np.linalg.matrix_rank(a))
    assert linalg.matrix_rank(np.diag([1.0, 0.1, 1e-3]), tol=0.01) == 2
    assert linalg.matrix_rank(np.diag([10.0, 0.2, 1e-3]), rtol=0.01) == 2


def test_multi_dot_multiplies_in_the_cheapest_order():
    a, b = np.ones((1000, 2)), np.ones((2, 1000))
    chained = linalg.multi_dot([tg.tensor(x, requires_grad=True) for x in (a, b, a)])
    first_shape = chained.node.targets[1][1]  # a @ (b @ a), never the 1000 by 1000 product
    assert first_shape == (2, 2)


# --- the edges: symmetry, kinks, equal values, extreme and empty input


@pytest.mark.parametrize("f", [linalg.cholesky, linalg.eigh, linalg.eigvalsh])
def test_one_triangle_is_read_and_the_gradient_is_symmetric(f):
    a = symmetric(np.random.default_rng(0), 3)
    poisoned = tg.tensor(np.where(np.triu(np.ones((3, 3)), 1), 99.0, a), requires_grad=True)
    for y, z in zip(as_tuple(f(poisoned)), as_tuple(f(a)), strict=True):
        assert np.array_equal(y.numpy(), z)
    g = tg.grad(mixed(f)(poisoned), poisoned).numpy()
    np.testing.assert_allclose(g, g.T, atol=1e-12)
    clean = leaf(a)
    np.testing.assert_allclose(g, tg.grad(mixed(f)(clean), clean).numpy(), atol=1e-12)


@pytest.mark.parametrize(
    "f",
    [
        lambda a: linalg.cholesky(a, upper=True),
        lambda a: linalg.eigh(a, UPLO="U"),
        lambda a: linalg.eigvalsh(a, UPLO="U"),
    ],
)
def test_the_upper_triangle_is_read_when_asked_for(f):
    a = symmetric(np.random.default_rng(0), 3)
    poisoned = np.where(np.tri(3, k=-1), 99.0, a)
    for y, z in zip(as_tuple(f(poisoned)), as_tuple(f(a)), strict=True):
        assert np.array_equal(y, z)
    g, h = (tg.grad(mixed(f)(x), x) for x in (leaf(poisoned), leaf(a)))
    np.testing.assert_allclose(g.numpy(), h.numpy(), atol=1e-12)


def leaf(x):
    return tg.tensor(x, requires_grad=True)


@pytest.mark.parametrize("p", [None, 1, 2, 3, 1.5, 0.5, np.inf, 0])
def test_the_gradient_of_a_vector_norm_is_0_at_0(p):
    x = tg.tensor(np.zeros(3), requires_grad=True)
    (g,) = tg.grad(linalg.norm(x, p), [x], create_graph=True)
    assert np.array_equal(g.numpy(), np.zeros(3))
    if p not in (0, np.inf):  # so is the second derivative, by convention
        assert np.array_equal(tg.grad(g.sum(), x).numpy(), np.zeros(3))


@pytest.mark.parametrize("p", ["fro", "nuc", 1, -1, 2, -2, np.inf])
def test_the_gradient_of_a_matrix_norm_is_0_at_0(p):
    x = tg.tensor(np.zeros((3, 2)), requires_grad=True)
    assert np.array_equal(tg.grad(linalg.norm(x, p, axis=(0, 1)), x).numpy(), np.zeros((3, 2)))


def test_ties_in_a_norm_share_the_gradient():
    x = tg.tensor([3.0, -3.0, 1.0], requires_grad=True)
    assert tg.grad(linalg.norm(x, np.inf), x).tolist() == [0.5, -0.5, 0]
    a = tg.tensor(np.diag([2.0, 2.0, 1.0]), requires_grad=True)
    np.testing.assert_allclose(tg.grad(linalg.norm(a, 2), a).numpy(), np.diag([0.5, 0.5, 0]))


@pytest.mark.parametrize("scale", [1e200, 1e-200])
@pytest.mark.parametrize("p", [None, 3])
def test_norms_neither_overflow_nor_vanish(scale, p):
    x = tg.tensor(np.array([3.0, -4.0]) * scale, requires_grad=True)
    unscaled = tg.tensor(np.array([3.0, -4.0]), requires_grad=True)
    y, z = linalg.norm(x, p), linalg.norm(unscaled, p)
    np.testing.assert_allclose(y.numpy() / scale, z.numpy(), rtol=1e-14)
    np.testing.assert_allclose(tg.grad(y, x).numpy(), tg.grad(z, unscaled).numpy(), rtol=1e-14)


@pytest.mark.parametrize(
    ("values", "vectors"),
    [
        (lambda a: linalg.eigh(a)[0], lambda a: linalg.eigh(a)[1]),
        (lambda a: linalg.svd(a)[1], lambda a: linalg.svd(a)[0]),
        (linalg.eigvalsh, None),
        (linalg.svdvals, None),
    ],
)
def test_equal_values_have_finite_gradients_and_their_vectors_have_none(values, vectors):
    a = tg.tensor(np.diag([1.0, 2.0, 2.0]), requires_grad=True)
    y = values(a)
    np.testing.assert_allclose(tg.grad((y * y).sum(), a).numpy(), 2 * a.numpy(), atol=1e-14)
    if vectors is not None:
        assert np.isnan(tg.grad(vectors(a)[:, 0].sum(), a).numpy()).any()


def test_the_second_derivative_of_equal_eigenvalues_is_nan_not_a_wrong_number():
    a = tg.tensor(np.eye(2), requires_grad=True)
    w = linalg.eigvalsh(a)
    (g,) = tg.grad((w * w).sum(), [a], create_graph=True)
    assert np.isnan(tg.grad(g[0, 1], a).numpy()).any()


def test_one_degenerate_matrix_does_not_spoil_its_batch():
    rng = np.random.default_rng(0)
    a = tg.tensor(np.stack([np.eye(3), symmetric(rng, 3)]), requires_grad=True)
    g = tg.grad(linalg.eigh(a)[1].sum(), a).numpy()
    assert np.isnan(g[0]).any()
    assert np.isfinite(g[1]).all()


EMPTY = ["inv", "det", "slogdet", "cholesky", "eigh", "eigvalsh", "svd", "svdvals", "qr", "pinv"]


@pytest.mark.parametrize("name", [*EMPTY, "expm", "norm"])
@pytest.mark.parametrize("shape", [(0, 0), (2, 0, 0), (0, 3, 3)])
def test_empty_matrices(name, shape):
    f = getattr(linalg, name)
    x = tg.tensor(np.zeros(shape), requires_grad=True)
    y = mixed(f)(x)
    (g,) = tg.grad(y, [x], create_graph=True)
    assert g.shape == tg.grad(g.sum(), x).shape == shape
    reference = {"expm": lambda x: x}.get(name) or getattr(np.linalg, name)
    assert [z.shape for z in as_tuple(f(x))] == [z.shape for z in as_tuple(reference(x.numpy()))]


@pytest.mark.parametrize("name", ["svd", "svdvals", "qr", "pinv"])
@pytest.mark.parametrize("shape", [(3, 0), (2, 0, 3)])
def test_empty_rectangles(name, shape):
    x = tg.tensor(np.zeros(shape), requires_grad=True)
    assert tg.grad(mixed(getattr(linalg, name))(x), x).shape == shape


def test_the_empty_determinant_is_1():
    assert linalg.det(tg.tensor(np.zeros((0, 0)))).item() == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [*EMPTY, "expm"])
def test_half_types_are_computed_in_float32(name, dtype):
    f = getattr(linalg, name)
    a = np.array([[4, 1, 1], [1, 3, 0], [1, 0, 2]], np.float32)
    half = tg.tensor(a, dtype=dtype, requires_grad=True)
    single = tg.tensor(a, requires_grad=True)
    for y, z in zip(as_tuple(f(half)), as_tuple(f(single)), strict=True):
        assert y.dtype.name == dtype
        expected = z.astype(dtype)  # one rounding, and expm's inside are float32 as well
        assert np.array_equal(y.astype("float32").numpy(), expected.astype("float32").numpy())
    g, h = (tg.grad(as_tuple(f(x))[-1].astype("float32").sum(), x) for x in (half, single))
    assert g.dtype.name == dtype
    eps = float(tg.dtypes.finfo(dtype).eps)  # vectors that were narrowed once are read again
    scale = np.abs(h.numpy()).max()
    np.testing.assert_allclose(g.astype("float32").numpy(), h.numpy(), atol=16 * eps * scale)


def test_integers_become_float64():
    a = tg.tensor([[2, 1], [1, 2]])
    assert linalg.det(a).dtype == linalg.inv(a).dtype == linalg.norm(a).dtype == np.float64
    assert linalg.matrix_power(a, 3).tolist() == [[14, 13], [13, 14]]


# --- errors say who and what


ZERO, RECTANGLE = np.zeros((2, 2)), np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: linalg.inv(tg.tensor(ZERO)), np.linalg.LinAlgError, r"inv.*\(2, 2\)"),
        (lambda: linalg.solve(tg.tensor(ZERO), ZERO), np.linalg.LinAlgError, "solve.*ingular"),
        (lambda: linalg.cholesky(tg.tensor(-np.eye(2))), np.linalg.LinAlgError, "cholesky"),
        (lambda: linalg.det(tg.tensor(RECTANGLE)), ValueError, r"det.*\(2, 3\)"),
        (lambda: linalg.solve(tg.tensor(np.eye(2)), np.ones(3)), ValueError, r"solve.*\(3,\)"),
        (lambda: linalg.svd(tg.tensor(np.ones(3))), ValueError, r"svd.*\(3,\)"),
        (lambda: linalg.svd(RECTANGLE, full_matrices=True), ValueError, "full_matrices"),
        (lambda: linalg.qr(np.ones(3)), ValueError, r"qr.*\(3,\)"),
        (lambda: linalg.qr(RECTANGLE, mode="raw"), ValueError, "mode.*raw"),
        (lambda: linalg.expm(RECTANGLE), ValueError, r"expm.*\(2, 3\)"),
        (lambda: linalg.matrix_power(RECTANGLE, 2), ValueError, r"matrix_power.*\(2, 3\)"),
        (lambda: linalg.matrix_power(ZERO, 0.5), TypeError, "float"),
        (lambda: linalg.cond(np.ones((0, 2))), ValueError, r"cond.*\(0, 2\)"),
        (lambda: linalg.cross(np.ones(2), np.ones(2)), ValueError, r"cross.*\(2,\)"),
        (lambda: linalg.multi_dot([RECTANGLE, RECTANGLE]), ValueError, r"multi_dot.*\(2, 3\)"),
        (lambda: linalg.multi_dot([RECTANGLE]), ValueError, "multi_dot.*two"),
        (lambda: linalg.norm(np.ones((2, 2, 2)), 1), ValueError, r"norm.*\(2, 2, 2\)"),
        (lambda: linalg.norm(RECTANGLE, axis=2), ValueError, "norm.*axis"),
        (lambda: linalg.norm(RECTANGLE, axis=(0, -2)), ValueError, "norm.*axis"),
        (lambda: linalg.norm(RECTANGLE, "nuc", axis=0), ValueError, "norm.*nuc"),
        (lambda: linalg.norm(RECTANGLE, 3), ValueError, "norm.*3"),
    ],
)
def test_errors_name_the_function_and_the_shape(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
